"""The one error that is the user's to mend."""


class UserError(Exception):
    """A mistake in what the user gave: says in one line what is wrong, where, and the way out.

    The command line prints it without a traceback and exits with status 1.
    """
