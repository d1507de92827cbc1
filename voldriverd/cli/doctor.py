"""`voldriver doctor`: what is wrong on this host, with or without a daemon, what it means and what to do.

Exit status: 0 nothing is wrong (notes are not), 3 warnings, 1 something is bad or it could not work, 2 wrong usage.
"""

import os
from contextlib import ExitStack, closing
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import click

from voldriverd import config as configuration
from voldriverd import doctor
from voldriverd.cli import paths, show
from voldriverd.cli.connection import DEFAULT_SOCKET, Connection, Place, Resource, resource_path
from voldriverd.cli.session import Session
from voldriverd.doctor import mend, scope
from voldriverd.doctor.finding import Finding, Level
from voldriverd.doctor.known import Known, KnownPool, KnownTarget, KnownVolume, backups_of
from voldriverd.errors import Error, Unusable
from voldriverd.model import BackupState

TIMEOUT_S: Final = 10.0
"""A daemon that runs answers in milliseconds; one that systemd starts for us, in seconds."""
STATUS: Final = {Level.OK: 0, Level.NOTE: 0, Level.WARNING: 3, Level.BAD: 1}
_COUNTED: Final = {Level.BAD: "bad", Level.WARNING: "warnings", Level.NOTE: "notes", Level.OK: "ok"}
_STYLES: Final = {Level.OK: "green", Level.WARNING: "yellow", Level.BAD: "red"}


@click.command("doctor")
@click.argument("checks", metavar="[CHECK]...", nargs=-1, type=click.Choice([check.name for check in doctor.CHECKS]))
@click.option("--fix", is_flag=True, help="Do what is safe about what is found; never touches a volume's data.")
@click.option(
    "--config",
    "file",
    metavar="FILE",
    callback=paths.absolute,
    help=f"The daemon's, instead of {configuration.DEFAULT_FILE}.",
)
@click.option("--root", metavar="DIR", callback=paths.absolute, help="As voldriverd has it.")
@click.option("--run-dir", metavar="DIR", callback=paths.absolute, help="As voldriverd has it.")
@click.pass_obj
def group(
    session: Session,
    *,
    checks: tuple[str, ...],
    fix: bool,
    file: Path | None,
    root: Path | None,
    run_dir: Path | None,
) -> None:
    """Look for what is wrong on this host, and say what it means and what to do.

    It works when the daemon is dead, as root on its host. With --url only what the API tells is looked at. Exits with
    0 if nothing is wrong, 3 if there are warnings, 1 if something is bad. CHECK: these alone (see docs/doctor.md).
    """
    is_remote = session.connection.place.url is not None
    if is_remote and (fix or file or root or run_dir):
        raise click.UsageError("--fix, --config, --root and --run-dir are for the host itself, not for --url")
    if is_remote:
        known = _ask(session.connection)
        found = scope.Scope(configuration.Config(), datetime.now(UTC), is_remote=True, known=known, daemon=known)
        _tell(session, doctor.examine(found, checks), [])
        return
    loaded, fault = _load(file, root, run_dir)
    if fix and os.geteuid() != 0:
        raise click.UsageError("--fix needs root")
    place = _local(session.connection.place, loaded)
    looked = _explore(loaded, place, fault)
    findings, mended = doctor.examine(looked, checks), list[str]()
    if fix and fault is not None:
        show.note("nothing is mended, for the configuration that says where everything is cannot be read")
    elif fix and any(finding.fix for finding in findings):
        with ExitStack() as stack:
            if looked.daemon_pid is None:
                stack.enter_context(mend.alone(loaded.root))
            mended = [result for _, result in mend.mend(findings)]
        for line in mended:
            show.note(f"mended: {line}")
        findings = doctor.examine(_explore(loaded, place, fault), checks)
    _tell(session, findings, mended)


def _load(file: Path | None, root: Path | None, run_dir: Path | None) -> tuple[configuration.Config, str | None]:
    try:
        return configuration.load(file, root=root, run_dir=run_dir), None
    except (Error, OSError) as err:
        given = {"root": root, "run_dir": run_dir}
        return configuration.parse({key: str(path) for key, path in given.items() if path}), str(err)


def _local(place: Place, loaded: configuration.Config) -> Place:
    """Return the socket that was asked for, else the one of the configuration."""
    return Place(loaded.api_socket) if place == Place(DEFAULT_SOCKET) else place


def _explore(loaded: configuration.Config, place: Place, fault: str | None) -> scope.Scope:
    served, api_fault = None, None
    with closing(Connection(place, timeout_s=TIMEOUT_S)) as connection:
        try:
            served = _ask(connection)
        except Error as err:
            api_fault = str(err)
    now = datetime.now(UTC)
    return scope.explore(loaded, now=now, served=served, api_fault=api_fault, config_fault=fault)


def _ask(connection: Connection) -> Known:
    """Return what a daemon tells. Raises the kinds of the API's errors, Unusable if it speaks of other things."""
    try:
        return _asked(connection)
    except (TypeError, ValueError) as err:
        raise Unusable(
            f"cannot use the answers of voldriverd at {connection.place}: {err!r}; is it of another version?"
        ) from err


def _asked(connection: Connection) -> Known:
    host = connection.get(resource_path("hosts", "1h1"))
    version, root = str(host["version"]), Path(host["root"])
    pools = connection.list("storagepools")
    volumes = connection.list("volumes") + connection.list("volumes", removed_notnull="1")
    newest = connection.get("snapshots?sort=created&order=desc&limit=1")["data"]
    backups = connection.list("backups")
    names = {pool["id"]: str(pool["name"]) for pool in pools}
    times = [_time(row[name]) for row in (*volumes, *newest, *backups) for name in ("created", "removed") if row[name]]
    return Known(
        is_served=True,
        pools=tuple(map(_pool, pools)),
        volumes=tuple(_volume(volume, names) for volume in volumes),
        targets=tuple(map(_target, connection.list("backuptargets"))),
        backups=backups_of(
            [
                (
                    _number(row["volumeId"], "1v"),
                    BackupState(row["state"]),
                    _time(row["created"]),
                    row["transitioningMessage"],
                )
                for row in backups
                if row["volumeId"] is not None
            ]
        ),
        newest_at=max(times, default=None),
        version=version,
        root=root,
    )


def _pool(pool: Resource) -> KnownPool:
    return KnownPool(
        name=pool["name"],
        driver=pool["driverName"],
        path=Path(pool["path"]),
        uuid=pool["uuid"],
        reason=None if pool["health"] == "available" else pool["transitioningMessage"] or "it is unavailable",
        orphans=tuple(pool["orphans"]),
        capacity_bytes=pool["capacityBytes"],
        free_bytes=pool["freeBytes"],
    )


def _volume(volume: Resource, pools: dict[str, str]) -> KnownVolume:
    mountpoint = volume["mountpoint"]
    return KnownVolume(
        id=_number(volume["id"], "1v"),
        name=volume["name"],
        pool=pools.get(volume["storagePoolId"], ""),
        key=None if mountpoint is None else Path(mountpoint).name,
        is_live=volume["state"] != "removed",
        created_at=_time(volume["created"]),
        fault=volume["transitioningMessage"] if volume["transitioning"] == "error" else None,
    )


def _target(target: Resource) -> KnownTarget:
    is_well = target["health"] == "available"
    return KnownTarget(
        target["name"], target["url"], None if is_well else target["transitioningMessage"] or "no reason"
    )


def _number(text: str, prefix: str) -> int:
    return int(text.removeprefix(prefix))


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _tell(session: Session, findings: list[Finding], mended: list[str]) -> None:
    level = doctor.worst(findings)
    if session.is_json:
        show.as_json({"level": level, "findings": list(map(_shown, findings)), "mended": mended})
    else:
        _print(findings)
    raise click.exceptions.Exit(STATUS[level])


def _shown(finding: Finding) -> dict[str, Any]:
    fields = asdict(finding)
    return {"check": fields.pop("check"), "subject": fields.pop("subject"), **fields, "fix": finding.fix is not None}


def _print(findings: list[Finding]) -> None:
    width = max((len(finding.check) for finding in findings), default=0)
    margin = " " * (width + 13)
    for subject, members in groupby(findings, key=lambda finding: finding.subject):
        click.echo(subject)
        for each in members:
            level = click.style(f"{each.level:<8}", fg=_STYLES.get(each.level))
            click.echo(f"  {level} {each.check:<{width}}  {show.plain(each.text)}")
            if each.meaning:
                click.echo(f"{margin}means: {show.plain(each.meaning)}")
            if each.remedy:
                click.echo(f"{margin}do:    {show.plain(each.remedy)}")
    counts = {level: sum(finding.level is level for finding in findings) for level in Level}
    fixes = sum(finding.fix is not None for finding in findings)
    click.echo()
    told = ", ".join(f"{counts[level]} {word}" for level, word in _COUNTED.items())
    click.echo(told + (f"; --fix can mend {fixes}" if fixes else ""))
