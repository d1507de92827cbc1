"""The kernel's clock: whether somebody keeps it right (adjtimex(2))."""

import ctypes
from typing import Final

TIME_ERROR: Final = 5
"""linux/timex.h: nobody keeps it in step with another one."""
_TIMEX_BYTES: Final = 208
"""sizeof(struct timex) on 64-bit; all zeros ask and change nothing."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.adjtimex.argtypes = (ctypes.c_char_p,)


def is_synchronised() -> bool | None:
    """Tell whether something such as NTP keeps the clock; None where one may not ask."""
    state = _libc.adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    return None if state < 0 else state != TIME_ERROR
