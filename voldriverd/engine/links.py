"""Symlinks `by-name/<volume>` to the mount points, for people: a second behind, and nothing fails for them."""

import logging
import os
from collections.abc import Iterable

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
    link = engine.root / "by-name" / name
    volume = engine.store.volume_named(name)
    try:
        if volume is None:
            link.unlink(missing_ok=True)
        elif _target(link) != f"../mounts/{volume.key}":
            part = link.with_name(f".{volume.id}")
            part.unlink(missing_ok=True)
            part.symlink_to(f"../mounts/{volume.key}")
            part.rename(link)
    except OSError as err:  # a full disk: the next change or start makes it
        _log.warning("verb=link volume=%s result=%s", name, err)


def _target(link: os.PathLike[str]) -> str | None:
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return None
