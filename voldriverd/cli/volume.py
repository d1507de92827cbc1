"""`voldriver volume`: make, look at, change and remove volumes."""

import shlex
from typing import Any

import click

from voldriverd.cli import parameters, show
from voldriverd.cli.connection import Resource, resource_path
from voldriverd.cli.parameters import SnapshotName, VolumeName
from voldriverd.cli.session import Session
from voldriverd.errors import InUse, NotFound

_DRIVER_OPTIONS = frozenset({"driver", "pool", "from"})
"""Options that say by themselves which driver is meant."""


@click.group("volume")
def group() -> None:
    """Volumes."""


@group.command("create")
@click.argument("name")
@click.option("-d", "--driver", metavar="DRIVER", help="btrfs, loop or directory; else the daemon's default.")
@click.option(
    "-o", "--opt", "options", metavar="KEY=VALUE", multiple=True, callback=parameters.pairs, help="As in docker's -o."
)
@parameters.description
@parameters.no_wait
@click.pass_obj
def create(
    session: Session, *, name: str, driver: str | None, options: dict[str, str], description: str | None, no_wait: bool
) -> None:
    """Make a volume, empty or (-o from=) a clone."""
    if driver is None and not _DRIVER_OPTIONS & options.keys():
        driver = session.connection.get(resource_path("hosts", "1h1"))["defaultDriver"]
    fields: dict[str, Any] = {"name": name, "driverOpts": options, "description": description}
    made = session.connection.post("volumes", fields if driver is None else {**fields, "driver": driver})
    session.one(session.finish(made, no_wait=no_wait), _tell_name)


@group.command("ls")
@parameters.quiet
@click.pass_obj
def list_(session: Session, *, quiet: bool) -> None:
    """List volumes."""
    volumes = session.connection.list("volumes")
    if session.is_json:
        show.as_json(volumes)
    elif quiet:
        for volume in volumes:
            click.echo(volume["name"])
    else:
        pools = {pool["id"]: pool["name"] for pool in session.connection.list("storagepools")}
        head = ("NAME", "DRIVER", "POOL", "STATE", "SIZE", "USED", "SNAPSHOTS", "CREATED")
        rows = [_row(volume, pools) for volume in volumes]
        show.table(head, rows, right=frozenset({"SIZE", "USED", "SNAPSHOTS"}))


@group.command("inspect")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=VolumeName())
@click.pass_obj
def inspect(session: Session, *, names: tuple[str, ...]) -> None:
    """Show all that is known of volumes."""
    told: list[str] = []

    def tell(volume: Resource) -> None:
        if told:
            click.echo()
        told.append(volume["name"])
        _tell_all(session, volume)

    session.each(names, session.volume, tell)


@group.command("rm")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=VolumeName())
@click.option("--purge", is_flag=True, help="Destroy them, instead of keeping them in the trash.")
@parameters.yes
@click.pass_obj
def remove(session: Session, *, names: tuple[str, ...], purge: bool, yes: bool) -> None:
    """Put volumes in the trash."""

    def work(name: str) -> Resource:
        volume = session.volume(name)
        if purge:
            _confirm(volume, yes=yes)
        removed = session.connection.delete(resource_path("volumes", volume["id"]))
        return session.act(removed, "purge") if purge and removed["state"] == "removed" else removed

    def tell(volume: Resource) -> None:
        click.echo(volume["name"])
        if volume["state"] == "removed":
            until = show.time(volume["removeTime"])
            show.note(f"in the trash until {until}; bring it back with: voldriver volume restore {volume['name']}")

    session.each(names, work, tell)


@group.command("restore")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=VolumeName(is_trashed=True))
@click.option("--as", "new_name", metavar="NEW", help="Another name, if the old one is taken.")
@click.pass_obj
def restore(session: Session, *, names: tuple[str, ...], new_name: str | None) -> None:
    """Bring volumes back from the trash with their snapshots; of several of one name, the one removed last."""
    if new_name is not None and len(names) > 1:
        raise click.UsageError("--as goes with one volume")

    def work(name: str) -> Resource:
        return session.act(session.trashed(name, is_newest=True), "restore", name=new_name)

    session.each(names, work, _tell_restored)


@group.command("purge")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=VolumeName(is_trashed=True))
@parameters.yes
@click.pass_obj
def purge(session: Session, *, names: tuple[str, ...], yes: bool) -> None:
    """Destroy volumes in the trash, with their snapshots."""

    def work(name: str) -> Resource:
        volume = session.trashed(name, is_newest=False)
        _confirm(volume, yes=yes)
        return session.act(volume, "purge")

    session.each(names, work, _tell_name)


@group.command("resize")
@click.argument("name", type=VolumeName())
@click.argument("size")
@parameters.no_wait
@click.pass_obj
def resize(session: Session, *, name: str, size: str, no_wait: bool) -> None:
    """Set the size of a volume, as in 20G."""
    resized = session.finish(session.act(session.volume(name), "resize", size=size), no_wait=no_wait)
    session.one(resized, _tell_resized)


@group.command("clone")
@click.argument("source", metavar="SOURCE[@SNAPSHOT]", type=SnapshotName())
@click.argument("name")
@parameters.description
@parameters.no_wait
@click.pass_obj
def clone(session: Session, *, source: str, name: str, description: str | None, no_wait: bool) -> None:
    """Make a volume with the content of another one, as it is now or was at a snapshot."""
    origin, at, snapshot_text = source.partition("@")
    volume = session.volume(origin)
    fields = {"name": name, "description": description}
    if at:
        fields["snapshotId"] = session.snapshot(volume, snapshot_text)["id"]
    session.one(session.finish(session.act(volume, "clone", **fields), no_wait=no_wait), _tell_name)


@group.command("set")
@click.argument("name", type=VolumeName())
@parameters.description
@click.option("--protected/--no-protected", default=None, help="Refuse its removal, or allow it again.")
@click.option(
    "--label",
    "labels",
    metavar="KEY=VALUE",
    multiple=True,
    callback=parameters.pairs,
    help="Set a label; without a value: remove it.",
)
@click.pass_obj
def set_(
    session: Session, *, name: str, description: str | None, protected: bool | None, labels: dict[str, str]
) -> None:
    """Change the description, the protection or labels of a volume."""
    if description is None and protected is None and not labels:
        raise click.UsageError("nothing to set: give --description, --protected, --no-protected or --label")
    volume = session.volume(name)
    fields: dict[str, Any] = {"description": description, "protected": protected}
    fields = {key: value for key, value in fields.items() if value is not None}
    if labels:
        fields["labelChanges"] = labels
    session.one(session.connection.put(resource_path("volumes", volume["id"]), fields), lambda _: None)


@group.command("mount")
@click.argument("name", type=VolumeName())
@click.pass_obj
def mount(session: Session, *, name: str) -> None:
    """Mount a volume on this host until `unmount` or a reboot, and print where."""
    volume = session.volume(name)
    is_held = "deactivate" in volume["actions"]
    session.one(volume if is_held else session.act(volume, "activate"), _tell_path)


@group.command("unmount")
@click.argument("name", type=VolumeName())
@click.pass_obj
def unmount(session: Session, *, name: str) -> None:
    """Undo `mount`; what containers have mounted stays."""
    session.one(session.act(session.volume(name), "deactivate"), lambda _: None)


@group.command("path")
@click.argument("name", type=VolumeName())
@click.pass_obj
def path(session: Session, *, name: str) -> None:
    """Print where a volume is mounted."""
    volume = session.volume(name)
    if volume["mountpoint"] is None:
        raise NotFound(f"volume {volume['name']} is not mounted; mount it with: voldriver volume mount {name}")
    session.one(volume, _tell_path)


def _confirm(volume: Resource, *, yes: bool) -> None:
    """Ask on a terminal. Raises InUse: the answer was no."""
    if yes or not show.is_terminal():
        return
    count = volume["snapshotCount"]
    snapshots = f" and its {count} snapshot{'s' if count > 1 else ''}" if count else ""
    if not click.confirm(f"Destroy volume {volume['name']} ({volume['id']}){snapshots} for good?", err=True):
        raise InUse(f"volume {volume['name']} is kept")


def _tell_name(volume: Resource) -> None:
    click.echo(volume["name"])


def _tell_resized(volume: Resource) -> None:
    name, size = volume["name"], show.size(volume["sizeBytes"])
    show.note(f"{name} will have {size}" if volume["transitioning"] == "yes" else f"{name} has {size} now")


def _tell_path(volume: Resource) -> None:
    click.echo(volume["mountpoint"])


def _tell_restored(volume: Resource) -> None:
    click.echo(volume["name"])
    options = [word for key, value in sorted(volume["driverOpts"].items()) for word in ("-o", f"{key}={value}")]
    line = shlex.join(["docker", "volume", "create", "-d", "voldriver", *options, volume["name"]])
    show.note(f"undo with: voldriver volume rm {volume['name']}")
    show.note(f"dockerd knows its options again after: {line}")


def _row(volume: Resource, pools: dict[str, str]) -> list[str]:
    return [
        volume["name"],
        volume["driver"],
        pools.get(volume["storagePoolId"], volume["storagePoolId"]),
        _state(volume),
        show.size(volume["sizeBytes"]),
        show.size(volume["usedBytes"]),
        str(volume["snapshotCount"]),
        show.time(volume["created"]),
    ]


def _state(volume: Resource) -> str:
    if volume["health"] != "available":
        return str(volume["health"])
    return f"{volume['state']} (faulty)" if volume["transitioning"] == "error" else str(volume["state"])


def _tell_all(session: Session, volume: Resource) -> None:
    connection = session.connection
    pool = connection.get(resource_path("storagepools", volume["storagePoolId"]))
    holders = connection.list("mounts", volumeId=volume["id"])
    snapshots = connection.list("snapshots", volumeId=volume["id"])
    used = None if volume["usedBytes"] is None else show.size(volume["usedBytes"])
    show.facts(
        [
            ("Name", volume["name"]),
            ("Id", volume["id"]),
            ("Uuid", volume["uuid"]),
            ("State", _state(volume)),
            ("Message", volume["transitioningMessage"] or pool["transitioningMessage"]),
            ("Description", volume["description"]),
            ("Driver", volume["driver"]),
            ("Pool", pool["name"]),
            ("Size", "unlimited" if volume["sizeBytes"] is None else show.size(volume["sizeBytes"])),
            ("Used", used),
            ("Options", " ".join(f"{key}={value}" for key, value in sorted(volume["driverOpts"].items())) or None),
            ("Labels", " ".join(f"{key}={value}" for key, value in sorted(volume["labels"].items())) or None),
            ("Protected", "yes" if volume["protected"] else "no"),
            ("Created", show.time(volume["created"])),
            ("Removed", volume["removed"] and show.time(volume["removed"])),
            ("Destroyed", volume["removeTime"] and f"at {show.time(volume['removeTime'])}"),
            ("Mounted at", volume["mountpoint"]),
            ("Held by", ", ".join(_holder(mount) for mount in holders) or None),
            ("Snapshots", ", ".join(str(each["name"] or each["id"]) for each in snapshots) or None),
        ]
    )


def _holder(mount: Resource) -> str:
    name = "the host" if mount["holder"] == "host" else f"container mount {mount['holder'][:12]}"
    return name if mount["count"] == 1 else f"{name} ({mount['count']} times)"
