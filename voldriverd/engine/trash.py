"""The trash: what is removed can be brought back until it is destroyed."""

from dataclasses import replace
from datetime import timedelta

from voldriverd import model, names
from voldriverd.engine import backups, space, trees, use
from voldriverd.engine.context import Engine
from voldriverd.errors import Exists, InUse, NotFound
from voldriverd.model import VolumeState
from voldriverd.store.write import Write


def remove(engine: Engine, volume: model.Volume) -> model.Volume:
    """Put a volume in the trash; destroy it at once if it is anonymous or there is no trash.

    Raises InUse: it is protected, somebody uses it, or it would be destroyed while a backup is made of it.
    """
    what = f"cannot remove volume {volume.name}"
    use.ensure_resting(volume, what)
    if volume.is_protected:
        raise InUse(f"{what}: it is protected; voldriver volume set {volume.name} --no-protected lifts that")
    use.ensure_unused(engine, volume, what)
    now = engine.now()
    kept_s = 0 if names.is_anonymous(volume.name) else engine.limits.trash_retention_s
    trashed = replace(
        volume,
        state=VolumeState.REMOVED,
        removed_at=now,
        destroy_at=now + timedelta(seconds=kept_s),
    )
    if kept_s == 0:
        return _destroy(engine, trashed)
    engine.store.commit(lambda write: write.put_volume(trashed), is_vital=True)
    return trashed


def restore(engine: Engine, volume: model.Volume, *, name: str | None = None) -> model.Volume:
    """Bring a volume back from the trash with its snapshots, under another name if one is given.

    Raises NotFound (it is not in the trash) and Exists (the name is taken).
    """
    wanted = name or volume.name
    if volume.state is not VolumeState.REMOVED:
        raise NotFound(f"cannot restore volume {volume.name}: it is not in the trash")
    holder = engine.store.volume_named(wanted)
    if holder is not None:
        raise Exists(
            f"cannot restore volume {volume.name}: the name {wanted} is held by volume 1v{holder.id}; give another name"
        )
    back = replace(volume, name=wanted, state=VolumeState.INACTIVE, removed_at=None, destroy_at=None)
    engine.store.commit(lambda write: write.put_volume(back))
    return back


def purge(engine: Engine, volume: model.Volume) -> model.Volume:
    """Destroy a volume in the trash, as `destroy` does, and wait until its trees are removed, however many they are."""
    gone = destroy(engine, volume)
    space.collect_now(engine, engine.pools.get(volume.pool_id))
    return gone


def destroy(engine: Engine, volume: model.Volume) -> model.Volume:
    """Destroy a volume in the trash with its snapshots; the worker removes the trees. Raises NotFound and InUse.

    NotFound: it is not in the trash. InUse: a tree is mounted, or a backup is being made. Its backups stay; their next
    one would be a whole one.

    A volume of a pool that is unavailable is not destroyed: its trees could not be removed.
    """
    what = f"cannot purge volume {volume.name}"
    if volume.state is not VolumeState.REMOVED:
        raise NotFound(f"{what}: it is not in the trash")
    use.ensure_unused(engine, volume, what)
    return _destroy(engine, volume)


def _destroy(engine: Engine, volume: model.Volume) -> model.Volume:
    backups.ensure_none_of(engine, volume, f"cannot remove volume {volume.name}")
    snapshots = engine.store.snapshots(volume.id)
    keys = [key for key in (volume.key, *(snapshot.key for snapshot in snapshots)) if key is not None]
    now = engine.now()
    gone = replace(volume, state=VolumeState.PURGED, key=None, removed_at=now, destroy_at=None)

    def change(write: Write) -> list[model.Backup]:
        write.end_snapshots(volume.id, now)
        write.put_volume(gone)
        return write.drop_bases(volume.id)

    bases = engine.store.commit(change, is_vital=True)
    trees.discard(engine, volume.pool_id, *keys, *(base.key for base in bases if base.key is not None))
    return gone
