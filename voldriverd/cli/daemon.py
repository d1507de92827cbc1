"""`voldriverd`: read the configuration, check the host, then serve in the foreground.

Exit status: 0 ended as asked, 1 refused or failed (one line on standard error), 2 wrong usage.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click

import voldriverd
from voldriverd import config, journal, logs
from voldriverd.cli.paths import absolute
from voldriverd.errors import Error, InUse, Unusable
from voldriverd.kernel import image, run

_LOOP_TOOLS: Final = {kind.package: kind.tools for kind in image.FORMATS.values()}
_TOOLS: Final = {"embedded": {"btrfs-progs": ("mkfs.btrfs",)} | _LOOP_TOOLS, "loop": _LOOP_TOOLS}
"""What the embedded pools and each driver run, by Debian package; a driver that is not here runs nothing."""
_SBIN: Final = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where mkfs lives; `su` of Debian leaves it out of root's PATH."""
_LEVELS: Final = ("debug", "info", "warning", "error")


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "file", metavar="FILE", callback=absolute, help=f"Instead of {config.DEFAULT_FILE}.")
@click.option(
    "--root",
    metavar="DIR",
    callback=absolute,
    help=f"State, images and mounts, instead of {config.DEFAULT_ROOT}.",
)
@click.option("--run-dir", metavar="DIR", callback=absolute, help=f"Sockets, instead of {config.DEFAULT_RUN_DIR}.")
@click.option("--check", is_flag=True, help="Print the configuration with every default, and end.")
@click.option("--release", is_flag=True, help="Unmount what nobody uses, and end; for when the daemon is stopped.")
@click.option(
    "--log-level",
    type=click.Choice(_LEVELS),
    default="info",
    show_default=True,
    help="What goes to standard error, or to the journal of systemd if that is where standard error goes.",
)
@click.version_option(voldriverd.__version__, message="%(prog)s %(version)s")
@click.pass_context
def main(
    context: click.Context,
    *,
    file: Path | None,
    root: Path | None,
    run_dir: Path | None,
    check: bool,
    release: bool,
    log_level: str,
) -> None:
    """Give containers volumes on real file systems: serve the Docker volume plugin `voldriver` and its API."""
    if check and release:
        raise click.UsageError("--check and --release exclude each other")
    if context.invoked_subcommand and (check or release):
        raise click.UsageError(f"--check and --release do not go with {context.invoked_subcommand}")
    with _told():
        loaded = config.load(file, root=root, run_dir=run_dir)
        if check:
            click.echo(config.effective(loaded), nl=False)
            return
        _prepare(loaded, log_level)
        context.obj = loaded
        if context.invoked_subcommand is None:
            _work(loaded, release=release)


@main.command("rebuild")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def rebuild(loaded: config.Config, *, yes: bool) -> None:
    """Make a lost database anew from what lies in the pools; for when the daemon is stopped.

    Shows first what it would make. Nothing in a pool is changed. API keys and targets are to be made again.
    """
    from voldriverd import daemon  # noqa: PLC0415 - as in _work

    def is_agreed(lines: list[str]) -> bool:
        for line in lines:
            click.echo(line)
        return yes or click.confirm("Make the database so?", err=True)

    with _told():
        made = daemon.rebuild(loaded, is_agreed)
        click.echo("nothing is changed" if made is None else f"{made} is made; start voldriverd now", err=True)
        if made is None:
            sys.exit(1)


@contextmanager
def _told() -> Iterator[None]:
    """Say an error in one line and end with status 1."""
    try:
        yield
    except (Error, OSError) as err:
        click.echo(f"voldriverd: {err}", err=True)
        sys.exit(1)


def _prepare(loaded: config.Config, log_level: str) -> None:
    if os.geteuid() != 0:
        raise Unusable("cannot serve: mounting needs root")
    os.environ["PATH"] = f"{os.environ.get('PATH', '/usr/bin:/bin')}:{_SBIN}"
    lacking = list(_lacking(loaded))
    if lacking:
        raise Unusable(f"cannot serve: not installed: {'; '.join(lacking)}")
    logging.basicConfig(level=log_level.upper(), handlers=[_log_handler()])


def _log_handler() -> logging.Handler:
    handler: logging.Handler = journal.Journal() if journal.is_standard_error(os.environ) else logging.StreamHandler()
    handler.setFormatter(logs.Formatter())
    return handler


def _lacking(loaded: config.Config) -> Iterator[str]:
    """Yield the tools that are missing, each with the Debian package that has it."""
    parts = {pool.driver for pool in loaded.pools} or {"embedded"}
    needed = {package: tools for part in parts for package, tools in _TOOLS.get(part, {}).items()}
    for package, tools in sorted(needed.items()):
        missing = run.missing(tools)
        if missing:
            yield f"{', '.join(missing)} (Debian package {package})"


def _work(loaded: config.Config, *, release: bool) -> None:
    from voldriverd import daemon  # noqa: PLC0415 - the server takes 0.3 s to import, --help and --check need none of it

    if not release:
        daemon.serve(loaded)
        return
    stayed = daemon.release(loaded)
    if stayed:
        raise InUse(f"cannot release: {'; '.join(stayed)}")
