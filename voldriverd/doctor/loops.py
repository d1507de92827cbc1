"""Loop devices of our images that nobody has mounted, or that are not as the daemon makes them."""

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from voldriverd import embedded
from voldriverd.doctor.finding import Act, Check, Finding, Fix, Level, Trouble, or_fine, told
from voldriverd.doctor.scope import Scope
from voldriverd.kernel import loop, mount

_DELETED: Final = " (deleted)"
_AGAIN_S: Final = 0.1
"""Between two looks: the daemon makes a device some milliseconds before it is mounted."""

LEAKED: Final = Trouble(
    Level.WARNING,
    "an image of ours has a loop device that nobody has mounted and that does not clear itself",
    "Somebody made it by hand (`losetup`). It costs little, but the volume cannot be removed, and if it shows a part "
    "of the image or is read-only, not mounted either.",
    "`voldriver doctor --fix`, or `losetup -d {device}`.",
)
OPEN: Final = Trouble(
    Level.NOTE,
    "an image of ours has a loop device that is not mounted, and that clears itself when it is closed",
    "Somebody has it open: a program that looks at the device, or a verb of the daemon that is not done.",
    "Nothing; `fuser {device}` says who.",
)
GHOST: Final = Trouble(
    Level.WARNING,
    "a loop device has an image of ours that was deleted",
    "What the image held lives on in the device alone, with its space, until that is cleared.",
    "Copy from {device} what is wanted; then unmount it and `losetup -d {device}`.",
)
TWO: Final = Trouble(
    Level.BAD,
    "one image has two loop devices",
    "If both are mounted or written to, they destroy the file system in the image.",
    "Stop what uses the one that is not mounted at the root's `mounts`, and `losetup -d` it.",
)


@dataclass(frozen=True, slots=True)
class Bound:
    """A loop device that is bound to a file, as sysfs tells."""

    number: int
    backing: Path
    is_deleted: bool
    clears_itself: bool
    is_direct: bool
    is_used: bool = False
    """Mounted in some namespace, or under another device (dm)."""

    @property
    def device(self) -> str:
        """Return its node."""
        return f"/dev/loop{self.number}"


def bound_under(places: Iterable[Path]) -> list[Bound]:
    """Return the loop devices whose files are, or lie in, one of some places; in the order of their numbers."""
    real = [Path(os.path.realpath(place)) for place in places]
    found = []
    for name in os.listdir("/sys/block"):
        directory = Path("/sys/block") / name / "loop"
        if not name.startswith("loop"):
            continue
        try:
            text = os.fsdecode((directory / "backing_file").read_bytes()).removesuffix("\n")
            flags = [(directory / flag).read_text().strip() == "1" for flag in ("autoclear", "dio")]
        except OSError:  # not bound, or not any more
            continue
        backing = Path(text.removesuffix(_DELETED))
        if any(backing.is_relative_to(place) for place in real):
            number = int(name.removeprefix("loop"))
            found.append(Bound(number, backing, text.endswith(_DELETED), flags[0], flags[1], _is_held(number)))
    return sorted(found, key=lambda each: each.number)


def _is_held(number: int) -> bool:
    holders = Path(f"/sys/block/loop{number}/holders")
    return holders.is_dir() and bool(os.listdir(holders))


def images_of(scope: Scope) -> list[Path]:
    """Return where images of ours lie."""
    root = scope.config.root
    image = embedded.Embedded(root).path
    own = [place.config.path / "trees" for place in scope.places if place.config.driver == "loop"]
    return [image, image.with_suffix(".part"), root / "scratch", *own]


def _look(scope: Scope) -> list[Bound]:
    found = _unused(scope)
    if any(not each.is_used for each in found):
        time.sleep(_AGAIN_S)
        again = {each.number: each for each in _unused(scope)}
        found = [again[each.number] for each in found if each.number in again]
    return found


def is_mounted(number: int, entries: list[mount.Entry]) -> bool:
    """Tell whether a loop device is mounted; of btrfs only the source says so, its device has no number of a disk."""
    names = {f"{loop.LOOP_MAJOR}:{number}", f"/dev/loop{number}"}
    return any(entry.device in names or entry.source in names for entry in entries)


def all_mounts() -> list[mount.Entry]:
    """Return the mounts of all mount namespaces."""
    return [entry for _, entry in mount.everywhere()]


def _unused(scope: Scope) -> list[Bound]:
    bound = bound_under(images_of(scope))
    entries = all_mounts() if bound else []
    return [
        Bound(
            each.number,
            each.backing,
            each.is_deleted,
            each.clears_itself,
            each.is_direct,
            is_used=each.is_used or is_mounted(each.number, entries),
        )
        for each in bound
    ]


def judge(bound: list[Bound]) -> Iterator[Finding]:
    """Judge what is bound to images of ours."""

    def troubles() -> Iterator[Finding]:
        for each in bound:
            what = f"{each.device} of {each.backing}"
            if each.is_deleted:
                yield told(GHOST, f"{what}, which was deleted", device=each.device)
                continue
            twins = [other.device for other in bound if other.backing == each.backing and not other.is_deleted]
            if len(twins) > 1 and each.device == twins[0]:
                yield told(TWO, f"{each.backing} has {' and '.join(twins)}")
            if each.is_used:
                continue
            if each.clears_itself:
                yield told(OPEN, f"{what} is open and not mounted", device=each.device)
            else:
                fix = Fix(Act.CLEAR_LOOP, str(each.backing), str(each.number))
                yield told(LEAKED, f"{what} is not mounted", fix=fix, device=each.device)

    yield from or_fine(troubles(), f"{len(bound)} of our images have one, all in use")


CHECKS: Final = (
    Check(
        "leaked-loops",
        "Leftovers",
        "loop devices of our images that nobody has mounted",
        lambda scope: judge(_look(scope)),
        (LEAKED, OPEN, GHOST, TWO),
        needs_root=True,
    ),
)
