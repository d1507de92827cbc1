"""Backups beside restic (Debian's): the same files, both to a directory, both encrypted, in turn.

20,000 files of 32 KiB, half of their bytes random; then 50 of them are appended to, ten times. A restore is one of the
whole backup, to a new volume here and to a new directory there. The page cache is cold for both, as it is at night;
every second increment is made with a warm one.
"""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from bench.client import Client, request
from bench.daemon import Daemon, running, scratch

FILES = 20_000
FILE_BYTES = 32 << 10
APPENDED = 50
INCREMENTS = 10
DRIVERS = ("btrfs", "loop", "directory")
IMAGE_BYTES = 10 << 30
CHANGED_BYTES = 100 << 20
_INCREMENTS = ("increment", "warm increment")
_PAUSE_S = 0.005
_PASSPHRASE = "the same for both"  # noqa: S105 - of scratch repositories


@dataclass(slots=True)
class Times:
    """Seconds by what was done."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def note(self, what: str, work: Callable[[], Any], *, is_warm: bool = False) -> Any:
        """Time some work, from a cold page cache unless it is to be warm."""
        os.sync()
        if not is_warm:
            Path("/proc/sys/vm/drop_caches").write_text("3")
        begun = time.perf_counter()
        result = work()
        self.seconds.setdefault(what, []).append(time.perf_counter() - begun)
        return result

    def median(self, what: str) -> float:
        """Return the median."""
        return median(self.seconds[what])


def run(rounds: int) -> list[tuple[str, str, str]]:
    """Measure both, three rounds at most: each costs a minute."""
    times = Times()
    with scratch() as base, running(base, size="16G") as daemon, Client(daemon.api) as api:
        os.environ |= {"RESTIC_PASSWORD": _PASSPHRASE, "RESTIC_CACHE_DIR": str(base / "cache")}
        with watched(daemon) as late:
            for number in range(min(rounds, 3)):
                _restic(base, times, number)
                for driver in DRIVERS:
                    _ours(daemon, api, times, f"{driver}{number}", driver)
            read_bytes = _changed_image(daemon, api)
        peak = Path(f"/proc/{daemon.pid}/status").read_text().partition("VmHWM:")[2].split()[0]
    rows = []
    for driver in DRIVERS:
        rows.append(_ratio(times, f"{driver}: full", "restic: full", "1"))
        target = None if driver == "directory" else "20"  # an archive reads everything
        rows += [_ratio(times, f"{driver}: {kind}", f"restic: {kind}", target) for kind in _INCREMENTS]
        rows.append(_ratio(times, f"{driver}: restore", "restic: restore", "1"))
    rows.append(("10 GiB image, 100 MiB changed: bytes read", f"{read_bytes / (1 << 20):.0f} MiB", "150 MiB"))
    rows.append(("highest memory of the daemon", f"{int(peak) / 1024:.0f} MiB", "300 MB"))
    rows.append(("Get meanwhile, 99th percentile", f"{quantiles(late, n=100)[98]:.1f} ms of {len(late)}", "50 ms"))
    return rows


def _restic(base: Path, times: Times, number: int) -> None:
    place = base / "root" / "embedded" / f"restic{number}"
    repository = base / f"repository{number}"
    _fill(place)
    restic("init", repository)
    times.note("restic: full", lambda: restic("backup", repository, place))
    back = base / "root" / "embedded" / "back"
    for count in range(INCREMENTS):
        _append(place)
        _increment(times, "restic", count, lambda: restic("backup", repository, place))
        if count == 0:
            times.note("restic: restore", lambda: restic("restore", repository, "latest", "--target", back))
    for each in (place, repository, back):
        shutil.rmtree(each)


def restic(verb: str, repository: Path, *arguments: object) -> None:
    """Run restic."""
    subprocess.run(
        ["restic", "-q", "-r", repository, verb, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL
    )


def _ours(daemon: Daemon, api: Client, times: Times, name: str, driver: str) -> None:
    target = target_of(api, name, daemon.root.parent / f"target-{name}")
    volume = api.post("/v1/volumes", {"name": name, "driver": driver})
    with mounted(api, volume) as place:
        _fill(place)
    times.note(f"{driver}: full", lambda: backup(api, volume, target))
    for count in range(INCREMENTS):
        with mounted(api, volume) as place:
            _append(place)
        made = _increment(times, driver, count, lambda: backup(api, volume, target))
        if count == 0:
            back = times.note(f"{driver}: restore", partial(_restored, api, f"{name}-back", made))
    for each in (back, volume):
        api.post(f"/v1/volumes/{each['id']}", method="DELETE")
        api.post(f"/v1/volumes/{each['id']}?action=purge", {})
    shutil.rmtree(daemon.root.parent / f"target-{name}")


def _restored(api: Client, name: str, made: Any) -> Any:
    return settled(api, api.post("/v1/volumes", {"name": name, "driverOpts": {"from": f"backup:{made['id']}"}}))


def _increment(times: Times, whose: str, count: int, work: Callable[[], Any]) -> Any:
    is_warm = count % 2 == 1
    return times.note(f"{whose}: {_INCREMENTS[is_warm]}", work, is_warm=is_warm)


def _changed_image(daemon: Daemon, api: Client) -> int:
    """Return how many bytes the daemon read for an increment of a large image with few changes in it."""
    target = target_of(api, "large", daemon.root.parent / "target-large")
    fields = {"name": "large", "driver": "loop", "driverOpts": {"size": str(IMAGE_BYTES)}}
    volume = api.post("/v1/volumes", fields)
    piece = os.urandom(1 << 20)
    with mounted(api, volume) as place, (place / "file").open("wb") as file:
        for _ in range(2 * CHANGED_BYTES >> 20):
            file.write(piece)
    backup(api, volume, target)
    with mounted(api, volume) as place, (place / "file").open("r+b") as file:
        for number in range(CHANGED_BYTES >> 16):
            file.seek(number << 17)
            file.write(os.urandom(1 << 16))
    before = _read_bytes(daemon.pid)
    backup(api, volume, target)
    return _read_bytes(daemon.pid) - before


def target_of(api: Client, name: str, place: Path) -> Any:
    """Make an encrypted target of a new directory."""
    place.mkdir()
    return api.post("/v1/backuptargets", {"name": name, "url": f"file://{place}", "passphrase": _PASSPHRASE})


def backup(api: Client, volume: Any, target: Any) -> Any:
    """Back a volume up as it is now."""
    path = f"/v1/volumes/{volume['id']}?action=backup"
    return settled(api, api.post(path, {"backupTargetId": target["id"]}))


def settled(api: Client, resource: Any) -> Any:
    """Return a resource when the work on it is final."""
    path = f"/v1/{resource['type']}s/{resource['id']}"
    begun = time.perf_counter()
    while resource["transitioning"] == "yes":
        # Asked every 5 ms all the time, the daemon spent a tenth of its own on the answers.
        time.sleep(max(_PAUSE_S, (time.perf_counter() - begun) / 100))
        resource = api.post(path, method="GET")
    if resource["transitioning"] == "error":
        raise RuntimeError(f"{path}: {resource['transitioningMessage']}")
    return resource


@contextmanager
def mounted(api: Client, volume: Any) -> Iterator[Path]:
    """Mount a volume for the block; what was written is durable after it."""
    path = f"/v1/volumes/{volume['id']}?action="
    place = Path(api.post(f"{path}activate", {})["mountpoint"])
    yield place
    fd = os.open(place, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    os.sync()
    api.post(f"{path}deactivate", {})


@contextmanager
def watched(daemon: Daemon) -> Iterator[list[float]]:
    """Ask for a volume all the time; the list has how long each answer took, in ms."""
    late: list[float] = []
    ended = threading.Event()

    def ask() -> None:
        with Client(daemon.plugin) as plugin:
            plugin.post("/VolumeDriver.Create", {"Name": "watched"})
            while not ended.wait(_PAUSE_S):
                late.append(plugin.timed(request("/VolumeDriver.Get", {"Name": "watched"})))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield late
    finally:
        ended.set()
        thread.join()


def _fill(place: Path) -> None:
    text = (b"a line of text that compresses well, as much of what people keep does; " * 400)[: FILE_BYTES // 2]
    for number in range(FILES):
        directory = place / f"{number // 100}"
        if number % 100 == 0:
            directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{number}").write_bytes(os.urandom(FILE_BYTES // 2) + text)
    os.sync()


def _append(place: Path) -> None:
    for number in range(0, FILES, FILES // APPENDED):
        with (place / f"{number // 100}" / f"{number}").open("ab") as file:
            file.write(b"one more line\n" * 100)
    os.sync()


def _read_bytes(pid: int) -> int:
    text = Path(f"/proc/{pid}/io").read_text()
    return int(text.partition("rchar:")[2].split()[0])


def _ratio(times: Times, ours: str, theirs: str, target: str | None) -> tuple[str, str, str]:
    one, other = times.median(ours), times.median(theirs)
    return (f"{theirs} / {ours}", f"{other / one:.1f}  ({other:.2f} s / {one:.3f} s)", f">= {target}" if target else "")
