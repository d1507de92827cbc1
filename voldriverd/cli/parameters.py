"""Arguments and options that several commands have, and the completion of names by the shell."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import click
from click.shell_completion import CompletionItem

from voldriverd import names
from voldriverd.cli.connection import Connection, Resource, place_of
from voldriverd.errors import Error, Invalid

_F = TypeVar("_F", bound=Callable[..., Any])

COMPLETION_TIMEOUT_S: Final = 2.0
"""A shell that hangs on TAB is worse than one that knows nothing."""


class VolumeName(click.ParamType):  # type: ignore[type-arg] # generic from click 8.3 on
    """The name or id of a volume; completes live ones, or those in the trash."""

    name = "volume"

    def __init__(self, *, is_trashed: bool = False) -> None:
        """Complete what is in the trash instead if asked."""
        self._filters = {"removed_notnull": "1"} if is_trashed else {}

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the names that begin so."""
        del param
        volumes = _listed(ctx, "volumes", name_prefix=incomplete, **self._filters)
        return [CompletionItem(name) for name in sorted({volume["name"] for volume in volumes})]


class SnapshotName(click.ParamType):  # type: ignore[type-arg]
    """The name or id of a snapshot of the volume that stands before it; also completes VOLUME@SNAPSHOT."""

    name = "snapshot"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the names that begin so."""
        del param
        before = [
            text for value in ctx.params.values() if value for text in (value if isinstance(value, tuple) else (value,))
        ]
        if not before and "@" not in incomplete:
            return VolumeName().shell_complete(ctx, click.Argument(["volume"]), incomplete)
        volume, at, begun = incomplete.partition("@") if "@" in incomplete else (str(before[0]), "", incomplete)
        found = _listed(ctx, "volumes", name=volume)
        snapshots = _listed(ctx, "snapshots", volumeId=found[0]["id"]) if found else []
        shown = [str(snapshot["name"] or snapshot["id"]) for snapshot in snapshots]
        return [CompletionItem(f"{volume}{at}{name}" if at else name) for name in shown if name.startswith(begun)]


class BackupId(click.ParamType):  # type: ignore[type-arg]
    """The id of a backup; completes those that are known."""

    name = "id"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the ids that begin so, each with its volume."""
        del param
        found = [backup for backup in _listed(ctx, "backups") if backup["id"].startswith(incomplete)]
        return [CompletionItem(backup["id"], help=backup["volumeName"]) for backup in found]


class TargetName(click.ParamType):  # type: ignore[type-arg]
    """The name or id of a target; completes names."""

    name = "target"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the names that begin so."""
        del param
        names = [target["name"] for target in _listed(ctx, "backuptargets")]
        return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]


class PoolName(click.ParamType):  # type: ignore[type-arg]
    """The name or id of a pool; completes names."""

    name = "pool"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the names that begin so."""
        del param
        names = [pool["name"] for pool in _listed(ctx, "storagepools")]
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class KeyName(click.ParamType):  # type: ignore[type-arg]
    """The name, id or access key of an API key; completes names, and ids of those without one."""

    name = "id"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the names that begin so."""
        del param
        names = [str(key["name"] or key["id"]) for key in _listed(ctx, "apikeys")]
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def target(function: _F) -> _F:
    """Add `--target`."""
    return click.option("--target", metavar="TARGET", type=TargetName(), help="Not the default one.")(function)


def quiet(function: _F) -> _F:
    """Add `-q`."""
    return click.option("-q", "--quiet", is_flag=True, help="Print names only.")(function)


def no_wait(function: _F) -> _F:
    """Add `--no-wait`."""
    return click.option("--no-wait", is_flag=True, help="Do not wait until the work is final.")(function)


def yes(function: _F) -> _F:
    """Add `--yes`."""
    return click.option("-y", "--yes", is_flag=True, help="Do not ask.")(function)


def description(function: _F) -> _F:
    """Add `--description`."""
    return click.option("--description", metavar="TEXT", help="What it is for.")(function)


def pairs(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """Turn `k=v` options into a map. Raises click's usage error."""
    found: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{text!r} is not written as KEY=VALUE", context, parameter)
        if key in found:
            raise click.BadParameter(f"{key} is given twice", context, parameter)
        found[key] = value
    return found


def moment(context: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    """Turn a duration from now into a time of the API. Raises click's usage error."""
    if text is None:
        return None
    try:
        seconds = names.duration(text, field="expires")
    except Invalid as err:
        raise click.BadParameter(str(err), context, parameter) from err
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def _listed(context: click.Context, path: str, **filters: str) -> list[Resource]:
    """Ask the daemon; a completion never fails aloud."""
    try:
        connection = Connection(place_of(**_global(context)), timeout_s=COMPLETION_TIMEOUT_S)
        try:
            return connection.list(path, **filters)
        finally:
            connection.close()
    except (Error, OSError):
        return []


def _global(context: click.Context) -> dict[str, Any]:
    wanted = ("socket", "url", "access_key", "secret_key", "ca_cert")
    return {name: context.find_root().params.get(name) for name in wanted}
