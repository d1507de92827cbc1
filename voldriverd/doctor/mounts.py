"""Mounts under the root that belong to nothing, lead to what is gone, or hide each other."""

import errno
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from voldriverd.doctor.finding import Act, Check, Finding, Fix, Level, Trouble, or_fine, some, told
from voldriverd.doctor.scope import Scope
from voldriverd.kernel import mount

_DELETED: Final = "//deleted"
_DEAD: Final = frozenset({errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EUCLEAN, errno.ENXIO, errno.ENODEV})

LEAKED: Final = Trouble(
    Level.WARNING,
    "something is mounted at `mounts/<key>`, and no volume, snapshot or backup has that key",
    "It keeps a tree and its loop device busy that the daemon does not know, or is in the way of one to come.",
    "`voldriver doctor --fix` unmounts it if nobody uses it; by hand, `umount {path}`.",
)
USED: Final = Trouble(
    Level.WARNING,
    "the same, and somebody uses it",
    "A container may be writing to a volume that the daemon does not know: was the database put back from a copy?",
    "Find out what {who} keeps there before anything is done; `--fix` leaves it alone.",
)
GONE: Final = Trouble(
    Level.WARNING,
    "the directory that is mounted was removed below the mount",
    "Who has it sees an empty directory, and what is written is lost.",
    "Stop who uses it, `umount {path}`, and start the container again: the daemon mounts what is there now.",
)
DEAD: Final = Trouble(
    Level.BAD,
    "the file system of a mount does not answer any more",
    "Its disk, image or server has gone: every access gives an error.",
    "Stop the containers that use it, `umount {path}`, bring the disk back, and start them again.",
)
HIDDEN: Final = Trouble(
    Level.NOTE,
    "several mounts lie on each other at one place",
    "Only the uppermost is seen. The daemon puts it right when it mounts or unmounts the volume next.",
    "Nothing; or `umount {path}` until one is left.",
)
ASIDE: Final = Trouble(
    Level.NOTE,
    "a verb that was cut off has left a mount aside, and no daemon runs",
    "It keeps an image or a share busy.",
    "Nothing; the daemon unmounts it when it starts.",
)


@dataclass(frozen=True, slots=True)
class Mounted:
    """One mount point under the root."""

    path: Path
    is_aside: bool
    """Not at the mount point of a tree: a staging place, a target, a scratch pool."""
    is_foreign: bool = False
    """Nothing that is known has this key."""
    users: tuple[str, ...] = ()
    is_gone: bool = False
    fault: str | None = None
    """Why its file system does not answer."""
    layers: int = 1
    is_served: bool = False
    """A daemon runs, and may be about to unmount it."""


def _look(scope: Scope) -> Iterator[Mounted]:
    root = scope.config.root.resolve()
    points, own = root / "mounts", {}
    counts: Counter[str] = Counter()
    for entry in mount.table():
        path = Path(entry.mount_point)
        if path.is_relative_to(root) and path not in {root, root / "embedded"}:
            own[entry.mount_point] = entry
            counts[entry.mount_point] += 1
    keys = {Path(text).name for text in own}
    foreign = set[str]() if scope.known is None else scope.known.foreign(keys)
    for text, entry in own.items():
        path, is_alive = Path(text), scope.daemon_pid is not None
        is_tree = path.parent == points and not path.name.startswith(".")
        if not is_tree:
            yield Mounted(path, is_aside=True, fault=_fault(path), layers=counts[text], is_served=is_alive)
            continue
        is_foreign = path.name in foreign
        users = mount.elsewhere(entry.device, entry.root, own=path) if is_foreign else []
        yield Mounted(
            path,
            is_aside=False,
            is_foreign=is_foreign,
            users=tuple(f"{mount.process_name(pid)} (pid {pid}) at {each.mount_point}" for pid, each in users),
            is_gone=entry.root.endswith(_DELETED),
            fault=_fault(path),
            layers=counts[text],
            is_served=is_alive,
        )


def _fault(path: Path) -> str | None:
    try:
        os.statvfs(path)
        os.stat(path)
    except OSError as err:
        return err.strerror if err.errno in _DEAD else None
    return None


def judge(mounted: Iterator[Mounted]) -> Iterator[Finding]:
    """Judge each mount."""

    def troubles() -> Iterator[Finding]:
        for each in mounted:
            path = each.path
            if each.fault is not None:
                yield told(DEAD, f"{path}: {each.fault}", path=path)
            if each.is_gone:
                yield told(GONE, f"{path}: what is mounted there was removed", path=path)
            if each.layers > 1:
                yield told(HIDDEN, f"{path}: {each.layers} mounts", path=path)
            if each.is_foreign and each.users:
                yield told(USED, f"{path}: used by {some(each.users)}", who=some(each.users))
            elif each.is_foreign:
                fix = Fix(Act.UNMOUNT, str(path))
                yield told(LEAKED, f"{path}: nothing that is known has this key", fix=fix, path=path)
            if each.is_aside and not each.is_served:
                yield told(ASIDE, f"{path}")

    yield from or_fine(troubles(), "every mount under the root belongs to something")


CHECKS: Final = (
    Check(
        "leaked-mounts",
        "Leftovers",
        "mounts under the root that belong to nothing, lead to what is gone, or hide each other",
        lambda scope: judge(_look(scope)),
        (LEAKED, USED, GONE, DEAD, HIDDEN, ASIDE),
        needs_root=True,
    ),
)
