"""Downloads official files: checks size and MD5, and resumes interrupted downloads.

Not pooch, which restarts each download from its first byte, and does not limit the bytes a server sends.
"""

import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from diffenc.data import digests
from diffenc.data.official_files import Download
from diffenc.errors import UserError
from diffenc.runtime.progress import ProgressBars
from diffenc.safe_io.reading import one_line

PAUSES = (1.0, 2.0, 4.0)  # seconds before another attempt; as many attempts beside the first
_CHUNK = 2**18  # bytes read at a time
_TIMEOUT = 60  # seconds without a byte


class _Trouble(Exception):  # noqa: N818 - it is worth another attempt
    """The reason, for messages."""


def fetch(downloads: Sequence[Download], folder: Path, bars: ProgressBars) -> None:
    """Downloads every file into `folder`; completes partial files of an earlier call.

    Raises:
      UserError: a file cannot be fetched, or is not the official one.
      OSError: a file cannot be written.
    """
    folder.mkdir(exist_ok=True)
    for wanted in downloads:
        _fetch(wanted, folder / wanted.name, bars)


def _fetch(wanted: Download, path: Path, bars: ProgressBars) -> None:
    if path.exists():  # only whole files have this name
        return
    part = path.with_name(f"{path.name}.part")
    trouble = ""
    for pause in (0.0, *PAUSES):
        time.sleep(pause)
        try:
            _continue(wanted, part, bars)
            _check(wanted, part)
            # Renamed only after the check: a file under its final name is known to be the official one.
            os.replace(part, path)
            return
        except _Trouble as found:
            trouble = str(found)
    raise UserError(f"{wanted.url}: {trouble}; run the same command again to resume")


def _check(wanted: Download, part: Path) -> None:
    """Raises _Trouble unless `part` is the official file; removes it if its MD5 differs."""
    size = part.stat().st_size
    # A short part is kept, so that the next attempt resumes it; with a wrong MD5, resuming would keep the wrong bytes.
    if size < wanted.bytes:
        raise _Trouble(f"the download was cut short at {size:,} of {wanted.bytes:,} bytes")
    if digests.digest_file(part)["md5"] != wanted.md5:
        part.unlink()
        raise _Trouble(f"what came has not the MD5 {wanted.md5} of the official file")


def _continue(wanted: Download, part: Path, bars: ProgressBars) -> None:
    """Downloads the rest of `part`."""
    have = part.stat().st_size if part.exists() else 0
    if have >= wanted.bytes:
        return
    with _asked(wanted.url, have, part) as answer:
        _append(answer, part, have if _continues(answer, have) else 0, wanted, bars)


def _asked(url: str, have: int, part: Path) -> http.client.HTTPResponse:
    # Resumes where the part ends; servers may ignore the header (see `_continues`).
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError) and error.code == 416:
            part.unlink(missing_ok=True)  # the file there is shorter than what we have of it
        raise _Trouble(f"cannot be downloaded ({one_line(error)})") from error


def _continues(answer: http.client.HTTPResponse, have: int) -> bool:
    """Whether the server sends the file from byte `have` on, not all of it."""
    sent = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range") or "")
    return answer.status == 206 and sent is not None and int(sent[1]) == have


def _append(
    answer: http.client.HTTPResponse, part: Path, have: int, wanted: Download, bars: ProgressBars
) -> None:
    advance = bars.start(wanted.name, wanted.bytes)
    advance(have)
    with open(part, "ab") as out:
        # `have` is 0 if the server ignored the range and sends the whole file: the old part is discarded.
        out.truncate(have)
        while chunk := _received(answer):
            have += len(chunk)
            if have > wanted.bytes:  # whatever the server said of the length
                out.truncate(0)
                raise _Trouble(f"more comes than the {wanted.bytes:,} bytes of the official file")
            out.write(chunk)
            advance(len(chunk))
        out.flush()
        # Before the MD5 check and the rename: after a crash the
        # new name could otherwise exist without its content.
        os.fsync(out.fileno())


def _received(answer: http.client.HTTPResponse) -> bytes:
    try:
        # read1, not read: returns the bytes that have arrived, so that those before a broken connection are kept.
        return answer.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Trouble(f"the connection broke off ({one_line(error)})") from error
