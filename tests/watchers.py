"""A watcher that keeps what it is told, and ends the work when it has heard enough."""


class Enough(Exception):
    """What a watcher raises: nothing else knows of it."""


class Watcher:
    """Keeps steps and bytes; `ends_after` bytes of a step (None: any) it raises Enough, 0: at its first word."""

    def __init__(self, step: str | None = None, *, ends_after: int | None = None) -> None:
        self.totals: dict[str | None, int | None] = {}
        """What each step was announced as."""
        self.heard = 0
        """How often it was told something."""
        self.told_bytes: dict[str | None, int] = {}
        self._step: str | None = None
        self._end = step
        self._ends_after = ends_after

    def prepare(self, step: str, total_bytes: int | None) -> None:
        self._step = step
        self.totals[step] = total_bytes

    def advance(self, more_bytes: int) -> None:
        self.heard += 1
        told_bytes = self.told_bytes[self._step] = self.told_bytes.get(self._step, 0) + more_bytes
        if self._end in {None, self._step} and self._ends_after is not None and told_bytes >= self._ends_after:
            raise Enough
