"""What a volume has to do with backups: it is backed up, and gets the content of one."""

from http import HTTPStatus

from voldriverd import model
from voldriverd.api.rancher import backups, body, ids, problems, schemas
from voldriverd.api.rancher.body import Body
from voldriverd.api.rancher.kind import Made
from voldriverd.errors import NotFound
from voldriverd.model import BackupState, VolumeState
from voldriverd.service import API_ANSWER_S, Service


async def back_up(service: Service, volume: model.Volume, given: Body) -> Made:
    """Back up a volume as it is now; the answer is the backup."""
    wish = backups.wish(service, body.parse_creation(schemas.ALL["volumeBackupInput"], given))
    return await backups.made(service, await service.backups.create_of_volume(volume.id, **wish))


async def restore(service: Service, volume: model.Volume, given: Body) -> Made:
    """Give a volume the content of a backup, of whatever volume."""
    fields = body.parse_creation(schemas.ALL["restoreFromBackupInput"], given)
    backup = await backups.restorable(service, fields["backupId"], f"cannot restore volume {volume.name}")
    try:
        restored, kept = await service.restores.restore(
            volume.id, backup.id, answer_s=API_ANSWER_S, allow_holes=bool(fields.get("allowHoles"))
        )
    except NotFound as err:
        present = await service.runner.in_thread(service.store.backup, backup.id)
        if present is not None and present.state is BackupState.CREATED:
            raise  # not the backup has gone while we waited, but the volume
        raise problems.invalid("InvalidReference", str(err), field="backupId") from err
    if kept is None:  # its target is slow: the volume still is as it was, and says that something goes on
        return Made("volume", restored, HTTPStatus.ACCEPTED)
    status = HTTPStatus.ACCEPTED if restored.state is VolumeState.RESTORING else HTTPStatus.OK
    return Made("volume", restored, status, {"displacedSnapshotId": ids.show(schemas.SNAPSHOT, kept.id)})


async def cancel(service: Service, volume: model.Volume, _given: Body) -> Made:
    """End a restore or an import; the volume rests again with what it had, and a new one goes."""
    bringing = service.imports if volume.state is VolumeState.IMPORTING else service.restores
    left = await bringing.cancel(volume.id)
    is_going = left.state in {VolumeState.IMPORTING, VolumeState.RESTORING}
    return Made("volume", left, HTTPStatus.ACCEPTED if is_going else HTTPStatus.OK)
