"""Snapshots: create, remove, and revert, which keeps what it displaces."""

import uuid
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from voldriverd import model
from voldriverd.driver import Key, TreeOptions
from voldriverd.engine import backups, creation, failures, space, trees, use, volumes
from voldriverd.engine.context import Engine
from voldriverd.errors import Error, Exists, Invalid, NotFound
from voldriverd.model import SnapshotState, VolumeState
from voldriverd.store.write import Write

KEEP_S: Final = 7 * 86_400
"""How long displaced content is kept where the trash is turned off: an undo must not vanish with it."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a new snapshot should be."""

    name: str | None = None
    description: str | None = None
    expires_at: datetime | None = None
    is_automatic: bool = False


Reverted = tuple[model.Volume, model.Snapshot]
"""A volume with its new content, and the automatic snapshot of what that displaced."""


def create(engine: Engine, volume: model.Volume, wish: Wish) -> model.Snapshot:
    """Freeze the present content of a volume, mounted or not, as one instant.

    Both halves in one call: raises what `begin_create` and `finish_create` raise; then nothing is left.
    """
    return finish_create(engine, volume, begin_create(engine, volume, wish))


def begin_create(engine: Engine, volume: model.Volume, wish: Wish) -> model.Snapshot:
    """Commit the row of a new snapshot: from then on it exists for everybody, and a crash is ended by recovery.

    Raises Exists (the name is taken), Unsupported (in use, and the driver is not INSTANT), Unusable; then nothing has
    changed.
    """
    what = f"cannot snapshot volume {volume.name}"
    use.ensure_resting(volume, what)
    if wish.name is not None and engine.store.snapshot_named(volume.id, wish.name) is not None:
        raise Exists(f"{what}: it has a snapshot named {wish.name} already")
    use.ensure_cloneable(engine, volume, what)
    space.ensure_reserve(engine, engine.pools.get(volume.pool_id), what)
    snapshot = _new_row(engine, volume, wish)

    def begin(write: Write) -> None:
        write.add_clone(snapshot.tree, volume.tree)
        write.put_snapshot(snapshot)

    engine.store.commit(begin)
    return snapshot


def finish_create(engine: Engine, volume: model.Volume, snapshot: model.Snapshot) -> model.Snapshot:
    """Make the tree of a begun snapshot, by a long copy where the driver knows no other; what fails leaves no snapshot.

    The volume must not have changed since. After a crash the snapshot is there whole, or not at all.
    """
    created, what = replace(snapshot, state=SnapshotState.CREATED), f"cannot snapshot volume {volume.name}"
    try:
        space.ensure_copy(engine, volume.pool_id, what)
        with failures.told_as(what):
            engine.pools.driver(volume.pool_id).clone(volume.tree, snapshot.tree, read_only=True)
    except Error:
        _forget(engine, volume, snapshot)
        raise
    engine.store.foresee(created)  # after a crash recovery finds the tree
    return created


def remove(engine: Engine, volume: model.Volume, snapshot: model.Snapshot) -> model.Snapshot:
    """Destroy a snapshot at once. Raises NotFound (it is gone) and InUse (its tree is mounted, or is being sent)."""
    shown = snapshot.shown_name
    what = f"cannot remove snapshot {shown} of volume {volume.name}"
    if snapshot.state is not SnapshotState.CREATED:
        raise NotFound(f"{what}: it is {snapshot.state.value}")
    backups.ensure_none_reads(engine, snapshot, what)
    with failures.told_as(what):
        users = engine.pools.driver(volume.pool_id).users(snapshot.tree)
    if users:
        raise use.in_use(what, users)
    gone = replace(snapshot, state=SnapshotState.REMOVED, key=None, removed_at=engine.now())
    engine.store.commit(lambda write: write.put_snapshot(gone), is_vital=True)
    trees.discard(engine, volume.pool_id, snapshot.tree)
    return gone


def revert(engine: Engine, volume: model.Volume, snapshot: model.Snapshot) -> Reverted:
    """Give a volume the content of one of its snapshots; return it with the automatic snapshot of what was displaced.

    Both halves in one call: raises what `begin_revert` and `finish_revert` raise.
    """
    return finish_revert(engine, begin_revert(engine, volume, snapshot))


@dataclass(frozen=True, slots=True)
class Reverting:
    """A revert that has begun."""

    going: "Displacing"
    source: model.Snapshot
    message: str | None
    """What was to be said of the volume before."""


def begin_revert(engine: Engine, volume: model.Volume, snapshot: model.Snapshot) -> Reverting:
    """Commit that a volume is to get the content of one of its snapshots.

    Raises Invalid (another volume's snapshot), NotFound, InUse, Unusable; then nothing has changed.
    """
    what = f"cannot revert volume {volume.name}"
    use.ensure_resting(volume, what)
    if snapshot.volume_id != volume.id:
        raise Invalid(f"{what}: snapshot 1s{snapshot.id} belongs to another volume", field="snapshotId")
    if snapshot.state is not SnapshotState.CREATED:
        raise NotFound(f"{what}: snapshot 1s{snapshot.id} is {snapshot.state.value}")
    use.ensure_unused(engine, volume, what)
    space.ensure_reserve(engine, engine.pools.get(volume.pool_id), what)
    options, reverting = creation.tree_options(engine, snapshot.tree), replace(volume, state=VolumeState.REVERTING)
    going = begin_displacing(engine, reverting, options, source=snapshot.tree, verb="revert")
    return Reverting(going, snapshot, volume.message)


def finish_revert(engine: Engine, begun: Reverting) -> Reverted:
    """Clone both trees of a begun revert, the snapshot's and the present one, and move both pointers in one commit.

    The larger of both sizes is kept (D5). A failure or crash before the last commit leaves all as it was.
    """
    going, source = begun.going, begun.source
    volume = going.volume
    what = f"cannot revert volume {volume.name}"
    size_bytes = max((size for size in (source.size_bytes, volume.size_bytes) if size is not None), default=None)
    try:
        space.ensure_copy(engine, volume.pool_id, what)
        with failures.told_as(what):
            driver = engine.pools.driver(volume.pool_id)
            driver.clone(volume.tree, going.kept.tree, read_only=True)
            volumes.clone(driver, source.tree, going.key, size_bytes=size_bytes)
        return end_displacing(engine, going, size_bytes=size_bytes)
    except Error:
        give_up_displacing(engine, going, message=begun.message)
        raise


@dataclass(frozen=True, slots=True)
class Displacing:
    """A volume that is about to get another tree, as it stands in the database meanwhile."""

    volume: model.Volume
    """It still points to its present tree."""
    key: Key
    """Of the tree that it is to have; whoever displaces makes it."""
    kept: model.Snapshot
    """What the present content becomes; it has no row before the end, and whoever displaces makes its tree."""


def begin_displacing(
    engine: Engine, volume: model.Volume, options: TreeOptions, *, source: Key | None, verb: str
) -> Displacing:
    """Commit that a volume, given in the state that says so, is to get another tree.

    `options` and `source` are those of the new tree. A crash before `end_displacing` leaves all as it was.
    """
    going = replace(volume, content=_free_content(engine, volume))
    key = model.volume_key(volume.id, going.content)
    kept = _displaced_row(engine, volume, verb)

    def begin(write: Write) -> None:
        write.add_clone(kept.tree, volume.tree)
        write.add_tree(model.Tree(key, volume.pool_id, options, source, is_settled=True))
        write.put_volume(going)

    engine.store.commit(begin)
    return Displacing(going, key, kept)


def end_displacing(
    engine: Engine, going: Displacing, *, size_bytes: int | None, message: str | None = None
) -> Reverted:
    """Move both pointers in one commit, once both trees are there, and hand the old tree to the worker.

    What else was changed of the volume's row meanwhile stays.
    """
    volume = _present(engine, going)
    moved = replace(volume, state=VolumeState.INACTIVE, key=going.key, size_bytes=size_bytes, message=message)
    name = _free_name(engine, volume, going.kept.shown_name)  # meanwhile somebody may have given it to another
    kept = replace(going.kept, name=name, expires_at=_kept_until(engine))

    def move(write: Write) -> None:
        write.put_volume(moved)
        write.put_snapshot(kept)

    engine.store.commit(move, is_vital=True)
    trees.discard(engine, volume.pool_id, volume.tree)
    return moved, kept


def give_up_displacing(engine: Engine, going: Displacing, *, message: str | None = None) -> model.Volume:
    """Let a volume rest again with the tree that it has; `message` says why, None: nothing is to be said."""
    volume = _present(engine, going)
    resting = replace(volume, state=VolumeState.INACTIVE, message=message)
    engine.store.commit(lambda write: write.put_volume(resting), is_vital=True)
    trees.discard(engine, volume.pool_id, going.key, going.kept.tree)
    return resting


def set_properties(
    engine: Engine, volume: model.Volume, snapshot: model.Snapshot, *, name: str | None, description: str | None
) -> model.Snapshot:
    """Change the name or description, what is not None; an empty text is none. Raises Exists (the name is taken)."""
    if name and name != snapshot.name and engine.store.snapshot_named(volume.id, name) is not None:
        raise Exists(f"cannot rename snapshot 1s{snapshot.id}: volume {volume.name} has one named {name} already")
    changed = replace(
        snapshot,
        name=snapshot.name if name is None else name or None,
        description=snapshot.description if description is None else description or None,
    )
    engine.store.commit(lambda write: write.put_snapshot(changed))
    return changed


def _free_content(engine: Engine, volume: model.Volume) -> int:
    """Return the number of a volume's next content: one that no tree has.

    A database that was put back, or made anew, may be older than the trees of its pools, and what was begun and comes
    to nothing is destroyed.
    """
    content = volume.content + 1
    orphans = engine.pools.get(volume.pool_id).orphans
    while (key := model.volume_key(volume.id, content)) in orphans or engine.store.tree(key) is not None:
        content += 1
    return content


def _present(engine: Engine, going: Displacing) -> model.Volume:
    volume = engine.store.volume(going.volume.id)
    assert volume is not None, f"volume {going.volume.name} went while it got another tree"
    return volume


def _displaced_row(engine: Engine, volume: model.Volume, verb: str) -> model.Snapshot:
    name = _free_name(engine, volume, f"before-{verb}-{engine.now():%Y%m%dT%H%M%SZ}")
    wish = Wish(name, f"what the {verb} displaced", _kept_until(engine), is_automatic=True)
    row = _new_row(engine, volume, wish)
    return replace(row, state=SnapshotState.CREATED)


def _free_name(engine: Engine, volume: model.Volume, base: str) -> str:
    name, count = base, 1
    while engine.store.snapshot_named(volume.id, name) is not None:
        count += 1
        name = f"{base}.{count}"
    return name


def _kept_until(engine: Engine) -> datetime:
    return engine.now() + timedelta(seconds=engine.limits.trash_retention_s or KEEP_S)


def _new_row(engine: Engine, volume: model.Volume, wish: Wish) -> model.Snapshot:
    snapshot_id = model.SnapshotId(engine.store.reserve_id("snapshots"))
    return model.Snapshot(
        id=snapshot_id,
        uuid=str(uuid.uuid4()),
        volume_id=volume.id,
        name=wish.name,
        description=wish.description,
        key=model.snapshot_key(snapshot_id),
        state=SnapshotState.CREATING,
        is_automatic=wish.is_automatic,
        size_bytes=volume.size_bytes,
        created_at=engine.now(),
        expires_at=wish.expires_at,
    )


def _forget(engine: Engine, volume: model.Volume, snapshot: model.Snapshot) -> None:
    engine.store.commit(lambda write: write.delete_snapshot(snapshot), is_vital=True)
    trees.discard(engine, volume.pool_id, snapshot.tree)
