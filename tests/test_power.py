"""The power switch: a cut at every single step of every verb, then recovery.

After each: no tree that nobody owns, no half state, and all that a client was told is true.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

import pytest

from tests.engines import LOSSES, Bench
from voldriverd import model
from voldriverd.driver import Key
from voldriverd.engine import snapshots, trash, volumes
from voldriverd.errors import Error
from voldriverd.model import SnapshotState, VolumeState

pytestmark = pytest.mark.root

STEPS_MAX: Final = 60
"""No verb has more; a loop that does not end fails here."""


@dataclass
class Promises:
    """What the client was told: the content of each volume and snapshot by name, None for one that is gone."""

    volumes: dict[str, str | None] = field(default_factory=dict)
    snapshots: dict[tuple[str, str], str | None] = field(default_factory=dict)
    trashed: set[str] = field(default_factory=set)
    sizes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Verb:
    """One verb on a prepared bench: what it promises before (`unsure` names are free while it runs) and after."""

    run: Callable[[Bench], None]
    done: Callable[[Promises], None]
    unsure: frozenset[str] = frozenset()


def _create(bench: Bench) -> None:
    bench.create("new", size="2M")


def _create_two(bench: Bench) -> None:
    bench.create("new")
    bench.create("other")  # what the first one came to is committed with its beginning


def _write_foreseen(bench: Bench) -> None:
    bench.create("new")
    snapshots.create(bench.engine, bench.volume("new"), snapshots.Wish("first"))
    bench.store.write_foreseen()


def _clone(bench: Bench) -> None:
    bench.create("new", **{"from": "db@one"})


def _clone_larger(bench: Bench) -> None:
    bench.create("new", size="8M", **{"from": "db"})


def _snapshot(bench: Bench) -> None:
    snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish("two"))


def _remove_snapshot(bench: Bench) -> None:
    snapshots.remove(bench.engine, bench.volume("db"), bench.snapshot("db", "one"))


def _revert(bench: Bench) -> None:
    snapshots.revert(bench.engine, bench.volume("db"), bench.snapshot("db", "one"))


def _resize(bench: Bench) -> None:
    volumes.resize(bench.engine, bench.volume("db"), 4 << 20)


def _remove(bench: Bench) -> None:
    trash.remove(bench.engine, bench.volume("db"))


def _purge(bench: Bench) -> None:
    trash.purge(bench.engine, bench.trashed("old"))


def _restore(bench: Bench) -> None:
    trash.restore(bench.engine, bench.trashed("old"), name="new")


def _mount_and_unmount(bench: Bench) -> None:
    bench.mount("db")
    bench.unmount("db")


def _first_mount(bench: Bench) -> None:
    bench.write("empty", "first")


def _is_removed(told: Promises) -> None:
    _set(told, volumes={"db": None}, trashed={"db"})
    del told.sizes["db"]


def _is_restored(told: Promises) -> None:
    _set(told, volumes={"new": "old"})
    told.trashed.discard("old")


def _nothing(_: Promises) -> None:
    """Promise nothing new."""


def _set(promises: Promises, **changes: object) -> None:
    for name, value in changes.items():
        getattr(promises, name).update(value)


VERBS: Final[dict[str, Verb]] = {
    "create": Verb(_create, lambda told: _set(told, volumes={"new": ""}, sizes={"new": 2 << 20}), frozenset({"new"})),
    "create two": Verb(
        _create_two, lambda told: _set(told, volumes={"new": "", "other": ""}), frozenset({"new", "other"})
    ),
    "create, snapshot and write": Verb(
        _write_foreseen,
        lambda told: _set(told, volumes={"new": ""}, snapshots={("new", "first"): ""}),
        frozenset({"new", "new@first"}),
    ),
    "clone": Verb(_clone, lambda told: _set(told, volumes={"new": "one"}), frozenset({"new"})),
    "clone larger": Verb(
        _clone_larger, lambda told: _set(told, volumes={"new": "now"}, sizes={"new": 8 << 20}), frozenset({"new"})
    ),
    "snapshot": Verb(_snapshot, lambda told: _set(told, snapshots={("db", "two"): "now"}), frozenset({"db@two"})),
    "remove snapshot": Verb(
        _remove_snapshot, lambda told: _set(told, snapshots={("db", "one"): None}), frozenset({"db@one"})
    ),
    "revert": Verb(_revert, lambda told: _set(told, volumes={"db": "one"}), frozenset({"db"})),
    "resize": Verb(_resize, lambda told: _set(told, sizes={"db": 4 << 20}), frozenset({"size db"})),
    "remove": Verb(_remove, _is_removed, frozenset({"db"})),
    "purge": Verb(_purge, lambda told: told.trashed.discard("old"), frozenset({"old"})),
    "restore": Verb(
        _restore,
        _is_restored,
        frozenset({"new", "old"}),
    ),
    "mount and unmount": Verb(_mount_and_unmount, _nothing),
    "first mount and write": Verb(
        _first_mount, lambda told: _set(told, volumes={"empty": "first"}), frozenset({"empty"})
    ),
    "upkeep": Verb(Bench.upkeep, _nothing),
}


def prepare(bench: Bench) -> Promises:
    """Make volumes in every situation: written and snapshotted, never mounted, in the trash, awaiting removal."""
    bench.create("db", size="1M")
    bench.write("db", "one")
    snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish("one"))
    bench.write("db", "now")
    bench.create("old")
    bench.write("old", "old")
    trash.remove(bench.engine, bench.volume("old"))
    bench.upkeep()
    bench.create("empty")
    bench.create("doomed")
    trash.purge(bench.engine, trash.remove(bench.engine, bench.volume("doomed")))
    return Promises(
        volumes={"db": "now", "empty": "", "doomed": None},
        snapshots={("db", "one"): "one"},
        trashed={"old"},
        sizes={"db": 1 << 20},
    )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", VERBS)
def test_a_cut_at_every_step_leaves_what_was_promised(bench: Bench, name: str, loss: str) -> None:
    verb = VERBS[name]
    for step in range(STEPS_MAX):
        bench.renew()
        told = prepare(bench)
        was_cut = bench.is_cut(step, lambda: verb.run(bench))
        steps = list(bench.switch.steps)
        if not was_cut:
            verb.done(told)
        bench.unmount_all()
        bench.lose_power(loss)
        bench.restart()
        _check(bench, told, unsure=verb.unsure if was_cut else frozenset(), steps=steps)
        if not was_cut:
            assert step > 0, "a verb without a step"
            return
    pytest.fail(f"{name} has more than {STEPS_MAX} steps")


def _check(bench: Bench, told: Promises, *, unsure: frozenset[str], steps: list[str]) -> None:
    where = f"after {steps}"
    rows = bench.engine.store.volumes()
    assert {row.state for row in rows} <= {VolumeState.INACTIVE, VolumeState.REMOVED}, where
    assert {row.message for row in rows} <= {None}, where
    kept = bench.engine.store.snapshots()
    assert {row.state for row in kept} <= {SnapshotState.CREATED}, where
    assert not any(pool.orphans for pool in bench.engine.pools), where
    bench.upkeep()
    owned = {row.tree for row in rows} | {row.tree for row in kept}
    assert bench.driver.trees() == owned, where
    assert bench.tree_rows() == owned, where
    for name, content in told.volumes.items():
        row = bench.engine.store.volume_named(name)
        if name in unsure:
            continue
        assert (row is None) == (content is None), f"{name} {where}"
        if content is not None:
            assert bench.read(name) == content, f"{name} {where}"
    _check_unsure(bench, unsure, where)
    for (volume, name), content in told.snapshots.items():
        if f"{volume}@{name}" in unsure or volume in unsure:
            continue
        assert bench.read_snapshot(volume, name) == content, f"{volume}@{name} {where}"
    trashed = {row.name for row in rows if row.state is VolumeState.REMOVED}
    assert told.trashed - unsure <= trashed, where
    for name, size_bytes in told.sizes.items():
        if name not in unsure and f"size {name}" not in unsure:
            assert bench.size(name) == (size_bytes, size_bytes), where


def _check_unsure(bench: Bench, unsure: frozenset[str], where: str) -> None:
    """What was not acknowledged is whole or absent: one of the contents that the verb may leave."""
    may_be = {"new": {"", "one", "now", "old"}, "db": {"now", "one"}, "empty": {"", "first"}}
    for name in unsure & may_be.keys():
        if bench.engine.store.volume_named(name) is not None:
            assert bench.read(name) in may_be[name], f"{name} {where}"
    if "db" in unsure and (row := bench.engine.store.volume_named("db")) is not None and bench.read("db") == "one":
        kept = [each for each in bench.engine.store.snapshots(row.id) if each.is_automatic]
        assert [bench.read_key(each.tree) for each in kept] == ["now"], f"what was displaced is kept {where}"
    if "size db" in unsure:
        row_size, tree_size = bench.size("db")
        assert row_size == tree_size, where


def test_of_the_database_a_cut_takes_what_was_not_waited_for_and_nothing_else(bench: Bench) -> None:
    """Or nothing here would notice a commit that is implied and must not be."""
    volume = bench.create("db")
    bench.store.write_foreseen()
    for description, is_implied in (("kept", False), ("lost", True)):
        row = replace(volume, description=description)
        bench.store.commit(lambda write, row=row: write.put_volume(row), is_implied=is_implied)  # type: ignore[misc]
    bench.lose_power("of the database")
    bench.restart()
    assert bench.volume("db").description == "kept"


def test_a_retried_create_after_a_cut_succeeds(bench: Bench) -> None:
    for step in range(STEPS_MAX):
        bench.renew()
        if not bench.is_cut(step, lambda: bench.create("db")):
            return
        bench.lose_power("all")
        bench.restart()
        bench.create("db")
        assert bench.read("db") == ""
    pytest.fail("create has no end")


def test_a_tree_that_no_row_knows_is_reported_and_kept(bench: Bench) -> None:
    bench.create("db")
    stranger = Key("v77.1")
    bench.driver.create(stranger, bench.driver.complete(bench.plain))
    bench.restart()
    bench.upkeep()
    assert [pool.orphans for pool in bench.engine.pools] == [frozenset({stranger})]
    assert stranger in bench.driver.trees()
    bench.create("next")
    assert bench.volume("next").id > 77, "new ids start above every key on disk"


def test_a_tree_that_is_lost_is_said_and_refuses_to_mount(bench: Bench) -> None:
    bench.create("db")
    bench.write("db", "precious")
    bench.driver.remove(bench.volume("db").tree)
    bench.driver.sync()
    bench.restart()
    assert "missing" in (bench.volume("db").message or "")
    with pytest.raises(Error, match="missing"):
        bench.mount("db")
    assert bench.engine.store.volume_named("db") is not None


def test_a_volume_begun_from_a_source_that_is_gone_leaves_no_row(bench: Bench) -> None:
    bench.create("db")
    bench.write("db", "one")
    assert bench.is_cut(1, lambda: bench.create("new", **{"from": "db"}))  # after the commit of begin
    bench.driver.remove(bench.volume("db").tree)
    bench.driver.sync()
    bench.restart()
    assert bench.engine.store.volume_named("new") is None
    assert replace(bench.volume("db"), message=None).state is model.VolumeState.INACTIVE
