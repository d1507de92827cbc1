"""A database put back as it stood in the middle of a verb: what was acknowledged since is no rest of a crash."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from tests import test_import_power as imports
from tests import test_power as power
from tests.backing import freeze
from tests.engines import Bench
from tests.memory import Memory
from voldriverd import model, store
from voldriverd.driver import Key
from voldriverd.engine import remembered, snapshots
from voldriverd.kernel import run, tree
from voldriverd.model import VolumeState

pytestmark = pytest.mark.root

STEPS_MAX: Final = 60


def _revert_twice(bench: Bench) -> None:
    for _ in range(2):
        snapshots.revert(bench.engine, bench.volume("db"), bench.snapshot("db", "one"))
        bench.upkeep()


def _files(bench: Bench) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in bench.root.glob(f"{store.FILE_NAME}*") if path.suffix != ".db-shm"}


def _recorded(
    bench: Bench, step: int, work: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> dict[Path, bytes]:
    """Do something, and return the database as it stood before a step; nothing if there are not so many."""
    found: dict[Path, bytes] = {}
    bench.switch.steps.clear()

    def note(what: str) -> None:
        if len(bench.switch.steps) == step:
            found.update(_files(bench))
        bench.switch.steps.append(what)

    with monkeypatch.context() as patch:
        patch.setattr(bench.switch, "step", note)
        work()
    return found


def _used(bench: Bench) -> set[Key]:
    bench.upkeep()
    bench.catalogue.save()
    (pool,) = bench.engine.pools
    return bench.store.pointed_keys(pool.row.id)


def _put_back(bench: Bench, files: dict[Path, bytes]) -> None:
    bench.close()
    for path in bench.root.glob(f"{store.FILE_NAME}*"):
        path.unlink()
    for path, content in files.items():
        path.write_bytes(content)
    bench.restart()
    bench.upkeep()


def _check(bench: Bench, monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> None:
    for step in range(STEPS_MAX):
        bench.renew()
        power.prepare(bench)
        files = _recorded(bench, step, work, monkeypatch)
        if not files:
            assert step > 0, "a verb without a step"
            return
        used = _used(bench)
        bench.unmount_all()
        _put_back(bench, files)
        assert used <= bench.driver.trees(), f"before {bench.switch.steps[step]}"
    pytest.fail(f"it has more than {STEPS_MAX} steps")


@pytest.mark.parametrize("name", ["create", "clone", "snapshot", "revert", "revert twice"])
def test_no_tree_in_use_is_lost_by_a_verb(bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    run = power.VERBS[name].run if name in power.VERBS else _revert_twice
    _check(bench, monkeypatch, lambda: run(bench))


@pytest.mark.parametrize("state", [VolumeState.IMPORTING, VolumeState.RESTORING])
def test_a_new_volume_that_was_being_made_is_what_it_has_become(bench: Bench, state: VolumeState) -> None:
    """A restore would be taken up again, and what was written since would go for it."""
    volume = bench.create("new")
    bench.write("new", "later")
    begun = replace(volume, state=state, options={"from": "backup:7"} if state is VolumeState.RESTORING else {})
    bench.catalogue.save()
    bench.store.commit(lambda write: write.put_volume(begun))
    bench.restart()
    bench.upkeep()
    assert (bench.volume("new").state, bench.read("new")) == (VolumeState.INACTIVE, "later")


def test_what_an_import_has_lost_comes_back_with_a_rebuild(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "content").write_text("whole")
    monkeypatch.setattr(Memory, "adopt", imports.adopt_instantly)
    files = _recorded(bench, 3, lambda: imports.from_snapshots(bench, tmp_path), monkeypatch)
    _used(bench)
    _put_back(bench, files)
    (pool,) = bench.engine.pools
    assert pool.orphans == {"s1"}
    bench.catalogue.save()
    assert remembered.read(bench.pool_root).snapshots[model.SnapshotId(1)].name == "then"


@pytest.mark.parametrize("kind", ["archive", "directory", "snapshots"])
def test_no_tree_in_use_is_lost_by_an_import(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / "content").write_text("whole")
    if kind == "snapshots":
        monkeypatch.setattr(Memory, "adopt", imports.adopt_instantly)
    ways: dict[str, Callable[[], None]] = {
        "archive": lambda: imports.from_archive(bench),
        "directory": lambda: imports.from_directory(bench, tmp_path),
        "snapshots": lambda: imports.from_snapshots(bench, tmp_path),
    }
    _check(bench, monkeypatch, ways[kind])


def test_of_a_pool_that_was_put_back_no_content_goes_whose_volume_has_no_other(bench: Bench) -> None:
    """The database has it as displaced, and had not removed it yet."""
    volume = bench.create("a")
    freeze(bench.engine, volume, "one")
    bench.write("a", "present")
    bench.unmount_all()
    copy = bench.pool_root.with_name("copy")
    run.run(["cp", "-a", str(bench.pool_root), str(copy)])
    snapshots.revert(bench.engine, bench.volume("a"), bench.snapshot("a", "one"))
    bench.close()
    tree.vanish(bench.pool_root)
    copy.rename(bench.pool_root)
    bench.restart()
    bench.upkeep()
    assert bench.read_key(volume.tree) == "present"
    (pool,) = bench.engine.pools
    assert pool.orphans == {volume.tree}
