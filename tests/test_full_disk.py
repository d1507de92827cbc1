"""A disk that is full: of a pool, of the root directory, of the embedded image.

What exists is listed, unmounted, removed and purged; what would need space is refused, says why, and leaves nothing.
"""

import errno
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from tests.engines import Bench as MemoryBench
from tests.engines import bench_on
from tests.running import Running
from tests.scratch import Scratch, unmount_under
from tests.torture.bench import KINDS, Bench, daemon_config, places_in_memory
from tests.world import until
from voldriverd import model, store
from voldriverd.engine import remembered, snapshots, trash, volumes
from voldriverd.errors import Unusable
from voldriverd.kernel import fs, mount, tree
from voldriverd.model import SnapshotState, VolumeState
from voldriverd.store.ballast import BALLAST_BYTES, Ballast

pytestmark = pytest.mark.root

MIB: Final = 1 << 20
SMALL_MIB: Final = 24
DRIVERS: Final = ("btrfs", "loop", "directory")
POOL: Final = model.Pool(model.PoolId(1), "uuid", "pool", "memory", "/srv/pool")

VERBS: Final[dict[str, Callable[[MemoryBench], object]]] = {
    "create": lambda bench: bench.create("new"),
    "clone": lambda bench: bench.create("new", **{"from": "db"}),
    "snapshot": lambda bench: snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish("two")),
    "revert": lambda bench: snapshots.revert(bench.engine, bench.volume("db"), bench.snapshot("db", "one")),
    "resize": lambda bench: volumes.resize(bench.engine, bench.volume("db"), 4 << 20),
}
ONE_COMMIT: Final = frozenset({"create", "clone", "snapshot"})
"""How they end is foreseen."""


def volume(number: int) -> model.Volume:
    """Return a row that takes some space."""
    now = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
    return model.Volume(
        id=model.VolumeId(number),
        uuid=str(uuid.uuid4()),
        name=f"volume-{number}",
        description="x" * 1_000,
        pool_id=POOL.id,
        driver="memory",
        key=None,
        content=1,
        state=VolumeState.INACTIVE,
        size_bytes=None,
        options={},
        labels={},
        is_protected=False,
        created_at=now,
    )


@pytest.fixture
def memory_bench(tmp_path: Path) -> Iterator[MemoryBench]:
    place = tmp_path / "memory"
    place.mkdir()
    mount.mount("tmpfs", place, fs_type="tmpfs", data="size=64m")
    with bench_on(place) as bench:
        yield bench
    mount.unmount(place)


@pytest.mark.parametrize(
    ("verb", "failing"), [*((verb, 0) for verb in VERBS), *((verb, 1) for verb in VERBS if verb not in ONE_COMMIT)]
)
def test_a_verb_whose_commit_fails_leaves_everything_as_it_was(
    memory_bench: MemoryBench, verb: str, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = memory_bench
    bench.create("db", size="1M")
    bench.write("db", "one")
    snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish("one"))
    bench.write("db", "now")
    before = bench.driver.trees(), bench.tree_rows()
    commit, commits = bench.store.commit, iter(range(100))

    def fail(change: Callable[[Any], Any], **how: bool) -> Any:
        if next(commits) == failing:
            raise Unusable("cannot write database: database or disk is full")
        return commit(change, **how)

    monkeypatch.setattr(bench.store, "commit", fail)
    with pytest.raises(Unusable, match="database or disk is full"):
        VERBS[verb](bench)
    monkeypatch.undo()
    bench.upkeep()
    assert [(row.name, row.state) for row in bench.store.volumes()] == [("db", VolumeState.INACTIVE)]
    assert [(row.name, row.state) for row in bench.store.snapshots()] == [("one", SnapshotState.CREATED)]
    assert bench.read("db") == "now"
    assert (bench.driver.trees(), bench.tree_rows()) == before
    VERBS[verb](bench)


# The root directory.


@contextmanager
def opened(root: Path) -> Iterator[store.Store]:
    """Open the database of a root."""
    if not root.exists():
        root.mkdir(mode=0o700)
    with closing(store.Store(root)) as database:
        if not database.pools():
            database.commit(lambda write: write.add_pool(POOL))
        yield database


def fill(place: Path) -> None:
    """Take the last byte of a file system."""
    filler = place / "filler"
    filler.mkdir(exist_ok=True)
    for size_bytes, count in ((MIB, 1_000), (MIB // 16, 100), (4096, 100), (1, 500)):
        first = len(os.listdir(filler))
        for number in range(first, first + count):
            try:
                with (filler / f"{number}").open("wb", buffering=0) as file:
                    file.write(b"x" * size_bytes)
            except OSError:
                break


@pytest.fixture(params=["tmpfs", "ext4", "xfs", "btrfs"])
def root_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Return a small file system, in memory, for a root directory."""
    memory = tmp_path / "memory"
    memory.mkdir()
    mount.mount("tmpfs", memory, fs_type="tmpfs", data=f"size={SMALL_MIB if request.param == 'tmpfs' else 1024}m")
    scratch = Scratch(memory / "scratch")
    try:
        sizes = {"ext4": SMALL_MIB, "xfs": 300, "btrfs": 128}
        place = memory / "tmpfs"
        if request.param == "tmpfs":
            place.mkdir()
        else:
            place = scratch.make(request.param, size_bytes=sizes[request.param] * MIB)
        yield place
    finally:
        scratch.close()
        until(lambda: is_unmounted(memory), "the last copy of a mount of ours, in a namespace of another test, to go")


def put(database: store.Store, number: int, *, is_vital: bool) -> None:
    database.commit(lambda write: write.put_volume(volume(number)), is_vital=is_vital)


def put_until_full(database: store.Store) -> None:
    for number in range(1, 1_000):
        put(database, number, is_vital=False)


def test_vital_commits_go_on_although_others_take_what_the_ballast_frees(root_place: Path) -> None:
    with opened(root_place / "root") as database:
        fill(root_place)
        with pytest.raises(Unusable, match=r"cannot write database .*full"):
            put_until_full(database)
        for number in range(2_000, 2_050):
            put(database, number, is_vital=True)
            fill(root_place)
    with opened(root_place / "root") as database:
        assert database.volume(model.VolumeId(2_049)) is not None


def test_a_database_opens_on_a_full_disk_and_its_ballast_comes_back_with_the_space(root_place: Path) -> None:
    with opened(root_place / "root"):
        fill(root_place)
    for number in range(1, 6):
        fill(root_place)
        with opened(root_place / "root") as database:
            put(database, number, is_vital=True)
    fill(root_place)
    with opened(root_place / "root") as database:
        assert len(database.volumes()) == 5
        tree.vanish(root_place / "filler")
        fs.sync_file_system(root_place)
        assert database.keep_ballast()
        assert (root_place / "root" / "ballast").stat().st_blocks * 512 >= BALLAST_BYTES


def test_a_ballast_that_was_cut_off_in_the_making_is_none(tmp_path: Path) -> None:
    (tmp_path / "ballast").touch()
    assert Ballast(tmp_path / "ballast").keep()
    assert (tmp_path / "ballast").stat().st_blocks * 512 >= BALLAST_BYTES


# A pool.

TRIES: Final = 5_000
"""More volumes than the metadata of a small btrfs has room for."""
EVERYTHING: Final = frozenset({"create", "snapshot", "revert"})
MUST_BE_REFUSED: Final[dict[tuple[str, str], frozenset[str]]] = {
    ("loop", "btrfs"): frozenset({"create"}),  # a clone takes metadata only, and that is left
    ("directory", "btrfs"): frozenset(),
}
POOLS: Final = [
    *(("btrfs", "btrfs"), ("btrfs-quota", "btrfs"), ("loop", "btrfs"), ("loop", "ext4"), ("loop", "xfs")),
    *(("directory", "btrfs"), ("directory", "ext4"), ("directory", "xfs")),
]


@dataclass(frozen=True)
class Full:
    """An engine whose pool is full, and the file system of that."""

    bench: Bench
    place: Path
    fs_type: str


@pytest.fixture(params=POOLS, ids="-".join)
def full(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Full]:
    """Fill a pool with a volume with a snapshot, one that is mounted and dirty, one in the trash, and foreign files."""
    name, fs_type = request.param
    memory = tmp_path / "memory"
    memory.mkdir()
    mount.mount("tmpfs", memory, fs_type="tmpfs", data="size=1g")
    scratch = Scratch(memory / "scratch")
    place = scratch.make(fs_type, size_bytes=(300 if fs_type == "xfs" else 200) * MIB)
    bench = Bench(next(kind for kind in KINDS if kind.name == name), memory / "base", place / "pool")
    try:
        for volume_name in ("db", "old", "busy"):
            bench.create(volume_name)
            with bench.written(volume_name) as shown:
                (shown / "file").write_bytes(os.urandom(MIB * (16 if volume_name == "old" else 1)))
        snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish("one"))
        trash.remove(bench.engine, bench.volume("old"))
        bench.upkeep()
        busy = bench.mount("busy")
        fill(place)
        with suppress(OSError), (busy / "dirty").open("wb") as file:  # full, for who writes
            file.write(os.urandom(MIB))
        yield Full(bench, place, fs_type)
    finally:
        bench.close()
        unmount_under(bench.root)
        scratch.close()
        until(lambda: is_unmounted(memory), "the last copy of a mount of ours, in a namespace of another test, to go")


def is_unmounted(place: Path) -> bool:
    """Unmount a place, or tell that it is busy."""
    try:
        mount.unmount(place)
    except OSError as err:
        if err.errno != errno.EBUSY:
            raise
        return False
    return True


def refusals(verb: Callable[[int], object], *, tries: int) -> set[str]:
    """Do something until it is refused, or so often; return what is said."""
    for number in range(tries):
        try:
            verb(number)
        except Unusable as err:
            return {str(err)}
    return set()


def test_a_full_pool_refuses_what_takes_space_says_why_and_leaves_nothing_of_it(full: Full) -> None:
    bench, wish = full.bench, snapshots.Wish
    tries = TRIES if bench.kind.driver == "btrfs" else 20
    said = refusals(lambda number: bench.create(f"new{number}"), tries=tries)
    said |= refusals(lambda number: bench.create(f"copy{number}", **{"from": "db"}), tries=tries)
    said |= refusals(lambda number: snapshots.create(bench.engine, bench.volume("db"), wish(f"s{number}")), tries=tries)
    said |= refusals(
        lambda _: snapshots.revert(bench.engine, bench.volume("db"), bench.snapshot("db", "one")), tries=tries
    )
    if bench.store.volume_named("copy0") is not None:  # its journal has extents to copy
        said |= refusals(lambda _: bench.mount("copy0"), tries=1)
        bench.unmount("copy0")
    assert {text.partition(": ")[2] for text in said} <= {"no space is left in the pool"}
    assert {text.split()[1] for text in said} >= MUST_BE_REFUSED.get((bench.kind.driver, full.fs_type), EVERYTHING)
    assert {row.state for row in bench.store.volumes()} == {VolumeState.INACTIVE, VolumeState.REMOVED}
    assert {row.state for row in bench.store.snapshots()} == {SnapshotState.CREATED}
    bench.upkeep()
    bench.check_trees()
    bench.restart()
    bench.upkeep()
    bench.check_trees()


def test_a_full_pool_unmounts_removes_and_purges_and_then_has_room_again(full: Full) -> None:
    bench = full.bench
    bench.unmount("busy")
    assert bench.attached() == set()
    trash.remove(bench.engine, bench.volume("busy"))
    trash.remove(bench.engine, bench.volume("db"))
    bench.restart()
    for row in bench.store.volumes():
        trash.purge(bench.engine, row)
    bench.upkeep()
    assert bench.driver.trees() == set()
    bench.driver.reclaim()
    _, free_bytes = fs.capacity(full.place)
    assert free_bytes >= 16 * MIB
    bench.create("new")
    with bench.written("new") as shown:
        (shown / "file").write_bytes(b"x" * MIB)


def test_what_a_full_pool_kept_from_the_catalogue_is_there_when_there_is_room(full: Full) -> None:
    bench = full.bench
    for number in range(50):
        volumes.set_properties(bench.engine, bench.volume("db"), description=f"{number} " * 1_000)
        bench.upkeep()
    assert not [name for name in os.listdir(bench.pool_root) if name.endswith(".part")]
    tree.vanish(full.place / "filler")
    bench.driver.reclaim()
    bench.upkeep()
    assert "49 49" in (bench.pool_root / remembered.FILE_NAME).read_text()


# The daemon.


EXISTING: Final = frozenset({*DRIVERS, *(f"{driver}-idle" for driver in DRIVERS)})


def act(daemon: Running, name: str, action: str) -> int:
    """Ask for an action on the volume of a name, live or in the trash; return the HTTP status."""
    rows = daemon.api("GET", "/v1/volumes?removed_notnull=1").body["data"]
    rows += daemon.api("GET", "/v1/volumes").body["data"]
    row = next(row for row in rows if row["name"] == name)
    return daemon.api("POST", f"/v1/volumes/{row['id']}/?action={action}", {}).status


def names(daemon: Running) -> set[str]:
    return {each["Name"] for each in daemon.plugin("VolumeDriver.List").body["Volumes"]}


@pytest.fixture
def full_root(tmp_path: Path) -> Iterator[tuple[Running, Path]]:
    """Run a daemon whose root directory is a small ext4 with a file that fills it, and whose pools lie elsewhere."""
    with places_in_memory(tmp_path) as places:
        scratch = Scratch(places.base / "small")
        place = scratch.make("ext4", size_bytes=40 * MIB)
        daemon = Running(places.base / "daemon", config=daemon_config(places))
        daemon.root.mkdir()
        mount.bind(place, daemon.root, read_only=False)
        try:
            with daemon:
                for driver in DRIVERS:
                    daemon.plugin("VolumeDriver.Create", Name=driver, Opts={"driver": driver})
                    daemon.plugin("VolumeDriver.Mount", Name=driver, ID="c1")
                    daemon.plugin("VolumeDriver.Create", Name=f"{driver}-idle", Opts={"driver": driver})
                    daemon.plugin("VolumeDriver.Create", Name=f"{driver}-old", Opts={"driver": driver})
                    daemon.plugin("VolumeDriver.Remove", Name=f"{driver}-old")
                fill(place)
                yield daemon, place
        finally:
            unmount_under(daemon.base)
            scratch.close()


def test_a_daemon_on_a_full_root_lists_mounts_unmounts_removes_purges_and_starts(
    full_root: tuple[Running, Path],
) -> None:
    daemon, place = full_root
    for driver in DRIVERS:
        answer = daemon.plugin("VolumeDriver.Create", Name=f"{driver}-new", Opts={"driver": driver})
        assert answer.status == 500
        assert "database or disk is full" in answer.body["Err"]
        assert daemon.plugin("VolumeDriver.Mount", Name=f"{driver}-idle", ID="c3").body["Err"] == ""
        assert daemon.plugin("VolumeDriver.Unmount", Name=f"{driver}-idle", ID="c3").body == {"Err": ""}
        fill(place)
    assert names(daemon) == EXISTING
    daemon.kill()
    fill(place)
    daemon.start()
    assert names(daemon) == EXISTING
    for driver in DRIVERS:
        held = daemon.plugin("VolumeDriver.Get", Name=driver).body["Volume"]
        assert mount.at(Path(held["Mountpoint"])) is not None
        assert daemon.plugin("VolumeDriver.Unmount", Name=driver, ID="c1").body == {"Err": ""}
        assert mount.at(Path(held["Mountpoint"])) is None
        assert daemon.plugin("VolumeDriver.Remove", Name=driver).body == {"Err": ""}
        assert act(daemon, f"{driver}-old", "purge") == 200
        fill(place)
    assert names(daemon) == EXISTING - set(DRIVERS)
    daemon.stop()
    fill(place)
    daemon.start()
    tree.vanish(place / "filler")
    for driver in DRIVERS:
        assert daemon.plugin("VolumeDriver.Create", Name=driver, Opts={"driver": driver}).body == {"Err": ""}
        assert daemon.plugin("VolumeDriver.Mount", Name=driver, ID="c2").status == 200
    assert "Traceback" not in daemon.log


def backup_of(daemon: Running, snapshot_id: str) -> str:
    """Ask for a backup and return what became of it: `created`, or why not."""
    answer = daemon.api("POST", f"/v1/snapshots/{snapshot_id}/?action=backup", {"backupTargetId": "1bt1"})
    if answer.status >= 300:
        return f"{answer.body['message']} {answer.body['detail']}"
    place = f"/v1/backups/{answer.body['id']}"
    until(lambda: daemon.api("GET", place).body["state"] != "creating", "the backup to end")
    row = daemon.api("GET", place).body
    return str(row["state"] if row["state"] == "created" else row["transitioningMessage"])


def test_a_backup_on_a_full_root_says_so_and_is_made_when_there_is_room(full_root: tuple[Running, Path]) -> None:
    daemon, place = full_root
    tree.vanish(place / "filler")
    (daemon.base / "target").mkdir()
    made = daemon.api("POST", "/v1/backuptargets", {"name": "near", "url": f"file://{daemon.base}/target"})
    assert made.status < 300, made.body
    row = next(row for row in daemon.api("GET", "/v1/volumes").body["data"] if row["name"] == "btrfs-idle")
    snapshot = daemon.api("POST", "/v1/snapshots", {"volumeId": row["id"]}).body["id"]
    until(lambda: daemon.api("GET", f"/v1/snapshots/{snapshot}").body["state"] == "created", "the snapshot")
    fill(place)
    assert "disk is full" in backup_of(daemon, snapshot)
    tree.vanish(place / "filler")
    assert backup_of(daemon, snapshot) == "created"
    assert "Traceback" not in daemon.log


def test_a_full_embedded_image_lists_unmounts_removes_and_purges(tmp_path: Path) -> None:
    with Running(tmp_path) as daemon:
        for driver in DRIVERS:
            daemon.plugin("VolumeDriver.Create", Name=driver, Opts={"driver": driver})
            daemon.plugin("VolumeDriver.Mount", Name=driver, ID="c1")
        place = Path(daemon.plugin("VolumeDriver.Get", Name="directory").body["Volume"]["Mountpoint"])
        fill(place)
        for driver in DRIVERS:
            refused = daemon.plugin("VolumeDriver.Create", Name=f"{driver}-new", Opts={"driver": driver})
            assert refused.status == 500
            assert "below the reserve of 5%" in refused.body["Err"]
        daemon.kill()
        daemon.start()
        assert names(daemon) == set(DRIVERS)
        for driver in DRIVERS:
            assert daemon.plugin("VolumeDriver.Unmount", Name=driver, ID="c1").body == {"Err": ""}
            assert daemon.plugin("VolumeDriver.Remove", Name=driver).body == {"Err": ""}
            with suppress(StopIteration):  # the shortage has had it destroyed meanwhile
                act(daemon, driver, "purge")
        until(lambda: not daemon.api("GET", "/v1/volumes?state=removed&removed_notnull=1").body["data"], "the trash")
        for driver in DRIVERS:
            assert daemon.plugin("VolumeDriver.Create", Name=driver, Opts={"driver": driver}).body == {"Err": ""}
        assert "Traceback" not in daemon.log
