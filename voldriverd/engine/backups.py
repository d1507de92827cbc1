"""Backups of snapshots: begun with the volume's lock, sent without it.

    begin       the row and the row of its tree are committed, and the snapshot's tree is cloned under the backup's key
    begin_early the rows only, of a snapshot that is still created; `hold` clones its tree as soon as it is there
    finish      the stream is sent, the manifest last; then one commit makes the backup `created`, and its tree the
                base of the next increment instead of the one before
    or give_up  it is wanted no more
    withdraw    what it may have left in the target, where it came to nothing

The tree of a backup is a clone of its own, so that the snapshot may be removed meanwhile. A driver without COW would
copy all data for it: there the snapshot's own tree is sent, and cannot be removed as long as that takes. After a crash
or a stop of the daemon a backup is still `creating`, and `finish` takes it up: what arrived is not sent again.
"""

import logging
import os
import threading
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from voldriverd import model
from voldriverd.backup.faults import Cancelled
from voldriverd.backup.manifest import Manifest, SnapshotCard, VolumeCard
from voldriverd.driver import Capability, Driver, Key, TreeOptions
from voldriverd.engine import chains, creation, failures, targets, trees, watching
from voldriverd.engine.context import Engine
from voldriverd.engine.supplies import Work
from voldriverd.errors import Error, Exists, InUse, NotFound, Unsupported
from voldriverd.kernel import watch
from voldriverd.model import BackupState, SnapshotState
from voldriverd.store.write import Write

if TYPE_CHECKING:
    from voldriverd.backup.repository import Repository

_log = logging.getLogger(__name__)

CANCELLED: Final = "cancelled"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a new backup should be."""

    name: str | None = None
    description: str | None = None
    is_of_snapshot: bool = False
    """Whether the snapshot is shown as `backing-up` meanwhile."""


@dataclass(frozen=True, slots=True)
class _Sent:
    manifest: Manifest
    note: str | None = None
    """Why it is a whole one although there was a base."""


def begin_early(engine: Engine, snapshot: model.Snapshot, target: model.Target, wish: Wish) -> model.Backup:
    """Commit that a snapshot which a long verb still creates is to be backed up; `finish` is for when it is there.

    Raises NotFound: it came to nothing meanwhile; then nothing has changed.
    """
    return _commit(engine, snapshot, target, wish, f"cannot back up snapshot {snapshot.shown_name}")


def begin(engine: Engine, snapshot: model.Snapshot, target: model.Target, wish: Wish) -> model.Backup:
    """Commit that a snapshot is being backed up; one that is in this target, undamaged, is returned instead.

    Raises NotFound (it is gone, or in the trash), InUse (it is not ready), Exists (the one in the target has another
    name or description than is wished), Unusable; then nothing has changed. Of the pool's reserve nothing is asked: a
    clone takes no space, and who copies nothing asks for none.
    """
    what = f"cannot back up snapshot {snapshot.shown_name}"
    volume = engine.store.volume(snapshot.volume_id)
    if volume is None or not volume.is_live:
        raise NotFound(f"{what}: it is in the trash with its volume")
    if snapshot.state is SnapshotState.CREATING:
        raise InUse(f"{what}: it is being created")
    if snapshot.state is not SnapshotState.CREATED:
        raise NotFound(f"{what}: it is {snapshot.state.value}")
    for present in engine.store.backups_of_snapshot(snapshot.id):
        is_made = present.state is BackupState.CREATED and not chains.is_damage(present.message)
        if present.target_id == target.id and (is_made or present.state is BackupState.CREATING):
            _ensure_agrees(present, target, wish, what)
            return present
    backup = _commit(engine, snapshot, target, wish, what)
    if backup.key is None:
        return backup
    try:
        with failures.told_as(what):
            engine.pools.driver(volume.pool_id).clone(snapshot.tree, backup.key, read_only=True)
    except Error:
        engine.store.commit(lambda write: write.delete_backup(backup), is_vital=True)
        trees.discard(engine, volume.pool_id, backup.key)
        raise
    return backup


def hold(engine: Engine, backup: model.Backup) -> None:
    """Clone the tree of a backup whose beginning did not, so that the snapshot may go; what hinders, `finish` tells."""
    volume = None if backup.volume_id is None else engine.store.volume(backup.volume_id)
    if volume is None or backup.key is None:
        return
    what = f"cannot make backup {backup.shown_name} of volume {backup.volume_name}"
    try:
        with failures.told_as(what):
            _source(engine, engine.pools.driver(volume.pool_id), backup, what)
    except Error as err:
        _log.info("verb=backup backup=%s result=%s", backup.shown_name, err)


def held(engine: Engine, going: list[model.Backup]) -> set[model.BackupId]:
    """Return the backups that need no `hold`: their tree is there, or a snapshot that cannot go before they end."""
    found = set()
    for backup in going:
        volume = None if backup.volume_id is None else engine.store.volume(backup.volume_id)
        snapshot = None if backup.snapshot_id is None else engine.store.snapshot(backup.snapshot_id)
        if backup.key is None and snapshot is not None and snapshot.state is SnapshotState.CREATING:
            continue
        with suppress(Error, OSError):  # the pool went away again: it is looked for later
            if volume is None or backup.key in {None, *engine.pools.driver(volume.pool_id).trees()}:
                found.add(backup.id)
    return found


def finish(engine: Engine, backup: model.Backup, work: Work) -> model.Backup:
    """Send a backup that was begun and return what it came to: created, error with its message, or removed.

    It is still `creating` if `work` was stopped and not given up. Raises Unusable only if that cannot be written down.
    """
    what = f"cannot make backup {backup.shown_name} of volume {backup.volume_name}"
    try:
        with failures.told_as(what), targets.opened(engine, backup.target_id, cancelled=work.cancelled) as repository:
            sent = _sent_before(repository, backup) or _send(engine, backup, repository, work, what)
    except Cancelled:
        return give_up(engine, backup) if work.is_given_up else backup
    except Error as err:
        if work.cancelled.is_set():  # what was cut off fails in its own way
            return give_up(engine, backup) if work.is_given_up else backup
        return fail(engine, backup, str(err).removeprefix(f"{what}: "))
    return _succeed(engine, backup, sent)


def give_up(engine: Engine, backup: model.Backup) -> model.Backup:
    """End a backup that is wanted no more and that nobody sends now; what has arrived of it goes with a prune."""
    return _end(engine, backup, BackupState.REMOVED, CANCELLED)


def withdraw(engine: Engine, backup: model.Backup, cancelled: threading.Event) -> None:
    """Leave nothing in the target of a backup that has just been given up or has failed, if the target answers.

    What was given up may be there all the same, if a crash came before that was noted, and is removed; a failed one
    that is there after all stays for a scan to find. What was sent in vain goes with a prune.
    """
    try:
        with targets.opened(engine, backup.target_id, cancelled=cancelled) as repository:
            if backup.state is BackupState.REMOVED and (sent := _sent_before(repository, backup)) is not None:
                repository.remove(sent.manifest)
            repository.abandon(_draft(engine, backup, TreeOptions(), chains.WHOLE))
    except (Error, Cancelled) as err:  # the mark of the writer there ends by its age
        _log.info("verb=withdraw backup=%s result=%s", backup.shown_name, err)


def fail(engine: Engine, backup: model.Backup, message: str) -> model.Backup:
    """Give up a backup for a reason that its message says."""
    return _end(engine, backup, BackupState.ERROR, message)


def drop_base(engine: Engine, backup: model.Backup) -> bool:
    """Give up the base tree of a backup for its space; tells whether it had one. The next backup is a whole one."""

    def change(write: Write) -> model.Backup | None:
        present = write.backup(backup.id)
        if present is None or present.key is None or present.state is not BackupState.CREATED:
            return None
        write.put_backup(replace(present, key=None))
        return present

    dropped = engine.store.commit(change, is_vital=True)
    if dropped is not None:
        targets.discard_tree(engine, dropped)
    return dropped is not None


def ensure_none_of(engine: Engine, volume: model.Volume, what: str) -> None:
    """Refuse to destroy a volume of which a backup is being made. Raises InUse naming it."""
    going = [backup for backup in engine.store.creating_backups() if backup.volume_id == volume.id]
    if going:
        raise _in_use(what, going[0])


def ensure_none_reads(engine: Engine, snapshot: model.Snapshot, what: str) -> None:
    """Refuse to destroy a snapshot whose own tree is being sent. Raises InUse naming the backup."""
    for backup in engine.store.creating_backups():
        if backup.snapshot_id == snapshot.id and backup.key is None:
            raise _in_use(what, backup)


def _ensure_agrees(present: model.Backup, target: model.Target, wish: Wish, what: str) -> None:
    """Refuse what differs from the backup that is there; what is not wished agrees. Raises Exists."""
    pairs = (("name", wish.name, present.name), ("description", wish.description, present.description))
    for field, wished, has in pairs:
        if wished is not None and wished != has:
            other = f"with {field} {has!r}" if has else f"without a {field}"
            cause = f"target {target.name} has it already, as backup {present.shown_name} {other}"
            raise Exists(f"{what} with {field} {wished!r}: {cause}")


def _in_use(what: str, backup: model.Backup) -> InUse:
    name = backup.shown_name
    return InUse(f"{what}: backup {name} is being made of it; voldriver backup cancel {name} ends that")


def _commit(engine: Engine, snapshot: model.Snapshot, target: model.Target, wish: Wish, what: str) -> model.Backup:
    volume = engine.store.volume(snapshot.volume_id)
    if volume is None:
        raise NotFound(f"{what}: it is gone")
    backup = _new_row(engine, volume, snapshot, target, wish)

    def change(write: Write) -> None:
        present = write.snapshot(snapshot.id)
        if present is None or present.state is SnapshotState.REMOVED:
            raise NotFound(f"{what}: it is gone")
        if backup.key is not None:
            write.add_clone(backup.key, snapshot.tree)
        write.put_backup(backup)

    engine.store.commit(change)
    return backup


def _new_row(
    engine: Engine, volume: model.Volume, snapshot: model.Snapshot, target: model.Target, wish: Wish
) -> model.Backup:
    has_tree = Capability.COW in engine.pools.driver(volume.pool_id).capabilities
    backup_id = model.BackupId(engine.store.reserve_id("backups"))
    return model.Backup(
        id=backup_id,
        uuid=str(uuid.uuid4()),
        target_id=target.id,
        volume_id=volume.id,
        volume_uuid=volume.uuid,
        volume_name=volume.name,
        snapshot_id=snapshot.id,
        snapshot_uuid=snapshot.uuid,
        snapshot_name=snapshot.name,
        name=wish.name,
        description=wish.description,
        driver=volume.driver,
        format=None,
        host=os.uname().nodename,
        state=BackupState.CREATING,
        created_at=engine.now(),
        taken_at=snapshot.created_at,
        key=model.backup_key(backup_id) if has_tree else None,
        size_bytes=snapshot.size_bytes,
        is_of_snapshot=wish.is_of_snapshot,
    )


def _sent_before(repository: "Repository", backup: model.Backup) -> _Sent | None:
    """Return a backup whose manifest was written before a crash."""
    manifest = repository.made(backup.volume_uuid, backup.uuid)
    return None if manifest is None else _Sent(manifest)


def _send(engine: Engine, backup: model.Backup, repository: "Repository", work: Work, what: str) -> _Sent:
    volume = None if backup.volume_id is None else engine.store.volume(backup.volume_id)
    if volume is None:
        raise NotFound(f"{what}: its volume is gone")
    driver = engine.pools.driver(volume.pool_id)
    source = _source(engine, driver, backup, what)
    options = creation.tree_options(engine, source)
    counted = watching.Counted(work)

    def send(base: chains.Base) -> _Sent:
        draft = _draft(engine, backup, options, base)
        with driver.send(source, base.key, is_thorough=base.is_thorough) as stream:
            counted.begin(stream.expected_bytes)
            return _Sent(repository.write(draft, stream, progress=counted.advance, is_afresh=base.is_afresh), base.note)

    base = chains.find(engine, driver, backup, repository)
    with watch.watched(counted):
        try:
            return send(base)
        except Unsupported:  # what the increment has met its format cannot hold
            if base.key is None:
                raise
        return send(chains.WHOLE)


def _source(engine: Engine, driver: Driver, backup: model.Backup, what: str) -> Key:
    """Return the tree that is sent; a crash may have come before it was cloned."""
    on_disk = driver.trees()
    if backup.key is not None and backup.key in on_disk:
        return backup.key
    snapshot = None if backup.snapshot_id is None else engine.store.snapshot(backup.snapshot_id)
    if snapshot is None or snapshot.key is None or snapshot.key not in on_disk:
        raise NotFound(f"{what}: its snapshot is gone")
    if backup.key is None:
        return snapshot.key
    driver.clone(snapshot.key, backup.key, read_only=True)
    return backup.key


def _draft(engine: Engine, backup: model.Backup, options: TreeOptions, base: chains.Base) -> Manifest:
    volume = None if backup.volume_id is None else engine.store.volume(backup.volume_id)
    snapshot = None if backup.snapshot_id is None else engine.store.snapshot(backup.snapshot_id)
    return Manifest(
        uuid=backup.uuid,
        created_at=backup.created_at,
        taken_at=backup.taken_at,
        host=backup.host,
        volume=VolumeCard(
            uuid=backup.volume_uuid,
            name=backup.volume_name,
            driver=backup.driver,
            description=None if volume is None else volume.description,
            options={} if volume is None else volume.options,
            labels={} if volume is None else volume.labels,
            size_bytes=backup.size_bytes,
        ),
        tree=options,
        snapshot=SnapshotCard(
            backup.snapshot_uuid, backup.snapshot_name, None if snapshot is None else snapshot.description
        ),
        name=backup.name,
        description=backup.description,
        parent=None if base.manifest is None else base.manifest.uuid,
        depth=base.depth,
    )


def _succeed(engine: Engine, backup: model.Backup, sent: _Sent) -> model.Backup:
    """Commit that a backup is made; its tree is the base now, if an increment can be made on it."""
    manifest = sent.manifest
    is_base = backup.key is not None and _is_base(engine, backup, manifest)
    notes = [*([] if sent.note is None else [sent.note]), *manifest.notes]
    created = replace(
        backup,
        state=BackupState.CREATED,
        format=manifest.format,
        parent_uuid=manifest.parent,
        content_bytes=manifest.content_bytes,
        stored_bytes=manifest.stored_bytes,
        message="; ".join(notes) or None,
        key=backup.key if is_base else None,
    )

    def change(write: Write) -> list[model.Backup]:
        former = [backup]
        if is_base:
            assert backup.volume_id is not None, "what is a base has a volume"
            former = write.drop_bases(backup.volume_id, backup.target_id)
        write.put_backup(created)
        return former

    for each in engine.store.commit(change, is_vital=True):
        targets.discard_tree(engine, each)
    return created


def _is_base(engine: Engine, backup: model.Backup, manifest: Manifest) -> bool:
    volume = None if backup.volume_id is None else engine.store.volume(backup.volume_id)
    driver = None if volume is None else engine.pools.get(volume.pool_id).driver
    return driver is not None and chains.is_base(driver, manifest)


def _end(engine: Engine, backup: model.Backup, state: BackupState, message: str) -> model.Backup:
    """Commit that a backup was not made; the base of the one before stays as it is."""
    removed_at = engine.now() if state is BackupState.REMOVED else None
    ended = replace(backup, state=state, message=message, key=None, removed_at=removed_at)
    engine.store.commit(lambda write: write.put_backup(ended), is_vital=True)
    targets.discard_tree(engine, backup)
    return ended
