"""Cuts: a call in a child process that is killed before its n-th step.

A step is a call that changes something: of `os`, of a file, of an ioctl, mount or tool. Opening a
file is none, although it may make it: that state is cut before the next step.
"""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

_C_STEPS: Final = frozenset(
    {
        *("mkdir", "rmdir", "rename", "replace", "unlink", "remove", "link", "symlink", "mknod", "mkfifo"),
        *("chmod", "fchmod", "chown", "fchown", "lchown", "setxattr", "removexattr", "utime", "truncate", "ftruncate"),
        *("write", "pwrite", "sendfile", "copy_file_range", "posix_fallocate"),
    }
)
_PYTHON_STEPS: Final = frozenset(
    {("ioctl.py", "call"), ("mount.py", "mount"), ("mount.py", "unmount"), ("run.py", "run")}
)


def count(action: Callable[[], object]) -> int:
    """Run the action to its end in a child and return its number of steps (at most 250)."""
    pid = _fork(action, last=None)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def cut(action: Callable[[], object], *, before: int) -> None:
    """Run the action in a child that is killed before this step, counted from 0."""
    pid = _fork(action, last=before)
    os.waitpid(pid, 0)


def _fork(action: Callable[[], object], *, last: int | None) -> int:
    pid = os.fork()
    if pid:
        return pid
    steps = 0

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal steps
        if not _is_step(frame, event, argument):
            return
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)
        steps += 1

    try:
        sys.setprofile(watch)
        action()
        sys.setprofile(None)
        os._exit(min(steps, 250))
    finally:
        os._exit(255)


def _is_step(frame: FrameType, event: str, argument: Any) -> bool:
    if event == "c_call":
        return argument.__name__ in _C_STEPS
    code = frame.f_code
    return event == "call" and (os.path.basename(code.co_filename), code.co_name) in _PYTHON_STEPS
