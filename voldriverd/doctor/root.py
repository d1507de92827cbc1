"""The root directory: owners and modes, and the links by name."""

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from voldriverd import embedded, names, store
from voldriverd.doctor import scope as scopes
from voldriverd.doctor.finding import Act, Check, Finding, Fix, Level, Trouble, or_fine, told
from voldriverd.doctor.known import Known
from voldriverd.doctor.scope import Scope

# Owners and modes

WIDE: Final = Trouble(
    Level.BAD,
    "users of the host may read or enter what is for root alone",
    "They can read volumes or secrets, or run a setuid file that a container has made.",
    "`voldriver doctor --fix`, or `chmod {mode} {path}`.",
)
NARROW: Final = Trouble(
    Level.NOTE,
    "a mode is narrower than the daemon makes it",
    "`by-name/<volume>` leads nowhere for those who may not pass; the daemon itself does not care.",
    "`voldriver doctor --fix`, or `chmod {mode} {path}`.",
)
NOT_OURS: Final = Trouble(
    Level.BAD,
    "something of the daemon belongs to another user than root",
    "That user can change what the daemon trusts.",
    "Find out who did that, and `chown root {path}`.",
)


@dataclass(frozen=True, slots=True)
class Kept:
    """One file or directory that is there."""

    path: Path
    mode: int
    wanted: int
    uid: int


def _look_modes(scope: Scope) -> Iterator[Kept]:
    root = scope.config.root
    wanted = {root: 0o711, root / "mounts": 0o700, root / "by-name": 0o711, root / store.FILE_NAME: 0o600}
    wanted |= {embedded.Embedded(root).path: 0o600}
    wanted |= {place.config.path: 0o700 for place in scope.places if scopes.is_there(place.config.path)}
    for path, mode in wanted.items():
        try:
            status = path.stat()
        except FileNotFoundError:  # not made yet, or other checks tell
            continue
        yield Kept(path, stat.S_IMODE(status.st_mode), mode, status.st_uid)


def judge_modes(kept: Iterator[Kept]) -> Iterator[Finding]:
    """Judge each."""

    def troubles() -> Iterator[Finding]:
        for each in kept:
            fix = Fix(Act.MODE, str(each.path), f"{each.wanted:o}")
            text = f"{each.path} has mode {each.mode:04o}, and should have {each.wanted:04o}"
            names = {"path": each.path, "mode": f"{each.wanted:o}"}
            if each.mode & ~each.wanted:
                yield told(WIDE, text, fix=fix, **names)
            elif each.mode != each.wanted:
                yield told(NARROW, text, fix=fix, **names)
            if each.uid != 0:
                yield told(NOT_OURS, f"{each.path} belongs to user {each.uid}", path=each.path)

    yield from or_fine(troubles(), "root, database, mount points and pools are closed to users of the host")


# Links by name

_BEHIND: Final = timedelta(seconds=10)
"""The daemon makes the link of a new volume a second later."""

NO_LINK: Final = Trouble(
    Level.WARNING,
    "a volume has no link `by-name/<volume>`, or one that leads elsewhere",
    "People and scripts that use the link find nothing, or the content that a revert has displaced.",
    "`voldriver doctor --fix`; the daemon puts all of them right when it starts.",
)
STALE_LINK: Final = Trouble(
    Level.NOTE,
    "no daemon runs, and a link has the name of no volume",
    "It leads nowhere, or to a volume in the trash.",
    "`voldriver doctor --fix`, or remove it.",
)


@dataclass(frozen=True, slots=True)
class Links:
    """The links that are there, and those that should be."""

    directory: Path
    there: Mapping[str, str]
    """Each name with where it leads."""
    wanted: Mapping[str, str | None]
    """None: where it should lead is not known."""
    has_database: bool
    """Whether names that are not wanted are certainly stale: a daemon that serves takes a second to remove a link."""


def _look_links(scope: Scope, known: Known) -> Links:
    directory = scope.config.root / "by-name"
    there = {}
    for name in os.listdir(directory) if directory.is_dir() else ():
        path = directory / name
        if path.is_symlink() and not name.startswith("."):  # one that begins so is being made
            there[name] = os.readlink(path)
    since = scope.now - _BEHIND if known.is_served else scope.now + _BEHIND
    live = [each for each in known.volumes if each.is_live and (each.name in there or each.created_at < since)]
    wanted = {
        names.volume_name(each.name): None if each.key is None else f"../mounts/{names.volume_name(each.key)}"
        for each in live  # neither name nor key leads out of its directory, whoever told
    }
    return Links(directory, there, wanted, has_database=not known.is_served)


def judge_links(links: Links) -> Iterator[Finding]:
    """Judge what is missing, wrong and stale."""

    def troubles() -> Iterator[Finding]:
        for name, leads in sorted(links.wanted.items()):
            found = links.there.get(name)
            if found is not None and leads in {None, found}:
                continue
            fix = None if leads is None else Fix(Act.LINK, str(links.directory / name), leads)
            text = "has no link" if found is None else f"has a link that leads to {found} and not to {leads}"
            yield told(NO_LINK, f"volume {name} {text}", fix=fix)
        for name in sorted(links.there.keys() - links.wanted.keys()) if links.has_database else ():
            fix = Fix(Act.UNLINK, str(links.directory / name))
            yield told(STALE_LINK, f"{links.directory / name} is the name of no volume", fix=fix)

    yield from or_fine(troubles(), f"{len(links.wanted)} volumes have theirs")


def _links(scope: Scope) -> Iterator[Finding]:
    assert scope.known is not None
    known = scopes.with_keys(scope.known, scope.places) if scope.known.is_served else scope.known
    yield from judge_links(_look_links(scope, known))


CHECKS: Final = (
    Check(
        "modes",
        "Files",
        "owners and modes of the root, the database, the mount points and the pools",
        lambda scope: judge_modes(_look_modes(scope)),
        (WIDE, NARROW, NOT_OURS),
        needs_root=True,
    ),
    Check(
        "links",
        "Files",
        "the links `by-name/<volume>`",
        _links,
        (NO_LINK, STALE_LINK),
        needs_root=True,
        needs_known=True,
    ),
)
