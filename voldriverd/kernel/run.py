"""The only place that starts processes: argument lists, never a shell, always with a limit."""

import errno
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Final

from voldriverd.kernel import pipe, watch

TIMEOUT_S: Final = 120.0
"""Longer than any mkfs or grow that was seen (a thick 100 GiB xfs: 3 s); a hung tool must not hang a verb for ever."""

_OUTPUT_MAX: Final = 2_000


class ToolError(OSError):
    """A tool ended with a status that means failure; the text has its name, status and last words."""


def run(
    argv: Sequence[str], *, timeout_s: float = TIMEOUT_S, pass_fds: Sequence[int] = (), good: Sequence[int] = (0,)
) -> str:
    """Run a tool to its end and return its standard output; `good` are the statuses that mean success.

    Raises ToolError (also when it did not end in time) and FileNotFoundError if it is not installed.
    """
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=timeout_s,
            pass_fds=pass_fds,
            env=_environment(),
        )
    except subprocess.TimeoutExpired as err:
        raise ToolError(errno.ETIMEDOUT, f"{argv[0]} did not end within {timeout_s:.0f} s") from err
    if done.returncode not in good:
        raise _failure(argv, done.returncode, done.stderr or done.stdout)
    return done.stdout.decode(errors="replace")


def missing(tools: Sequence[str]) -> list[str]:
    """Return those of the tools that are not on the PATH."""
    return [tool for tool in tools if shutil.which(tool) is None]


def watched(argv: Sequence[str], *, timeout_s: float = TIMEOUT_S, good: Sequence[int] = (0,)) -> None:
    """Run a tool that may be killed at any time to its end; `watch` is told that it goes on, and may end it.

    Raises ToolError and FileNotFoundError as `run` does.
    """
    with _running(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, pass_fds=()) as process:
        deadline_s = time.monotonic() + timeout_s
        while True:
            watch.advance()
            try:
                stdout, stderr = process.communicate(timeout=watch.TELL_S)
            except subprocess.TimeoutExpired as err:
                if time.monotonic() > deadline_s:
                    raise ToolError(errno.ETIMEDOUT, f"{argv[0]} did not end within {timeout_s:.0f} s") from err
                continue
            if process.returncode not in good:
                raise _failure(argv, process.returncode, stderr or stdout)
            return


@contextmanager
def feeding(
    argv: Sequence[str], *, stall_s: float = TIMEOUT_S, pass_fds: Sequence[int] = (), good: Sequence[int] = (0,)
) -> Iterator["Feed"]:
    """Run a tool that reads what the block writes; after the block its input ends, and it too.

    Its standard output is thrown away. What the block raises kills it. `stall_s`: how long it may take nothing, or
    need to end after its input did. Raises ToolError (in `write` too) and FileNotFoundError if it is not installed.
    """
    with _running(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=pass_fds) as process:
        assert process.stdin is not None
        tool = _Tool(process, argv, stall_s, good)
        yield Feed(tool, process.stdin)
        process.stdin.close()
        tool.end()


@contextmanager
def reading(
    argv: Sequence[str], *, stall_s: float = TIMEOUT_S, pass_fds: Sequence[int] = (), good: Sequence[int] = (0,)
) -> Iterator["Output"]:
    """Run a tool whose standard output the block reads; one that still runs after the block is killed.

    `stall_s`: how long it may say nothing, or need to end after its output did. Raises ToolError (only in `read`) and
    FileNotFoundError if it is not installed.
    """
    with _running(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, pass_fds=pass_fds) as process:
        assert process.stdout is not None
        yield Output(_Tool(process, argv, stall_s, good), process.stdout)
        process.kill()


class Feed:
    """The standard input of a tool that runs."""

    def __init__(self, tool: "_Tool", stdin: IO[bytes]) -> None:
        """Serve a block of `feeding`."""
        self._tool = tool
        self._fd = stdin.fileno()
        os.set_blocking(self._fd, False)
        pipe.enlarge(self._fd)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Return when the tool, or the pipe, has all of it. Raises ToolError (also if it ended before its input)."""
        rest = memoryview(data)
        while rest:
            self._tool.wait_for(self._fd, select.POLLOUT)
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BrokenPipeError as err:
                self._tool.end()
                raise ToolError(errno.EPIPE, f"{self._tool.argv[0]} ended before its input") from err


class Output:
    """The standard output of a tool that runs."""

    def __init__(self, tool: "_Tool", stdout: IO[bytes]) -> None:
        """Serve a block of `reading`."""
        self._tool = tool
        self._fd = stdout.fileno()
        pipe.enlarge(self._fd)

    def read(self, length: int) -> bytes:
        """Return the next so many bytes, fewer only at the end, when the tool has ended well. Raises ToolError."""
        found: list[bytes] = []
        while length:
            self._tool.wait_for(self._fd, select.POLLIN)
            data = os.read(self._fd, min(length, pipe.BYTES))
            if not data:
                self._tool.end()
                break
            found.append(data)
            length -= len(data)
        return b"".join(found)


class _Tool:
    """A tool that runs, and the end of what it says on standard error, which is read whenever one waits for it."""

    def __init__(
        self, process: subprocess.Popen[bytes], argv: Sequence[str], stall_s: float, good: Sequence[int]
    ) -> None:
        assert process.stderr is not None
        self.argv = argv
        self._process = process
        self._stall_s = stall_s
        self._good = good
        self._stderr = process.stderr.fileno()
        self._said = b""
        self._has_more = True

    def wait_for(self, fd: int, event: int) -> None:
        """Return when something can be done with one of its pipes. Raises ToolError."""
        poll = select.poll()
        poll.register(fd, event)
        self._listen(poll)
        deadline_s = time.monotonic() + self._stall_s
        while True:
            ready = dict(poll.poll(max(0.0, deadline_s - time.monotonic()) * 1_000))
            if fd in ready:
                return
            self._hear(poll, ready, f"stood still for {self._stall_s:.0f} s")

    def end(self) -> None:
        """Wait until it has ended. Raises ToolError."""
        late = f"did not end within {self._stall_s:.0f} s"
        poll = select.poll()
        self._listen(poll)
        deadline_s = time.monotonic() + self._stall_s
        while self._has_more:
            self._hear(poll, dict(poll.poll(max(0.0, deadline_s - time.monotonic()) * 1_000)), late)
        try:
            status = self._process.wait(max(0.0, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired as err:
            raise ToolError(errno.ETIMEDOUT, f"{self.argv[0]} {late}") from err
        if status not in self._good:
            raise _failure(self.argv, status, self._said)

    def _listen(self, poll: select.poll) -> None:
        if self._has_more:
            poll.register(self._stderr, select.POLLIN)

    def _hear(self, poll: select.poll, ready: dict[int, int], late: str) -> None:
        """Take what it said on standard error; with nothing ready it is late. Raises ToolError."""
        if not ready:
            raise ToolError(errno.ETIMEDOUT, f"{self.argv[0]} {late}")
        said = os.read(self._stderr, 1 << 16)
        self._said = (self._said + said)[-_OUTPUT_MAX:]
        if not said:
            self._has_more = False
            poll.unregister(self._stderr)


@contextmanager
def _running(
    argv: Sequence[str], *, stdin: int, stdout: int, pass_fds: Sequence[int]
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a tool that Ctrl-C at our terminal spares (a process group of its own); what the block raises kills it."""
    with subprocess.Popen(
        argv,
        bufsize=0,
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        pass_fds=pass_fds,
        process_group=0,
        env=_environment(),
    ) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def _environment() -> dict[str, str]:
    """Return what tools need of our environment; what may hold secrets (the keys of a bucket) is not theirs."""
    return {name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | {"LC_ALL": "C"}


def _failure(argv: Sequence[str], status: int, said: bytes) -> ToolError:
    words = said.decode(errors="replace").strip()[-_OUTPUT_MAX:]
    return ToolError(errno.EIO, f"{argv[0]} ended with status {status}: {' / '.join(words.splitlines())}")
