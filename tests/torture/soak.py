"""Many clients that ask for every verb on every driver at once, and what the daemon holds before and after.

A first, shorter crowd brings the daemon to what it holds at work: its threads, caches and the pages of its heap. What
is counted then, with nothing on its way and nothing made, is what must be counted after the soak.
"""

import time
from collections import Counter
from dataclasses import replace
from typing import Final

from tests.running import Running
from tests.torture import count
from tests.torture.bench import Places, daemon_config
from tests.torture.crowd import BACKUP_VERBS, VERBS, Crowd
from tests.world import until

NAME: Final = "soak"
CLIENTS: Final = 32
GROWTH_BYTES: Final = 48 << 20
"""How much memory may grow, however long it takes: the last 10,000 events, 1,000 faults, 1,000 written answers."""
WARM_SHARE: Final = 1 / 3
WARM_MAX_S: Final = 60.0
SETTLE_S: Final = 60.0
THREADS_MAX: Final = 124
"""32 for verbs, 32 that look, 8 that unmount, 4 for long jobs, 8 for streams, 4 for copies, 10 for backups, 10 for
restores; the rest are of obstore and asyncio."""
_STILL_S: Final = 0.5


class Soak:
    """One daemon under a crowd, counted before and after."""

    def __init__(self, places: Places, *, seed: int) -> None:
        self._places = places
        self._seed = seed
        self._base = places.base / NAME
        (self._base / "target").mkdir(parents=True)
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.before: count.Held | None = None
        self.growth_bytes = 0
        self.longest_stall_ms = 0

    def run(self, *, time_s: float) -> None:
        """Let the crowd ask until the time is over; fails if anything that is counted has grown."""
        target = f'[targets.here]\nurl = "file://{self._base}/target"\n'
        with Running(self._base / "daemon", config=daemon_config(self._places, NAME) + target) as daemon:
            self._crowd(daemon, "warm", min(WARM_MAX_S, time_s * WARM_SHARE))
            before = self.before = self._held(daemon)
            memory = count.rss_bytes(daemon.pid)
            self._crowd(daemon, "soak", time_s)
            try:
                until(lambda: _is_back(self._held(daemon), before), "what is held to be as before", within_s=SETTLE_S)
            except TimeoutError as err:
                raise AssertionError(f"before {before}, after {self._held(daemon)}") from err
            self.growth_bytes = count.rss_bytes(daemon.pid) - memory
            self.longest_stall_ms = daemon.api("GET", "/v1/hosts/1h1").body["longestStallMs"]
            assert self.growth_bytes <= GROWTH_BYTES, f"{self.growth_bytes >> 20} MiB more than before"

    def _crowd(self, daemon: Running, what: str, time_s: float) -> None:
        seed = self._seed + (what == "soak")
        crowd = Crowd(daemon, seed=seed, name=NAME, clients=CLIENTS, verbs=(*VERBS, *BACKUP_VERBS))
        crowd.run(self._places, time_s=time_s)
        self.done += crowd.done
        self.refused += crowd.refused

    def _held(self, daemon: Running) -> count.Held:
        """Count when the count stands still: threads and connections end a moment after what they were for."""
        found, since_s = None, time.monotonic()
        pools = [place / NAME for place in set(self._places.pools.values())]

        def is_still() -> bool:
            nonlocal found, since_s
            now = count.held(daemon, pools)
            if now != found:
                found, since_s = now, time.monotonic()
            return time.monotonic() - since_s > _STILL_S

        until(is_still, "the count to stand still", within_s=SETTLE_S)
        assert found is not None
        return found


def _is_back(now: count.Held, before: count.Held) -> bool:
    """Compare; threads are made when they are wanted and kept, and so may still have become more."""
    return now.threads <= THREADS_MAX and replace(now, threads=before.threads) == before
