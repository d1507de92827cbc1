"""Long jobs that run now (backups, restores, and what targets are looked through for): how far each is.

In memory only: after a crash the rows tell what is to be taken up. The thread that works counts, any thread reads.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from voldriverd.errors import InUse

VERBS: Final = ("backup", "import", "prune", "read", "remove", "restore", "scan", "verify")
"""Of all the jobs that there are."""
RATE_S: Final = 10.0
"""The time over which a rate is taken: it follows what a network does, and one slow chunk does not show."""
_SAMPLE_S: Final = 0.5
_UNITS: Final = "KMGTPE"
_MINUTE_S: Final = 60
_HOUR_S: Final = 3_600


class Job:
    """One of them: counted in bytes of content, as they were before compression."""

    def __init__(
        self, verb: str, *, uses: frozenset[str] = frozenset(), clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin now with nothing done."""
        self.verb = verb
        self.uses = uses
        """The API ids of what must stay as it is meanwhile (`1b5`, `1bt1`)."""
        self.total_bytes: int | None = None
        """Roughly; None as long as that cannot be told."""
        self.done_bytes = 0
        self.cancelled = threading.Event()
        """Whoever works looks at this and ends soon: it was cancelled, or the daemon stops."""
        self.is_given_up = False
        """Whether it was cancelled by somebody, and so is not to be taken up again."""
        self.waits_for: str | None = None
        """What it waits for before it begins; None once it works."""
        self.step: str | None = None
        """What it does before or after its bytes pass, in words (`looks for what changed`); None while they do."""
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque([(clock(), 0)])

    def expect(self, total_bytes: int | None) -> None:
        """Note how much will come."""
        self.total_bytes = total_bytes

    def advance(self, done_bytes: int) -> None:
        """Note how much is done, all in all."""
        self.done_bytes = done_bytes
        now_s = self._clock()
        if now_s - self._samples[-1][0] < _SAMPLE_S:
            return
        self._samples.append((now_s, done_bytes))
        while len(self._samples) > 1 and now_s - self._samples[1][0] >= RATE_S:
            self._samples.popleft()

    def restart(self) -> None:
        """Count anew: what was done before was a preparation, or a first part."""
        self.step, self.total_bytes, self.done_bytes = None, None, 0
        self._samples = deque([(self._clock(), 0)])

    def cancel(self) -> None:
        """Have it end for good."""
        self.is_given_up = True
        self.cancelled.set()

    def stop(self) -> None:
        """Have it end because the daemon does; it is taken up at the next start."""
        self.cancelled.set()

    @property
    def percent(self) -> int | None:
        """How much is done, 100 only at the end; None if the whole is not known."""
        if not self.total_bytes:
            return None
        return min(99, 100 * self.done_bytes // self.total_bytes)

    @property
    def rate(self) -> float | None:
        """Bytes a second over the last RATE_S; None if it has hardly begun."""
        begun_s, begun_bytes = self._samples[0]
        passed_s = self._clock() - begun_s
        if passed_s < _SAMPLE_S:
            return None
        return max(0, self.done_bytes - begun_bytes) / passed_s

    @property
    def left_s(self) -> float | None:
        """Seconds until the end at the present rate; None if that cannot be told."""
        rate = self.rate
        if not rate or not self.total_bytes or self.done_bytes > self.total_bytes:
            return None
        return (self.total_bytes - self.done_bytes) / rate

    def message(self) -> str:
        """Return one line for people: `42 % (1.2 of 2.9 GiB, 85 MiB/s, 20 s left)`, with its step before that."""
        if self.waits_for is not None:
            return f"waits for {self.waits_for}"
        if self.step is None:
            return self._progress()
        return f"{self.step}: {self._progress()}" if self.total_bytes or self.done_bytes else self.step

    def _progress(self) -> str:
        rate, left_s = self.rate, self.left_s
        speed = [] if rate is None else [f"{_size(rate)}/s"]
        if self.percent is None:
            return ", ".join([_size(self.done_bytes), *speed])
        left = [] if left_s is None else [f"{_duration(left_s)} left"]
        return f"{self.percent} % ({', '.join([_part(self.done_bytes, self.total_bytes or 0), *speed, *left])})"


class Jobs:
    """Those that run, by the API id of what they make (`1b5`, `1v7`) or work on (`1bt1`); any thread may use it."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with none."""
        self._clock = clock
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._is_stopping = False

    def get(self, shown_id: str) -> Job | None:
        """Return the job of an API id that runs now."""
        return self._jobs.get(shown_id)

    def all(self) -> list[Job]:
        """Return those that run now."""
        return list(self._jobs.values())

    def using(self, shown_id: str) -> str | None:
        """Return in words a job that needs something to stay as it is; None if there is none."""
        with self._lock:
            found = ((name, job) for name, job in self._jobs.items() if shown_id in job.uses or name == shown_id)
            return next((f"{job.verb} of {name}" for name, job in found), None)

    @contextmanager
    def running(self, shown_id: str, verb: str, *, uses: frozenset[str] = frozenset()) -> Iterator[Job]:
        """Have a job listed for the block. Raises InUse: one is listed for that id.

        One that begins while the daemon stops has been told to end already.
        """
        with self._lock:
            present = self._jobs.get(shown_id)
            if present is not None:
                raise InUse(f"cannot {verb} {shown_id}: {present.verb} of it is running: {present.message()}")
            job = self._jobs[shown_id] = Job(verb, uses=uses, clock=self._clock)
            if self._is_stopping:
                job.stop()
        try:
            yield job
        finally:
            with self._lock:
                del self._jobs[shown_id]

    def stop(self) -> None:
        """Have all of them end because the daemon does, and those that still begin."""
        with self._lock:
            self._is_stopping = True
            for job in self._jobs.values():
                job.stop()


def _part(done_bytes: float, total_bytes: float) -> str:
    """Return `1.2 of 2.9 GiB`: both in the unit of the larger one."""
    shown = max(done_bytes, total_bytes)
    unit, divisor = _unit(shown)
    return f"{_decimal(done_bytes / divisor)} of {_decimal(shown / divisor)} {unit}"


def _size(size_bytes: float) -> str:
    unit, divisor = _unit(size_bytes)
    return f"{_decimal(size_bytes / divisor)} {unit}"


def _unit(size_bytes: float) -> tuple[str, float]:
    unit, divisor = "B", 1.0
    for letter in _UNITS:
        if round(size_bytes / divisor, 1) < 1024:
            break
        unit, divisor = f"{letter}iB", divisor * 1024
    return unit, divisor


def _decimal(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}".removesuffix(".0")


def _duration(duration_s: float) -> str:
    whole = max(1, round(duration_s))
    if whole < _MINUTE_S:
        return f"{whole} s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min {whole % _MINUTE_S} s"
    return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S} min"
