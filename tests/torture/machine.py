"""The verbs in any order on a real driver, beside a model that is a few dictionaries.

After each step the rows are as the model says, sizes are those of the trees, and only what is held is mounted; after
upkeep, a restart and at the end every file of every volume and snapshot, trees on disk == rows pointed to, and the
catalogue copy and the links say the same. At the end all is purged, and nothing is left.
"""

import itertools
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, strategies
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.memory import PowerCut
from tests.torture.bench import MIB, Bench, Kind, Places, content_of
from voldriverd import model, names
from voldriverd.driver import Capability
from voldriverd.engine import mounts, remembered, snapshots, trash, upkeep, use, volumes
from voldriverd.errors import Exists, InUse, Invalid, NotFound, Unsupported
from voldriverd.kernel import image
from voldriverd.model import VolumeState

START: Final = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
NAMES: Final = ("alpha", "beta", "gamma", "0123456789abcdef" * 4)
"""Few, so that they meet; the last one is anonymous."""
SNAPSHOTS: Final = ("one", "two", "1s1")
FILES: Final = ("file", "folder/file", "other")
HOLDERS: Final = ("c" * 64, "d" * 64, model.HOST_HOLDER)
SIZES: Final = {"ext4": (32, 40, 64), "xfs": (300, 320), None: (32, 40, 64)}
"""In MiB, by file system; None is btrfs."""
STEPS: Final = 30
LONG_STEPS: Final = 60
LONG_EXAMPLES: Final = 10
"""For one seed."""

Content = dict[str, bytes]
Refusal = type[Exception] | None

_numbers: Final = itertools.count()
_names = strategies.sampled_from(NAMES)
_snapshots = strategies.sampled_from(SNAPSHOTS)
_holders = strategies.sampled_from(HOLDERS)
_sizes = strategies.sampled_from((None, 0, 1, 2))


@dataclass(frozen=True)
class Frozen:
    """What the model knows of a snapshot."""

    content: Content
    size_bytes: int | None
    expires_at: datetime | None = None


@dataclass
class Known:
    """What the model knows of a volume."""

    id: model.VolumeId
    fs: str | None
    size_bytes: int | None
    content: Content = field(default_factory=dict)
    snapshots: dict[str, Frozen] = field(default_factory=dict)
    holders: dict[str, tuple[int, datetime]] = field(default_factory=dict)
    """How often and since when each holds it."""
    is_lingering: bool = False
    """Still mounted without a holder, for it was busy."""
    is_protected: bool = False
    destroy_at: datetime | None = None

    @property
    def is_attached(self) -> bool:
        """Whether its tree is mounted."""
        return bool(self.holders) or self.is_lingering


class Machine(RuleBasedStateMachine):
    """One bench and its model."""

    def __init__(self, kind: Kind, places: Places) -> None:
        super().__init__()
        number = next(_numbers)
        self.bench = Bench(kind, places.base / f"machine{number}", places.pools[kind.name] / f"machine{number}")
        self.now = START
        self.bench.now = lambda: self.now
        self.live: dict[str, Known] = {}
        self.trash: dict[model.VolumeId, tuple[str, Known]] = {}

    @initialize()
    def prepare(self) -> None:
        """Begin with something to work on: most examples are short."""
        for name in NAMES[:2]:
            made = self.bench.create(name)
            self.live[name] = Known(made.id, self._fs({}), self._default_size())
            self._write(name, FILES[0], b"first")
        snapshots.create(self.bench.engine, self.bench.volume(NAMES[0]), snapshots.Wish(SNAPSHOTS[0]))
        known = self.live[NAMES[0]]
        known.snapshots[SNAPSHOTS[0]] = Frozen(dict(known.content), known.size_bytes)
        self._write(NAMES[0], FILES[1], b"second")

    # Volumes.

    @rule(name=_names, size=_sizes, is_xfs=strategies.booleans())
    def create(self, name: str, size: int | None, is_xfs: bool) -> None:  # noqa: FBT001 - hypothesis passes it by name
        options = {}
        if self.bench.kind.driver == "loop" and is_xfs and size is not None:
            options["fs"] = "xfs"
        if size is not None and self.bench.has_sizes:
            options["size"] = f"{_size(self._fs(options), size)}M"
        if name in self.live:
            self._refuse(Exists, lambda: self.bench.create(name, **options))
            return
        made = self.bench.create(name, **options)
        size_bytes = int(options["size"][:-1]) * MIB if "size" in options else self._default_size()
        self.live[name] = Known(made.id, self._fs(options), size_bytes)

    @precondition(lambda self: self.live)
    @rule(data=strategies.data(), name=_names, size=_sizes, from_snapshot=strategies.booleans())
    def clone(self, data: Any, name: str, size: int | None, from_snapshot: bool) -> None:  # noqa: FBT001
        source, known = self._any(data)
        frozen = None
        text = source
        if from_snapshot and known.snapshots:
            chosen = data.draw(strategies.sampled_from(sorted(known.snapshots)))
            frozen, text = known.snapshots[chosen], f"{source}@{chosen}"
        size_bytes = known.size_bytes if frozen is None else frozen.size_bytes
        wanted = size_bytes if size is None or not self.bench.has_sizes else _size(known.fs, size) * MIB
        options = {"from": text} | ({} if wanted == size_bytes else {"size": f"{(wanted or 0) // MIB}M"})
        kind: Refusal = None
        if name in self.live:
            kind = Exists
        elif frozen is None and self._is_too_live(known):
            kind = Unsupported
        elif wanted is not None and size_bytes is not None and wanted < size_bytes:
            kind = Invalid
        if kind is not None:
            self._refuse(kind, lambda: self.bench.create(name, **options))
            return
        made = self.bench.create(name, **options)
        content = known.content if frozen is None else frozen.content
        self.live[name] = Known(made.id, known.fs, wanted, dict(content))

    @precondition(lambda self: self.live)
    @rule(data=strategies.data(), size=strategies.sampled_from((0, 1, 2)))
    def resize(self, data: Any, size: int) -> None:
        name, known = self._any(data)
        size_bytes = _size(known.fs, size) * MIB
        kind: Refusal = None
        if not self.bench.has_sizes:
            kind = Unsupported
        elif self.bench.kind.driver == "loop" and size_bytes < (known.size_bytes or 0):
            kind = Invalid
        elif (
            known.fs == "ext4"
            and known.is_attached
            and size_bytes != known.size_bytes
            and not image.may_grow_mounted_ext4()
        ):
            kind = Unsupported
        if kind is not None:
            self._refuse(kind, lambda: volumes.resize(self.bench.engine, self.bench.volume(name), size_bytes))
            return
        volumes.resize(self.bench.engine, self.bench.volume(name), size_bytes)
        known.size_bytes = size_bytes

    @precondition(lambda self: self.live)
    @rule(data=strategies.data(), file=strategies.sampled_from(FILES), kib=strategies.sampled_from((0, 1, 100)))
    def write(self, data: Any, file: str, kib: int) -> None:
        name, _ = self._any(data)
        self._write(name, file, f"{next(_numbers)} ".encode() * 128 * kib)

    @precondition(lambda self: any(known.content for known in self.live.values()))
    @rule(data=strategies.data())
    def delete(self, data: Any) -> None:
        name = data.draw(strategies.sampled_from(sorted(name for name in self.live if self.live[name].content)))
        known = self.live[name]
        file = data.draw(strategies.sampled_from(sorted(known.content)))
        with self.bench.written(name) as place:
            (place / file).unlink()
        del known.content[file]
        known.is_lingering = False

    @precondition(lambda self: self.live)
    @rule(data=strategies.data(), is_protected=strategies.booleans())
    def protect(self, data: Any, is_protected: bool) -> None:  # noqa: FBT001
        name, known = self._any(data)
        volumes.set_properties(self.bench.engine, self.bench.volume(name), is_protected=is_protected)
        known.is_protected = is_protected

    # Snapshots.

    @precondition(lambda self: self.live)
    @rule(data=strategies.data(), snapshot=_snapshots)
    def snapshot(self, data: Any, snapshot: str) -> None:
        name, known = self._any(data)
        kind: Refusal = None
        if snapshot in known.snapshots:
            kind = Exists
        elif self._is_too_live(known):
            kind = Unsupported
        wish = snapshots.Wish(snapshot)
        if kind is not None:
            self._refuse(kind, lambda: snapshots.create(self.bench.engine, self.bench.volume(name), wish))
            return
        snapshots.create(self.bench.engine, self.bench.volume(name), wish)
        known.snapshots[snapshot] = Frozen(dict(known.content), known.size_bytes)

    @precondition(lambda self: self._with_snapshots())
    @rule(data=strategies.data())
    def revert(self, data: Any) -> None:
        name, known, snapshot = self._any_snapshot(data)
        if self._is_held(known):
            self._refuse(InUse, lambda: self._revert(name, snapshot))
            return
        _, kept = self._revert(name, snapshot)
        self._note_reverted(known, snapshot, kept)

    @precondition(lambda self: self._with_snapshots())
    @rule(data=strategies.data())
    def remove_snapshot(self, data: Any) -> None:
        name, known, snapshot = self._any_snapshot(data)
        row = self.bench.snapshot(name, snapshot)
        snapshots.remove(self.bench.engine, self.bench.volume(name), row)
        del known.snapshots[snapshot]

    # The trash.

    @precondition(lambda self: self.live)
    @rule(data=strategies.data())
    def remove(self, data: Any) -> None:
        name, known = self._any(data)
        if known.is_protected or self._is_held(known):
            self._refuse(InUse, lambda: trash.remove(self.bench.engine, self.bench.volume(name)))
            return
        trash.remove(self.bench.engine, self.bench.volume(name))
        del self.live[name]
        known.holders.clear()
        known.is_lingering = False
        if not names.is_anonymous(name):
            known.destroy_at = self.now + timedelta(seconds=self.bench.limits.trash_retention_s)
            self.trash[known.id] = name, known

    @precondition(lambda self: self.trash)
    @rule(data=strategies.data(), new_name=_names | strategies.none())
    def restore(self, data: Any, new_name: str | None) -> None:
        volume_id = data.draw(strategies.sampled_from(sorted(self.trash)))
        name, known = self.trash[volume_id]
        row = self._trashed(volume_id)
        if (new_name or name) in self.live:
            self._refuse(Exists, lambda: trash.restore(self.bench.engine, row, name=new_name))
            return
        trash.restore(self.bench.engine, row, name=new_name)
        del self.trash[volume_id]
        known.destroy_at = None
        self.live[new_name or name] = known

    @precondition(lambda self: self.trash)
    @rule(data=strategies.data())
    def purge(self, data: Any) -> None:
        volume_id = data.draw(strategies.sampled_from(sorted(self.trash)))
        trash.purge(self.bench.engine, self._trashed(volume_id))
        del self.trash[volume_id]

    @precondition(lambda self: self.live)
    @rule(data=strategies.data())
    def purge_what_lives(self, data: Any) -> None:
        name, _ = self._any(data)
        self._refuse(NotFound, lambda: trash.purge(self.bench.engine, self.bench.volume(name)))

    # Mounts.

    @precondition(lambda self: self.live)
    @rule(data=strategies.data(), holder=_holders)
    def mount(self, data: Any, holder: str) -> None:
        name, known = self._any(data)
        self.bench.mount(name, holder)
        count, _ = known.holders.get(holder, (0, self.now))
        known.holders[holder] = (1 if holder == model.HOST_HOLDER else count + 1), self.now
        known.is_lingering = False

    @precondition(lambda self: any(known.holders for known in self.live.values()))
    @rule(data=strategies.data(), is_busy=strategies.booleans())
    def unmount(self, data: Any, is_busy: bool) -> None:  # noqa: FBT001
        name = data.draw(strategies.sampled_from(sorted(name for name in self.live if self.live[name].holders)))
        known = self.live[name]
        holder = data.draw(strategies.sampled_from(sorted(known.holders)))
        if is_busy:
            with (self.bench.root / "mounts" / self.bench.volume(name).tree / "busy").open("w"):
                self.bench.unmount(name, holder)
            known.content["busy"] = b""
        else:
            self.bench.unmount(name, holder)
        count, since = known.holders.pop(holder)
        if count > 1:
            known.holders[holder] = count - 1, since
        known.is_lingering = is_busy and not known.holders

    # Verbs that a crash cuts off between two of their commits or just before or after one.

    @precondition(lambda self: self.live)
    @rule(data=strategies.data(), step=strategies.integers(0, 3), snapshot=_snapshots)
    def cut_snapshot(self, data: Any, step: int, snapshot: str) -> None:
        name, known = self._any(data)
        if snapshot in known.snapshots or self._is_too_live(known):
            return
        engine, row = self.bench.engine, self.bench.volume(name)
        is_done = self._cut(step, lambda: snapshots.create(engine, row, snapshots.Wish(snapshot)))
        if self.bench.store.snapshot_named(known.id, snapshot) is not None:
            known.snapshots[snapshot] = Frozen(dict(known.content), known.size_bytes)
        assert snapshot in known.snapshots or not is_done

    @precondition(lambda self: self._with_snapshots())
    @rule(data=strategies.data(), step=strategies.integers(0, 3))
    def cut_revert(self, data: Any, step: int) -> None:
        name, known, snapshot = self._any_snapshot(data)
        if self._is_held(known):
            return
        before = self.bench.volume(name).tree
        since = {each.id for each in self.bench.store.snapshots(known.id)}
        is_done = self._cut(step, lambda: self._revert(name, snapshot))
        known.is_lingering = False
        if self.bench.volume(name).tree == before:
            assert not is_done
            held = {mount.holder for mount in self.bench.store.mounts(known.id)}
            known.holders = {holder: known.holders[holder] for holder in known.holders if holder in held}
            return
        (kept,) = (each for each in self.bench.store.snapshots(known.id) if each.id not in since)
        self._note_reverted(known, snapshot, kept)

    @precondition(lambda self: self.live)
    @rule(data=strategies.data(), step=strategies.integers(0, 3), name=_names)
    def cut_clone(self, data: Any, step: int, name: str) -> None:
        source, known = self._any(data)
        if name in self.live or self._is_too_live(known):
            return
        sizes = [size for size in SIZES[known.fs] if size * MIB > (known.size_bytes or 0)]
        size = data.draw(strategies.sampled_from([None, *sizes])) if self.bench.has_sizes else None
        options = {"from": source} | ({} if size is None else {"size": f"{size}M"})
        is_done = self._cut(step, lambda: self.bench.create(name, **options))
        made = self.bench.store.volume_named(name)
        assert made is not None or not is_done
        if made is not None:
            size_bytes = known.size_bytes if size is None else size * MIB
            self.live[name] = Known(made.id, known.fs, size_bytes, dict(known.content))

    @precondition(lambda self: self.live)
    @rule(data=strategies.data(), step=strategies.integers(0, 3))
    def cut_resize(self, data: Any, step: int) -> None:
        name, known = self._any(data)
        larger = [size * MIB for size in SIZES[known.fs] if size * MIB > (known.size_bytes or 0)]
        if not larger or not self.bench.has_sizes or (known.fs == "ext4" and known.is_attached):
            return
        row = self.bench.volume(name)
        is_done = self._cut(step, lambda: volumes.resize(self.bench.engine, row, larger[0]))
        found = self.bench.volume(name).size_bytes
        assert found == larger[0] or (found == known.size_bytes and not is_done)
        known.size_bytes = found

    # Time, restarts, upkeep.

    @precondition(lambda self: self.live)
    @rule(seconds=strategies.sampled_from((5, 11, 200, 86_400, 7 * 86_400 + 1)))
    def advance(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @precondition(lambda self: self.live)
    @rule()
    def expire(self) -> None:
        for volume in upkeep.expired_volumes(self.bench.engine):
            trash.purge(self.bench.engine, volume)
        for snapshot in upkeep.expired_snapshots(self.bench.engine):
            row = self.bench.store.volume(snapshot.volume_id)
            assert row is not None
            snapshots.remove(self.bench.engine, row, snapshot)
        self.trash = {
            volume_id: (name, known)
            for volume_id, (name, known) in self.trash.items()
            if known.destroy_at is not None and known.destroy_at > self.now
        }
        for known in self.live.values():
            kept = {name: frozen for name, frozen in known.snapshots.items() if not _is_over(frozen, self.now)}
            known.snapshots = kept

    @precondition(lambda self: self.live)
    @rule()
    def restart(self) -> None:
        self._restart()
        self._check_content()

    def _restart(self) -> None:
        self.bench.restart()
        for known in self.live.values():
            known.holders = {
                holder: (count, since)
                for holder, (count, since) in known.holders.items()
                if holder == model.HOST_HOLDER or self.now - since < timedelta(seconds=mounts.SETTLING_S)
            }
            known.is_lingering = False

    @precondition(lambda self: self.live)
    @rule()
    def reboot(self) -> None:
        self.bench.reboot()
        for known in self.live.values():
            known.holders.clear()
            known.is_lingering = False

    @precondition(lambda self: self.live)
    @rule()
    def upkeep(self) -> None:
        self._upkeep()

    def _upkeep(self) -> None:
        self.bench.upkeep()
        self.bench.check_trees()
        self._check_content()
        self._check_catalogue()
        linked = {link.name: link.readlink().name for link in (self.bench.root / "by-name").iterdir()}
        assert linked == {name: self.bench.volume(name).key for name in self.live}

    @invariant()
    def rows_are_as_the_model_says(self) -> None:
        store = self.bench.store
        rows = {row.id: row for row in store.volumes()}
        assert rows.keys() == {known.id for known in self.live.values()} | self.trash.keys()
        everything = [(name, known, VolumeState.INACTIVE) for name, known in self.live.items()]
        everything += [(name, known, VolumeState.REMOVED) for name, known in self.trash.values()]
        for name, known, state in everything:
            row = rows[known.id]
            found = (row.name, row.state, row.size_bytes, row.is_protected, row.message)
            assert found == (name, state, known.size_bytes, known.is_protected, None)
            held = {mount.holder: (mount.count, mount.created_at) for mount in store.mounts(known.id)}
            assert held == known.holders
            kept = {each.shown_name: (each.size_bytes, each.expires_at) for each in store.snapshots(known.id)}
            assert kept == {name: (each.size_bytes, each.expires_at) for name, each in known.snapshots.items()}
            if self.bench.has_sizes:
                assert self.bench.driver.usage(row.tree).limit_bytes == known.size_bytes
        attached = {rows[known.id].tree for known in self.live.values() if known.is_attached}
        assert self.bench.attached() == attached

    def teardown(self) -> None:
        try:
            self._upkeep()
            for name, known in list(self.live.items()):
                row = self.bench.volume(name)
                volumes.set_properties(self.bench.engine, row, is_protected=False)
                for mount in self.bench.store.mounts(known.id):
                    for _ in range(mount.count):
                        self.bench.unmount(name, mount.holder)
                trash.remove(self.bench.engine, self.bench.volume(name))
            for row in self.bench.store.volumes():
                trash.purge(self.bench.engine, row)
            self.bench.upkeep()
            self.bench.check_trees()
            assert self.bench.attached() == set()
            assert self.bench.driver.trees() == set()
            assert os.listdir(self.bench.root / "mounts") == []
        finally:
            self.bench.vanish()

    def _write(self, name: str, file: str, content: bytes) -> None:
        """Write a file; that mounts the volume for a moment, which ends a mount that lingers."""
        with self.bench.written(name) as place:
            (place / file).parent.mkdir(exist_ok=True)
            (place / file).write_bytes(content)
        self.live[name].content[file] = content
        self.live[name].is_lingering = False

    def _cut(self, step: int, verb: Callable[[], object]) -> bool:
        """Run a verb that dies at a step, and start again; tells whether it reached its end before."""
        switch = self.bench.switch
        switch.cut_at = len(switch.steps) + step
        try:
            verb()
        except PowerCut:
            is_done = False
        else:
            is_done = True
        finally:
            switch.cut_at = None
        self._restart()
        return is_done

    def _note_reverted(self, known: Known, snapshot: str, kept: model.Snapshot) -> None:
        frozen = known.snapshots[snapshot]
        expires_at = self.now + timedelta(seconds=self.bench.limits.trash_retention_s)
        known.snapshots[kept.shown_name] = Frozen(known.content, known.size_bytes, expires_at)
        known.content = dict(frozen.content)
        known.size_bytes = max((size for size in (known.size_bytes, frozen.size_bytes) if size), default=None)
        known.holders.clear()
        known.is_lingering = False

    def _revert(self, name: str, snapshot: str) -> snapshots.Reverted:
        return snapshots.revert(self.bench.engine, self.bench.volume(name), self.bench.snapshot(name, snapshot))

    def _refuse(self, kind: type[Exception], verb: Callable[[], object]) -> None:
        """See that a verb is refused; the invariant sees that nothing has changed."""
        with pytest.raises(kind, match=r"^cannot "):
            verb()

    def _any(self, data: Any) -> tuple[str, Known]:
        name = data.draw(strategies.sampled_from(sorted(self.live)))
        return name, self.live[name]

    def _with_snapshots(self) -> list[str]:
        return sorted(name for name, known in self.live.items() if known.snapshots)

    def _any_snapshot(self, data: Any) -> tuple[str, Known, str]:
        name = data.draw(strategies.sampled_from(self._with_snapshots()))
        return name, self.live[name], data.draw(strategies.sampled_from(sorted(self.live[name].snapshots)))

    def _trashed(self, volume_id: model.VolumeId) -> model.Volume:
        row = self.bench.store.volume(volume_id)
        assert row is not None
        return row

    def _is_held(self, known: Known) -> bool:
        """Whether a holder is so new that its container may be starting; old ones have left no trace in the kernel."""
        young = timedelta(seconds=use.STARTING_S)
        return any(
            holder == model.HOST_HOLDER or self.now - since < young for holder, (_, since) in known.holders.items()
        )

    def _is_too_live(self, known: Known) -> bool:
        return Capability.INSTANT not in self.bench.driver.capabilities and bool(known.holders)

    def _fs(self, options: dict[str, str]) -> str | None:
        return options.get("fs", "ext4") if self.bench.kind.driver == "loop" else None

    def _default_size(self) -> int | None:
        return 32 * MIB if self.bench.kind.driver == "loop" else None

    def _check_content(self) -> None:
        for name, known in [*self.live.items(), *self.trash.values()]:
            row = self._trashed(known.id)
            with self.bench.shown(row.tree) as place:
                assert content_of(place) == known.content, name
            for snapshot in self.bench.store.snapshots(known.id):
                with self.bench.shown(snapshot.key or row.tree) as place:
                    assert content_of(place) == known.snapshots[snapshot.shown_name].content, snapshot.shown_name

    def _check_catalogue(self) -> None:
        lines = (self.bench.pool_root / remembered.FILE_NAME).read_text().splitlines()
        last = {(kind, row["id"]): row for line in lines[1:] for kind, row in json.loads(line).items()}
        live = {row["name"] for (kind, _), row in last.items() if kind == "volume" and row["state"] == "inactive"}
        assert live == self.live.keys()
        known = {known.id for known in self.live.values()} | self.trash.keys()
        kept = [
            row
            for (kind, _), row in last.items()
            if kind == "snapshot" and row["state"] == "created" and row["volume_id"] in known
        ]
        assert {row["key"] for row in kept} == {snapshot.key for snapshot in self.bench.store.snapshots()}


def run(kind: Kind, places: Places, *, seed: int, examples: int, steps: int = STEPS) -> None:
    """Run so many examples that follow from a seed; the first that fails is made as short as can be, and raised."""
    settings = hypothesis.settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
    )

    def make() -> Machine:
        return Machine(kind, places)

    run_state_machine_as_test(hypothesis.seed(seed)(make), settings=settings)  # type: ignore[arg-type] # any factory will do


def run_for(kind: Kind, places: Places, *, seed: int, time_s: float) -> int:
    """Run examples from that seed and the ones after it until the time is over; return how many seeds."""
    end_s = time.monotonic() + time_s
    for count in itertools.count(1):
        run(kind, places, seed=seed + count - 1, examples=LONG_EXAMPLES, steps=LONG_STEPS)
        if time.monotonic() > end_s:
            return count
    raise AssertionError("count has no end")


def _size(fs: str | None, number: int) -> int:
    sizes = SIZES[fs]
    return sizes[number % len(sizes)]


def _is_over(frozen: Frozen, now: datetime) -> bool:
    return frozen.expires_at is not None and frozen.expires_at <= now
