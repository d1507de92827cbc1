"""`voldriver import`: volumes made of directories, archives, Docker's local volumes and those of buttervolume."""

import os
import shlex
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final, TypeVar

import click
from click.shell_completion import CompletionItem

from voldriverd.cli import dockerd, parameters, progress, show
from voldriverd.cli.connection import Resource
from voldriverd.cli.session import Session
from voldriverd.errors import Error, Exists, InUse, Invalid, NotFound, Unsupported, Unusable

SUFFIX: Final = "-imported"
_PIECE_BYTES: Final = 256 << 10
_WHERE: Final = "volumes/import"
_TIME: Final = "%Y-%m-%dT%H:%M:%S.%f"
"""How buttervolume names its snapshots if nothing else is configured (DTFORMAT), in the time of the host."""
_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Wish:
    """What new volumes should be like."""

    driver: str | None
    options: dict[str, str]
    labels: dict[str, str]
    description: str | None
    no_wait: bool

    def fields(self, name: str) -> dict[str, Any]:
        """Return the body of one."""
        found: dict[str, Any] = {"name": name, "driverOpts": self.options, "labels": self.labels}
        found |= {} if self.driver is None else {"driver": self.driver}
        return found | ({} if self.description is None else {"description": self.description})

    def query(self, name: str) -> dict[str, str]:
        """Return the same as it stands in a URL."""
        found = {"name": name, **{f"driverOpts.{key}": value for key, value in self.options.items()}}
        found |= {f"labels.{key}": value for key, value in self.labels.items()}
        found |= {} if self.driver is None else {"driver": self.driver}
        return found | ({} if self.description is None else {"description": self.description})


class DockerVolume(click.ParamType):  # type: ignore[type-arg] # generic from click 8.3 on
    """The name of one of Docker's local volumes."""

    name = "volume"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the names that begin so; a completion never fails aloud."""
        del param
        try:
            found = dockerd.Dockerd(ctx.params.get("socket") or dockerd.usual_socket()).names()
        except (Error, OSError):
            return []
        return [CompletionItem(name) for name in found if name.startswith(incomplete)]


def _wanted(function: _F) -> _F:
    """Add the options that say what a new volume should be like."""
    for option in (
        parameters.no_wait,
        parameters.description,
        click.option(
            *("--label", "labels"),
            metavar="KEY=VALUE",
            multiple=True,
            callback=parameters.pairs,
            help="Give it a label; may be repeated.",
        ),
        click.option(
            *("-o", "--opt", "options"),
            metavar="KEY=VALUE",
            multiple=True,
            callback=parameters.pairs,
            help="As in docker's -o: size=10G, pool=fast …",
        ),
        click.option("-d", "--driver", metavar="DRIVER", help="btrfs, loop or directory; else the daemon's default."),
    ):
        function = option(function)
    return function


@click.group("import")
def group() -> None:
    """Make new volumes of what is there already, which stays as it is."""


@group.command("directory")
@click.argument("path", type=click.Path())
@click.argument("name")
@_wanted
@click.pass_obj
def directory(session: Session, /, *, path: str, name: str, **wish: Any) -> None:
    """Make a volume of a directory of this host, as root; it is compared with it, every byte."""
    wanted = Wish(**wish)
    fields = {**wanted.fields(name), "path": str(Path(path).absolute())}
    session.one(_import(session, fields, wanted), _tell)


@group.command("tar")
@click.argument("archive", metavar="FILE|-", type=click.Path())
@click.argument("name")
@_wanted
@click.pass_obj
def tar(session: Session, /, *, archive: str, name: str, **wish: Any) -> None:
    """Make a volume of a tar archive, plain or compressed by gzip, xz or zstd; "-" is standard input."""
    with _read(archive) as (pieces, size_bytes):
        query = Wish(**wish).query(name)
        made = session.connection.upload(
            _WHERE, pieces, content_type="application/x-tar", size_bytes=size_bytes, query=query
        )
    session.one(made, _tell)


@group.command("docker")
@click.argument("names", metavar="[VOLUME...]", nargs=-1, type=DockerVolume())
@click.option("--all", "is_all", is_flag=True, help="All that are directories of this host.")
@click.option("--as", "new_name", metavar="NEW", help="What to call it, if it is one.")
@click.option("--suffix", default=SUFFIX, show_default=True, help="What is put behind the old name.")
@click.option("--docker", "socket", metavar="PATH", type=click.Path(path_type=Path), help="The socket of dockerd.")
@_wanted
@click.pass_obj
def docker(
    session: Session,
    /,
    *,
    names: tuple[str, ...],
    is_all: bool,
    new_name: str | None,
    suffix: str,
    socket: Path | None,
    **wish: Any,
) -> None:
    """Make volumes of Docker's `local` ones, with their labels, as root, while no container uses them.

    A new one has a new name, since docker has the old one until it is removed.
    """
    if bool(names) == is_all:
        raise click.UsageError("give the names of volumes, or --all")
    if new_name is not None and len(names) != 1:
        raise click.UsageError("--as goes with one volume")
    host = dockerd.Dockerd(socket or dockerd.usual_socket())
    wanted = Wish(**wish)
    found = _directories(host) if is_all else list(names)

    def work(name: str) -> Resource:
        volume = host.volume(name)
        host.ensure_unused(name)
        new = new_name or f"{name}{suffix}"
        if new == name:
            what = f"cannot import Docker's volume {name} as {name}"
            raise Exists(f"{what}: docker has that name until it is removed; give another one")
        fields = wanted.fields(new)
        made = _import(session, {**fields, "path": volume.path, "labels": {**volume.labels, **wanted.labels}}, wanted)
        try:
            host.ensure_unused(name)
        except InUse as err:  # what was started meanwhile may have been cut in the middle of a write
            again = f"voldriver volume rm {shlex.quote(new)}, and import it again"
            raise InUse(
                f"{err}; volume {new} is made, and what was written meanwhile may be half in it: {again}"
            ) from err
        return made

    def tell(volume: Resource) -> None:
        _tell(volume)
        if volume["transitioning"] == "yes":
            show.note(f"it is being imported: keep docker's volume until {volume['name']} is inactive")
            return
        old = volume["name"].removesuffix(suffix) if new_name is None else names[0]
        show.note(f"to have it under the old name: {_swap(old, volume['name'])}")

    session.each(found, work, tell)


@group.command("buttervolume")
@click.argument("root", type=click.Path(path_type=Path))
@click.argument("names", metavar="[VOLUME...]", nargs=-1)
@click.option("--suffix", default=SUFFIX, show_default=True, help="What is put behind the old name.")
@_wanted
@click.pass_obj
def buttervolume(session: Session, /, *, root: Path, names: tuple[str, ...], suffix: str, **wish: Any) -> None:
    """Make volumes of those of buttervolume, and of their snapshots, by snapshots of btrfs, as root; all or some.

    ROOT is where its directories volumes and snapshots are, as in /var/lib/buttervolume. A btrfs pool on the same file
    system is needed. A snapshot VOLUME@DATE becomes one named DATE, each colon in it a dot.
    """
    wanted = Wish(**wish)
    if wanted.driver is None and not {"driver", "pool"} & wanted.options.keys():
        wanted.options["driver"] = "btrfs"
    place = root.absolute()
    volumes, snapshots = _listed(place / "volumes"), _listed(place / "snapshots", may_miss=True)

    def work(name: str) -> Resource:
        if name not in volumes:
            raise NotFound(f"there is no volume {name!r} in {place / 'volumes'}")
        dates = [snapshot.removeprefix(f"{name}@") for snapshot in snapshots if snapshot.startswith(f"{name}@")]
        fields = {
            **wanted.fields(f"{name}{suffix}"),
            "path": str(place / "volumes" / name),
            "snapshotPaths": {_snapshot_name(date): str(place / "snapshots" / f"{name}@{date}") for date in dates},
            "snapshotTimes": {_snapshot_name(date): _taken_at(date).isoformat() for date in dates},
        }
        return _import(session, fields, wanted)

    session.each(names or volumes, work, _tell)


def _import(session: Session, fields: dict[str, Any], wish: Wish) -> Resource:
    made = session.connection.post(_WHERE, fields)
    with progress.going_on(f"voldriver volume rm {shlex.quote(fields['name'])}"), progress.bar() as follow:
        return session.finish(made, no_wait=wish.no_wait, follow=follow)


@contextmanager
def _read(archive: str) -> Iterator[tuple[Iterator[bytes], int | None]]:
    """Give the pieces of a file or of standard input, and how many bytes that is if it is known."""
    if archive == "-":
        if sys.stdin.isatty():
            raise Invalid("cannot read an archive from a terminal: give a file, or send something to standard input")
        yield _pieces(sys.stdin.buffer), None
        return
    try:
        file = open(archive, "rb")  # noqa: SIM115 - it is closed below; here only what fails to open is told
    except OSError as err:
        raise Unusable(f"cannot read {archive}: {err.strerror}") from err
    with file:
        status = os.fstat(file.fileno())
        yield _pieces(file), status.st_size if stat.S_ISREG(status.st_mode) else None


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    try:
        while piece := file.read(_PIECE_BYTES):
            yield piece
    except OSError as err:
        raise Unusable(f"cannot read the archive: {err.strerror or err}") from err


def _directories(host: dockerd.Dockerd) -> list[str]:
    """Return Docker's volumes that can be imported, and say why others are left out."""
    found = []
    for name in host.names():
        try:
            host.volume(name)
        except Unsupported as err:
            show.note(f"voldriver: left out: {err}")
            continue
        found.append(name)
    return found


def _listed(place: Path, *, may_miss: bool = False) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(place) if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError as err:
        if may_miss:
            return []
        raise Invalid(f"cannot import from {place.parent}: there is no directory {place.name} in it") from err
    except OSError as err:
        raise Unusable(f"cannot read {place}: {err.strerror}") from err


def _snapshot_name(date: str) -> str:
    """Return what a snapshot of buttervolume is called here; what was kept of one that was sent bears its host, too."""
    return date.replace(":", ".").replace("@", "-")


def _taken_at(date: str) -> datetime:
    """Return when a snapshot was made; now if its name does not say."""
    try:
        return datetime.strptime(date.partition("@")[0], _TIME).astimezone(UTC)
    except ValueError:
        return datetime.now(UTC)


def _swap(old: str, new: str) -> str:
    remove = shlex.join(["docker", "volume", "rm", old])
    return f"{remove} && {shlex.join(['docker', 'volume', 'create', '-d', 'voldriver', '-o', f'from={new}', old])}"


def _tell(volume: Resource) -> None:
    if volume["transitioning"] != "yes" and volume["transitioningMessage"]:
        show.note(volume["transitioningMessage"])
    click.echo(volume["name"])
