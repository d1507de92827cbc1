"""Trees on disk that nobody knows, and trees that are known and not on disk. Nothing here is ever deleted."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from voldriverd.doctor import scope as scopes
from voldriverd.doctor.finding import Check, Finding, Level, Trouble, or_fine, some, told
from voldriverd.doctor.known import Known
from voldriverd.doctor.scope import Scope

_REMOVAL: Final[Mapping[str, str]] = {
    "btrfs": "btrfs subvolume delete",
    "loop": "rm",
    "directory": "rm -r",
}

ORPHAN: Final = Trouble(
    Level.WARNING,
    "trees lie in a pool that the database does not know",
    "The database is older than the pool (it was put back from a copy), or somebody put them there. They take space; "
    "nothing deletes them by itself, for they may be volumes.",
    "If the database was put back: stop the daemon, move the database away and run `voldriverd rebuild`, which shows "
    "what it finds first. Else look into each, and remove it by hand when it is certain that nobody wants it: "
    "`{command} {path}/trees/KEY`.",
)
MISSING: Final = Trouble(
    Level.BAD,
    "a volume's tree is not in its pool",
    "It was removed by hand, or the pool was replaced by an older copy: the volume cannot be mounted.",
    "Put the pool back; or restore a snapshot or backup: `voldriver backup restore ID --to {name}`.",
)
LOST: Final = Trouble(
    Level.BAD,
    "the trees of snapshots are not in their pool",
    "They were removed by hand, or the pool was replaced by an older copy: nothing can be reverted to these snapshots.",
    "Put the pool back; or remove the snapshots: `voldriver snapshot rm VOLUME SNAPSHOT`.",
)
TROUBLED: Final = Trouble(
    Level.WARNING,
    "the daemon says that a volume needs an operator",
    "The verb that it names did not come to its end, or what it needs is not there.",
    "`voldriver volume inspect {name}` says more.",
)


@dataclass(frozen=True, slots=True)
class Pool:
    """What lies in one pool and should not."""

    name: str
    driver: str
    path: Path
    orphans: frozenset[str]


def _look_orphans(scope: Scope, known: Known) -> Iterator[Pool]:
    if known.trees is None:
        for pool in known.pools:
            yield Pool(pool.name, pool.driver, pool.path, frozenset(pool.orphans or ()))
        return
    for place in scope.places:
        found = scopes.on_disk(place.config.path)
        if found is not None:
            own = {key for key, name in known.trees.items() if name == place.config.name}
            yield Pool(place.config.name, place.config.driver, place.config.path, frozenset(found - own))


def judge_orphans(pools: Iterator[Pool]) -> Iterator[Finding]:
    """Judge what nobody knows."""

    def troubles() -> Iterator[Finding]:
        for pool in pools:
            if pool.orphans:
                text = f"{pool.name}: {some(pool.orphans)}"
                yield told(ORPHAN, text, command=_REMOVAL.get(pool.driver, "rm -r"), path=pool.path)

    yield from or_fine(troubles(), "every tree on disk is known")


@dataclass(frozen=True, slots=True)
class Volume:
    """One live or trashed volume."""

    name: str
    key: str | None
    is_missing: bool
    fault: str | None


def _look_volumes(scope: Scope, known: Known) -> Iterator[Volume]:
    found = {place.config.name: scopes.on_disk(place.config.path) for place in scope.places if not scope.is_api_only}
    for each in known.volumes:
        there = found.get(each.pool)
        is_missing = there is not None and each.key in known.settled and each.key not in there
        yield Volume(each.name, each.key, is_missing, each.fault)


def judge_volumes(volumes: Iterator[Volume]) -> Iterator[Finding]:
    """Judge volumes without a tree, or with a fault that the daemon tells."""
    for each in volumes:
        if each.is_missing:
            yield told(MISSING, f"volume {each.name}: tree {each.key} is missing", name=each.name)
        if each.fault is not None:
            yield told(TROUBLED, f"volume {each.name}: {each.fault}", name=each.name)


def _look_snapshots(scope: Scope, known: Known) -> list[str]:
    """Return the names of snapshots whose trees should be there, and are not; where no database tells, none."""
    found = {place.config.name: scopes.on_disk(place.config.path) for place in scope.places} if known.snapshots else {}
    trees = known.trees or {}
    return [
        name
        for key, name in known.snapshots.items()
        if (there := found.get(trees.get(key, ""))) is not None and key not in there
    ]


def judge_snapshots(missing: list[str]) -> Iterator[Finding]:
    """Judge all snapshots together: where one tree is missing, mostly many are."""
    if missing:
        yield told(LOST, f"{len(missing)} snapshots: {some(missing)}")


def _orphans(scope: Scope) -> Iterator[Finding]:
    assert scope.known is not None
    yield from judge_orphans(_look_orphans(scope, scope.known))


def _volumes(scope: Scope) -> Iterator[Finding]:
    assert scope.known is not None
    found = [*judge_snapshots(_look_snapshots(scope, scope.known)), *judge_volumes(_look_volumes(scope, scope.known))]
    yield from or_fine(found, "every volume and snapshot has its tree")


CHECKS: Final = (
    Check(
        "orphan-trees",
        "Leftovers",
        "trees in the pools that the database does not know; they are told, and never touched",
        _orphans,
        (ORPHAN,),
        needs_root=True,
        is_remote=True,
        needs_known=True,
    ),
    Check(
        "missing-trees",
        "Leftovers",
        "volumes and snapshots whose tree is missing, and volumes that need an operator",
        _volumes,
        (MISSING, LOST, TROUBLED),
        needs_root=True,
        is_remote=True,
        needs_known=True,
    ),
)
