"""What the worker looks for; the service takes the locks and runs the verbs."""

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from voldriverd import model
from voldriverd.engine import pools, space, trees
from voldriverd.engine.context import Engine
from voldriverd.errors import Error

_log = logging.getLogger(__name__)

TOMBSTONE_S: Final = 48 * 3_600
"""How long what was destroyed still answers by its id (rancher-api: 1.2, two days)."""


def expired_volumes(engine: Engine) -> list[model.Volume]:
    """Return the trashed volumes whose time has come."""
    now = engine.now()
    return [
        volume
        for volume in engine.store.volumes()
        if volume.state is model.VolumeState.REMOVED and volume.destroy_at is not None and volume.destroy_at <= now
    ]


def expired_snapshots(engine: Engine) -> list[model.Snapshot]:
    """Return the snapshots of live volumes whose time has come; those in the trash go with their volume."""
    return [
        snapshot
        for snapshot in engine.store.expired_snapshots(engine.now())
        if (volume := engine.store.volume(snapshot.volume_id)) is not None and volume.is_live
    ]


def short_pools(engine: Engine) -> list[pools.Pool]:
    """Return the pools with less than the reserve free."""
    return [pool for pool in engine.pools.available() if _is_short(engine, pool)]


def collect(engine: Engine) -> None:
    """Remove the trees that wait, in every pool; no volume's lock is needed, for nothing points to them."""
    _in_each_pool(engine, trees.collect)


def tidy(engine: Engine) -> None:
    """Remove what waits, settle what is new, drop old tombstones; no volume's lock is needed for these."""
    _in_each_pool(engine, trees.collect)
    _in_each_pool(engine, trees.settle)
    before = engine.now() - timedelta(seconds=TOMBSTONE_S)
    if engine.store.has_tombstones(before):
        engine.store.commit(lambda write: write.drop_tombstones(before))


def _in_each_pool(engine: Engine, work: Callable[[Engine, model.PoolId], object]) -> None:
    """Do something in every available pool; one that fails is logged and does not cost the others their turn."""
    for pool in engine.pools.available():
        try:
            work(engine, pool.row.id)
        except (Error, OSError) as err:
            _log.warning("verb=upkeep pool=%s result=%s", pool.row.name, err)


def _is_short(engine: Engine, pool: pools.Pool) -> bool:
    try:
        return space.is_short(engine, pool)
    except OSError as err:
        _log.warning("verb=tidy pool=%s result=%s", pool.row.name, err)
        return False
