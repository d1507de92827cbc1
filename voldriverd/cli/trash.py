"""`voldriver trash`: removed volumes that can still be brought back."""

import click

from voldriverd.cli import show
from voldriverd.cli.session import Session


@click.group("trash")
def group() -> None:
    """Look into the trash."""


@group.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Print ids only: names may come twice.")
@click.pass_obj
def list_(session: Session, *, quiet: bool) -> None:
    """List removed volumes, and when each is destroyed."""
    volumes = session.connection.list("volumes", removed_notnull="1")
    if session.is_json:
        show.as_json(volumes)
        return
    if quiet:
        for volume in volumes:
            click.echo(volume["id"])
        return
    head = ("NAME", "ID", "DRIVER", "SIZE", "USED", "SNAPSHOTS", "REMOVED", "DESTROYED AT")
    rows = [
        (
            volume["name"],
            volume["id"],
            volume["driver"],
            show.size(volume["sizeBytes"]),
            show.size(volume["usedBytes"]),
            str(volume["snapshotCount"]),
            show.time(volume["removed"]),
            show.time(volume["removeTime"]),
        )
        for volume in volumes
    ]
    show.table(head, rows, right=frozenset({"SIZE", "USED", "SNAPSHOTS"}))
