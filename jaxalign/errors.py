"""Errors that are the user's to mend, and how to tell them from errors in the code.

A command of this project answers a user's mistake (an unknown key, a missing file, a group size
that does not divide the batch) with one sentence and exit code 2. A traceback is kept for what the
code did not foresee.
"""

import dis
import errno
from pathlib import Path

_RAISE = dis.opmap["RAISE_VARARGS"]
_ROOT = Path(__file__).resolve().parents[1]
_OWN_FOLDERS = tuple(_ROOT / name for name in ("jaxalign", "experiments", "configs"))
_FILE_TROUBLE = {
    errno.ENOSPC: "no space is left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission is denied",
}


class UserError(ValueError):
    """A mistake in what the user gave. The message is one sentence: thing, place, remedy."""


def user_message(error: BaseException) -> str | None:
    """The sentence to show the user for `error`, or None if the error wants a traceback.

    Three kinds count as the user's: a `UserError`; a `ValueError` or `OSError` that a `raise`
    statement in a file of this project threw on purpose (a ValueError out of a library, or out of
    `int("x")`, is not one); and an `OSError` for which the disk is to blame.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ValueError | OSError) and _raised_on_purpose_here(error):
        return str(error)
    if isinstance(error, OSError) and error.errno in _FILE_TROUBLE:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{_FILE_TROUBLE[error.errno]}"
    return None


def _raised_on_purpose_here(error: BaseException) -> bool:
    """Whether the innermost frame is at a `raise` statement of one of this project's files."""
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    if code.co_code[trace.tb_lasti] != _RAISE:
        return False
    path = Path(code.co_filename).resolve()
    return any(path.is_relative_to(folder) for folder in _OWN_FOLDERS)
