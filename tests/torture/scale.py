"""10,000 volumes and 100,000 snapshots on one host, rows and btrfs trees, and what verbs take beside an empty host.

Both daemons have a btrfs pool in a sparse image of their own, on the disk, and are asked in turn: what the machine does
meanwhile both see alike. Where the time is over before the host is full, the figures say how full it was.

The same is done without a daemon: a commit of btrfs, for which a first mount and a snapshot wait, writes a leaf of each
tree and all nodes above it, and so takes two to four times as long in a file system of 110,000 subvolumes (6.18).
"""

import json
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from tests.running import Running, UnixConnection, pools_config
from tests.scratch import Scratch
from tests.torture import count
from voldriverd.kernel import btrfs

VOLUMES: Final = 10_000
SNAPSHOTS_EACH: Final = 10
IMAGE_BYTES: Final = 200 << 30
"""Sparse: 110,000 empty subvolumes take 16 KiB of metadata each, twice."""
CLIENTS: Final = 8
FILL_SHARE: Final = 0.85
"""Of the time for filling; the rest is for measuring and taking away."""
ROUNDS: Final = 15
EACH: Final = 10
RATIO_MAX: Final = 1.5
"""Of the medians of a verb on the full host and on the empty one; more only where the kernel's own calls have more."""
_KERNEL_CALLS: Final = {"mount": "kernel: subvolume and commit", "snapshot": "kernel: snapshot"}
"""What a verb waits for."""
_BATCH: Final = 200
_PAUSE_S: Final = 0.05


class Scale:
    """Two daemons: one gets full, one stays empty."""

    def __init__(self, base: Path, *, seed: int) -> None:
        self._base = base
        self._random = random.Random(seed)
        base.mkdir()

    def run(self, *, time_s: float, say: Callable[[str], None], volumes: int = VOLUMES) -> dict[str, float]:
        """Fill, measure, and return the ratio of each verb; fails where one is over RATIO_MAX."""
        end_s = time.monotonic() + time_s * FILL_SHARE
        with ExitStack() as stack:
            hosts = {name: stack.enter_context(_host(self._base / name)) for name in ("full", "empty")}
            full, empty = hosts["full"].daemon, hosts["empty"].daemon
            _make(empty, ["page"])  # a page of a list is as long there
            begun_s = time.monotonic()
            made, snapshots = _fill(full, volumes, end_s)
            trees = len(os.listdir(hosts["full"].place / "pool" / "trees"))
            assert trees == made + snapshots, f"{trees} trees of {made} volumes and {snapshots} snapshots"
            say(
                f"scale: {made} volumes and {snapshots} snapshots, {trees} trees, in {time.monotonic() - begun_s:.0f} s"
            )
            ratios = self._measure(hosts, say)
            begun_s = time.monotonic()
            full.restart()
            took_s, memory_mib = time.monotonic() - begun_s, count.rss_bytes(full.pid) >> 20
            say(f"scale: a restart took {took_s:.1f} s; memory after it {memory_mib} MiB")
            stalls = full.api("GET", "/v1/hosts/1h1").body
            say(f"scale: the longest stall of the event loop since then: {stalls['longestStallMs']} ms")
        slow = {verb: ratio for verb, ratio in ratios.items() if ratio > _allowed(verb, ratios)}
        assert not slow, f"over {RATIO_MAX} times an empty host, and more than the kernel alone: {slow}"
        return ratios

    def _measure(self, hosts: dict[str, "_Host"], say: Callable[[str], None]) -> dict[str, float]:
        times: dict[str, dict[str, list[float]]] = {}
        for number in range(ROUNDS):
            for name in self._random.sample(sorted(hosts), len(hosts)):
                found = _verbs(hosts[name].daemon, f"r{number}") | _kernel_calls(hosts[name].place / "beside")
                for verb, took in found.items():
                    times.setdefault(verb, {}).setdefault(name, []).extend(took)
        ratios = {}
        for verb, of in times.items():
            slow, quick = (statistics.median(of[name]) for name in ("full", "empty"))
            ratios[verb] = slow / quick
            say(f"scale: {verb}: {slow * 1e3:.2f} ms, empty {quick * 1e3:.2f} ms, {ratios[verb]:.2f} times")
        return ratios


@dataclass(frozen=True, slots=True)
class _Host:
    """A daemon, and the file system of its pool."""

    daemon: Running
    place: Path


@contextmanager
def _host(base: Path) -> Iterator[_Host]:
    """Run a daemon with one btrfs pool in an image on the disk that holds `base`; nothing is left."""
    base.mkdir()
    scratch = Scratch(base / "scratch")
    try:
        place = scratch.make("btrfs", size_bytes=IMAGE_BYTES)
        config = 'reserve = "0%"\n' + pools_config(btrfs=("btrfs", place / "pool"))
        with Running(base / "daemon", config=config) as daemon:
            yield _Host(daemon, place)
    finally:
        scratch.close()


def _allowed(verb: str, ratios: dict[str, float]) -> float:
    """Return how many times as long a verb may take; of a call of the kernel's, any number of times."""
    if verb in _KERNEL_CALLS.values():
        return math.inf
    return max(RATIO_MAX, ratios[_KERNEL_CALLS[verb]]) if verb in _KERNEL_CALLS else RATIO_MAX


def _kernel_calls(place: Path) -> dict[str, list[float]]:
    """Do without a daemon what verbs have the kernel do, in the file system of their pool; leaves nothing."""
    took: dict[str, list[float]] = {call: [] for call in _KERNEL_CALLS.values()}
    place.mkdir()
    with btrfs.opened(place) as fd:
        for number in range(EACH):
            begun_s = time.perf_counter()
            btrfs.create(fd, f"v{number}")
            os.fsync(fd)
            took[_KERNEL_CALLS["mount"]].append(time.perf_counter() - begun_s)
            with btrfs.opened(place / f"v{number}") as source:
                begun_s = time.perf_counter()
                btrfs.snapshot(source, fd, f"s{number}", read_only=True)
                took[_KERNEL_CALLS["snapshot"]].append(time.perf_counter() - begun_s)
        for name in os.listdir(place):
            btrfs.destroy(fd, name)
    place.rmdir()
    return took


def _fill(daemon: Running, volumes: int, end_s: float) -> tuple[int, int]:
    """Make volumes, and snapshots of each; returns how many of both there are when the time is over."""
    made = snapshots = 0
    with ThreadPoolExecutor(CLIENTS) as threads:
        while made < volumes and time.monotonic() < end_s:
            wanted = [f"full-{number}" for number in range(made, min(made + _BATCH, volumes))]
            for part in threads.map(lambda names: _make(daemon, names), [wanted[n::CLIENTS] for n in range(CLIENTS)]):
                made += len(part)
                snapshots += sum(part)
    return made, snapshots


def _make(daemon: Running, names: list[str]) -> list[int]:
    """Make volumes with SNAPSHOTS_EACH snapshots each."""
    done = []
    for name in names:
        with Asker(daemon) as ask:
            volume = ask.settled(ask.api("POST", "/v1/volumes", {"name": name, "driver": "btrfs"}))
            for _ in range(SNAPSHOTS_EACH):
                ask.settled(ask.api("POST", f"/v1/volumes/{volume['id']}/?action=snapshot", {}))
            done.append(SNAPSHOTS_EACH)
    return done


class Asker:
    """Connections to a daemon that are kept, as clients keep them."""

    def __init__(self, daemon: Running) -> None:
        self._api = UnixConnection(daemon.api_socket, timeout_s=120)
        self._plugin = UnixConnection(daemon.plugin_socket, timeout_s=120)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._api.close()
        self._plugin.close()

    def api(self, method: str, path: str, body: object = None) -> Any:
        """Ask the API."""
        return _ask(self._api, method, path, body)

    def settled(self, resource: Any) -> Any:
        """Wait until a volume or snapshot that was answered before its end is made: a busy machine needs a second."""
        while resource["transitioning"] == "yes":
            time.sleep(_PAUSE_S)
            resource = self.api("GET", f"/v1/{resource['type']}s/{resource['id']}")
        assert resource["transitioning"] == "no", resource
        return resource

    def plugin(self, method: str, **fields: object) -> Any:
        """Ask the plugin."""
        return _ask(self._plugin, "POST", f"/VolumeDriver.{method}", fields)


def _ask(connection: UnixConnection, method: str, path: str, body: object) -> Any:
    connection.request(method, path, None if body is None else json.dumps(body))
    response = connection.getresponse()
    answer = json.loads(response.read())
    assert response.status < 300, answer
    return answer


def _verbs(daemon: Running, prefix: str) -> dict[str, list[float]]:
    """Do each verb with some new volumes, take them away again, and return how long each took in seconds."""
    took: dict[str, list[float]] = {}
    names = [f"{prefix}-{number}" for number in range(EACH)]

    def timed(verb: str, work: Callable[..., Any], *arguments: object, **fields: object) -> Any:
        begun_s = time.perf_counter()
        answer = work(*arguments, **fields)
        took.setdefault(verb, []).append(time.perf_counter() - begun_s)
        return answer

    with Asker(daemon) as ask:
        for name in names:
            volume = timed("create", ask.api, "POST", "/v1/volumes", {"name": name, "driver": "btrfs"})
            at = f"/v1/volumes/{ask.settled(volume)['id']}"
            timed("mount", ask.plugin, "Mount", Name=name, ID="a")
            ask.settled(timed("snapshot", ask.api, "POST", f"{at}/?action=snapshot", {}))
            timed("get", ask.plugin, "Get", Name=name)
            timed("list page", ask.api, "GET", f"/v1/snapshots?limit={EACH}")
            timed("unmount", ask.plugin, "Unmount", Name=name, ID="a")
            timed("remove", ask.api, "DELETE", at)
            timed("purge", ask.api, "POST", f"{at}/?action=purge")
    return took
