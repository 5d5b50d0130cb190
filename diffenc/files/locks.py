"""Advisory locks on open files and folders, held until the descriptor is closed or the process dies.

Not filelock: it opens paths, so it can lock neither a folder nor a file relative to an open folder, and of the errors of
file systems without locks it handles only ENOSYS.
"""

import errno
import fcntl

from absl import logging

# Errors of file systems without locks. NFS emulates flock, and refuses to lock folders with EBADF.
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF}


def try_lock(descriptor: int, wait: bool = False) -> bool:
    """Takes the exclusive lock of an open file or folder. Returns whether its file system has locks at all.

    Raises:
      BlockingIOError: another process holds the lock, and `wait` is False.
      OSError: the disk failed.
    """
    try:
        # flock, not lockf: it locks folders too, and is not lost
        # when another descriptor of the same file is closed.
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


def lock_or_warn(descriptor: int, location: object, unprotected: str) -> None:
    """Calls `try_lock`; without locks, logs a warning that names `location` and the risk, `unprotected`."""
    if not try_lock(descriptor):
        logging.warning("%s is on a file system without locks: nothing keeps %s", location, unprotected)
