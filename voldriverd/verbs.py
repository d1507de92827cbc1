"""What verbs came to: told in one line each, counted and timed for whoever asks for metrics.

A verb that ends before the request that wanted it is answered is told in the request's line, of the logger `audit`;
any other has a line of its own, with who wanted it. Lives on the event loop.
"""

import logging
from bisect import bisect_left
from contextvars import ContextVar
from typing import Final

from voldriverd import logs, names
from voldriverd.logs import Facts

_log = logging.getLogger(__name__)

BOUNDS_S: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),  # what docker and podman wait for
    *(50.0, 100.0, 600.0, 3_600.0, 21_600.0),  # their limits, and long jobs
)
"""Upper bounds of the classes of durations, in seconds; there is one more, without a bound."""
OK: Final = "ok"
OURS: Final = "voldriverd"
"""Who wants what nobody has asked for: trash that has expired, say."""

_ROUTINE: Final = frozenset({"reconcile"})
"""Done once a minute for each mounted volume, and no news unless it fails."""
_NOTE: Final = "(told in the log)"


class Asker:
    """One request that may change something, from its beginning to its answer."""

    __slots__ = ("by", "is_answered", "origin", "told")

    def __init__(self, by: str, origin: str) -> None:
        """Keep who asks, and from where, as they are to be told."""
        self.by = by
        self.origin = origin
        self.told: Facts = {}
        """What the last verb came to that ended before the answer."""
        self.is_answered = False

    def take(self, told: Facts) -> None:
        """Keep what a verb came to for the line of the request; the one before it gets a line of its own."""
        before, self.told = self.told, told
        if before:
            _log.info(self.signed(before))

    def signed(self, told: Facts) -> logs.Line:
        """Return the line of a verb with who wanted it."""
        return logs.Line({**told, "by": self.by, "from": self.origin})


ASKER: Final[ContextVar[Asker | None]] = ContextVar("asker", default=None)
"""The request for which the present task works, or from which it was begun; None: nobody's."""


class Durations:
    """How often something took how long."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        """Begin with nothing."""
        self.counts = [0] * (len(BOUNDS_S) + 1)
        """By the first bound that is not less, the last without one."""
        self.sum_s = 0.0

    def note(self, took_s: float) -> None:
        """Count one."""
        self.counts[bisect_left(BOUNDS_S, took_s)] += 1
        self.sum_s += took_s


class Verbs:
    """The verbs that have ended since the start."""

    def __init__(self) -> None:
        """Know of none."""
        self.durations: dict[tuple[str, str, str], Durations] = {}
        """By verb, driver (empty: none is concerned) and result, each of a closed set."""

    def note(
        self, verb: str, about: Facts, took_s: float, *, error: BaseException | None = None, result: str = OK
    ) -> None:
        """Count a verb that has ended, and have it told; the kind of an error goes before `result`."""
        result = result if error is None else logs.kind(error)
        driver = about.get("driver")
        key = verb, str(driver) if driver in names.DRIVERS else "", result
        durations = self.durations.get(key)
        if durations is None:
            durations = self.durations[key] = Durations()
        durations.note(took_s)
        told = {"verb": verb, **about, "result": result, "duration_ms": took_s * 1e3}
        if error is not None:
            told["error"] = str(error) or type(error).__name__
            error.add_note(_NOTE)
        _tell(told)


def is_told(error: BaseException) -> bool:
    """Tell whether an error was the end of a verb, which has been told."""
    return _NOTE in getattr(error, "__notes__", ())


def _tell(told: Facts) -> None:
    asker = ASKER.get()
    if asker is not None and not asker.is_answered:
        asker.take(told)
    elif told["result"] != OK:
        _log.warning(_signed(asker, told))
    elif told["verb"] in _ROUTINE:
        _log.debug(_signed(asker, told))
    else:
        _log.info(_signed(asker, told))


def _signed(asker: Asker | None, told: Facts) -> logs.Line:
    return logs.Line({**told, "by": OURS}) if asker is None else asker.signed(told)
