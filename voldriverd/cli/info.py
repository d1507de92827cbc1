"""`voldriver info`: the daemon at a glance."""

import click

import voldriverd
from voldriverd.cli import pool, show
from voldriverd.cli.connection import resource_path
from voldriverd.cli.session import Session


@click.command("info")
@click.pass_obj
def group(session: Session) -> None:
    """Show versions, counts and pools."""
    host = session.connection.get(resource_path("hosts", "1h1"))
    if session.is_json:
        show.as_json(host)
        return
    show.facts(
        [
            ("Host", host["hostname"]),
            ("Daemon", host["version"]),
            ("Client", voldriverd.__version__),
            ("Root", host["root"]),
            ("Default driver", host["defaultDriver"]),
            ("Volumes", f"{host['volumeCount']} ({host['mountedCount']} mounted)"),
            ("Snapshots", str(host["snapshotCount"])),
            ("In the trash", str(host["trashCount"])),
            ("Longest stall", f"{host['stallMs']} ms in the last minute, {host['longestStallMs']} ms since the start"),
        ]
    )
    click.echo()
    pool.tell(session.connection.list("storagepools"))
