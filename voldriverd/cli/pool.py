"""`voldriver pool`: where volumes lie, and how full that is."""

import click

from voldriverd.cli import parameters, show
from voldriverd.cli.connection import Resource
from voldriverd.cli.parameters import PoolName
from voldriverd.cli.session import Session

HEAD = ("NAME", "DRIVER", "HEALTH", "CAPACITY", "FREE", "VOLUMES", "PATH")
RIGHT = frozenset({"CAPACITY", "FREE", "VOLUMES"})


@click.group("pool")
def group() -> None:
    """Pools."""


@group.command("ls")
@parameters.quiet
@click.pass_obj
def list_(session: Session, *, quiet: bool) -> None:
    """List pools with their space and health."""
    pools = session.connection.list("storagepools")
    if session.is_json:
        show.as_json(pools)
    elif quiet:
        for pool in pools:
            click.echo(pool["name"])
    else:
        tell(pools)


@group.command("grow")
@click.argument("name", type=PoolName())
@click.argument("size")
@click.pass_obj
def grow(session: Session, *, name: str, size: str) -> None:
    """Grow the file system of a pool, where it is the daemon's own image, to a size such as 40G."""
    grown = session.act(session.pool(name), "grow", size=size)
    session.one(grown, lambda pool: show.note(f"{pool['name']} has {show.size(pool['capacityBytes'])} now"))


def tell(pools: list[Resource]) -> None:
    """Print the table of pools, and below it why one is not available and what lies in one unknown."""
    show.table(HEAD, [_row(pool) for pool in pools], right=RIGHT)
    for pool in pools:
        if pool["health"] != "available":
            show.note(f"pool {pool['name']} is {pool['health']}: {pool['transitioningMessage']}")
        if pool["orphans"]:
            keys = ", ".join(pool["orphans"])
            show.note(f"pool {pool['name']} holds trees that the daemon does not know and leaves alone: {keys}")


def _row(pool: Resource) -> list[str]:
    return [
        pool["name"],
        pool["driverName"],
        pool["health"],
        show.size(pool["capacityBytes"]),
        show.size(pool["freeBytes"]),
        str(pool["volumeCount"]),
        pool["path"],
    ]
