"""OSError becomes one of our errors here and nowhere else, with the verb and the thing in the text."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def told_as(what: str) -> Iterator[None]:
    """Turn an OSError into InUse, Unsupported or Unusable; `what` is "cannot VERB THING NAME"."""
    try:
        yield
    except OSError as err:
        raise _kind(err)(f"{what}: {_cause(err)}") from err


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
