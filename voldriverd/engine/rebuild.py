"""A lost database made anew from what lies in the pools: the copies of the catalogue, and the trees.

Nothing in a pool is changed by it. Every tree gets a row, and every volume and snapshot of the copies whose tree is
there; verbs that had not ended are ended by the recovery of the next start. A tree that the copy, at most a second
behind, does not know comes back as a volume `recovered-<key>`: one of a volume as it is, that of a snapshot as a clone.
What the copy knows as destroyed, or as content older than the one that is taken, is destroyed then. Not in the copies,
and lost with the database: API keys, targets (`backup scan` finds their backups again) and who holds what (the kernel
is asked).
"""

import uuid
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from voldriverd import model, names, store
from voldriverd.driver import Driver, Key, TreeOptions
from voldriverd.engine import creation, pools, remembered, restores
from voldriverd.errors import Error, Unusable
from voldriverd.store.write import Write

_ARRIVING: Final = frozenset({model.VolumeState.RESTORING, model.VolumeState.IMPORTING})
_BEING_MADE: Final = _ARRIVING | {model.VolumeState.REGISTERING}


@dataclass(frozen=True, slots=True)
class Found:
    """What lies in one pool."""

    pool: model.Pool
    driver: Driver
    keys: frozenset[Key]
    told: remembered.Remembered
    foreign: frozenset[str] = frozenset()
    """What lies among the trees, and by its name is none."""

    @property
    def numbers(self) -> set[tuple[str, int]]:
        """Return of what there are trees: letters and ids."""
        return set(map(model.key_number, self.keys))


@dataclass(slots=True)
class Plan:
    """The rows of the new database, and what is to be said about them."""

    pools: list[model.Pool] = field(default_factory=list)
    trees: list[model.Tree] = field(default_factory=list)
    volumes: list[model.Volume] = field(default_factory=list)
    snapshots: list[model.Snapshot] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """Return the plan for people."""
        live = sum(volume.is_live for volume in self.volumes)
        count = f"{live} volumes, {len(self.volumes) - live} in the trash, {len(self.snapshots)} snapshots"
        where = f"{len(self.pools)} pool{'s' * (len(self.pools) != 1)}"
        return [f"{count} in {where}", *self.notes]


def look(pool: pools.Pool, driver: Driver) -> Found:
    """Read what an open pool holds. Raises OSError, Unusable."""
    names_found = driver.trees()
    keys = frozenset(filter(model.is_key, names_found))
    return Found(pool.row, driver, keys, remembered.read(Path(pool.row.path)), frozenset(names_found - keys))


def plan(found: list[Found], now: datetime) -> Plan:
    """Work out the rows. Raises Unusable: two pools have a tree of the same key, and so come from two databases."""
    _check_distinct(found)
    made = Plan()
    for each in found:
        made.pools.append(each.pool)
        if each.told.unreadable:
            made.notes.append(f"pool {each.pool.name}: {each.told.unreadable} lines of its catalogue make no sense")
        made.notes += [f"pool {each.pool.name}: {name!r} is no tree; it is left alone" for name in sorted(each.foreign)]
        others = (number for other in found if other is not each for letter, number in other.numbers if letter == "v")
        elsewhere = frozenset(others).union(volume.id for volume in made.volumes)
        _Pool(each, made, now, elsewhere=elsewhere).take()
    _number_recovered(made, found)
    _rename_namesakes(made)
    return made


def write(database: store.Store, made: Plan) -> None:
    """Put all rows into a new database in one transaction; its pools are there already."""

    def change(write: Write) -> None:
        for tree in made.trees:
            write.add_tree(tree)
        for volume in made.volumes:
            write.put_volume(volume)
        for snapshot in made.snapshots:
            write.put_snapshot(snapshot)

    database.commit(change)


class _Pool:
    """Takes one pool into the plan."""

    def __init__(self, found: Found, made: Plan, now: datetime, *, elsewhere: frozenset[int]) -> None:
        """`elsewhere`: the numbers of the volumes of other pools."""
        self._found = found
        self._elsewhere = elsewhere
        self._made = made
        self._now = now
        self._taken: set[Key] = set()
        self._options_of: dict[model.VolumeId, TreeOptions] = {}
        """Of the volumes that were taken."""
        self._key_of: dict[model.VolumeId, Key] = {}
        """The same."""
        self._named: dict[str, model.Volume] = {}
        for volume in found.told.volumes.values():
            self._named.setdefault(volume.name, volume)
        snapshotted = {each.volume_id for each in found.told.snapshots.values() if each.key in found.keys}
        self._forgotten = found.told.kept - snapshotted
        """Those of which only a copy that was kept tells, and of which not even a snapshot is there."""
        self._newest: dict[int, Key] = {}
        """The latest content of each volume that is there."""
        for key in found.keys:
            letter, number = model.key_number(key)
            if letter == "v":
                self._newest[number] = max(self._newest.get(number, key), key, key=_content)

    def take(self) -> None:
        """Add its rows."""
        for volume in self._found.told.volumes.values():
            if volume.state is not model.VolumeState.PURGED:
                self._take_volume(volume)
        for snapshot in self._found.told.snapshots.values():
            if snapshot.state is not model.SnapshotState.REMOVED:
                self._take_snapshot(snapshot)
        for key in sorted(self._found.keys - self._taken):
            self._take_unknown(key)

    def _take_volume(self, volume: model.Volume) -> None:
        key = volume.key if volume.key in self._found.keys else self._newest.get(volume.id)
        shown = f"volume {volume.name} (pool {self._found.pool.name})"
        if key is None and volume.id in self._elsewhere:
            self._made.notes.append(
                f"{shown}: its tree is missing, and its number is another volume's; it is forgotten"
            )
            return
        if key is None and volume.id in self._forgotten:  # it was destroyed long ago, and that is no news any more
            return
        if key is None and volume.state in _BEING_MADE:
            self._made.notes.append(f"{shown}: it was being made, and is not there")
            return
        if key is None:
            self._made.notes.append(f"{shown}: its tree {volume.key} is missing; it is listed and does not mount")
        elif key != volume.key:  # what went on is done: the old content goes last
            self._made.notes.append(f"{shown}: it has the content {key}, {volume.key} is not there any more")
            volume = replace(volume, state=model.VolumeState.INACTIVE) if volume.is_live else volume
        elif volume.state in _ARRIVING and restores.is_new(volume):  # a tree is whole, and may be in use since
            self._made.notes.append(f"{shown}: it was being made, and its tree is there; it is taken as it is")
            volume = replace(volume, state=model.VolumeState.INACTIVE)
        self._key_of[volume.id] = key or volume.tree
        self._options_of[volume.id] = self._options(volume)
        self._add_tree(self._key_of[volume.id], self._options_of[volume.id])
        self._made.volumes.append(replace(volume, pool_id=self._found.pool.id, key=self._key_of[volume.id]))

    def _take_snapshot(self, snapshot: model.Snapshot) -> None:
        if snapshot.volume_id not in self._options_of:
            return
        if snapshot.key not in self._found.keys:
            name = self._found.told.volumes[snapshot.volume_id].name
            self._made.notes.append(
                f"snapshot {snapshot.shown_name} of volume {name}: its tree is missing; it is forgotten"
            )
            return
        self._add_tree(snapshot.tree, self._options_of[snapshot.volume_id])
        self._made.snapshots.append(snapshot)

    def _take_unknown(self, key: Key) -> None:
        """Take a tree that nothing of the copy points to: as rubbish if the copy knows why, else as a volume."""
        letter, number = model.key_number(key)
        origin = self._found.told.volumes.get(model.VolumeId(number)) if letter == "v" else None
        options = TreeOptions() if origin is None else self._options(origin)
        shown = f"tree {key} (pool {self._found.pool.name})"
        if self._is_rubbish(key):
            self._add_tree(key, options)
            self._made.notes.append(f"{shown}: nothing needs it; it is destroyed")
            return
        try:
            volume = self._recovered(key, options)
        except (Error, OSError) as err:  # something else of this name, or the disk fails there
            self._made.notes.append(f"{shown}: {err}; it is left alone")
            return
        self._add_tree(key, options)
        self._made.volumes.append(volume)
        self._made.notes.append(f"{shown}: newer than the catalogue; it comes back as {volume.name}")

    def _is_rubbish(self, key: Key) -> bool:
        """Tell whether the copy knows why nothing points to a tree any more; the base of a backup is made again."""
        letter, number = model.key_number(key)
        volumes, snapshot = self._found.told.volumes, self._found.told.snapshots.get(model.SnapshotId(number))
        if letter == "v":
            volume = volumes.get(model.VolumeId(number))
        elif letter == "s":
            volume = None if snapshot is None else volumes.get(snapshot.volume_id)
        else:
            return True
        if volume is not None and volume.state is model.VolumeState.PURGED:
            return True
        if letter == "s":
            return snapshot is not None and snapshot.state is model.SnapshotState.REMOVED
        return volume is not None and _content(key) < _content(self._key_of[volume.id])

    def _recovered(self, key: Key, options: TreeOptions) -> model.Volume:
        return model.Volume(
            id=model.VolumeId(0),
            uuid=str(uuid.uuid4()),
            name=f"recovered-{key}",
            description="found by voldriverd rebuild",
            pool_id=self._found.pool.id,
            driver=self._found.pool.driver,
            key=key,
            content=_content(key),
            state=model.VolumeState.INACTIVE,
            size_bytes=options.size_bytes or self._found.driver.usage(key).limit_bytes,
            options={},
            labels={},
            is_protected=False,
            created_at=self._now,
        )

    def _add_tree(self, key: Key, options: TreeOptions, source: Key | None = None) -> None:
        self._taken.add(key)
        self._made.trees.append(model.Tree(key, self._found.pool.id, options, source, is_settled=True))

    def _options(self, volume: model.Volume) -> TreeOptions:
        """Return what a volume's tree was made with, as far as its options tell; those of a clone are its origin's."""
        given, seen = volume, {volume.id}
        while isinstance(source := names.parse_options(given.options).source, names.Source):
            origin = self._named.get(source.volume)
            if origin is None or origin.id in seen:  # each has the name of the other's origin: one was made again
                break
            seen.add(origin.id)
            given = origin
        wanted = replace(creation.asked_of_tree(names.parse_options(given.options)), size_bytes=volume.size_bytes)
        try:
            return self._found.driver.complete(wanted)
        except Error:  # the options of a backup of another driver, say
            return replace(TreeOptions(), size_bytes=volume.size_bytes)


def _check_distinct(found: list[Found]) -> None:
    count = Counter(number for each in found for number in each.numbers)
    for (letter, number), times in count.items():
        if times > 1:
            places = ", ".join(each.pool.path for each in found if (letter, number) in each.numbers)
            raise Unusable(f"cannot rebuild: {places} hold a tree {letter}{number} each; they come from two databases")


def _number_recovered(made: Plan, found: list[Found]) -> None:
    """Give those that come back numbers that nothing ever had, and a tree of their own to those of snapshots."""
    numbers = [int(volume.id) for volume in made.volumes]
    numbers += [model.key_number(key)[1] for each in found for key in each.keys if key.startswith("v")]
    numbers += [int(volume_id) for each in found for volume_id in each.told.volumes]
    last = max(numbers, default=0)
    trees = {tree.key: tree for tree in made.trees}
    for place, volume in enumerate(made.volumes):
        if volume.id != 0:
            continue
        last += 1
        mine = replace(volume, id=model.VolumeId(last))
        if volume.tree.startswith("s"):
            origin = trees[volume.tree]
            key = model.volume_key(mine.id, 1)
            made.trees.append(replace(origin, key=key, source=origin.key))
            mine = replace(mine, key=key, content=1, state=model.VolumeState.REGISTERING)
        made.volumes[place] = mine


def _rename_namesakes(made: Plan) -> None:
    """Rename volumes and snapshots whose name a newer one has, as when a database was put back and went on from there.

    The copies of two pools are not of the same instant, and those that were kept are of another time.
    """
    taken: set[str] = set()
    for place, volume in sorted(enumerate(made.volumes), key=lambda each: -each[1].id):
        if not volume.is_live:
            continue
        name = _free_name(volume.name, volume.key, taken)
        if name != volume.name:
            made.notes.append(f"volume {volume.name} (1v{volume.id}): another one has the name; it is called {name}")
        taken.add(name)
        made.volumes[place] = replace(volume, name=name)
    names_of: defaultdict[model.VolumeId, set[str]] = defaultdict(set)
    for place, snapshot in sorted(enumerate(made.snapshots), key=lambda each: -each[1].id):
        if snapshot.name is None:
            continue
        name = _free_name(snapshot.name, snapshot.key, names_of[snapshot.volume_id])
        if name != snapshot.name:
            made.notes.append(
                f"snapshot {snapshot.name} (1s{snapshot.id}): another one has the name; it is called {name}"
            )
        names_of[snapshot.volume_id].add(name)
        made.snapshots[place] = replace(snapshot, name=name)


def _free_name(name: str, key: Key | None, taken: set[str]) -> str:
    found, count = name, 1
    while found in taken:
        found = f"recovered-{key}" if count == 1 else f"recovered-{key}.{count}"
        count += 1
    return found


def _content(key: Key) -> int:
    return int(key.partition(".")[2] or 1)
