"""Restore: a volume, an existing or a new one, gets what a backup holds.

    supplies.look       the chain is complete and the target answers; nothing is changed
    begin               the volume is RESTORING from this commit on, which keeps every other verb off it
    bring               the tree is made aside, for as long as that takes
    finish              one commit moves the pointer
    or give_up          an existing volume rests again with its content; a new one goes

`begin`, `finish` and `give_up` are quick and are called with the volume's lock; `look` and `bring` are long and hold
none. After a crash an existing volume rests again as it was, with a message; a new one stays RESTORING and its tree is
brought once more.
"""

import logging
from dataclasses import dataclass, replace
from typing import Final

from voldriverd import model, names
from voldriverd.driver import Driver, Key, StreamFormat, TreeOptions
from voldriverd.engine import creation, failures, pools, snapshots, space, supplies, trees, use, watching
from voldriverd.engine.context import Engine
from voldriverd.errors import Exists, InUse, Invalid, NotFound, Unusable
from voldriverd.kernel import watch
from voldriverd.model import VolumeState
from voldriverd.store.write import Write

_log = logging.getLogger(__name__)

RESTORED: Final = "restored from"
"""How a message begins that is no fault: what could not be kept of a backup."""
IMPORTED: Final = "imported from"
"""The same of what was imported."""
NOTES_MAX: Final = 10
"""How many notes a volume's message has; the log has all."""

_BACKUP: Final = "1b"
_INHERITED: Final = ("size_bytes", "thick", "fs", "nocow", "compression")
"""The options that a new volume has from the backup where they are not given."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """What `bring` has made."""

    size_bytes: int | None
    """The limit that the tree has; None if it has none."""
    notes: tuple[str, ...]
    """What could not be kept, for people."""


def backup_of(engine: Engine, source: names.BackupSource, what: str) -> model.Backup:
    """Return the backup that `from=backup:ID` names. Raises NotFound."""
    number = source.id.removeprefix(_BACKUP)
    is_id = source.id.startswith(_BACKUP) and number.isdecimal() and len(number) < len(str(2**63))
    backup = engine.store.backup(model.BackupId(int(number))) if is_id else None
    if backup is None:
        raise NotFound(f"{what}: there is no backup {source.id}")
    return backup


def source_of(volume: model.Volume) -> names.BackupSource:
    """Return what a new volume is restored from."""
    source = names.parse_options(volume.options).source
    assert isinstance(source, names.BackupSource), f"volume {volume.name} is not restored from a backup"
    return source


def is_new(volume: model.Volume) -> bool:
    """Tell whether a volume that is RESTORING never had another tree."""
    return volume.key == model.volume_key(volume.id, volume.content)


def is_fault(message: str) -> bool:
    """Tell whether a volume's message says that something is wrong, and not only what a restore could not keep."""
    return not message.startswith((RESTORED, IMPORTED))


def resumable(engine: Engine) -> list[model.Volume]:
    """Return the new volumes whose restore a crash has cut off."""
    return [row for row in engine.store.volumes() if row.state is VolumeState.RESTORING and is_new(row)]


# Into an existing volume.


def begin(
    engine: Engine, volume: model.Volume, supply: supplies.Supply, *, allow_holes: bool = False
) -> snapshots.Displacing:
    """Commit that a volume is being restored.

    Raises NotFound, InUse, Unsupported (damage cannot be left out of this backup), Unusable; then nothing has changed.
    """
    what = _what(volume)
    if allow_holes:
        supplies.ensure_holes_allowed(supply, what)
    use.ensure_resting(volume, what)
    use.ensure_unused(engine, volume, what)
    pool = engine.pools.get(volume.pool_id)
    driver = engine.pools.driver(volume.pool_id)
    options = _like_present(engine, volume, driver, supply)
    space.ensure_reserve(engine, pool, what)
    _ensure_room(pool, options, supply, what)
    restoring = replace(volume, state=VolumeState.RESTORING, message=f"restore from {_shown(supply.backup)}")
    return snapshots.begin_displacing(engine, restoring, options, source=None, verb="restore")


def bring(
    engine: Engine,
    going: snapshots.Displacing,
    supply: supplies.Supply,
    work: supplies.Work,
    *,
    allow_holes: bool = False,
) -> Arrived:
    """Make both trees: the one that the volume is to have, and the copy of what it displaces. Raises every kind."""
    volume = going.volume
    what = _what(volume)
    driver = engine.pools.driver(volume.pool_id)
    order = supplies.Order(supply, creation.tree_options(engine, going.key), what, allow_holes=allow_holes)
    arrived = _bring(engine, order, driver, going.key, work)
    with supplies.told_as(what, work), watch.watched(watching.Shown(work)):
        watch.prepare("keeps what it displaces")
        driver.clone(volume.tree, going.kept.tree, read_only=True)
    return arrived


def finish(
    engine: Engine, going: snapshots.Displacing, supply: supplies.Supply, arrived: Arrived
) -> snapshots.Reverted:
    """Move both pointers; the volume rests with what it was restored to."""
    message = _message(supply.backup, arrived.notes)
    return snapshots.end_displacing(engine, going, size_bytes=arrived.size_bytes, message=message)


def give_up(engine: Engine, going: snapshots.Displacing, reason: str) -> model.Volume:
    """Let a volume rest as it was, and say why."""
    return snapshots.give_up_displacing(engine, going, message=_cause(going.volume, reason))


def interrupted(volume: model.Volume) -> str:
    """Return what is said of a volume whose restore a crash has cut off."""
    return f"the {volume.message or 'restore'} was interrupted; the volume is as it was before"


# Into a new volume.


def begin_create(
    engine: Engine, request: creation.Request, volume_id: model.VolumeId, supply: supplies.Supply
) -> creation.Plan:
    """Commit the rows of a new volume that is being restored: from then on it exists for everybody.

    Raises Invalid, Unsupported, Unusable, Exists (the name was taken meanwhile); then nothing has changed.
    """
    what = f"cannot create volume {request.name}"
    if engine.store.volume_named(request.name) is not None:
        raise Exists(f"{what}: a volume of this name exists")
    plan = _plan(engine, request, volume_id, supply, what)

    def begin(write: Write) -> None:
        write.add_tree(plan.tree)
        write.put_volume(plan.volume)

    engine.store.commit(begin)
    return plan


def bring_new(engine: Engine, volume: model.Volume, supply: supplies.Supply, work: supplies.Work) -> Arrived:
    """Make the tree of a new volume; again from nothing if a crash came between that and `finish_new`.

    Raises every kind; Invalid: the size that was asked for is below what the backup holds.
    """
    what = f"cannot restore volume {volume.name}"
    driver = engine.pools.driver(volume.pool_id)
    options = creation.tree_options(engine, volume.key)
    with failures.told_as(what):
        driver.remove(volume.tree)
    is_asked = names.parse_options(volume.options).size_bytes is not None
    order = supplies.Order(supply, options, what, may_grow=not is_asked)
    arrived = _bring(engine, order, driver, volume.tree, work)
    if is_asked and (arrived.size_bytes or 0) > (options.size_bytes or 0):
        sizes = names.format_size(options.size_bytes or 0), names.format_size(arrived.size_bytes or 0)
        raise Invalid(f"{what}: size {sizes[0]} is below the {sizes[1]} that the backup takes", field="size")
    return replace(arrived, notes=(*_dropped(driver, volume, supply), *arrived.notes))


def finish_new(engine: Engine, volume_id: model.VolumeId, supply: supplies.Supply, arrived: Arrived) -> model.Volume:
    """Commit that a new volume is ready."""
    volume = _present(engine, volume_id)
    message = _message(supply.backup, arrived.notes)
    ready = replace(volume, state=VolumeState.INACTIVE, size_bytes=arrived.size_bytes, message=message)
    engine.store.commit(lambda write: write.put_volume(ready), is_vital=True)
    return ready


def give_up_new(engine: Engine, volume_id: model.VolumeId) -> None:
    """Drop a new volume that cannot be restored, or that nobody wants any more."""
    volume = _present(engine, volume_id)
    engine.store.commit(lambda write: write.delete_volume(volume), is_vital=True)
    trees.discard(engine, volume.pool_id, volume.tree)


def postpone(engine: Engine, volume_id: model.VolumeId, reason: str) -> None:
    """Note why the restore of a new volume could not be taken up; it will be tried again."""
    volume = _present(engine, volume_id)
    said = replace(volume, message=_cause(volume, reason))
    engine.store.commit(lambda write: write.put_volume(said))


def _bring(engine: Engine, order: supplies.Order, driver: Driver, key: Key, work: supplies.Work) -> Arrived:
    notes = supplies.unpack(engine, order, driver, key, work)
    if work.is_given_up:
        raise InUse(f"{order.what}: it was cancelled")
    with failures.told_as(order.what):
        return Arrived(driver.usage(key).limit_bytes, notes)


def _plan(
    engine: Engine, request: creation.Request, volume_id: model.VolumeId, supply: supplies.Supply, what: str
) -> creation.Plan:
    """Choose the pool of a new volume and what its tree is like: as it was, but for what is asked for otherwise."""
    asked = request.options
    for name in ("uid", "gid", "mode"):
        if getattr(asked, name) is not None:
            raise Invalid(f"{what}: option {name} does not go with a backup, which has its own", field=name)
    pool, driver = _pool(engine, asked, supply)
    creation.ensure_honoured(engine, pool, driver, creation.asked_of_tree(asked))
    made = _like_backup(driver, asked, supply)
    space.ensure_reserve(engine, pool, what)
    _ensure_room(pool, made, supply, what)
    card = supply.manifest.volume
    plan = creation.rows(engine, request, volume_id, pool, made, source=None)
    volume = replace(
        plan.volume,
        state=VolumeState.RESTORING,
        labels={**card.labels, **asked.labels},
        description=request.description or card.description,
    )
    return creation.Plan(volume, replace(plan.tree, is_settled=True))


def _pool(engine: Engine, asked: names.VolumeOptions, supply: supplies.Supply) -> tuple[pools.Pool, Driver]:
    """Return the pool that is asked for, else one of the driver that the backup is from, else the default one."""
    driver = asked.driver
    if driver is None and asked.pool is None:
        same = supply.manifest.volume.driver
        is_there = any(pool.row.driver == same and pool.driver is not None for pool in engine.pools)
        driver = same if is_there else None
    return engine.pools.choose(driver=driver, name=asked.pool)


def _like_backup(driver: Driver, asked: names.VolumeOptions, supply: supplies.Supply) -> TreeOptions:
    """Return completed options: what is asked for and, of what is not, what the backup has and the driver can."""
    had = _had(supply)
    contrary = {"compression": asked.nocow, "nocow": asked.compression}
    inherited = {
        name: getattr(had, name)
        for name in _INHERITED
        if getattr(asked, name) is None and _is_honoured(driver, name) and not contrary.get(name)
    }
    return driver.complete(replace(creation.asked_of_tree(asked), **inherited))


def _like_present(engine: Engine, volume: model.Volume, driver: Driver, supply: supplies.Supply) -> TreeOptions:
    """Return completed options: those of the volume with the larger of both sizes, and an image's own file system."""
    options = creation.tree_options(engine, volume.key)
    had = _had(supply)
    if "size" in driver.options:
        sizes = [size for size in (volume.size_bytes, had.size_bytes) if size is not None]
        options = replace(options, size_bytes=max(sizes, default=None))
    if supply.format is StreamFormat.BLOCKS and supply.format in driver.formats:
        options = replace(options, fs=had.fs)
    return driver.complete(options)


def _had(supply: supplies.Supply) -> TreeOptions:
    return replace(supply.manifest.tree, size_bytes=supply.manifest.volume.size_bytes)


def _is_honoured(driver: Driver, name: str) -> bool:
    return name.removesuffix("_bytes") in driver.options


def _dropped(driver: Driver, volume: model.Volume, supply: supplies.Supply) -> tuple[str, ...]:
    """Say which options of the backup a new volume has not, since its driver cannot honour them; any has files."""
    had, asked = _had(supply), names.parse_options(volume.options)
    dropped = [
        name.removesuffix("_bytes")
        for name in _INHERITED
        if name != "fs" and getattr(had, name) and getattr(asked, name) is None and not _is_honoured(driver, name)
    ]
    return tuple(f"driver {volume.driver} has no option {option}" for option in dropped)


def _ensure_room(pool: pools.Pool, options: TreeOptions, supply: supplies.Supply, what: str) -> None:
    """Refuse what cannot fit; what is compressed may. Raises Unusable with the figures."""
    with failures.told_as(what):
        _, free_bytes = space.capacity(pool)
    needed_bytes = supply.needed_bytes
    if options.compression is None and free_bytes < needed_bytes:
        needed, free = names.format_size(needed_bytes), names.format_size(free_bytes)
        raise Unusable(f"{what}: the backup takes {needed}, and pool {pool.row.name} has {free} free")


def _message(backup: model.Backup, notes: tuple[str, ...]) -> str | None:
    """Return what is said of a restored volume, None if it has everything; the log gets every note."""
    for note in notes:
        _log.warning("verb=restore backup=%s note=%s", backup.shown_name, note)
    return noted(f"{RESTORED} {_shown(backup)}", notes)


def noted(done: str, notes: tuple[str, ...]) -> str | None:
    """Return what was done together with what could not be kept, None if all was."""
    if not notes:
        return None
    more = len(notes) - NOTES_MAX
    named = "; ".join(notes[:NOTES_MAX])
    return f"{done}, but: {named}" + (f"; and {more} more, see the log" if more > 0 else "")


def _cause(volume: model.Volume, reason: str) -> str:
    """Return what a volume's message says: of what is wrong with the target the text knows no volume."""
    what = _what(volume)
    return reason if reason.startswith(f"{what}:") else f"{what}: {reason}"


def _shown(backup: model.Backup) -> str:
    return f"backup {backup.shown_name} of {backup.volume_name} ({backup.taken_at:%Y-%m-%d %H:%M:%S} UTC)"


def _what(volume: model.Volume) -> str:
    return f"cannot restore volume {volume.name}"


def _present(engine: Engine, volume_id: model.VolumeId) -> model.Volume:
    volume = engine.store.volume(volume_id)
    assert volume is not None, f"volume 1v{volume_id} went while it was restored"
    return volume
