"""Reading trees that nobody changes: what differs between two of them, and files out of one.

The caller sees to it that what is read is not destroyed meanwhile. What a crash leaves attached is
detached by `sweep`, what it leaves of `freeze` is removed by recovery.
"""

import logging
from collections.abc import Generator

from voldriverd import model
from voldriverd.driver import Capability, Change, Key, StreamFormat
from voldriverd.engine import difference as walking
from voldriverd.engine import extract, failures, mounts, space, trees, use
from voldriverd.engine.context import Engine
from voldriverd.errors import Error, InUse

_log = logging.getLogger(__name__)


def difference(engine: Engine, volume: model.Volume, base: model.Snapshot, key: Key) -> Generator[Change, None, None]:
    """Yield the paths that differ between a snapshot and another read-only tree of its volume, sorted.

    Nothing is touched before the first is asked for; closing it lets go of all. Raises Unusable and
    the other kinds that a driver's OSError comes to.
    """
    driver = engine.pools.driver(volume.pool_id)
    with failures.told_as(f"cannot compare snapshot {base.shown_name} of volume {volume.name}"):
        found = driver.changes(base.tree, key)
        if found is not None:
            yield from found
            return
        readers = engine.readers
        with readers.attached(driver, base.tree) as old, readers.attached(driver, key) as new:
            yield from walking.compare(old, new)


def archive(engine: Engine, volume: model.Volume, snapshot: model.Snapshot, path: str) -> Generator[bytes, None, None]:
    """Yield a tar stream of one file or folder of a snapshot; as lazy as `difference`.

    Raises NotFound (nothing is there) and Invalid (it leads out) besides.
    """
    driver = engine.pools.driver(volume.pool_id)
    with (
        failures.told_as(f"cannot read snapshot {snapshot.shown_name} of volume {volume.name}"),
        engine.readers.attached(driver, snapshot.tree) as root,
    ):
        yield from extract.archive(root, path)


def export(engine: Engine, volume: model.Volume, key: Key) -> Generator[bytes, None, None]:
    """Yield a read-only tree as the tar archive that backups of the directory driver are; as lazy as `difference`."""
    driver = engine.pools.driver(volume.pool_id)
    with (
        failures.told_as(f"cannot export volume {volume.name}"),
        driver.send(key, wanted=StreamFormat.TAR) as stream,
    ):
        for note in stream.notes:
            _log.warning("verb=export volume=%s note=%s", volume.name, note)
        for part in stream.parts:
            assert part.data is not None, "an archive has no holes"
            yield part.data


def freeze(engine: Engine, volume: model.Volume) -> Key:
    """Clone the present content of a volume, live or trashed, into a tree that nothing will ever point to.

    The caller discards it. Raises InUse (a verb has not ended), Unsupported (in use, and the driver
    is not INSTANT), Unusable.
    """
    what = f"cannot read the present content of volume {volume.name}"
    if volume.is_live and volume.state is not model.VolumeState.INACTIVE:
        raise InUse(f"{what}: it is {volume.state.value}")
    driver = engine.pools.driver(volume.pool_id)
    use.ensure_cloneable(engine, volume, what)
    if Capability.COW not in driver.capabilities:
        space.ensure_reserve(engine, engine.pools.get(volume.pool_id), what)
    key = model.snapshot_key(model.SnapshotId(engine.store.reserve_id("snapshots")))
    engine.store.commit(lambda write: write.add_clone(key, volume.tree))
    try:
        with failures.told_as(what):
            driver.clone(volume.tree, key, read_only=True)
    except Error:
        trees.discard(engine, volume.pool_id, key)
        raise
    return key


def sweep(engine: Engine) -> None:
    """Detach the trees of no volume that a crash left attached; for the start, when nobody reads yet."""
    served = {volume.key for volume in engine.store.volumes()}
    for key in sorted(mounts.attached_keys(engine) - served):
        tree = engine.store.tree(key)
        if tree is not None:
            mounts.detach(engine, tree.pool_id, key)
