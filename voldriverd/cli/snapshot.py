"""`voldriver snapshot`: make, list, remove, go back to, compare and read snapshots."""

import json
import shlex
import sys
from collections.abc import Iterator

import click

from voldriverd.cli import parameters, show
from voldriverd.cli.connection import READ_TIMEOUT_S, Resource, resource_path
from voldriverd.cli.parameters import SnapshotName, VolumeName
from voldriverd.cli.session import Session, snapshot_name
from voldriverd.errors import Invalid, Unusable

_MARKS = {"added": "+", "changed": "~", "removed": "-"}
_PAIR = "VOLUME[@SNAPSHOT]"


@click.group("snapshot")
def group() -> None:
    """Snapshots; VOLUME SNAPSHOT may be written as VOLUME@SNAPSHOT."""


@group.command("create")
@click.argument("volume", type=VolumeName())
@click.argument("name", required=False)
@parameters.description
@click.option("--expires", metavar="DURATION", callback=parameters.moment, help="Remove it by itself after 7d, 12h …")
@parameters.no_wait
@click.pass_obj
def create(
    session: Session, *, volume: str, name: str | None, description: str | None, expires: str | None, no_wait: bool
) -> None:
    """Freeze the present content of a volume; prints the name, or the id of a nameless one."""
    origin, at, pair_name = volume.partition("@")
    if at and name is not None:
        raise click.UsageError(f"the name is given twice: {pair_name} and {name}")
    fields = {"name": pair_name if at else name, "description": description, "expires": expires}
    given = {key: value for key, value in fields.items() if value is not None}
    made = session.act(session.volume(origin), "snapshot", **given)
    session.one(session.finish(made, no_wait=no_wait), lambda snapshot: click.echo(snapshot_name(snapshot)))


@group.command("ls")
@click.argument("volume", required=False, type=VolumeName())
@parameters.quiet
@click.pass_obj
def list_(session: Session, *, volume: str | None, quiet: bool) -> None:
    """List snapshots, of one volume or all."""
    filters = {} if volume is None else {"volumeId": session.volume(volume)["id"]}
    snapshots = session.connection.list("snapshots", **filters)
    if session.is_json:
        show.as_json(snapshots)
        return
    names = {each["id"]: each["name"] for each in session.connection.list("volumes")}
    if quiet:
        for snapshot in snapshots:
            click.echo(f"{names.get(snapshot['volumeId'], snapshot['volumeId'])}@{snapshot_name(snapshot)}")
        return
    head = ("VOLUME", "NAME", "ID", "SIZE", "CREATED", "EXPIRES", "DESCRIPTION")
    show.table(head, [_row(snapshot, names) for snapshot in snapshots], right=frozenset({"SIZE"}))


@group.command("rm")
@click.argument("texts", metavar=f"{_PAIR} [SNAPSHOT...]", nargs=-1, required=True, type=SnapshotName())
@click.pass_obj
def remove(session: Session, *, texts: tuple[str, ...]) -> None:
    """Destroy snapshots of a volume: VOLUME SNAPSHOT..., or VOLUME@SNAPSHOT..."""

    def work(pair: str) -> Resource:
        _, snapshot = _find(session, pair)
        return session.connection.delete(resource_path("snapshots", snapshot["id"]))

    session.each(_as_pairs(texts), work, lambda snapshot: click.echo(snapshot_name(snapshot)))


@group.command("revert")
@click.argument("texts", metavar=f"{_PAIR} [SNAPSHOT]", nargs=-1, required=True, type=SnapshotName())
@parameters.no_wait
@click.pass_obj
def revert(session: Session, *, texts: tuple[str, ...], no_wait: bool) -> None:
    """Give a volume the content of a snapshot.

    What it displaces is kept as a snapshot, whose name is printed.
    """
    volume, snapshot = _find(session, _only_pair(texts))
    reverted = session.act(volume, "reverttosnapshot", snapshotId=snapshot["id"])
    session.one(session.finish(reverted, no_wait=no_wait), lambda done: _tell_reverted(session, done, no_wait=no_wait))


@group.command("diff")
@click.argument("texts", metavar=f"{_PAIR} [SNAPSHOT] [SNAPSHOT]", nargs=-1, required=True, type=SnapshotName())
@click.pass_obj
def diff(session: Session, *, texts: tuple[str, ...]) -> None:
    """List the files that differ from a snapshot to a later one, or to now: + added, ~ changed, - removed."""
    first, rest = _split_pair(texts)
    if len(rest) > 1:
        raise click.UsageError(f"too many snapshots: {' '.join(rest)}")
    volume, snapshot = _find(session, first)
    query = {"to": _later(session, volume, rest[0])["id"]} if rest else {}
    path = resource_path("snapshots", snapshot["id"], "difference")
    with session.connection.stream(path, timeout_s=READ_TIMEOUT_S, **query) as answer:
        changes = _changes(answer.lines())
        if session.is_json:
            show.as_json(list(changes))
            return
        for change in changes:
            click.echo(f"{_MARKS[change['change']]} {show.plain(change['path'])}")


@group.command("get")
@click.argument("texts", metavar=f"{_PAIR} [SNAPSHOT] PATH [TO]", nargs=-1, required=True, type=SnapshotName())
@click.pass_obj
def get(session: Session, *, texts: tuple[str, ...]) -> None:
    """Copy one file or folder out of a snapshot.

    TO is a directory that exists, or the copy's own name; without it the copy goes here. "-" writes a tar archive to
    standard output.
    """
    from voldriverd.cli import unpack  # noqa: PLC0415 - tarfile and its kin take 20 ms, and only this needs them

    pair, rest = _split_pair(texts)
    if not 1 <= len(rest) <= 2:
        raise click.UsageError("give a PATH in the snapshot, and perhaps where to copy it TO")
    volume, snapshot = _find(session, pair)
    wanted, target = rest[0], rest[1] if len(rest) > 1 else "."
    path = resource_path("snapshots", snapshot["id"], "archive")
    with session.connection.stream(path, timeout_s=READ_TIMEOUT_S, path=wanted) as archive:
        if target == "-":
            unpack.copy(archive, sys.stdout.buffer)
            return
        names = [name for name in wanted.split("/") if name not in {"", "."}]
        default = f"{volume['name']}@{snapshot_name(snapshot)}"
        for text in unpack.unpack(archive, target, name=names[-1] if names else default):
            show.note(text)


def _split_pair(texts: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Return VOLUME@SNAPSHOT and what follows it. Raises click's usage error."""
    if "@" in texts[0]:
        return texts[0], texts[1:]
    if len(texts) < 2:
        raise click.UsageError("a snapshot is missing: give VOLUME SNAPSHOT or VOLUME@SNAPSHOT")
    return f"{texts[0]}@{texts[1]}", texts[2:]


def _only_pair(texts: tuple[str, ...]) -> str:
    pair, rest = _split_pair(texts)
    if rest:
        raise click.UsageError(f"too many arguments: {' '.join(rest)}")
    return pair


def _as_pairs(texts: tuple[str, ...]) -> list[str]:
    if "@" in texts[0]:
        alone = next((text for text in texts if "@" not in text), None)
        if alone is not None:
            raise click.UsageError(f"{alone} is not written as VOLUME@SNAPSHOT")
        return list(texts)
    _split_pair(texts)
    return [f"{texts[0]}@{text}" for text in texts[1:]]


def _find(session: Session, pair: str) -> tuple[Resource, Resource]:
    volume_text, _, snapshot_text = pair.partition("@")
    volume = session.volume(volume_text)
    return volume, session.snapshot(volume, snapshot_text)


def _later(session: Session, volume: Resource, text: str) -> Resource:
    """Return the second snapshot of a comparison, which may be written with its volume."""
    volume_text, at, snapshot_text = text.partition("@")
    if at and volume_text not in {volume["name"], volume["id"]}:
        raise Invalid(f"cannot compare snapshots of volumes {volume['name']} and {volume_text}")
    return session.snapshot(volume, snapshot_text if at else text)


def _changes(lines: Iterator[bytes]) -> Iterator[Resource]:
    for line in lines:
        try:
            yield json.loads(line, object_hook=Resource)
        except ValueError as err:
            raise Unusable("cannot understand the daemon's answer: it is not one JSON object a line") from err


def _tell_reverted(session: Session, volume: Resource, *, no_wait: bool) -> None:
    kept_id = volume["displacedSnapshotId"]
    kept = kept_id if no_wait else snapshot_name(session.connection.get(resource_path("snapshots", kept_id)))
    click.echo(kept)
    show.note(f"undo with: {shlex.join(['voldriver', 'snapshot', 'revert', volume['name'], kept])}")


def _row(snapshot: Resource, names: dict[str, str]) -> list[str | None]:
    return [
        names.get(snapshot["volumeId"], snapshot["volumeId"]),
        snapshot["name"],
        snapshot["id"],
        show.size(snapshot["sizeBytes"]),
        show.time(snapshot["created"]),
        show.time(snapshot["expires"]),
        snapshot["description"],
    ]
