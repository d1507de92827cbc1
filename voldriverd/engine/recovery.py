"""What is done before any socket exists, and again when a pool that was unavailable comes back.

Every unfinished verb is ended from the rows alone: begun volumes are made or dropped, the pointers
that did not move stay, and the trees that nothing points to are removed. A tree on disk that no row
knows is reported and never deleted: the database may be the older of the two. So are those that it has
as being made while the pool's own copy of the catalogue has them in use, and what a volume has had if
what it has now is missing.

A pool that goes away and comes back under a process has had its recovery: what is unfinished in it belongs to verbs
that this process runs. They end it themselves, in the way that they tell, and nothing of theirs is touched.
"""

import functools
import logging
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Final

from voldriverd import model
from voldriverd.driver import Driver, Key
from voldriverd.engine import (
    creation,
    failures,
    inspection,
    links,
    mounts,
    pools,
    remembered,
    restores,
    scratch,
    trees,
    volumes,
)
from voldriverd.engine.context import Engine
from voldriverd.errors import Error, NotFound
from voldriverd.model import SnapshotState, VolumeState
from voldriverd.store.write import Write

_log = logging.getLogger(__name__)

_RESTING: Final = {VolumeState.INACTIVE, VolumeState.REMOVED}
_USED: Final = {*_RESTING, VolumeState.UPDATING}
_ARRIVING: Final = {VolumeState.RESTORING, VolumeState.IMPORTING}
_DISPLACING: Final = {VolumeState.REVERTING, VolumeState.RESTORING}


def recover(engine: Engine) -> None:
    """Open all pools, end what a crash left, and reconcile holders with the kernel. Raises Unusable (database)."""
    scratch.sweep(engine)
    open_pools(engine)
    forget_other_boots(engine)
    inspection.sweep(engine)
    try:
        mounts.reconcile(engine, engine.store.volumes(), mounts.used_keys(engine))
    except OSError as err:  # who uses what cannot be seen: nothing is forgotten then, and everything is served
        _log.warning("verb=reconcile result=%s", err)
    links.rebuild(engine)


def open_pools(engine: Engine) -> None:
    """Open the pools that are not open, and end in each what a crash left."""
    engine.pools.open_all(functools.partial(_recover_pool, engine))
    for pool in engine.pools:
        if pool.driver is None:
            _log.warning("verb=open pool=%s result=%s", pool.row.name, pool.reason)


def forget_other_boots(engine: Engine) -> None:
    """Drop every holder of another boot: its containers are gone."""
    gone = [mount for mount in engine.store.all_mounts() if mount.boot_id != engine.boot_id]
    if gone:
        engine.store.commit(lambda write: write.drop_mounts(gone), is_vital=True)


def _recover_pool(engine: Engine, pool: pools.Pool, driver: Driver) -> None:
    pool_id = pool.row.id
    with failures.told_as(f"cannot recover pool {pool.row.name}"):
        present = engine.store.volumes()  # before the trees: what a verb ends with meanwhile has one
        on_disk = driver.trees()
        for volume in present:
            if volume.pool_id == pool_id and not (pool.has_served and volume.state not in _RESTING):
                _end_verb(engine, driver, volume, on_disk)
        if not pool.has_served:
            _end_snapshots(engine, pool_id, on_disk)
        on_disk = driver.trees()
    known = engine.store.tree_keys(pool_id)
    loose = known - engine.store.pointed_keys(pool_id)
    if not pool.has_served and loose & on_disk:
        with failures.told_as(f"cannot recover pool {pool.row.name}"):
            wanted = _pointed_later(engine, pool, loose & on_disk) | _only_contents(
                engine, pool, loose & on_disk, on_disk
            )
        if wanted:
            engine.store.drop_trees(wanted)
            known, loose = known - wanted, loose - wanted
    pool.orphans = frozenset(on_disk - known)
    for key in sorted(pool.orphans):
        _log.warning(
            "verb=recover pool=%s key=%s result=a tree that no row knows; it is left alone", pool.row.name, key
        )
    if not pool.has_served:
        trees.discard(engine, pool_id, *loose)


def _pointed_later(engine: Engine, pool: pools.Pool, loose: set[Key]) -> set[Key]:
    """Return the trees, of those that nothing points to, that the pool's copy of the catalogue knows to be in use.

    The copy never tells of what the database has not heard of: then that was put back, in the state of an instant at
    which they were being made. They are nobody's now, and `voldriverd rebuild` brings them back.
    """
    told, found = remembered.read(Path(pool.row.path)), set[Key]()
    for volume in told.volumes.values():
        if volume.key in loose and volume.state in _USED and not _is_known(engine, volume):
            found.add(volume.tree)
    for snapshot in told.snapshots.values():
        is_made = snapshot.key in loose and snapshot.state is SnapshotState.CREATED
        if is_made and engine.store.snapshot(snapshot.id) is None:
            found.add(snapshot.tree)
    return found


def _only_contents(engine: Engine, pool: pools.Pool, loose: set[Key], on_disk: set[Key]) -> set[Key]:
    """Return the contents, of those that nothing points to, of volumes whose own is missing: the pool was put back."""
    missing = {each.id for each in engine.store.volumes() if each.pool_id == pool.row.id and each.key not in on_disk}
    return {key for key in loose if key.startswith("v") and model.key_number(key)[1] in missing}


def _is_known(engine: Engine, told: model.Volume) -> bool:
    """Tell whether the database has heard of all that a volume has had, and so is not older than who tells of it."""
    row = engine.store.volume(told.id) or engine.store.ended_volume(told.id)
    return row is not None and (row.state is VolumeState.PURGED or row.content > told.content)


def _end_verb(engine: Engine, driver: Driver, volume: model.Volume, on_disk: set[Key]) -> None:
    if volume.state is VolumeState.REGISTERING and _origin(engine, volume) is not None:
        _end_clone(engine, driver, volume, on_disk)
        return
    if volume.state in _ARRIVING and restores.is_new(volume) and _is_in_use(engine, volume, on_disk):
        _log.error(
            "verb=recover volume=%s result=the database is older than its pool, and has it as begun", volume.name
        )
        _put_volume(engine, volume, replace(volume, state=VolumeState.INACTIVE, message=None))
        return
    if volume.state is VolumeState.RESTORING and restores.is_new(volume):
        return  # the service takes that up
    if volume.state is VolumeState.IMPORTING:
        _log.warning("verb=recover volume=%s result=its import was interrupted, and nothing of it is left", volume.name)
        engine.store.commit(lambda write: write.delete_volume(volume), is_vital=True)
        return
    if volume.state in _DISPLACING and volume.key not in on_disk and _next_key(volume) in on_disk:
        _end_displacing(engine, driver, volume, on_disk)
        return
    resting = _rested(volume)
    if volume.key in on_disk or _is_made_again(engine, driver, volume):
        if resting.message == mounts.MISSING:
            resting = replace(resting, message=None)
        if volume.state is VolumeState.UPDATING:
            resting = _resized(driver, resting)
    else:
        resting = replace(resting, message=mounts.MISSING)
        _log.error("verb=recover volume=%s key=%s result=%s", volume.name, volume.key, mounts.MISSING)
    if resting != volume:
        _put_volume(engine, volume, resting)


def _is_in_use(engine: Engine, volume: model.Volume, on_disk: set[Key]) -> bool:
    """Tell whether the pool's copy of the catalogue knows the end of what made a volume: the database was put back."""
    if volume.key not in on_disk:
        return False
    told = remembered.read(Path(engine.pools.get(volume.pool_id).row.path)).volumes.get(volume.id)
    return told is not None and (told.uuid, told.key) == (volume.uuid, volume.key) and told.state in _USED


def _end_clone(engine: Engine, driver: Driver, volume: model.Volume, on_disk: set[Key]) -> None:
    """Make a begun clone, or drop its row: nobody was told that there is one before its tree was there to stay."""
    tree = engine.store.tree(volume.tree)
    assert tree is not None, f"volume {volume.name} has no tree row"
    if tree.key in on_disk:  # somebody may have been told
        ready = _resized(driver, replace(volume, state=VolumeState.INACTIVE))
        engine.store.commit(lambda write: write.put_volume(ready), is_vital=True)
        return
    try:
        if tree.source not in on_disk:
            raise NotFound(f"cannot create volume {volume.name}: its source is gone")
        volumes.finish_create(engine, creation.Plan(volume, tree), driver)
    except Error as err:
        _log.warning("verb=recover volume=%s result=%s", volume.name, err)
        if engine.store.volume(volume.id) is not None:
            engine.store.commit(lambda write: write.delete_volume(volume), is_vital=True)


def _rested(volume: model.Volume) -> model.Volume:
    if volume.state in {VolumeState.REGISTERING, VolumeState.REVERTING, VolumeState.UPDATING}:
        return replace(volume, state=VolumeState.INACTIVE)
    if volume.state is VolumeState.RESTORING:
        return replace(volume, state=VolumeState.INACTIVE, message=restores.interrupted(volume))
    return volume


def _next_key(volume: model.Volume) -> Key:
    """Return the tree that a verb was to give a volume."""
    return model.volume_key(volume.id, volume.content)


def _end_displacing(engine: Engine, driver: Driver, volume: model.Volume, on_disk: set[Key]) -> None:
    """Move the pointers of a revert or restore whose old tree has gone.

    That goes after the commit that moves them, which the database must have lost, by a disk that lied or because it
    was put back; and with the new tree and the copy of the old one the last of the volume's content would go.
    """
    _log.error("verb=recover volume=%s key=%s result=the database has lost its commit", volume.name, _next_key(volume))
    size_bytes = driver.usage(_next_key(volume)).limit_bytes if "size" in driver.options else volume.size_bytes
    moved = replace(volume, state=VolumeState.INACTIVE, key=_next_key(volume), size_bytes=size_bytes, message=None)
    loose = engine.store.tree_keys(volume.pool_id) - engine.store.pointed_keys(volume.pool_id)
    made_of_old = [tree for key in sorted(loose & on_disk) if (tree := engine.store.tree(key)) is not None]
    kept = [tree.key for tree in made_of_old if tree.source == volume.key and tree.key.startswith("s")]

    def change(write: Write) -> None:
        write.put_volume(moved)
        for key in kept:
            write.put_snapshot(_kept_row(engine, volume, key))

    engine.store.commit(change, is_vital=True)


def _kept_row(engine: Engine, volume: model.Volume, key: Key) -> model.Snapshot:
    return model.Snapshot(
        id=model.SnapshotId(model.key_number(key)[1]),
        uuid=str(uuid.uuid4()),
        volume_id=volume.id,
        name=None,
        description="what the last revert or restore displaced",
        key=key,
        state=SnapshotState.CREATED,
        is_automatic=True,
        size_bytes=volume.size_bytes,
        created_at=engine.now(),
    )


def _origin(engine: Engine, volume: model.Volume) -> Key | None:
    tree = engine.store.tree(volume.tree)
    return None if tree is None else tree.source


def _resized(driver: Driver, volume: model.Volume) -> model.Volume:
    """Give a tree the size that was begun or, where that cannot be, the row the size that the tree has.

    The driver is asked although the tree may say that it has that size: of what has several sizes, such as an image
    with a file system in it, one may have grown and the other not.
    """
    if "size" not in driver.options or volume.size_bytes is None:
        return volume
    try:
        driver.resize(volume.tree, volume.size_bytes)
    except (
        Error,
        OSError,
    ) as err:  # such as what can only grow unmounted, and is mounted: nobody was told that it grew
        _log.warning("verb=recover volume=%s result=%s", volume.name, err)
        return replace(volume, size_bytes=driver.usage(volume.tree).limit_bytes)
    return volume


def _is_made_again(engine: Engine, driver: Driver, volume: model.Volume) -> bool:
    """Make a new, empty tree again that power loss took; tells whether it is there now."""
    tree = engine.store.tree(volume.tree)
    if tree is None or tree.is_settled or tree.source is not None:
        return False
    try:
        driver.create(tree.key, tree.options)
    except (Error, OSError) as err:  # no space, for one: the other volumes of the pool are served all the same
        _log.warning("verb=recover volume=%s result=%s", volume.name, err)
        return False
    return True


def _end_snapshots(engine: Engine, pool_id: model.PoolId, on_disk: set[Key]) -> None:
    for snapshot in engine.store.creating_snapshots():
        volume = engine.store.volume(snapshot.volume_id)
        if volume is None or volume.pool_id != pool_id:
            continue
        if snapshot.key in on_disk:
            _put(engine, replace(snapshot, state=SnapshotState.CREATED))
        else:
            _put(engine, replace(snapshot, state=SnapshotState.REMOVED, key=None, removed_at=engine.now()))


def _put_volume(engine: Engine, before: model.Volume, after: model.Volume) -> None:
    """Write a row, unless a verb that needs no pool has changed it meanwhile: the next time the pool opens will do."""

    def change(write: Write) -> None:
        if engine.store.volume(before.id) == before:
            write.put_volume(after)

    engine.store.commit(change, is_vital=True)


def _put(engine: Engine, snapshot: model.Snapshot) -> None:
    engine.store.commit(lambda write: write.put_snapshot(snapshot), is_vital=True)
