"""Free space: below the reserve the trash is emptied, and what would need more is refused (D4).

Before anything is refused the bases of increments go too, after the trash: one of them costs a whole backup, over a
network, of a volume that is still wanted, and gives back only what has changed since.
"""

import logging
import os

from voldriverd import model, names
from voldriverd.driver import Capability
from voldriverd.engine import failures, pools, trees
from voldriverd.engine.context import Engine
from voldriverd.errors import Error, Unusable
from voldriverd.kernel import fs

_log = logging.getLogger(__name__)


class Shortage(Unusable):
    """Less than the reserve is free; the service empties trash and asks once more."""

    def __init__(self, message: str, pool_id: model.PoolId) -> None:
        """Keep which pool it is."""
        super().__init__(message)
        self.pool_id = pool_id


def ensure_reserve(engine: Engine, pool: pools.Pool, what: str) -> None:
    """Refuse a verb that takes space while less than the reserve is free. Raises Shortage with the figures."""
    with failures.told_as(what):
        total, free = fs.capacity(pool.row.path)
    if free >= total * engine.limits.reserve:
        return
    raise Shortage(
        f"{what}: pool {pool.row.name} has {names.format_size(free)} of {names.format_size(total)} free, below the "
        f"reserve of {engine.limits.reserve:.0%}; remove volumes or snapshots, empty the trash, or grow the pool",
        pool.row.id,
    )


def ensure_copy(engine: Engine, pool_id: model.PoolId, what: str) -> None:
    """Refuse a plain copy whose turn has come while less than the reserve is free: many begin before the first ends.

    Raises Unusable and no Shortage: somebody was told of what is copied, and that cannot begin anew.
    """
    if Capability.COW in engine.pools.driver(pool_id).capabilities:
        return
    try:
        ensure_reserve(engine, engine.pools.get(pool_id), what)
    except Shortage as err:
        raise Unusable(str(err)) from err


def is_short(engine: Engine, pool: pools.Pool) -> bool:
    """Tell whether less than the reserve is free."""
    total, free = fs.capacity(pool.row.path)
    return free < total * engine.limits.reserve


def lacks_space(engine: Engine, pool: pools.Pool) -> bool:
    """Tell whether less than the reserve will be free once what was removed is given back; waits for that.

    False also if it takes too long: nobody's trash shall go because a file system is slow.
    """
    with failures.told_as(f"cannot look for space in pool {pool.row.name}"):
        if not is_short(engine, pool):
            return False
        sharing = _sharing(engine, pool)
        if not all(collect_now(engine, each) for each in sharing):
            return False
        is_given_back = all(engine.pools.driver(each.row.id).reclaim() for each in sharing)
        return is_given_back and is_short(engine, pool)


def capacity(pool: pools.Pool) -> tuple[int, int]:
    """Return (total, free) bytes of a pool's file system. Raises OSError."""
    return fs.capacity(pool.row.path)


def trash_in_order(engine: Engine, pool: pools.Pool) -> list[model.Volume]:
    """Return the trashed volumes of a pool's file system in the order in which a shortage destroys them.

    The oldest day first, and of one day those that use most: an hour does not make a small volume
    go before a large one that would end the shortage alone.
    """
    sharing = {each.row.id for each in _sharing(engine, pool)}
    trashed = [
        volume
        for volume in engine.store.volumes()
        if volume.state is model.VolumeState.REMOVED and volume.pool_id in sharing
    ]
    return sorted(trashed, key=lambda volume: (_day(volume), -_used(engine, volume)))


def bases_in_order(engine: Engine, pool: pools.Pool) -> list[model.Backup]:
    """Return the backups whose base trees lie in a pool's file system, the oldest first: most has changed since."""
    sharing = {each.row.id for each in _sharing(engine, pool)}
    bases = []
    for backup in engine.store.backups_with_trees():
        tree = None if backup.key is None else engine.store.tree(backup.key)
        if backup.state is model.BackupState.CREATED and tree is not None and tree.pool_id in sharing:
            bases.append(backup)
    return sorted(bases, key=lambda backup: backup.id)  # the clock may have gone back meanwhile


def collect_now(engine: Engine, pool: pools.Pool, *, wait_s: float | None = None) -> bool:
    """Remove what waits and make the removal durable, so that its space shows; failures are logged and tried again.

    False: another thread is at it for so long (`wait_s` as for `trees.collect`) that it was not waited for.
    """
    try:
        return trees.collect(engine, pool.row.id, wait_s=wait_s) is not None
    except (Error, OSError) as err:
        _log.warning("verb=collect pool=%s result=%s", pool.row.name, err)
        return True


def _sharing(engine: Engine, pool: pools.Pool) -> list[pools.Pool]:
    """Return the pools whose free space is one with a pool's, itself among them, as in the embedded image."""
    device = _device(pool)
    return [each for each in engine.pools if each.driver is not None and (each is pool or _device(each) == device)]


def _device(pool: pools.Pool) -> int | None:
    try:
        return os.stat(pool.row.path).st_dev
    except OSError:  # it went away meanwhile
        return None


def _day(volume: model.Volume) -> str:
    return "" if volume.removed_at is None else volume.removed_at.date().isoformat()


def _used(engine: Engine, volume: model.Volume) -> int:
    try:
        used = engine.pools.driver(volume.pool_id).usage(volume.tree).used_bytes
    except (Error, OSError):  # a tree that cannot be asked goes last of its day
        return 0
    return used or 0
