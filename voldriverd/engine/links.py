"""Symlinks `by-name/<volume>` to the mount points, for people: a second behind, and nothing fails for them."""

import errno
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from voldriverd import model
from voldriverd.engine.context import Engine

_log = logging.getLogger(__name__)


def follow(engine: Engine, changes: Iterable[model.Row]) -> None:
    """Bring the links of changed volumes up to date; a name may be another volume's by now."""
    for name in {row.name for row in changes if isinstance(row, model.Volume)}:
        _follow(engine, name)


def rebuild(engine: Engine) -> None:
    """Make the directory say what the database says."""
    live = {volume.name for volume in engine.store.volumes() if volume.is_live}
    for name in live.union(os.listdir(engine.root / "by-name")):
        _follow(engine, name)


def _follow(engine: Engine, name: str) -> None:
    volume = engine.store.volume_named(name)
    wanted = None if volume is None else f"../mounts/{volume.key}"
    place = f"{engine.root}/by-name/{name}"
    try:
        if _target(place) == wanted:  # as nearly all are at a start
            return
        link = Path(place)
        if volume is None or wanted is None:
            link.unlink(missing_ok=True)
        else:
            part = link.with_name(f".{volume.id}")
            part.unlink(missing_ok=True)
            part.symlink_to(wanted)
            part.rename(link)
    except OSError as err:  # a full disk: the next change or start makes it
        _log.warning("verb=link volume=%s result=%s", name, err)


def _target(link: str) -> str | None:
    """Return where a link leads; None if there is nothing, "" of what is no link."""
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return None
    except OSError as err:
        if err.errno != errno.EINVAL:
            raise
        return ""
