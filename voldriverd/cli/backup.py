"""`voldriver backup`: make, list, check, restore and remove backups, and read files out of them."""

import shlex
import sys
from typing import Any

import click

from voldriverd import names
from voldriverd.cli import parameters, progress, show
from voldriverd.cli.connection import READ_TIMEOUT_S, Resource, resource_path
from voldriverd.cli.parameters import BackupId, SnapshotName, TargetName, VolumeName
from voldriverd.cli.session import Session, is_backup_id, snapshot_name
from voldriverd.errors import Invalid, NotFound, Unusable


@click.group("backup")
def group() -> None:
    """Backups; ID is what `backup ls` shows, such as 1b5."""


@group.command("create")
@click.argument("source", metavar="VOLUME[@SNAPSHOT]", type=SnapshotName())
@parameters.target
@click.option("--name", metavar="NAME", help="What to call it.")
@parameters.no_wait
@click.pass_obj
def create(session: Session, *, source: str, target: str | None, name: str | None, no_wait: bool) -> None:
    """Back up a volume as it is now (a snapshot is made of it), or one of its snapshots; prints the id."""
    origin, at, snapshot_text = source.partition("@")
    volume = session.volume(origin)
    subject = session.snapshot(volume, snapshot_text) if at else volume
    fields = {"backupTargetId": session.target(target)["id"]}
    if name is not None:
        fields["name"] = name
    with progress.going_on("voldriver backup cancel, with the id that voldriver backup ls shows"):
        begun = session.act(subject, "backup", **fields)
    _follow(session, begun, no_wait=no_wait)


@group.command("ls")
@click.argument("volume", required=False, type=VolumeName())
@click.option("--target", metavar="TARGET", type=TargetName(), help="Those in this target only.")
@click.option("-q", "--quiet", is_flag=True, help="Print ids only: a backup needs no name.")
@click.pass_obj
def list_(session: Session, *, volume: str | None, target: str | None, quiet: bool) -> None:
    """List the backups that are known here, of one volume or all; what was taken last comes last."""
    filters = {} if volume is None else {"volumeId": session.volume(volume)["id"]}
    if target is not None:
        filters["backupTargetId"] = session.target(target)["id"]
    backups = session.connection.list("backups", **filters)
    backups.sort(key=lambda backup: backup["takenTS"])  # ids say when a backup came to be known here
    if session.is_json:
        show.as_json(backups)
    elif quiet:
        for backup in backups:
            click.echo(backup["id"])
    else:
        targets = {each["id"]: each["name"] for each in session.connection.list("backuptargets")}
        head = ("ID", "VOLUME", "SNAPSHOT", "NAME", "TARGET", "STATE", "CONTENT", "STORED", "TAKEN", "VERIFIED", "HOST")
        show.table(head, [_row(backup, targets) for backup in backups], right=frozenset({"CONTENT", "STORED"}))


@group.command("inspect")
@click.argument("ids", metavar="ID...", nargs=-1, required=True, type=BackupId())
@click.pass_obj
def inspect(session: Session, *, ids: tuple[str, ...]) -> None:
    """Show all that is known of backups."""
    told: list[str] = []

    def tell(backup: Resource) -> None:
        if told:
            click.echo()
        told.append(backup["id"])
        show.facts(_facts(session, backup))

    session.each(ids, session.backup, tell)


@group.command("rm")
@click.argument("ids", metavar="ID...", nargs=-1, required=True, type=BackupId())
@click.pass_obj
def remove(session: Session, *, ids: tuple[str, ...]) -> None:
    """Remove backups; what others build on stays readable for them, and `backup prune` frees the space."""

    def work(text: str) -> Resource:
        backup = session.backup(text)
        return session.finish(session.connection.delete(resource_path("backups", backup["id"])), no_wait=False)

    session.each(ids, work, _tell_id)


@group.command("cancel")
@click.argument("texts", metavar="ID|VOLUME...", nargs=-1, required=True, type=BackupId())
@click.pass_obj
def cancel(session: Session, *, texts: tuple[str, ...]) -> None:
    """End backups that are being made, or the restore of volumes."""

    def work(text: str) -> Resource:
        if not is_backup_id(text):
            return _cancel_of_volume(session, session.act(session.volume(text), "cancel"))
        ended = session.finish(session.act(session.backup(text), "cancel"), no_wait=False)
        if ended["state"] == "created":
            raise NotFound(f"cannot cancel backup {text}: it was made before that")
        return ended

    session.each(texts, work, lambda ended: click.echo(ended["id"] if is_backup_id(ended["id"]) else ended["name"]))


def _cancel_of_volume(session: Session, ended: Resource) -> Resource:
    """Wait until nobody works on a volume any more whose restore or import was cancelled."""
    if ended["transitioning"] != "yes":
        return ended
    try:
        session.finish(ended, no_wait=False)
    except (NotFound, Unusable):  # a new volume has gone, another one says that it was cancelled
        return ended
    raise NotFound(f"cannot cancel what was done to volume {ended['name']}: it was done before that")


@group.command("verify")
@click.argument("ids", metavar="ID...", nargs=-1, required=True, type=BackupId())
@click.option("--sample", metavar="PERCENT", help="Read only that much of it, as in 10%, chosen anew each time.")
@click.pass_obj
def verify(session: Session, *, ids: tuple[str, ...], sample: str | None) -> None:
    """Read backups in their target and check every byte, without restoring."""
    fields = {} if sample is None else {"sample": _fraction(sample)}

    def work(text: str) -> Resource:
        backup = session.act(session.backup(text), "verify", **fields)
        with progress.going_on(), progress.bar() as follow:
            try:
                return session.finish(backup, no_wait=False, follow=follow)
            except Unusable as err:
                raise Unusable(f"backup {backup['id']}: {err}") from err

    what = "is whole" if sample is None else "is right as far as it was read"
    session.each(ids, work, lambda backup: click.echo(f"{backup['id']} {what}"))


@group.command("restore")
@click.argument("backup_id", metavar="ID", type=BackupId())
@click.option("--to", "to", metavar="VOLUME", type=VolumeName(), help="Give it to a volume that is not in use.")
@click.option("--as", "new_name", metavar="NEW", help="Make a new volume of it.")
@click.option("-d", "--driver", metavar="DRIVER", help="With --as: another driver than it was made from.")
@click.option(
    "-o", "--opt", "options", metavar="KEY=VALUE", multiple=True, callback=parameters.pairs, help="With --as."
)
@click.option("--allow-holes", is_flag=True, help="With --to: leave out what is damaged, and list it.")
@parameters.no_wait
@click.pass_obj
def restore(  # noqa: PLR0913 - click gives each option as an argument
    session: Session,
    *,
    backup_id: str,
    to: str | None,
    new_name: str | None,
    driver: str | None,
    options: dict[str, str],
    allow_holes: bool,
    no_wait: bool,
) -> None:
    """Bring a backup back, into a volume or as a new one.

    What a volume had is kept as a snapshot, whose name is printed.
    """
    if (to is None) == (new_name is None):
        raise click.UsageError("give --to VOLUME or --as NEW")
    if to is not None and (driver is not None or options):
        raise click.UsageError("--driver and --opt go with --as")
    if new_name is not None and allow_holes:
        raise click.UsageError("--allow-holes goes with --to")
    backup = session.backup(backup_id)
    if new_name is not None:
        _restore_as(session, backup, new_name, driver, options, no_wait=no_wait)
    else:
        assert to is not None
        _restore_to(session, backup, session.volume(to), allow_holes=allow_holes, no_wait=no_wait)


@group.command("get")
@click.argument("backup_id", metavar="ID", type=BackupId())
@click.argument("path")
@click.argument("to", default=".")
@click.pass_obj
def get(session: Session, *, backup_id: str, path: str, to: str) -> None:
    """Copy one file or folder out of a backup.

    TO is a directory that exists, or the copy's own name; without it the copy goes here. "-" writes a tar archive to
    standard output.
    """
    from voldriverd.cli import unpack  # noqa: PLC0415 - tarfile and its kin take 20 ms, and only this needs them

    backup = session.backup(backup_id)
    where = resource_path("backups", backup["id"], "archive")
    with session.connection.stream(where, timeout_s=READ_TIMEOUT_S, path=path) as archive:
        if to == "-":
            unpack.copy(archive, sys.stdout.buffer)
            return
        steps = [name for name in path.split("/") if name not in {"", "."}]
        for text in unpack.unpack(archive, to, name=steps[-1] if steps else f"{backup['volumeName']}@{backup['id']}"):
            show.note(text)


@group.command("scan")
@click.argument("target", required=False, type=TargetName())
@click.pass_obj
def scan(session: Session, *, target: str | None) -> None:
    """Look what a target holds, and take up what is not known here: of other hosts, of a lost database."""
    place = session.target(target)
    found = session.finish(session.act(place, "scan"), no_wait=False)
    count = len(session.connection.list("backups", backupTargetId=place["id"]))
    session.one(found, lambda _: show.note(f"{place['name']} holds {count} backup{'' if count == 1 else 's'}"))


@group.command("prune")
@click.argument("target", required=False, type=TargetName())
@click.pass_obj
def prune(session: Session, *, target: str | None) -> None:
    """Free the space of what no backup needs any more and is old enough."""
    place = session.target(target)
    pruned = session.finish(session.act(place, "prune"), no_wait=False)
    session.one(pruned, lambda done: show.note(done["transitioningMessage"] or f"{place['name']} is pruned"))


def _follow(session: Session, backup: Resource, *, no_wait: bool) -> None:
    with progress.going_on(f"voldriver backup cancel {backup['id']}"), progress.bar() as follow:
        made = session.finish(backup, no_wait=no_wait, follow=follow)
    if made["state"] == "removed":
        raise Unusable(f"backup {made['id']} was given up: {made['transitioningMessage'] or 'it was cancelled'}")
    session.one(made, _tell_made)


def _restore_as(
    session: Session, backup: Resource, name: str, driver: str | None, options: dict[str, str], *, no_wait: bool
) -> None:
    fields: dict[str, Any] = {"name": name, "driverOpts": {**options, "from": f"backup:{backup['id']}"}}
    made = session.connection.post("volumes", fields if driver is None else {**fields, "driver": driver})
    with progress.going_on(f"voldriver volume rm {name}"), progress.bar() as follow:
        volume = session.finish(made, no_wait=no_wait, follow=follow)
    session.one(volume, _tell_restored_as)


def _restore_to(session: Session, backup: Resource, volume: Resource, *, allow_holes: bool, no_wait: bool) -> None:
    fields = {"backupId": backup["id"]} | ({"allowHoles": True} if allow_holes else {})
    begun = session.act(volume, "restorefrombackup", **fields)
    with progress.going_on(f"voldriver backup cancel {volume['name']}"), progress.bar() as follow:
        restored = session.finish(begun, no_wait=no_wait, follow=follow)
    session.one(restored, lambda done: _tell_restored_to(session, done, no_wait=no_wait))


def _tell_restored_to(session: Session, volume: Resource, *, no_wait: bool) -> None:
    if no_wait and volume["transitioning"] == "yes":
        click.echo(volume["name"])
        return
    _tell_message(volume)
    snapshots = session.connection.list("snapshots", volumeId=volume["id"], name_prefix="before-restore-")
    kept = snapshot_name(max(snapshots, key=lambda each: int(each["id"][2:])))
    click.echo(kept)
    show.note(f"undo with: {shlex.join(['voldriver', 'snapshot', 'revert', volume['name'], kept])}")


def _tell_restored_as(volume: Resource) -> None:
    _tell_message(volume)
    click.echo(volume["name"])


def _tell_made(backup: Resource) -> None:
    _tell_message(backup)
    click.echo(backup["id"])


def _tell_message(resource: Resource) -> None:
    if resource["transitioning"] != "yes" and resource["transitioningMessage"]:
        show.note(resource["transitioningMessage"])


def _tell_id(backup: Resource) -> None:
    click.echo(backup["id"])


def _fraction(text: str) -> float:
    number = text.removesuffix("%")
    if not number.isascii() or not number.isdecimal() or not 0 < int(number) <= 100:
        raise Invalid(f"cannot use sample {text!r}: give a percentage from 1% to 100%", field="sample")
    return int(number) / 100


def _row(backup: Resource, targets: dict[str, str]) -> list[str | None]:
    return [
        backup["id"],
        backup["volumeName"],
        backup["snapshotName"],
        backup["name"],
        targets.get(backup["backupTargetId"], backup["backupTargetId"]),
        backup["state"],
        show.size(backup["contentBytes"]),
        show.size(backup["storedBytes"]),
        show.time(backup["taken"]),
        show.time(backup["verified"]),
        backup["host"],
    ]


def _facts(session: Session, backup: Resource) -> list[tuple[str, str | None]]:
    target = session.connection.get(resource_path("backuptargets", backup["backupTargetId"]))
    return [
        ("Id", backup["id"]),
        ("Uuid", backup["uuid"]),
        ("Name", backup["name"]),
        ("State", backup["state"]),
        ("Message", backup["transitioningMessage"]),
        ("Description", backup["description"]),
        ("Target", target["name"]),
        ("Address", backup["uri"]),
        ("Volume", f"{backup['volumeName']} ({backup['volumeUUID']})"),
        ("Snapshot", backup["snapshotName"]),
        ("Driver", backup["driver"]),
        ("Format", backup["format"]),
        ("Builds on", backup["parentId"]),
        ("Host", backup["host"]),
        ("Size", "unlimited" if backup["sizeBytes"] is None else names.format_size(backup["sizeBytes"])),
        ("Content", show.size(backup["contentBytes"])),
        ("Stored", show.size(backup["storedBytes"])),
        ("Taken", show.time(backup["taken"])),
        ("Made", show.time(backup["created"])),
        ("Verified", show.time(backup["verified"])),
    ]
