"""A disk that is full: of a pool, of the root directory, of the embedded image.

What exists is listed, unmounted, removed and purged; what would need space is refused, says why, and leaves nothing.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.engines import Bench as MemoryBench
from tests.engines import bench_on
from voldriverd.engine import snapshots, volumes
from voldriverd.errors import Unusable
from voldriverd.kernel import mount
from voldriverd.model import SnapshotState, VolumeState

pytestmark = pytest.mark.root

VERBS: Final[dict[str, Callable[[MemoryBench], object]]] = {
    "create": lambda bench: bench.create("new"),
    "clone": lambda bench: bench.create("new", **{"from": "db"}),
    "snapshot": lambda bench: snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish("two")),
    "revert": lambda bench: snapshots.revert(bench.engine, bench.volume("db"), bench.snapshot("db", "one")),
    "resize": lambda bench: volumes.resize(bench.engine, bench.volume("db"), 4 << 20),
}


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

    with monkeypatch.context() as patch, pytest.raises(Unusable, match="database or disk is full"):
        patch.setattr(bench.store, "commit", fail)
        VERBS[verb](bench)
    bench.upkeep()
    assert [(row.name, row.state) for row in bench.store.volumes()] == [("db", VolumeState.INACTIVE)]
    assert [(row.name, row.state) for row in bench.store.snapshots()] == [("one", SnapshotState.CREATED)]
    assert bench.read("db") == "now"
    assert (bench.driver.trees(), bench.tree_rows()) == before
    VERBS[verb](bench)
