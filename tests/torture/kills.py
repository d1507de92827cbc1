"""kill -9 of a process that runs verbs, at a random instant, again and again.

The process is a child that says on a pipe what it begins and what has ended. After its end the next engine must show
the state of all that had ended, either with the one verb that had not or without it, and nothing else on disk.
"""

import copy
import json
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from tests.scratch import loops_under
from tests.torture.bench import MIB, Bench
from voldriverd import model
from voldriverd.engine import snapshots, trash, volumes
from voldriverd.model import SnapshotState, VolumeState

NAMES: Final = tuple(f"volume-{number}" for number in range(8))
SNAPSHOTS: Final = ("one", "two", "three")
SIZES_MIB: Final = (32, 40, 48, 64)
LIFE_S: Final = 0.1
"""How long a child lives at most after its start: some ten verbs."""
START_SHARE: Final = 0.2
"""How many of the children are killed while they start."""
RESTART_S: Final = 1.0
"""How long a start takes here, at the median, the interpreter not counted; 20 ms alone on a machine."""

Verb = tuple[str, ...]
Steps = Callable[[], Iterator[tuple[str, Any]]]


@dataclass
class Shelf:
    """One volume and its snapshots, as far as content and size go."""

    content: str = ""
    size_mib: int | None = None
    snapshots: dict[str, tuple[str, int | None]] = field(default_factory=dict)
    """Content and size."""
    displaced: list[str] = field(default_factory=list)
    """The contents of the automatic snapshots."""
    is_held: bool = False


@dataclass
class State:
    """What a client knows."""

    live: dict[str, Shelf] = field(default_factory=dict)
    trash: list[tuple[str, Shelf]] = field(default_factory=list)

    def copied(self) -> "State":
        """Return one that can be changed for itself."""
        return copy.deepcopy(self)

    def after(self, verb: Verb) -> "State":
        """Return what is known once a verb has ended."""
        state = self.copied()
        what, *arguments = verb
        getattr(state, f"_{what}")(*arguments)
        return state

    def _create(self, name: str, size: str) -> None:
        self.live[name] = Shelf(size_mib=int(size) if size else None)

    def _clone(self, name: str, source: str, snapshot: str, size: str) -> None:
        origin = self.live[source]
        content, size_mib = origin.snapshots[snapshot] if snapshot else (origin.content, origin.size_mib)
        self.live[name] = Shelf(content, int(size) if size else size_mib)

    def _write(self, name: str, content: str) -> None:
        self.live[name].content = content

    def _snapshot(self, name: str, snapshot: str) -> None:
        self.live[name].snapshots[snapshot] = self.live[name].content, self.live[name].size_mib

    def _remove_snapshot(self, name: str, snapshot: str) -> None:
        del self.live[name].snapshots[snapshot]

    def _revert(self, name: str, snapshot: str) -> None:
        shelf = self.live[name]
        shelf.displaced = sorted([*shelf.displaced, shelf.content])
        shelf.content, size_mib = shelf.snapshots[snapshot]
        shelf.size_mib = max((size for size in (shelf.size_mib, size_mib) if size), default=None)

    def _resize(self, name: str, size: str) -> None:
        self.live[name].size_mib = int(size)

    def _remove(self, name: str) -> None:
        self.trash = sorted([*self.trash, (name, self.live.pop(name))], key=lambda each: each[0])

    def _restore(self, name: str) -> None:
        (found,) = (each for each in self.trash if each[0] == name)
        self.trash.remove(found)
        self.live[name] = found[1]

    def _purge(self, name: str) -> None:
        self.trash.remove(next(each for each in self.trash if each[0] == name))

    def _mount(self, name: str) -> None:
        self.live[name].is_held = True

    def _unmount(self, name: str) -> None:
        self.live[name].is_held = False

    def _upkeep(self) -> None:
        pass


class Killing:
    """One bench whose engine runs in children that are killed."""

    def __init__(self, bench: Bench, *, seed: int) -> None:
        self.bench = bench
        self.random = random.Random(seed)
        self.state = State()
        self.verbs_cut: dict[str, int] = {}
        self.verbs_ended = 0
        self.restarts_s: list[float] = []
        self._has_sizes = bench.has_sizes

    def round(self) -> None:
        """Let a child live for a moment, kill it, and check what the next engine shows."""
        self.bench.close()
        number = self.random.getrandbits(32)
        is_early = self.random.random() < START_SHARE
        life_s = self.random.uniform(0, LIFE_S)
        lines = _lived(lambda: self._live(random.Random(number)), life_s, counts_from_ready=not is_early)
        cut = self._learn(lines)
        begun_s = time.monotonic()
        self.bench.restart()
        self.restarts_s.append(time.monotonic() - begun_s)
        if cut is not None and cut[0] == "write":
            self.bench.unmount(cut[1], "writer")  # the container that wrote has ended too
        found = observe(self.bench)
        allowed = [self.state] if cut is None else [self.state, self.state.after(cut)]
        assert found in allowed, f"after {cut}: {found}, and allowed is one of {allowed}"
        self.state = found
        self.check_rest()

    def check_rest(self) -> None:
        """See that nothing is left but what the rows say."""
        self.bench.upkeep()
        self.bench.check_trees()
        held = {self.bench.volume(name).tree for name, shelf in self.state.live.items() if shelf.is_held}
        assert self.bench.attached() == held
        images = {str(self.bench.pool_root / "trees" / key) for key in held}
        assert set(loops_under(self.bench.pool_root).values()) == (
            images if self.bench.kind.driver == "loop" else set()
        )

    def _learn(self, lines: list[str]) -> Verb | None:
        """Take in what a child said; return the verb that it had begun and not ended."""
        begun: Verb | None = None
        for line in lines:
            word, said = json.loads(line)
            if word == "failed":
                raise AssertionError(f"{begun}: {said}")
            if word == "ready":
                continue
            if word == "begin":
                begun = tuple(said)
                continue
            assert begun is not None
            self.state = self.state.after(begun)
            self.verbs_ended += 1
            begun = None
        if begun is not None:
            self.verbs_cut[begun[0]] = self.verbs_cut.get(begun[0], 0) + 1
        return begun

    def _live(self, chance: random.Random) -> Iterator[tuple[str, Any]]:
        """Run verbs without an end; for a child."""
        self.bench.restart()
        yield "ready", None
        state = self.state
        while True:
            verb = self._choose(chance, state)
            yield "begin", verb
            perform(self.bench, verb)
            state = state.after(verb)
            yield "end", None

    def _choose(self, chance: random.Random, state: State) -> Verb:
        while True:
            verb = self._propose(chance, state)
            if verb is not None:
                return verb

    def _propose(self, chance: random.Random, state: State) -> Verb | None:
        name = chance.choice(NAMES)
        shelf = state.live.get(name)
        in_trash = [each for each, _ in state.trash]
        if shelf is None:
            return ("restore", name) if name in in_trash else self._propose_new(chance, state, name)
        is_free = not shelf.is_held
        snapshot = chance.choice(SNAPSHOTS)
        larger = [size for size in SIZES_MIB if self._has_sizes and size > (shelf.size_mib or 0)]
        may_copy = is_free or self.bench.kind.driver != "directory"
        proposals: list[Verb | None] = [
            ("write", name, str(chance.getrandbits(64))),
            ("snapshot", name, snapshot) if may_copy and snapshot not in shelf.snapshots else None,
            ("remove_snapshot", name, snapshot) if snapshot in shelf.snapshots else None,
            ("revert", name, snapshot) if is_free and snapshot in shelf.snapshots else None,
            ("revert", name, snapshot) if is_free and snapshot in shelf.snapshots else None,
            ("resize", name, str(larger[0])) if is_free and larger else None,
            *([("remove", name)] * 2 if is_free and name not in in_trash else []),
            *([("purge", in_trash[0])] * 2 if in_trash else []),
            ("mount", name) if is_free else ("unmount", name),
            ("upkeep",),
        ]
        return chance.choice(proposals)

    def _propose_new(self, chance: random.Random, state: State, name: str) -> Verb | None:
        sources = [each for each, shelf in state.live.items() if not shelf.is_held]
        if not sources or chance.random() < 1 / 3:
            return "create", name, str(chance.choice(SIZES_MIB)) if self._has_sizes else ""
        source = chance.choice(sources)
        shelf = state.live[source]
        snapshot = chance.choice(["", *shelf.snapshots])
        larger = [size for size in SIZES_MIB if shelf.size_mib is not None and size > shelf.size_mib]
        size = chance.choice(["", *map(str, larger)])
        return "clone", name, source, snapshot, "" if snapshot else size


def perform(bench: Bench, verb: Verb) -> None:
    """Run a verb on the engine."""
    what, *arguments = verb
    _PERFORMED[what](bench, *arguments)


def observe(bench: Bench) -> State:
    """Return what a client sees, every content read from the files."""
    state = State()
    for row in bench.store.volumes():
        assert row.state in {VolumeState.INACTIVE, VolumeState.REMOVED}, row
        assert row.message is None, row
        limit_bytes = bench.driver.usage(row.tree).limit_bytes
        assert not bench.has_sizes or limit_bytes == row.size_bytes, (row, limit_bytes)
        shelf = Shelf(_read(bench, row), _mib(row.size_bytes), is_held=bool(bench.store.mounts(row.id)))
        for snapshot in bench.store.snapshots(row.id):
            assert snapshot.state is SnapshotState.CREATED, snapshot
            content = _read(bench, snapshot)
            if snapshot.is_automatic:
                shelf.displaced = sorted([*shelf.displaced, content])
            else:
                shelf.snapshots[snapshot.shown_name] = content, _mib(snapshot.size_bytes)
        if row.is_live:
            state.live[row.name] = shelf
        else:
            state.trash.append((row.name, shelf))
    state.trash.sort(key=lambda each: each[0])
    return state


def _create(bench: Bench, name: str, size: str) -> None:
    bench.create(name, **_sized(size))


def _clone(bench: Bench, name: str, source: str, snapshot: str, size: str) -> None:
    bench.create(name, **{"from": f"{source}@{snapshot}" if snapshot else source}, **_sized(size))


def _sized(size: str) -> dict[str, str]:
    return {"size": f"{size}M"} if size else {}


def _snapshot(bench: Bench, name: str, snapshot: str) -> None:
    snapshots.create(bench.engine, bench.volume(name), snapshots.Wish(snapshot))


def _remove_snapshot(bench: Bench, name: str, snapshot: str) -> None:
    snapshots.remove(bench.engine, bench.volume(name), bench.snapshot(name, snapshot))


def _revert(bench: Bench, name: str, snapshot: str) -> None:
    snapshots.revert(bench.engine, bench.volume(name), bench.snapshot(name, snapshot))


def _resize(bench: Bench, name: str, size: str) -> None:
    volumes.resize(bench.engine, bench.volume(name), int(size) * MIB)


def _remove(bench: Bench, name: str) -> None:
    trash.remove(bench.engine, bench.volume(name))


def _purge(bench: Bench, name: str) -> None:
    trash.purge(bench.engine, _trashed(bench, name))


def _restore(bench: Bench, name: str) -> None:
    trash.restore(bench.engine, _trashed(bench, name))


def _trashed(bench: Bench, name: str) -> model.Volume:
    return next(row for row in bench.store.volumes() if row.name == name and not row.is_live)


def _write(bench: Bench, name: str, content: str) -> None:
    """Replace a file by another of that content, in a volume that is held already or not."""
    with bench.written(name) as place:
        (place / ".new").write_text(content)
        (place / ".new").rename(place / "file")


_PERFORMED: Final[dict[str, Callable[..., object]]] = {
    "create": _create,
    "clone": _clone,
    "write": _write,
    "snapshot": _snapshot,
    "remove_snapshot": _remove_snapshot,
    "revert": _revert,
    "resize": _resize,
    "remove": _remove,
    "purge": _purge,
    "restore": _restore,
    "mount": Bench.mount,
    "unmount": Bench.unmount,
    "upkeep": Bench.upkeep,
}


def _read(bench: Bench, row: model.Volume | model.Snapshot) -> str:
    with bench.shown(row.tree) as place:
        file = place / "file"
        return file.read_text() if file.exists() else ""


def _mib(size_bytes: int | None) -> int | None:
    return None if size_bytes is None else size_bytes // MIB


def _lived(steps: Steps, life_s: float, *, counts_from_ready: bool) -> list[str]:
    """Run the steps in a child that is killed after some time; return the whole lines that it said."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _run_child(steps, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.readline() if counts_from_ready else b""
        time.sleep(life_s)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        said += pipe.read()
    return [line.decode() for line in said.splitlines(keepends=True) if line.endswith(b"\n")]


def _run_child(steps: Steps, writing: int) -> None:
    try:
        for word, said in steps():
            os.write(writing, json.dumps((word, said)).encode() + b"\n")
    except BaseException as err:  # noqa: BLE001 - it is told, and fails the test
        os.write(writing, json.dumps(("failed", repr(err))).encode() + b"\n")
    finally:
        os._exit(1)


def run(bench: Bench, *, seed: int, rounds: int, until_s: float | None = None) -> Killing:
    """Kill so many children, or until that time; returns what was seen."""
    killing = Killing(bench, seed=seed)
    for number in range(rounds):
        if until_s is not None and time.monotonic() > until_s:
            break
        try:
            killing.round()
        except BaseException:
            sys.stderr.write(f"kind {bench.kind.name}, seed {seed}, round {number}\n")
            raise
    assert statistics.median(killing.restarts_s) < RESTART_S
    return killing
