"""Mount, unmount, and the reconciliation of holders with the kernel's mount tables (D3)."""

import errno
import logging
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from voldriverd import model
from voldriverd.driver import Driver, Key
from voldriverd.engine import failures, use
from voldriverd.engine.context import Engine
from voldriverd.errors import Error, NotFound, Unusable
from voldriverd.kernel import mount as kernel_mount
from voldriverd.store.write import Write

_log = logging.getLogger(__name__)

SETTLING_S: Final = 150.0
"""A holder younger than this is never forgotten: dockerd waits 120 s for `Mount`, then the container must start."""

_ROOM_TRIES: Final = 3
"""A directory takes one block, and a step of the ballast is many."""

MISSING: Final = "its tree is missing from the pool: was it removed by hand, or the pool replaced by an older copy?"


def mount(engine: Engine, volume: model.Volume, holder: str) -> Path:
    """Mount a volume for a holder and return where; one more time for a holder that has it already.

    The kernel's table is always looked at and repaired. Raises InUse and Unusable (also when its tree
    is missing). After a crash in the middle the mount is found and ended by reconciliation.
    """
    what = f"cannot mount volume {volume.name}"
    driver = engine.pools.driver(volume.pool_id)  # what a crash left unfinished in a pool that is not there stays so
    use.ensure_resting(volume, what)
    is_settled = _settle(engine, driver, volume.tree, what)
    try:
        with failures.told_as(what):
            path = _attached(engine, driver, volume.tree, what)
    except NotFound as err:
        raise Unusable(f"{what}: {MISSING}") from err

    def change(write: Write) -> None:  # looks inside the transaction, for an unmount does not wait for other verbs
        write.put_mount(_held(engine, write.mounts(volume.id), volume, holder))
        if not is_settled:
            write.settle_trees([volume.tree])

    engine.held_since[volume.id, holder] = engine.uptime()
    engine.store.commit(change, is_vital=True)  # databases must come up again on a host whose disk is full
    return path


def _attached(engine: Engine, driver: Driver, key: Key, what: str) -> Path:
    """Attach a tree for writing; on a full disk its mount point may take some of the ballast. Raises also Unusable."""
    for _ in range(_ROOM_TRIES):
        try:
            return driver.attach(key, read_only=False)
        except OSError as err:
            is_of_root = Path(err.filename or "/").is_relative_to(engine.mounts)
            if err.errno not in {errno.ENOSPC, errno.EDQUOT} or not is_of_root:
                raise
            engine.store.make_room()
    raise Unusable(f"{what}: no space is left for its mount point in {engine.mounts}")


def unmount(engine: Engine, volume: model.Volume, holder: str) -> bool:
    """Let a holder go once, and unmount after the last one; tells whether nothing is mounted any more."""
    let_go(engine, volume.id, holder)
    return detach_unheld(engine, volume)


def let_go(engine: Engine, volume_id: model.VolumeId, holder: str) -> None:
    """Count one mount of a holder less; an unknown holder has no effect (R7). The volume may be busy with a verb."""

    def change(write: Write) -> None:
        for present in write.mounts(volume_id):
            if present.holder != holder:
                continue
            if present.count > 1:
                write.put_mount(replace(present, count=present.count - 1))
            else:
                write.drop_mounts([present])

    if any(present.holder == holder for present in engine.store.mounts(volume_id)):
        engine.store.commit(change, is_vital=True)
    if all(present.holder != holder for present in engine.store.mounts(volume_id)):
        engine.held_since.pop((volume_id, holder), None)


def detach_unheld(engine: Engine, volume: model.Volume) -> bool:
    """Unmount a volume if nobody holds it; tells whether it is unmounted. A busy mount is left to reconciliation."""
    if engine.store.mounts(volume.id) or volume.key is None:
        return False
    return detach(engine, volume.pool_id, volume.tree)


def detach(engine: Engine, pool_id: model.PoolId, key: Key) -> bool:
    """Unmount a tree if nothing keeps it busy; tells whether it is unmounted."""
    try:
        engine.pools.driver(pool_id).detach(key)
    except (Error, OSError) as err:  # busy, or the pool has gone: reconciliation comes back to it
        _log.info("verb=detach key=%s result=%s", key, err)
        return False
    return True


def reconcile(
    engine: Engine, volumes: Iterable[model.Volume], used: frozenset[str], *, age_s: float = 0.0
) -> list[model.VolumeId]:
    """Forget holders that the kernel does not know and unmount what nobody uses; return the volumes that changed.

    `used` are the keys that `used_keys` found `age_s` seconds ago. A holder goes if it is of another boot, or was
    older than SETTLING_S then and nobody but ourselves had the tree mounted; the host's own goes with the boot only.
    """
    changed = []
    attached: set[Key] | None = None
    for volume in volumes:
        if volume.key is None or volume.state is not model.VolumeState.INACTIVE:
            continue
        is_seen = volume.tree in used
        held = engine.store.mounts(volume.id)
        gone = [mount for mount in held if _is_gone(engine, mount, is_seen=is_seen, age_s=age_s)]
        if gone:
            _forget(engine, gone)
            changed.append(volume.id)
        if engine.store.mounts(volume.id) or is_seen:
            continue
        attached = attached_keys(engine) if attached is None else attached  # one look at the table for all volumes
        if volume.tree in attached:
            detach(engine, volume.pool_id, volume.tree)
    return changed


def attached_keys(engine: Engine) -> set[Key]:
    """Return the trees that are mounted at our mount points."""
    own = str(engine.mounts)
    points = (Path(entry.mount_point) for entry in kernel_mount.table())
    return {Key(point.name) for point in points if str(point.parent) == own and not point.name.startswith(".")}


def used_keys(engine: Engine) -> frozenset[str]:
    """Return the attached trees that somebody else has mounted too; one look at every mount namespace."""
    own = {str(engine.mounts / key): key for key in attached_keys(engine)}
    by_place: dict[tuple[str, str], tuple[Key, frozenset[str]]] = {}
    others: dict[str, list[tuple[int, kernel_mount.Entry]]] = defaultdict(list)
    namespace = None
    for pid, entry in kernel_mount.everywhere():
        namespace = pid if namespace is None else namespace
        if pid == namespace and entry.mount_point in own:
            by_place[entry.device, entry.root] = own[entry.mount_point], entry.groups
        else:
            others[entry.device].append((pid, entry))
    return frozenset(
        key
        for (device, root), (key, groups) in by_place.items()
        if any(
            kernel_mount.covers(entry, device, root)
            and not kernel_mount.is_copy(pid, entry, engine.mounts / key, groups)
            for pid, entry in others[device]
        )
    )


def is_seen(pid: int, path: Path) -> bool:
    """Tell whether what is mounted at a path of ours is in the mount namespace of a process, wherever it is there."""
    return kernel_mount.is_seen(pid, path)


def _forget(engine: Engine, gone: list[model.Mount]) -> None:
    for each in gone:
        engine.held_since.pop((each.volume_id, each.holder), None)
    engine.store.commit(lambda write: write.drop_mounts(gone), is_vital=True)


def _settle(engine: Engine, driver: Driver, key: Key, what: str) -> bool:
    tree = engine.store.tree(key)
    if tree is None or tree.is_settled:
        return True
    with failures.told_as(what):
        driver.sync()
    return False


def _held(engine: Engine, mounts: tuple[model.Mount, ...], volume: model.Volume, holder: str) -> model.Mount:
    now = engine.now()
    for present in mounts:
        if present.holder != holder:
            continue
        is_same_boot = present.boot_id == engine.boot_id and holder != model.HOST_HOLDER
        count = present.count + 1 if is_same_boot else 1
        return replace(present, count=count, boot_id=engine.boot_id, created_at=now)
    mount_id = model.MountId(engine.store.reserve_id("mounts"))
    return model.Mount(mount_id, volume.id, holder, 1, engine.boot_id, now)


def _is_gone(engine: Engine, mount: model.Mount, *, is_seen: bool, age_s: float) -> bool:
    if mount.boot_id != engine.boot_id:
        return True
    return use.held_s(engine, mount) - age_s >= SETTLING_S and not is_seen and mount.holder != model.HOST_HOLDER
