"""OSError becomes one of our errors here and nowhere else, with the verb and the thing in the text."""

import errno
import os
from typing import Final

from voldriverd.errors import InUse, Unsupported, Unusable
from voldriverd.kernel import run, tree

_BUSY: Final = {errno.EBUSY, errno.ETXTBSY}
_UNSUPPORTED: Final = {errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS}
_WHY: Final = {
    errno.ENOSPC: "no space is left in the pool",
    errno.EDQUOT: "the quota of the pool is exhausted",
    errno.EROFS: "the file system of the pool is read-only (see the kernel log)",
    errno.EIO: "the device of the pool is failing (see the kernel log)",
}


def told_as(what: str) -> "_Told":
    """Turn an OSError into InUse, Unsupported or Unusable; `what` is "cannot VERB THING NAME"."""
    return _Told(what)


class _Told:
    """What `with` enters; a class, since a generator costs three times as much, and each verb enters three."""

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: object, err: BaseException | None, trace: object) -> None:
        """Raise what an OSError is told as, from it."""
        if isinstance(err, OSError):
            raise _kind(err)(f"{self._what}: {_cause(err)}") from err


def _kind(err: OSError) -> type[InUse | Unsupported | Unusable]:
    if err.errno in _BUSY:
        return InUse
    return Unsupported if err.errno in _UNSUPPORTED else Unusable


def _cause(err: OSError) -> str:
    if isinstance(err, run.ToolError):
        return str(err.strerror)
    if err.errno in _WHY:
        return _WHY[err.errno]
    text = err.strerror or (os.strerror(err.errno) if err.errno else str(err))
    return f"{text} ({tree.legible(os.fsdecode(err.filename))})" if err.filename else text
