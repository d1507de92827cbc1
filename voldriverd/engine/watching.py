"""Long jobs as watchers (`kernel.watch`): what the work tells is shown, and when nobody wants it any more it ends."""

from typing import TYPE_CHECKING

from voldriverd.backup.faults import Cancelled

if TYPE_CHECKING:
    from voldriverd.engine.supplies import Work


class Counted:
    """Counts all that is told as bytes of the job, each step anew. Its methods raise Cancelled."""

    def __init__(self, work: "Work") -> None:
        """Count nothing yet."""
        self._work = work
        self._done_bytes = 0

    def prepare(self, step: str, total_bytes: int | None) -> None:
        """Show a step, and count it."""
        self.begin(total_bytes)
        self._work.step = step

    def begin(self, total_bytes: int | None) -> None:
        """Count the work itself, which was prepared."""
        _check(self._work)
        self._done_bytes = 0
        self._work.restart()
        self._work.expect(total_bytes)

    def advance(self, more_bytes: int) -> None:
        """Count."""
        _check(self._work)
        self._done_bytes += more_bytes
        self._work.advance(self._done_bytes)


class Shown:
    """Shows the steps of a job that counts its bytes elsewhere."""

    def __init__(self, work: "Work") -> None:
        """Show nothing yet."""
        self._work = work

    def prepare(self, step: str, total_bytes: int | None) -> None:  # noqa: ARG002 - the job has a total of its own
        """Show a step; whoever counts takes it away. What takes no time is not worth to be ended before it."""
        self._work.step = step

    def advance(self, more_bytes: int) -> None:  # noqa: ARG002 - these are no bytes of the job
        """Go on, or raise Cancelled."""
        _check(self._work)


def _check(work: "Work") -> None:
    if work.cancelled.is_set():
        raise Cancelled
