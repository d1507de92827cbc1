"""Import: a new volume gets what a directory of this host or an archive holds, which stays as it is.

    begin              the volume is IMPORTING from this commit on: it has its name, and nobody can mount it
    bring_archive, or  the trees are made aside, for as long as that takes; what was copied from a directory is compared
    bring_directory    with it, every byte
    finish             one commit makes it a volume like any other, with its snapshots
    or give_up         it goes

`begin`, `finish` and `give_up` are quick and are called with the volume's lock. A crash before `finish` leaves no
volume: recovery drops its row, and with that its trees lose what pointed to them.
"""

import logging
import os
import stat
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from voldriverd import model, names
from voldriverd.backup.faults import Cancelled
from voldriverd.driver import Adopted, Driver, Part, Stream, StreamFormat, TreeOptions
from voldriverd.engine import archives, comparison, creation, restores, space, supplies, trees
from voldriverd.engine.context import Engine
from voldriverd.errors import Exists, InUse, Invalid, Unsupported, Unusable
from voldriverd.kernel import tree as walking
from voldriverd.model import SnapshotState, VolumeState
from voldriverd.store.write import Write

_log = logging.getLogger(__name__)

INODE_BYTES: Final = 16 << 10
"""What a file of any size is taken to need of a new file system: mkfs.ext4 makes one inode for so much."""
_FIELD: Final = "path"


@dataclass(frozen=True, slots=True)
class Earlier:
    """A snapshot that a new volume is to have: a directory that holds what it was once."""

    name: str
    path: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Begun:
    """A volume that is being imported, and the rows of its snapshots, each with its directory; these come last."""

    volume: model.Volume
    options: TreeOptions
    snapshots: tuple[tuple[model.Snapshot, str], ...] = ()

    @property
    def what(self) -> str:
        """How errors begin."""
        return f"cannot import volume {self.volume.name}"


@dataclass(frozen=True, slots=True)
class Arrived:
    """What was made."""

    size_bytes: int | None
    """The limit that the tree has; None if it has none."""
    notes: tuple[str, ...] = ()
    """What could not be kept, for people."""


def begin(
    engine: Engine, request: creation.Request, volume_id: model.VolumeId, earlier: Sequence[Earlier] = ()
) -> Begun:
    """Commit the rows of a new volume that is being imported, and of all its trees.

    Raises Exists (the name is taken), Invalid, Unsupported, Unusable; then nothing has changed.
    """
    what = f"cannot import volume {request.name}"
    if engine.store.volume_named(request.name) is not None:
        raise Exists(f"{what}: a volume of this name exists")
    for option in ("uid", "gid", "mode", "source"):
        if getattr(request.options, option) is not None:
            shown = "from" if option == "source" else option
            raise Invalid(f"{what}: option {shown} does not go with an import, which has its own", field=shown)
    pool, driver = engine.pools.choose(driver=request.options.driver, name=request.options.pool)
    asked = creation.asked_of_tree(request.options)
    creation.ensure_honoured(engine, pool, driver, asked)
    made = driver.complete(asked)
    space.ensure_reserve(engine, pool, what)
    plan = creation.rows(engine, request, volume_id, pool, made, source=None)
    volume = replace(plan.volume, state=VolumeState.IMPORTING)
    snapshots = tuple((_snapshot_row(engine, volume, each), each.path) for each in earlier)
    keys = [volume.tree, *(snapshot.tree for snapshot, _ in snapshots)]

    def begin(write: Write) -> None:
        for key in keys:
            write.add_tree(model.Tree(key, pool.row.id, made, None, is_settled=True))
        write.put_volume(volume)

    engine.store.commit(begin)
    return Begun(volume, made, snapshots)


def bring_archive(
    engine: Engine, begun: Begun, content: Iterator[bytes], content_bytes: int | None, work: supplies.Work
) -> Arrived:
    """Make the tree of what a tar archive holds, compressed or not; `content_bytes` None: nobody knows how long it is.

    Raises every kind: Unusable (no archive, not all of one, one that leads out of the tree, no room), Invalid (it is
    larger than the size), InUse when `work` is ended, and what `content` raises; then the key is absent.
    """
    driver = engine.pools.driver(begun.volume.pool_id)
    work.expect(content_bytes)
    with supplies.told_as(begun.what, work):
        counted = _Counter(work)
        opened = archives.read(_watched(content, counted))
        expected_bytes = None if opened.is_compressed else content_bytes
        options = _fitted(begun, driver, expected_bytes or 0)
        stream = _stream(opened.parts, expected_bytes)
        notes = driver.receive(begun.volume.tree, iter([stream]), options)
        return _arrived(begun, driver, work, notes)


def bring_directory(
    engine: Engine, begun: Begun, path: str, work: supplies.Work, *, is_instant: bool = False
) -> Arrived:
    """Make the tree of what a directory holds, and those of the snapshots; `is_instant`: by a snapshot, or not at all.

    Raises every kind: Unusable (no room, or it was written to meanwhile), Unsupported (what is to be a snapshot cannot
    be taken over as one), InUse (something is mounted in it, or `work` is ended); then the keys are absent.
    """
    driver = engine.pools.driver(begun.volume.pool_id)
    with supplies.told_as(begun.what, work), ExitStack() as stack:
        places = [stack.enter_context(opened(engine, each, begun.what)) for each in (path, *_paths(begun))]
        counted = _Counter(work)
        if not is_instant:
            notes = _bring(engine, begun, driver, places[0], counted)
            return _arrived(begun, driver, work, notes)
        trees = [(begun.volume.tree, path), *((snapshot.tree, each) for snapshot, each in begun.snapshots)]
        for number, ((key, shown), place) in enumerate(zip(trees, places, strict=True)):
            adopted = driver.adopt(key, place, begun.options, read_only=number > 0, advance=counted.advance)
            if adopted is not Adopted.INSTANT:
                pool = engine.pools.get(begun.volume.pool_id).row
                raise Unsupported(
                    f"{begun.what}: {shown} is no subvolume of the btrfs that pool {pool.name} ({pool.path}) lies on, "
                    "so that no snapshot can be made of it; give -o pool= a btrfs pool on its file system, or import "
                    "it as a directory"
                )
        return _arrived(begun, driver, work, ())


def finish(engine: Engine, begun: Begun, arrived: Arrived, source: str) -> model.Volume:
    """Commit that the volume is ready, with its snapshots; `source` says for people what it was made from."""
    for note in arrived.notes:
        _log.warning("verb=import volume=%s note=%s", begun.volume.name, note)
    volume = engine.store.volume(begun.volume.id)
    assert volume is not None, f"volume {begun.volume.name} went while it was imported"
    message = restores.noted(f"{restores.IMPORTED} {source}", arrived.notes)
    ready = replace(volume, state=VolumeState.INACTIVE, size_bytes=arrived.size_bytes, message=message)

    def finish(write: Write) -> None:
        write.put_volume(ready)
        for snapshot, _ in begun.snapshots:
            write.put_snapshot(replace(snapshot, size_bytes=arrived.size_bytes))

    engine.store.commit(finish, is_vital=True)
    return ready


def give_up(engine: Engine, begun: Begun) -> None:
    """Drop a volume that cannot be imported, or that nobody wants any more."""
    engine.store.commit(lambda write: write.delete_volume(begun.volume), is_vital=True)
    keys = [begun.volume.tree, *(snapshot.tree for snapshot, _ in begun.snapshots)]
    trees.discard(engine, begun.volume.pool_id, *keys)


@contextmanager
def opened(engine: Engine, path: str, what: str) -> Iterator[Path]:
    """Give a path that leads to a directory of this host for the block, whatever becomes of its name.

    Raises Invalid: it is no directory that can be read, or it lies in our own root or a pool, or one of those in it.
    """
    if not path.startswith("/") or "\0" in path:
        raise Invalid(f"{what}: {path!r} is no absolute path", field=_FIELD)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as err:
        raise Invalid(f"{what}: {path}: {err.strerror}", field=_FIELD) from err
    try:
        place = Path(f"/proc/self/fd/{fd}")
        real = place.readlink()
        for own in (engine.root, *(Path(pool.row.path) for pool in engine.pools)):
            own_real = own.resolve()
            if real.is_relative_to(own_real) or own_real.is_relative_to(real):
                cause = f"{real} and {own_real}, which is voldriverd's own, lie in each other"
                raise Invalid(f"{what}: {cause}; volumes are cloned, snapshotted and restored", field=_FIELD)
        yield place
    finally:
        os.close(fd)


def _bring(engine: Engine, begun: Begun, driver: Driver, place: Path, counted: "_Counter") -> tuple[str, ...]:
    """Make the volume's tree from a directory by the best way there is, and look whether it is like it."""
    key = begun.volume.tree
    data_bytes, inodes = _measure(place, counted)
    counted.expect(2 * data_bytes)
    adopted = driver.adopt(key, place, begun.options, read_only=False, advance=counted.advance)
    if adopted is Adopted.INSTANT:
        return ()
    notes: tuple[str, ...] = ()
    if adopted is Adopted.NOT:
        assert engine.archive is not None, "this engine has no archives"
        _ensure_room(engine, begun, data_bytes)
        options = _fitted(begun, driver, data_bytes + inodes * INODE_BYTES)
        with engine.archive(place) as stream:
            notes = stream.notes
            notes += driver.receive(key, iter([replace(stream, parts=_counting(stream.parts, counted))]), options)
    _ensure_like(engine, begun, driver, place, counted)
    return notes


def _ensure_like(engine: Engine, begun: Begun, driver: Driver, place: Path, counted: "_Counter") -> None:
    with engine.readers.attached(driver, begun.volume.tree) as made:
        difference = comparison.first_difference(place, made, advance=counted.advance)
    if difference is not None:
        raise Unusable(f"{begun.what}: the copy is not like its source, {difference}; was it written to meanwhile?")


def _fitted(begun: Begun, driver: Driver, content_bytes: int) -> TreeOptions:
    """Return the options with a size that holds the content, if none was asked for. Raises Invalid."""
    may_grow = names.parse_options(begun.volume.options).size_bytes is None
    return supplies.fitted(driver, begun.options, content_bytes, may_grow=may_grow, what=begun.what)


def _arrived(begun: Begun, driver: Driver, work: supplies.Work, notes: tuple[str, ...]) -> Arrived:
    """Look at what was made. Raises Invalid (it is larger than the size), InUse (nobody wants it any more)."""
    if work.is_given_up:
        raise InUse(f"{begun.what}: it was cancelled")
    limit_bytes = driver.usage(begun.volume.tree).limit_bytes
    asked_bytes = names.parse_options(begun.volume.options).size_bytes
    if asked_bytes is not None and (limit_bytes or 0) > (begun.options.size_bytes or asked_bytes):
        sizes = names.format_size(asked_bytes), names.format_size(limit_bytes or 0)
        raise Invalid(f"{begun.what}: size {sizes[0]} is below the {sizes[1]} that it takes", field="size")
    return Arrived(limit_bytes, tuple(dict.fromkeys(notes)))


def _ensure_room(engine: Engine, begun: Begun, data_bytes: int) -> None:
    """Refuse what cannot fit; what is compressed may. Raises Unusable with the figures."""
    pool = engine.pools.get(begun.volume.pool_id)
    _, free_bytes = space.capacity(pool)
    if begun.options.compression is None and free_bytes < data_bytes:
        needed, free = names.format_size(data_bytes), names.format_size(free_bytes)
        raise Unusable(f"{begun.what}: it takes {needed}, and pool {pool.row.name} has {free} free")


class _Counter:
    """Counts what is done, and ends the work when nobody wants it any more."""

    def __init__(self, work: supplies.Work) -> None:
        self._work = work
        self._done_bytes = 0

    def expect(self, total_bytes: int) -> None:
        """Note how much there will be to do."""
        self._work.expect(total_bytes)

    def advance(self, more_bytes: int) -> None:
        """Note that so much more is done. Raises Cancelled."""
        if self._work.cancelled.is_set():
            raise Cancelled
        self._done_bytes += more_bytes
        self._work.advance(self._done_bytes)


def _watched(content: Iterator[bytes], counted: _Counter) -> Iterator[bytes]:
    for piece in content:
        counted.advance(len(piece))
        yield piece


def _counting(parts: Iterator[Part], counted: _Counter) -> Iterator[Part]:
    for part in parts:
        counted.advance(part.length)
        yield part


def _stream(parts: Iterator[Part], expected_bytes: int | None) -> Stream:
    return Stream(
        format=StreamFormat.TAR,
        version=1,
        is_incremental=False,
        image_bytes=None,
        expected_bytes=expected_bytes,
        parts=parts,
    )


def _measure(place: Path, counted: _Counter) -> tuple[int, int]:
    """Return how many bytes of data a directory holds, and how many inodes."""
    data_bytes, inodes = 0, 0
    levels = [[""]]
    with walking.Cursor(place) as cursor:
        while levels:
            if not levels[-1]:
                levels.pop()
                if cursor.depth and levels:
                    cursor.up()
                continue
            if name := levels[-1].pop():
                cursor.down(name)
            counted.advance(0)
            levels.append([])
            with os.scandir(cursor.fd) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    inodes += 1
                    if stat.S_ISDIR(status.st_mode):
                        levels[-1].append(entry.name)
                    elif stat.S_ISREG(status.st_mode):
                        data_bytes += min(status.st_size, status.st_blocks * 512)
    return data_bytes, inodes


def _paths(begun: Begun) -> list[str]:
    return [path for _, path in begun.snapshots]


def _snapshot_row(engine: Engine, volume: model.Volume, earlier: Earlier) -> model.Snapshot:
    snapshot_id = model.SnapshotId(engine.store.reserve_id("snapshots"))
    return model.Snapshot(
        id=snapshot_id,
        uuid=str(uuid.uuid4()),
        volume_id=volume.id,
        name=names.snapshot_name(earlier.name),
        description=None,
        key=model.snapshot_key(snapshot_id),
        state=SnapshotState.CREATED,
        is_automatic=False,
        size_bytes=volume.size_bytes,
        created_at=earlier.created_at,
        expires_at=None,
    )
