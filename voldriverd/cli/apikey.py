"""`voldriver apikey`: who may use the API over TCP."""

import click

from voldriverd.cli import parameters, show
from voldriverd.cli.connection import Resource, resource_path
from voldriverd.cli.parameters import KeyName
from voldriverd.cli.session import Session
from voldriverd.errors import NotFound
from voldriverd.model import Role

_COLLECTION = "apikeys"
_HEAD = ("NAME", "ID", "ACCESS KEY", "ROLE", "CREATED")


@click.group("apikey")
def group() -> None:
    """Keys to the API over TCP; over the socket nobody needs one."""


@group.command("create")
@click.option("--name", metavar="NAME", required=True, help="Whose it is, as the audit log will say.")
@click.option("--role", type=click.Choice([role.value for role in Role]), default=Role.FULL.value, show_default=True)
@parameters.description
@click.pass_obj
def create(session: Session, *, name: str, role: str, description: str | None) -> None:
    """Make a key, and print it as the variables that voldriver reads; its secret is shown this once."""
    given = {"name": name, "role": role, "description": description}
    session.one(session.connection.post(_COLLECTION, given), _tell_made)


@group.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Print ids only: a key needs no name.")
@click.pass_obj
def list_(session: Session, *, quiet: bool) -> None:
    """List the keys that are not removed, without their secrets."""
    keys = session.connection.list(_COLLECTION)
    if session.is_json:
        show.as_json(keys)
    elif quiet:
        for key in keys:
            click.echo(key["id"])
    else:
        rows = [(key["name"], key["id"], key["publicValue"], key["role"], show.time(key["created"])) for key in keys]
        show.table(_HEAD, rows)


@group.command("rm")
@click.argument("keys", metavar="ID...", nargs=-1, required=True, type=KeyName())
@click.pass_obj
def remove(session: Session, *, keys: tuple[str, ...]) -> None:
    """End keys at once, each named by its id, its name or its access key."""

    def work(text: str) -> Resource:
        return session.connection.delete(resource_path(_COLLECTION, _find(session, text)["id"]))

    session.each(keys, work, lambda key: click.echo(key["id"]))


def _find(session: Session, text: str) -> Resource:
    """Return the live key of a name, id or access key; names win. Raises NotFound."""
    keys = session.connection.list(_COLLECTION)
    for field in ("name", "id", "publicValue"):
        for key in keys:
            if key[field] == text:
                return key
    raise NotFound(f"there is no API key {text!r}")


def _tell_made(key: Resource) -> None:
    click.echo(f"VOLDRIVER_ACCESS_KEY={key['publicValue']}")
    click.echo(f"VOLDRIVER_SECRET_KEY={key['secretValue']}")
    show.note("the secret is not shown again; the daemon keeps only a hash of it")
