"""`voldriver export`: a volume, or one of its snapshots, written as a tar archive."""

import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import click

from voldriverd.cli.connection import READ_TIMEOUT_S, resource_path
from voldriverd.cli.parameters import SnapshotName
from voldriverd.cli.session import Session
from voldriverd.errors import Exists, Invalid, Unusable
from voldriverd.kernel import fs


@click.command("export")
@click.argument("source", metavar="VOLUME[@SNAPSHOT]", type=SnapshotName())
@click.argument("target", metavar="FILE|-", type=click.Path())
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@click.pass_obj
def group(session: Session, *, source: str, target: str, force: bool) -> None:
    """Write a volume as it is at one instant, or a snapshot, as a tar archive.

    "-" is standard output. Extract it as root: tar -xp --numeric-owner --xattrs --xattrs-include='*' -f FILE
    """
    from voldriverd.cli import unpack  # noqa: PLC0415 - tarfile and its kin take 20 ms, and only this needs them

    origin, at, snapshot_text = source.partition("@")
    volume = session.volume(origin)
    subject = session.snapshot(volume, snapshot_text) if at else volume
    path = resource_path(f"{subject['type']}s", subject["id"], "export")
    with _opened(target, force=force) as file, session.connection.stream(path, timeout_s=READ_TIMEOUT_S) as archive:
        try:
            unpack.copy(archive, file)
        except OSError as err:
            raise Unusable(f"cannot write {target}: {err.strerror}") from err


@contextmanager
def _opened(target: str, *, force: bool) -> Iterator[IO[bytes]]:
    """Give a file to write: standard output, or one that has its name once all is in it and on the disk."""
    if target == "-":
        if sys.stdout.isatty():
            raise Invalid("cannot write an archive to a terminal: give a file, or send the output somewhere")
        yield sys.stdout.buffer
        return
    final = Path(target)
    _check(final, force=force)
    try:
        fd, made = tempfile.mkstemp(prefix=".voldriver-", dir=final.parent)
    except OSError as err:
        raise Unusable(f"cannot write {final}: {err.strerror}") from err
    part = Path(made)
    try:
        with open(fd, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _check(final, force=force)  # it may have come meanwhile
        fs.rename_durably(part, final)
    finally:
        part.unlink(missing_ok=True)


def _check(final: Path, *, force: bool) -> None:
    """Refuse to write where something is. Raises Exists, Invalid."""
    if not os.path.lexists(final):
        return
    if not stat.S_ISREG(final.lstat().st_mode):
        raise Invalid(f"cannot write {final}: it is no file; send the output there with -")
    if not force:
        raise Exists(f"cannot write {final}: it exists; --force replaces it")
