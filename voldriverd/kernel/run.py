"""The only place that starts processes: argument lists, never a shell, always with a limit."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Final

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
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired as err:
        raise ToolError(110, f"{argv[0]} did not end within {timeout_s:.0f} s") from err
    if done.returncode not in good:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()[-_OUTPUT_MAX:]
        raise ToolError(5, f"{argv[0]} ended with status {done.returncode}: {' / '.join(said.splitlines())}")
    return done.stdout.decode(errors="replace")


def missing(tools: Sequence[str]) -> list[str]:
    """Return those of the tools that are not on the PATH."""
    return [tool for tool in tools if shutil.which(tool) is None]
