"""A disk that is full: of a pool, of the root directory, of the embedded image.

What exists is listed, unmounted, removed and purged; what would need space is refused, says why, and leaves nothing.
"""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from tests.engines import Bench as MemoryBench
from tests.engines import bench_on
from tests.scratch import Scratch
from voldriverd import model, store
from voldriverd.engine import snapshots, volumes
from voldriverd.errors import Unusable
from voldriverd.kernel import fs, mount, tree
from voldriverd.model import SnapshotState, VolumeState
from voldriverd.store.ballast import BALLAST_BYTES, Ballast

pytestmark = pytest.mark.root

MIB: Final = 1 << 20
SMALL_MIB: Final = 24
POOL: Final = model.Pool(model.PoolId(1), "uuid", "pool", "memory", "/srv/pool")

VERBS: Final[dict[str, Callable[[MemoryBench], object]]] = {
    "create": lambda bench: bench.create("new"),
    "clone": lambda bench: bench.create("new", **{"from": "db"}),
    "snapshot": lambda bench: snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish("two")),
    "revert": lambda bench: snapshots.revert(bench.engine, bench.volume("db"), bench.snapshot("db", "one")),
    "resize": lambda bench: volumes.resize(bench.engine, bench.volume("db"), 4 << 20),
}


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


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("verb", VERBS)
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

    def fail(change: Callable[[Any], Any], *, is_vital: bool = False) -> Any:
        if next(commits) == failing:
            raise Unusable("cannot write database: database or disk is full")
        return commit(change, is_vital=is_vital)

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
    for size_bytes in (MIB, MIB // 16, 4096, 1):
        for number in range(len(os.listdir(filler)), 10_000):
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
        mount.unmount(memory)


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
