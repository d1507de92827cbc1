"""Who uses a volume: the kernel is asked, a counter alone neither permits nor refuses."""

import math
import time
from typing import Final

from voldriverd import model
from voldriverd.driver import Capability, Driver, Key, User
from voldriverd.engine import failures
from voldriverd.engine.context import Engine
from voldriverd.errors import InUse, NotFound, Unsupported
from voldriverd.kernel import process

STARTING_S: Final = 10.0
"""How long after `Mount` a container may not show in the kernel's tables yet (seen: under 1 s)."""

_NAMED_MAX: Final = 3
_LOOKS: Final = 10
_LOOK_PAUSE_S: Final = 0.2
"""Together longer than a runtime has copies of its host's mounts: 0.07 to 0.83 s in 25 starts of runc 1.1.5, four at
a time on two cores with a load of 10."""


def ensure_unused(engine: Engine, volume: model.Volume, what: str) -> None:
    """Unmount a volume's tree unless it is really used. Raises InUse naming who uses it; then nothing has changed.

    `what` is "cannot VERB volume NAME". Holders that the kernel does not show are forgotten later by
    reconciliation; a holder of the last STARTING_S counts, for its container may be starting.
    """
    driver = engine.pools.driver(volume.pool_id)
    with failures.told_as(what):
        users = _lasting_users(engine, driver, volume.tree)
    if users:
        raise in_use(what, users)
    held = [mount for mount in engine.store.mounts(volume.id) if _is_starting(engine, mount)]
    if held:
        raise InUse(f"{what}: it is mounted by {', '.join(holder_name(mount) for mount in held[:_NAMED_MAX])}")
    _detach(engine, driver, volume.tree, what)
    stale = engine.store.mounts(volume.id)
    if stale:
        engine.store.commit(lambda write: write.drop_mounts(stale), is_vital=True)


def ensure_resting(volume: model.Volume, what: str) -> None:
    """Refuse a volume that another verb has not ended with, or that is not live. Raises InUse, NotFound."""
    if not volume.is_live:
        raise NotFound(f"{what}: it is in the trash")
    if volume.state is not model.VolumeState.INACTIVE:
        raise InUse(f"{what}: it is {volume.state.value}")


def ensure_cloneable(engine: Engine, volume: model.Volume, what: str) -> None:
    """Refuse to copy a volume that may be written to meanwhile, unless the driver makes it one instant.

    Raises Unsupported naming what can be done. Not for snapshots: their trees never change.
    """
    pool = engine.pools.get(volume.pool_id)
    driver = engine.pools.driver(volume.pool_id)
    is_allowed = pool.spec is not None and pool.spec.allow_live_copy
    with failures.told_as(what):
        if Capability.INSTANT in driver.capabilities or is_allowed or not is_used(engine, volume):
            return
    is_embedded = pool.spec is not None and pool.spec.is_embedded  # then no section can be for it
    where = "a directory pool of your own" if is_embedded else f"[pools.{pool.row.name}]"
    raise Unsupported(
        f"{what}: it is mounted, and driver {pool.row.driver} in pool {pool.row.name} cannot copy a volume in use "
        f"as one instant; unmount it, or set allow_live_copy = true in {where}"
    )


def is_used(engine: Engine, volume: model.Volume) -> bool:
    """Tell whether anybody holds or has mounted a volume's tree."""
    if engine.store.mounts(volume.id):
        return True
    return bool(_lasting_users(engine, engine.pools.driver(volume.pool_id), volume.tree))


def in_use(what: str, users: list[User]) -> InUse:
    """Return the error that names processes, their containers and where they have a tree mounted."""
    named = [f"{process.shown(user.pid, user.process)} at {user.mount_point}" for user in users[:_NAMED_MAX]]
    more = len(users) - len(named)
    return InUse(f"{what}: it is mounted by {', '.join(named)}" + (f" and {more} more" if more else ""))


def describe(engine: Engine, volume: model.Volume, what: str) -> str:
    """Return the line that says who uses a volume: the processes that the kernel shows, else the holders."""
    users = engine.pools.driver(volume.pool_id).users(volume.tree)
    if users:
        return str(in_use(what, users))
    holders = [holder_name(mount) for mount in engine.store.mounts(volume.id)[:_NAMED_MAX]]
    return f"{what}: it is mounted by {', '.join(holders) or 'nobody any more'}"


def held_s(engine: Engine, mount: model.Mount) -> float:
    """Return for how many seconds somebody holds a volume, though the clock may have been changed meanwhile.

    What came before the start of this process, and by the clock is yet to come, has been there for longer than any
    limit.
    """
    since_s = engine.held_since.get((mount.volume_id, mount.holder))
    if since_s is not None:
        return engine.uptime() - since_s
    by_clock_s = (engine.now() - mount.created_at).total_seconds()
    return by_clock_s if by_clock_s >= 0 else math.inf


def holder_name(mount: model.Mount) -> str:
    """Name a holder for people: the host, or the beginning of a container's mount id."""
    return "the host" if mount.holder == model.HOST_HOLDER else f"container mount {mount.holder[:12]}"


def _lasting_users(engine: Engine, driver: Driver, key: Key) -> list[User]:
    """Return who has a tree mounted, without those that only pass by.

    Where mounts are not shared (no systemd), the runtime that starts any container has copies of all mounts of its
    host for a moment, until pivot_root(2). Who has nothing but a copy at our own mount point is looked at again.
    """
    own = str(engine.mounts / key)
    users = driver.users(key)
    for _ in range(_LOOKS):
        if not users or any(user.mount_point != own for user in users):
            break
        time.sleep(_LOOK_PAUSE_S)
        users = driver.users(key)
    return users


def _is_starting(engine: Engine, mount: model.Mount) -> bool:
    if mount.boot_id != engine.boot_id:
        return False
    return held_s(engine, mount) < STARTING_S or mount.holder == model.HOST_HOLDER


def _detach(engine: Engine, driver: Driver, key: Key, what: str) -> None:
    try:
        with failures.told_as(what):
            driver.detach(key)
    except InUse as err:
        openers = process.openers(engine.mounts / key)
        who = ", ".join(f"{process.shown(pid, name)} in {path}" for pid, name, path in openers[:_NAMED_MAX])
        raise InUse(f"{what}: it is used by {who or 'a process of this host'}") from err
