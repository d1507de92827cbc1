"""Backups that are made: removed, verified, found in a target, and what nobody names any more deleted there."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from voldriverd import model
from voldriverd.backup.faults import Cancelled, Damage, Damaged
from voldriverd.backup.manifest import Manifest
from voldriverd.engine import chains, failures, targets
from voldriverd.engine.context import Engine
from voldriverd.engine.supplies import Work
from voldriverd.errors import Error, InUse, NotFound
from voldriverd.model import BackupState
from voldriverd.store.write import Write

if TYPE_CHECKING:
    from voldriverd.backup.pruning import Pruned

DAMAGES_SHOWN: Final = 5
"""How much of the damage a backup's message names; each is a line, and a lost disk has thousands."""
GONE: Final = "it is not in its target any more"
_BATCH: Final = 500
"""Rows in one commit of a scan: others' commits wait for it, for some 20 ms."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a scan came to."""

    adopted: list[model.Backup]
    """New rows, and given-up ones that were in the target after all."""
    gone: list[model.Backup]
    damaged: list[Damage]
    """Manifests that nobody can read; what they are of cannot be told."""


def begin_remove(engine: Engine, backup_id: model.BackupId) -> model.Backup:
    """Commit that a backup is to go from its target; one that was never made is gone at once.

    Raises NotFound (it is gone), and InUse: it is being made, or another that is being made may build on it.
    """
    now = engine.now()

    def change(write: Write) -> tuple[model.Backup, model.Backup]:
        backup = write.backup(backup_id)
        what = f"cannot remove backup 1b{backup_id}"
        if backup is None or backup.state is BackupState.REMOVED:
            raise NotFound(f"{what}: it is {'not there' if backup is None else 'removed'}")
        if backup.state is BackupState.CREATING:
            raise InUse(f"{what}: it is being made; cancel it")
        _ensure_no_base(engine, backup, what)
        is_made = backup.state is not BackupState.ERROR
        state = BackupState.REMOVING if is_made else BackupState.REMOVED
        going = replace(backup, state=state, key=None, removed_at=None if is_made else now)
        write.put_backup(going)
        return backup, going

    before, going = engine.store.commit(change, is_vital=True)
    targets.discard_tree(engine, before)
    return going


def finish_remove(engine: Engine, backup: model.Backup, work: Work) -> model.Backup:
    """Remove a backup from its target; where that does not work now it stays `removing`, and its message says why."""
    what = f"cannot remove backup {backup.shown_name}"
    try:
        with failures.told_as(what), targets.opened(engine, backup.target_id, cancelled=work.cancelled) as repository:
            repository.remove(repository.manifest(backup.volume_uuid, backup.uuid))
    except Cancelled:
        return backup
    except NotFound:  # somebody else has done it
        pass
    except Error as err:
        message = f"it will be removed when that can be done: {str(err).removeprefix(f'{what}: ')}"
        return _put(engine, backup.id, lambda row: replace(row, message=message))
    return _put(engine, backup.id, lambda row: _removed(engine, row, None))


def verify(engine: Engine, backup: model.Backup, work: Work, *, sample: float) -> model.Backup:
    """Read a backup and all that it builds on, and note what is wrong with it, or that nothing is.

    `sample` is the share to read, up to 1; only after all was read the backup counts as verified. Raises NotFound (it
    is not a backup any more, here or there), Unusable (the target does not answer) and InUse (`work` was ended).
    """
    what = f"cannot verify backup {backup.shown_name}"
    if backup.state is not BackupState.CREATED:
        raise NotFound(f"{what}: it is {backup.state.value}")
    damages: list[Damage] = []
    notes: tuple[str, ...] = ()
    seed = int(engine.now().timestamp())  # another sample each time
    with _ended_by(work, what), targets.opened(engine, backup.target_id, cancelled=work.cancelled) as repository:
        try:
            manifest = repository.manifest(backup.volume_uuid, backup.uuid)
            notes = manifest.notes
            chain = repository.chain(manifest)
            work.expect(int(sum(link.content_bytes for link in chain) * sample))
            progress = _counter(work)
            for link in chain:
                damages += repository.verify(link, sample=sample, progress=progress, seed=seed)
        except Damaged as err:
            damages.append(err.damage)
    message = _damage_message(damages) if damages else "; ".join(notes) or None
    is_proved = not damages and sample >= 1
    verified_at = engine.now() if is_proved else None if damages else backup.verified_at
    return _put(engine, backup.id, lambda row: replace(row, message=message, verified_at=verified_at))


def scan(engine: Engine, target_id: model.TargetId, work: Work) -> Found:
    """Compare the rows of a target with what lies there.

    Backups of other hosts and of lost databases get rows, rows of what is not there any more become tombstones. Raises
    NotFound, Unusable (the target does not answer: then nothing has changed) and InUse (`work` was ended).
    """
    target = targets.row(engine, target_id)
    before = engine.store.backups_in(target_id)
    what = f"cannot scan target {target.name}"
    with _ended_by(work, what), targets.opened(engine, target_id, cancelled=work.cancelled) as repository:
        listed = list(repository.manifests())
    manifests = {each.uuid: each for each in listed if isinstance(each, Manifest)}
    damaged = [each.damage for each in listed if isinstance(each, Damaged)]
    unread = {damage.backup_uuid for damage in damaged}
    adopted = list(_adopted(engine, target_id, manifests.values(), {backup.uuid: backup for backup in before}))
    gone = [
        _removed(engine, backup, GONE)
        for backup in before
        if backup.state is BackupState.CREATED and backup.uuid not in manifests and backup.uuid not in unread
    ]
    for batch in _batches([*adopted, *gone]):
        for former in engine.store.commit(lambda write, batch=batch: _put_all(write, batch)):  # type: ignore[misc]
            targets.discard_tree(engine, former)
    return Found(adopted, gone, damaged)


def prune(engine: Engine, target_id: model.TargetId, work: Work) -> "Pruned":
    """Delete the chunks in a target that no backup names and that are old enough.

    Raises NotFound, Unusable (the target does not answer; what was deleted until then is) and InUse (`work` was ended).
    """
    target = targets.row(engine, target_id)
    what = f"cannot prune target {target.name}"
    with _ended_by(work, what), targets.opened(engine, target_id, cancelled=work.cancelled) as repository:
        return repository.prune(progress=_counter(work))


def _ensure_no_base(engine: Engine, backup: model.Backup, what: str) -> None:
    """Refuse what the next increment may be made on this very moment."""
    for other in engine.store.creating_backups():
        if backup.key is not None and (other.volume_id, other.target_id) == (backup.volume_id, backup.target_id):
            raise InUse(f"{what}: backup {other.shown_name}, which is being made, may build on it")


def _adopted(
    engine: Engine, target_id: model.TargetId, manifests: Iterable[Manifest], known: dict[str, model.Backup]
) -> Iterator[model.Backup]:
    """Yield the rows of backups that were found and have none, or one that says that they were given up."""
    volumes = {volume.uuid: volume.id for volume in engine.store.volumes()}
    snapshots: dict[model.VolumeId, dict[str, model.SnapshotId]] = {}
    for manifest in manifests:
        present = known.get(manifest.uuid)
        if present is not None and present.state is not BackupState.ERROR:
            continue
        volume_id, snapshot_id = volumes.get(manifest.volume.uuid), None
        if volume_id is not None:
            if volume_id not in snapshots:
                snapshots[volume_id] = {row.uuid: row.id for row in engine.store.snapshots(volume_id)}
            snapshot_id = snapshots[volume_id].get(manifest.snapshot.uuid)
        backup_id = model.BackupId(engine.store.reserve_id("backups")) if present is None else present.id
        yield _row_of(manifest, backup_id, target_id, volume_id, snapshot_id)


def _row_of(
    manifest: Manifest,
    backup_id: model.BackupId,
    target_id: model.TargetId,
    volume_id: model.VolumeId | None,
    snapshot_id: model.SnapshotId | None,
) -> model.Backup:
    return model.Backup(
        id=backup_id,
        uuid=manifest.uuid,
        target_id=target_id,
        volume_id=volume_id,
        volume_uuid=manifest.volume.uuid,
        volume_name=manifest.volume.name,
        snapshot_id=snapshot_id,
        snapshot_uuid=manifest.snapshot.uuid,
        snapshot_name=manifest.snapshot.name,
        name=manifest.name,
        description=manifest.description,
        driver=manifest.volume.driver,
        format=manifest.format,
        host=manifest.host,
        state=BackupState.CREATED,
        created_at=manifest.created_at,
        taken_at=manifest.taken_at,
        parent_uuid=manifest.parent,
        size_bytes=manifest.volume.size_bytes,
        content_bytes=manifest.content_bytes,
        stored_bytes=manifest.stored_bytes,
        message="; ".join(manifest.notes) or None,
    )


def _put_all(write: Write, rows: Iterable[model.Backup]) -> list[model.Backup]:
    """Write the rows of a scan, unless something was done with them meanwhile; return those that went, as they were."""
    former = []
    for row in rows:
        present = write.backup_of_uuid(row.target_id, row.uuid)
        if row.state is BackupState.CREATED:
            if present is None or present.state is BackupState.ERROR:
                write.put_backup(row)
        elif present is not None and present.state is BackupState.CREATED:
            write.put_backup(row)
            former.append(present)
    return former


def _put(engine: Engine, backup_id: model.BackupId, change: Callable[[model.Backup], model.Backup]) -> model.Backup:
    """Change a row as it is now: it may not be as it was when the work on it began."""

    def commit(write: Write) -> model.Backup:
        present = write.backup(backup_id)
        if present is None:
            raise NotFound(f"there is no backup 1b{backup_id} any more")
        changed = present if present.state is BackupState.REMOVED else change(present)
        write.put_backup(changed)
        return changed

    return engine.store.commit(commit, is_vital=True)


def _removed(engine: Engine, backup: model.Backup, message: str | None) -> model.Backup:
    return replace(backup, state=BackupState.REMOVED, key=None, message=message, removed_at=engine.now())


def _damage_message(damages: list[Damage]) -> str:
    more = len(damages) - DAMAGES_SHOWN
    shown = "; ".join(str(damage) for damage in damages[:DAMAGES_SHOWN])
    return f"{chains.DAMAGED}{shown}" + (f"; and {more} more" if more > 0 else "")


def _counter(work: Work) -> Callable[[int], None]:
    """Return what counts bytes that come one after the other."""
    done_bytes = 0

    def count(more_bytes: int) -> None:
        nonlocal done_bytes
        done_bytes += more_bytes
        work.advance(done_bytes)

    return count


def _batches(rows: list[model.Backup]) -> Iterator[list[model.Backup]]:
    yield from (rows[begin : begin + _BATCH] for begin in range(0, len(rows), _BATCH))


@contextmanager
def _ended_by(work: Work, what: str) -> Iterator[None]:
    """As `failures.told_as`; that the work was ended is told too."""
    try:
        with failures.told_as(what):
            yield
    except Cancelled as err:
        raise InUse(f"{what}: it was {'cancelled' if work.is_given_up else 'interrupted'}") from err
