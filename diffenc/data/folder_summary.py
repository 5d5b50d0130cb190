"""The table that `prepare folder` prints last: how many files were read, altered and skipped, by kind."""

import collections
from collections.abc import Mapping, Sequence

from diffenc.data.image_file import Header
from diffenc.data.walk import Skipped

_MOST_ROWS = 20  # of one kind; the rest is added up


def format_table(
    headers: Sequence[Header],
    shape: tuple[int, int, int],
    size: int | None,
    unread: Mapping[str, int],
    skipped: Skipped,
) -> str:
    """Returns a line for each kind of file that was read, alteration, and reason to skip, with its count.

    Args:
      unread: numbers of images in folders of splits that are not read.
    """
    altered = collections.Counter(text for header in headers for text in header.alterations)
    if shape[2] == 3:
        altered["gray copied to three channels"] = sum(header.gray for header in headers)
    if size is not None:
        altered["cut to the square in the centre"] = sum(len(set(header.size)) > 1 for header in headers)
        altered[f"reduced to {size}x{size}"] = sum(min(header.size) > size for header in headers)
    left_out = {
        f"images in {name}: a run cuts its validation images from train": count
        for name, count in unread.items()
    }
    left_out |= {
        f"{why}, such as {skipped.examples[why].name}": count for why, count in skipped.counts.items()
    }
    read = collections.Counter(header.kind for header in headers)
    rows = [
        (what, count, text)
        for what, counts in (("read", read), ("altered", altered), ("skipped", left_out))
        for text, count in _bounded(counts)
    ]
    return "\n".join(f"  {what:8}{count:>9,}  {text}" for what, count, text in rows)


def _bounded(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Returns the most frequent entries, and the sum of the others."""
    found = sorted(((text, count) for text, count in counts.items() if count), key=lambda entry: -entry[1])
    rest = sum(count for _, count in found[_MOST_ROWS:])
    return [*found[:_MOST_ROWS], *([("of other kinds", rest)] if rest else [])]
