"""`voldriver target`: the places where backups go."""

from pathlib import Path
from typing import Any

import click

from voldriverd import names
from voldriverd.cli import parameters, show
from voldriverd.cli.connection import Resource, resource_path
from voldriverd.cli.parameters import TargetName
from voldriverd.cli.session import Session
from voldriverd.errors import Invalid

_File = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.group("target")
def group() -> None:
    """Targets of backups."""


@group.command("ls")
@parameters.quiet
@click.pass_obj
def list_(session: Session, *, quiet: bool) -> None:
    """List targets with their health; * marks the default one."""
    targets = session.connection.list("backuptargets")
    if session.is_json:
        show.as_json(targets)
        return
    if quiet:
        for target in targets:
            click.echo(target["name"])
        return
    show.table(("NAME", "ID", "HEALTH", "URL", "DESCRIPTION"), [_row(target) for target in targets])
    for target in targets:
        if target["health"] != "available":
            show.note(f"target {target['name']} is unavailable: {target['transitioningMessage']}")


@group.command("create")
@click.argument("name")
@click.argument("url")
@click.option("--endpoint", metavar="URL", help="s3: of a service that is not Amazon's.")
@click.option("--region", metavar="REGION", help="s3: of the bucket.")
@click.option("--access-key-file", metavar="FILE", type=_File, help="s3: a file with the public key.")
@click.option("--secret-key-file", metavar="FILE", type=_File, help="s3: a file with the secret key.")
@click.option("--mount-options", metavar="OPTIONS", help="nfs: as mount(8) takes them after -o.")
@click.option("--passphrase-file", metavar="FILE", type=_File, help="Encrypt what is backed up; keep the file safe.")
@parameters.description
@click.pass_obj
def create(  # noqa: PLR0913 - click gives each option as an argument
    session: Session,
    *,
    name: str,
    url: str,
    endpoint: str | None,
    region: str | None,
    access_key_file: Path | None,
    secret_key_file: Path | None,
    mount_options: str | None,
    passphrase_file: Path | None,
    description: str | None,
) -> None:
    """Make a target of a place, which is looked at before it is taken.

    URL is s3://bucket/prefix, file:///directory or nfs://server/share.
    """
    given = {
        "name": name,
        "description": description,
        **_place(url, mount_options),
        "endpoint": endpoint,
        "region": region,
        "accessKey": _content(access_key_file),
        "secretKey": _content(secret_key_file),
        "passphrase": _content(passphrase_file),
    }
    fields: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    session.one(session.connection.post("backuptargets", fields), lambda target: click.echo(target["name"]))


@group.command("rm")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=TargetName())
@click.pass_obj
def remove(session: Session, *, names: tuple[str, ...]) -> None:
    """Forget targets; what lies there stays."""

    def work(name: str) -> Resource:
        return session.connection.delete(resource_path("backuptargets", session.target(name)["id"]))

    session.each(names, work, lambda target: click.echo(target["name"]))


def _content(path: Path | None) -> str | None:
    """Return the first line of a file. Raises Invalid."""
    if path is None:
        return None
    try:
        line = path.read_text().partition("\n")[0]
    except (OSError, UnicodeDecodeError) as err:
        raise Invalid(f"cannot read {path}: {err}") from err
    if not line:
        raise Invalid(f"cannot use {path}: its first line is empty")
    return line


def _row(target: Resource) -> list[str | None]:
    mark = "*" if target["isDefault"] else ""
    return [f"{target['name']}{mark}", target["id"], target["health"], target["url"], target["description"]]


def _place(url: str, mount_options: str | None) -> dict[str, object]:
    if mount_options is None:
        return {"url": url}
    share = names.nfs_share(url)
    if share is None:
        raise Invalid(f"cannot use --mount-options: they are for nfs targets, and this one is {url}")
    return {"nfsConfig": {"server": share[0], "share": share[1], "mountOptions": mount_options}}
