"""The brake on failed tries: who fails often is answered late.

Only failures are held back, each on its own connection, of which there are few (`api.tcp`): a right key is answered at
once, wherever it comes from and whatever others did there. All in all 32 tries a second are answered at most.
"""

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

FREE: Final = 5
"""Failures of a source that are answered at once: slips of the pen."""
FIRST_S: Final = 0.5
"""How long the next one waits; each further one twice as long."""
LONGEST_S: Final = 8.0
"""Go clients give up after 10 s, and should be told why."""
FORGET_S: Final = 30.0
"""After so long one failure of a source is forgotten."""
SOURCES_MAX: Final = 1_024
"""How many sources are remembered; beyond, the one that failed longest ago is forgotten."""
_NET_6: Final = 64
"""Who has one address of IPv6 has all of its network (RFC 6177)."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed try."""

    count: int
    """Which one it is of its source."""
    delay_s: float
    """How long its answer is to be held back."""


@dataclass(slots=True)
class _Source:
    count: int
    weight: float
    """The failures that are not forgotten yet."""
    at_s: float


class Brake:
    """Remembers failures by source."""

    def __init__(self, clock_s: Callable[[], float]) -> None:
        """Take a clock that never goes back, as time.monotonic."""
        self._clock_s = clock_s
        self._sources: OrderedDict[str, _Source] = OrderedDict()

    def fail(self, source: str) -> Failure:
        """Note a failed try of a source."""
        now_s = self._clock_s()
        known = self._sources.setdefault(source, _Source(0, 0.0, now_s))
        known.count += 1
        known.weight = max(0.0, known.weight - (now_s - known.at_s) / FORGET_S) + 1
        known.at_s = now_s
        self._sources.move_to_end(source)
        if len(self._sources) > SOURCES_MAX:
            self._sources.popitem(last=False)
        return Failure(known.count, _delay_s(known.weight))


def source(address: str) -> str:
    """Return whom failures from an address count against: itself, or its network of IPv6."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((ip, _NET_6), strict=False))


def _delay_s(weight: float) -> float:
    steps = math.ceil(weight) - FREE - 1
    return 0.0 if steps < 0 else min(LONGEST_S, FIRST_S * 2.0 ** min(steps, 10))
