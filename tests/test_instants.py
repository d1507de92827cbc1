"""One instant: what a snapshot of a volume in use holds, and what a foreign process can still reach after a verb."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from drivers import loop
from tests.running import Running
from tests.torture.bench import KINDS, Bench, Places, content_of, daemon_config, places_in_memory
from voldriverd.engine import snapshots, trash, use
from voldriverd.errors import InUse
from voldriverd.kernel import mount

pytestmark = pytest.mark.root

SNAPSHOTS: Final = 24
DRIVERS: Final = ("btrfs", "loop", "directory")

_WRITER: Final = """
import os, sys
place, acknowledged, parent = sys.argv[1:]
files = [os.open(f"{place}/{name}", os.O_RDWR | os.O_CREAT) for name in ("log", "counter", "unsynced")]
done = os.open(acknowledged, os.O_WRONLY | os.O_CREAT)
number = 0
while os.getppid() == int(parent):
    number += 1
    line = b"%09d\\n" % number
    os.pwrite(files[0], line, 10 * (number - 1))
    os.fsync(files[0])
    os.pwrite(files[1], line, 0)
    os.fsync(files[1])
    os.pwrite(files[2], line, 0)
    os.pwrite(done, line, 0)
    if number == 1:
        print("ready", flush=True)
"""

_FOREIGNER: Final = """
import os, subprocess, sys
place, way = sys.argv[1:]
fd = os.open(place + "/file", os.O_RDWR)
if way == "lazily unmounted":
    subprocess.run(["umount", "-l", place], check=True)
print("ready", flush=True)
for line in sys.stdin:
    os.pwrite(fd, line.encode(), 0)
    os.fsync(fd)
    print("written", flush=True)
"""


class Foreigner:
    """A process in a mount namespace of its own, with a copy of our mounts and an open file in one of them."""

    def __init__(self, place: Path, *, way: str) -> None:
        argv = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", _FOREIGNER, str(place), way]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._expect("ready\n")

    def write(self, text: str) -> None:
        """Write through the open file, durably."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{text}\n")
        self._process.stdin.flush()
        self._expect("written\n")

    @property
    def name(self) -> str:
        """How an error names it."""
        return f"{mount.process_name(self._process.pid)} (pid {self._process.pid})"

    def end(self) -> None:
        """Let go of everything."""
        self._process.kill()
        self._process.communicate()

    def _expect(self, line: str) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == line


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    with places_in_memory(tmp_path_factory.mktemp("instants")) as places:
        yield places


@pytest.fixture
def bench(request: pytest.FixtureRequest, places: Places) -> Iterator[Bench]:
    """Return an engine on the driver of the test's parameter."""
    kind = next(each for each in KINDS if each.name == request.param)
    bench = Bench(kind, places.base / "bench", places.pools[kind.name] / "bench")
    try:
        yield bench
    finally:
        bench.vanish()


@contextmanager
def foreigner(place: Path, *, way: str) -> Iterator[Foreigner]:
    """Have a process that holds a copy of a mount (`mounted`), or an open file in one that no table shows any more."""
    process = Foreigner(place, way=way)
    try:
        yield process
    finally:
        process.end()


@contextmanager
def writing(place: Path, acknowledged: Path) -> Iterator[None]:
    """Have a process write a log, then a counter, each durable before the next, then a file that it never syncs."""
    argv = [sys.executable, "-c", _WRITER, str(place), str(acknowledged), str(os.getpid())]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield
        finally:
            process.kill()


def number(place: Path) -> int:
    return int(place.read_bytes() or b"0")


@pytest.mark.parametrize(
    ("bench", "options"),
    [
        ("btrfs", {}),
        ("btrfs-quota", {"size": "64M"}),
        ("loop", {"fs": "ext4"}),
        ("loop", {"fs": "xfs", "size": "300M"}),
    ],
    indirect=["bench"],
    ids=["btrfs", "btrfs-quota", "loop-ext4", "loop-xfs"],
)
def test_a_snapshot_under_a_writer_is_one_instant_and_has_all_that_was_synced_before(
    bench: Bench, options: dict[str, str], tmp_path: Path
) -> None:
    bench.create("db", **options)
    acknowledged = []
    with writing(bench.mount("db"), tmp_path / "acknowledged"):
        for count in range(SNAPSHOTS):
            acknowledged.append(number(tmp_path / "acknowledged"))
            snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish(f"s{count}"))
    bench.unmount("db")
    for count, least in enumerate(acknowledged):
        with bench.shown(bench.snapshot("db", f"s{count}").tree) as place:
            logged = [int(line) for line in (place / "log").read_bytes().splitlines()]
            assert logged == list(range(1, len(logged) + 1))
            assert least <= number(place / "counter") <= len(logged) <= number(place / "counter") + 1
            if bench.kind.driver == "loop":  # a btrfs snapshot may miss a write or two that nobody synced
                assert least <= number(place / "unsynced")
    assert acknowledged[-1] > acknowledged[0], "the writer wrote meanwhile"


@pytest.mark.parametrize("bench", ["btrfs", "btrfs-quota", "loop", "directory"], indirect=True)
def test_who_has_a_file_of_the_displaced_content_open_cannot_change_what_a_revert_keeps(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CLEAR_TIMEOUT_S", 0.1)  # its device stays as long as the file is open
    bench.create("db")
    place = bench.mount("db")
    (place / "file").write_text("first\n")
    bench.unmount("db")
    first = snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish("first"))
    place = bench.mount("db")
    (place / "file").write_text("later\n")
    with foreigner(place, way="lazily unmounted") as process:
        bench.unmount("db")
        process.write("seen")
        _, kept = snapshots.revert(bench.engine, bench.volume("db"), first)
        bench.upkeep()
        process.write("lost")
        for key, content in ((kept.tree, b"seen\n"), (first.tree, b"first\n"), (bench.volume("db").tree, b"first\n")):
            with bench.shown(key) as shown:
                assert content_of(shown)["file"][: len(content)] == content
        snapshots.revert(bench.engine, bench.volume("db"), kept)
        with bench.shown(bench.volume("db").tree) as shown:
            assert (shown / "file").read_text()[:5] == "seen\n"
    bench.upkeep()
    bench.check_trees()


@pytest.mark.parametrize("bench", ["btrfs", "btrfs-quota", "loop", "directory"], indirect=True)
def test_what_another_mount_namespace_still_shows_is_neither_removed_nor_reverted_and_the_process_is_named(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(use, "_LOOK_PAUSE_S", 0.0)  # it looks again, for a container that only starts has copies too
    bench.create("db")
    place = bench.mount("db")
    (place / "file").write_text("precious\n")
    bench.unmount("db")
    first = snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish("first"))
    place = bench.mount("db")
    with foreigner(place, way="mounted") as process:
        bench.unmount("db")
        for _ in range(2):  # the second time without anything in memory, and dockerd has forgotten it
            with pytest.raises(InUse) as refused:
                trash.remove(bench.engine, bench.volume("db"))
            assert str(refused.value) == f"cannot remove volume db: it is mounted by {process.name} at {place}"
            with pytest.raises(InUse) as refused:
                snapshots.revert(bench.engine, bench.volume("db"), first)
            assert str(refused.value) == f"cannot revert volume db: it is mounted by {process.name} at {place}"
            bench.restart()
        process.write("written")
        with bench.shown(bench.volume("db").tree) as shown:
            assert (shown / "file").read_text().startswith("written\n")
    snapshots.revert(bench.engine, bench.volume("db"), first)
    trash.remove(bench.engine, bench.volume("db"))


@pytest.fixture
def daemon(places: Places) -> Iterator[Running]:
    with Running(places.base / "daemon", config=daemon_config(places)) as running:
        yield running


@pytest.mark.parametrize("driver", DRIVERS)
def test_docker_volume_rm_is_refused_while_a_foreign_process_shows_the_volume(daemon: Running, driver: str) -> None:
    daemon.plugin("VolumeDriver.Create", Name=driver, Opts={"driver": driver})
    place = Path(daemon.plugin("VolumeDriver.Mount", Name=driver, ID="c1").body["Mountpoint"])
    (place / "file").write_text("precious\n")
    with foreigner(place, way="mounted") as process:
        daemon.plugin("VolumeDriver.Unmount", Name=driver, ID="c1")
        refusal = f"cannot remove volume {driver}: it is mounted by {process.name} at {place}"
        answer = daemon.plugin("VolumeDriver.Remove", Name=driver)
        assert (answer.status, answer.body) == (500, {"Err": refusal})
        daemon.kill()  # and dockerd has forgotten it meanwhile: nobody knows of a holder
        daemon.start()
        answer = daemon.plugin("VolumeDriver.Remove", Name=driver)
        assert (answer.status, answer.body) == (500, {"Err": refusal})
        assert driver in {each["Name"] for each in daemon.plugin("VolumeDriver.List").body["Volumes"]}
        process.write("written")
    place = Path(daemon.plugin("VolumeDriver.Mount", Name=driver, ID="c2").body["Mountpoint"])
    assert (place / "file").read_text().startswith("written\n")
    daemon.plugin("VolumeDriver.Unmount", Name=driver, ID="c2")
    assert daemon.plugin("VolumeDriver.Remove", Name=driver).body == {"Err": ""}
