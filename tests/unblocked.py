"""Finds what blocks the event loop: in every daemon that tests start (`tests.running`), and in the tests' own process.

blockbuster raises where a call that may block is made on the thread of a running loop. What it knows is widened here by
fsync and its kin, mounts and ioctls (ours go through ctypes) and processes. The error fails the request that made it,
and is written down too, with its stack: `Running` fails the test even where the daemon passed over it.
"""

import asyncio
import faulthandler
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Final, NamedTuple

import blockbuster

from voldriverd.kernel import ioctl, mount, run

REPORT: Final = "VOLDRIVER_TEST_BLOCKED"
"""The environment variable with the file in which a daemon of the tests writes down what blocked its loop."""


STACKS: Final = signal.SIGUSR2
"""Has a daemon of the tests write down what it does."""
STACKS_END: Final = "end of stacks"


class Allowed(NamedTuple):
    """A function that may block, and why."""

    file: str
    function: str
    reason: str


ALLOWED: Final = (
    Allowed("logging/__init__.py", "emit", "a line of the log must be there before what it tells of is answered"),
    Allowed("voldriverd/sockets.py", "bind", "at the start, when nobody is served yet"),
    Allowed("voldriverd/sockets.py", "bind_tcp", "at the start, when nobody is served yet"),
    Allowed("voldriverd/kernel/process.py", "started", "the kernel writes /proc/PID/stat from memory, in 20 µs"),
    Allowed("voldriverd/daemon.py", "_withdraw", "at the end, when nobody is served any more"),
    Allowed("voldriverd/threads.py", "stop", "at the end: it joins threads that have ended their work"),
    Allowed("voldriverd/worker.py", "save", "at the end, when nobody is served any more"),
)

_OS: Final = ("fsync", "fdatasync", "sync", "open", "stat", "statvfs", "posix_fallocate", "ftruncate", "chmod", "chown")
_OURS: Final[tuple[tuple[ModuleType, str], ...]] = (
    (ioctl, "call"),
    (mount, "mount"),
    (mount, "unmount"),
    (mount, "table"),
    (run, "run"),
    (run, "watched"),
    (run, "feeding"),
    (run, "reading"),
)


def watch(report: Path | None, *, scanned: list[str] | None = None) -> blockbuster.BlockBuster:
    """Begin to raise in this process, and to write each find to a file; `scanned`: only what such modules call."""
    watching = blockbuster.BlockBuster(scanned)
    for name in _OS:
        watching.functions.setdefault(f"os.{name}", blockbuster.BlockBusterFunction(os, name, scanned_modules=scanned))
    for module, name in _OURS:
        key = f"{module.__name__}.{name}"
        watching.functions[key] = blockbuster.BlockBusterFunction(module, name, scanned_modules=scanned)
    for function in watching.functions.values():
        for allowed in ALLOWED:
            function.can_block_in(allowed.file, allowed.function)
    watching.activate()
    if report is not None:
        _write_down(report)
    return watching


def _tell_stacks(_number: int, _frame: FrameType | None) -> None:
    """Write what all threads and tasks do to standard error, as a signal handler; a thread does it, for it blocks."""
    tasks = asyncio.all_tasks()

    def tell() -> None:
        faulthandler.dump_traceback(all_threads=True)
        for task in tasks:
            task.print_stack(file=sys.stderr)
        print(STACKS_END, file=sys.stderr, flush=True)  # noqa: T201 - the log of the test

    threading.Thread(target=tell, daemon=True).start()


def watch_daemon() -> None:
    """Watch this process, which becomes a daemon, if its starter asks for it."""
    report = os.environ.get(REPORT)
    if report is not None:
        watch(Path(report))
        signal.signal(STACKS, _tell_stacks)


def _write_down(report: Path) -> None:
    """Note every find with its stack, before it is raised."""
    plain: Callable[..., None] = blockbuster.BlockingError.__init__

    def noting(self: blockbuster.BlockingError, *arguments: Any) -> None:
        plain(self, *arguments)
        stack = "".join(f"  {each.filename}:{each.lineno} {each.name}\n" for each in traceback.extract_stack()[:-2])
        with report.open("a") as file:
            file.write(f"{self}\n{stack}\n")

    blockbuster.BlockingError.__init__ = noting  # type: ignore[method-assign,assignment]
