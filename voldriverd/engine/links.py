"""Symlinks `by-name/<volume>` to the mount points, for people; a convenience that no verb fails for."""

import logging
import os

from voldriverd import model
from voldriverd.engine.context import Engine

_log = logging.getLogger(__name__)


def point(engine: Engine, volume: model.Volume) -> None:
    """Let a volume's link point to the mount point of its present tree."""
    link = engine.root / "by-name" / volume.name
    part = engine.root / "by-name" / f".{volume.id}"
    try:
        try:
            part.symlink_to(f"../mounts/{volume.tree}")
        except FileExistsError:
            part.unlink()
            part.symlink_to(f"../mounts/{volume.tree}")
        part.rename(link)
    except OSError as err:  # a full disk: the link is made again at the next start
        _log.warning("verb=link volume=%s result=%s", volume.name, err)


def drop(engine: Engine, name: str) -> None:
    """Remove the link of a name."""
    try:
        (engine.root / "by-name" / name).unlink(missing_ok=True)
    except OSError as err:
        _log.warning("verb=link volume=%s result=%s", name, err)


def rebuild(engine: Engine) -> None:
    """Make the directory say what the database says."""
    directory = engine.root / "by-name"
    wanted = {volume.name: f"../mounts/{volume.tree}" for volume in engine.store.volumes() if volume.is_live}
    for name in os.listdir(directory):
        if name not in wanted:
            drop(engine, name)
    for volume in engine.store.volumes():
        if volume.is_live and _target(engine, volume.name) != wanted[volume.name]:
            point(engine, volume)


def _target(engine: Engine, name: str) -> str | None:
    try:
        return os.readlink(engine.root / "by-name" / name)
    except OSError:
        return None
