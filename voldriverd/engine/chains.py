"""What an increment is made on, and when it is time for a whole backup again."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from voldriverd import model
from voldriverd.backup.faults import Damaged
from voldriverd.backup.manifest import Manifest
from voldriverd.driver import Capability, Driver, Key
from voldriverd.engine.context import Engine
from voldriverd.errors import NotFound
from voldriverd.model import BackupState

if TYPE_CHECKING:
    from voldriverd.backup.repository import Repository

CHAIN_MAX: Final = 30
"""How many increments are made on a whole backup: a restore reads them all, one object lost costs those that follow,
and with one a night there is a whole one each month."""
DAMAGED: Final = "damaged: "
"""How the message of a backup begins in which a verification found damage."""
_AFRESH: Final = "whole, and everything was sent again:"
THOROUGH_EVERY: Final = 10
"""Each so many-th increment of a chain compares all bytes, should a file system ever forget to tell of a change."""


@dataclass(frozen=True, slots=True)
class Base:
    """What a backup is made on."""

    key: Key | None = None
    """The tree here; None: nothing, it is a whole one."""
    manifest: Manifest | None = None
    """The backup of that tree."""
    note: str | None = None
    """Why it is a whole one although there was a base, for people."""
    is_afresh: bool = False
    """Whether everything is sent, and nothing that lies in the target is relied on."""

    @property
    def depth(self) -> int:
        """Of the backup that is made on it."""
        return 0 if self.manifest is None else self.manifest.depth + 1

    @property
    def is_thorough(self) -> bool:
        """Whether the backup that is made on it compares all bytes."""
        return self.depth > 0 and self.depth % THOROUGH_EVERY == 0


WHOLE: Final = Base()


def find(engine: Engine, driver: Driver, backup: model.Backup, repository: "Repository") -> Base:
    """Return what a backup is made on: the last one of its volume in its target, if all that it takes is there.

    Where one is known to be damaged, others have the same chunks: the next one is whole, and sends them again.
    """
    assert backup.volume_id is not None, "its volume was looked up before"
    made = engine.store.backups_of(backup.volume_id, backup.target_id)
    damaged = _damaged(made)
    if damaged is not None:
        return Base(note=f"{_AFRESH} backup {damaged.shown_name} is damaged", is_afresh=True)
    last = next((each for each in made if each.key is not None and each.state is BackupState.CREATED), None)
    if last is None or last.key is None or Capability.DELTA not in driver.capabilities:
        return WHOLE
    return _on(engine, driver, last, last.key, repository)


def _on(engine: Engine, driver: Driver, last: model.Backup, key: Key, repository: "Repository") -> Base:
    """Return the last backup as a base, or why it cannot be one."""
    which = f"backup {last.shown_name}, which it would have built on,"
    if key not in driver.trees():
        return Base(note=f"whole: the tree of {which} is missing from the pool")
    try:
        manifest = repository.manifest(last.volume_uuid, last.uuid)
        may_grow = is_base(driver, manifest) and _may_grow(engine, manifest, last.target_id, repository)
    except NotFound:
        return Base(note=f"whole: {which} is not in the target any more")
    except Damaged as err:
        return Base(note=f"whole: {which} is damaged: {err.damage.cause}")
    return Base(key, manifest) if may_grow else WHOLE


def is_damage(message: str | None) -> bool:
    """Tell whether a backup's message says that it is damaged, and not only what it could not hold."""
    return message is not None and message.startswith(DAMAGED)


def _damaged(made: list[model.Backup]) -> model.Backup | None:
    """Return a damaged backup after which no other was sent afresh; None if there is none."""
    for backup in reversed(made):
        if backup.state is BackupState.CREATED and backup.message is not None:
            if backup.message.startswith(_AFRESH):
                return None
            if is_damage(backup.message):
                return backup
    return None


def is_base(driver: Driver, manifest: Manifest) -> bool:
    """Tell whether an increment can be made on a backup; a stream of another format was a way out, and is whole."""
    return Capability.DELTA in driver.capabilities and manifest.format is driver.formats[0]


def _may_grow(engine: Engine, last: Manifest, target_id: model.TargetId, repository: "Repository") -> bool:
    """Tell whether one more increment is worth it: few enough, and all of them no larger than the whole one.

    The rows tell, for that costs no network; where one is missing the manifests do. Raises Damaged: one of
    them is missing.
    """
    if last.depth >= CHAIN_MAX:
        return False
    sizes = [last.content_bytes]
    parent = last.parent
    while parent is not None:
        row = engine.store.backup_of_uuid(target_id, parent)
        if row is None:
            sizes = [link.content_bytes for link in reversed(repository.chain(last))]
            break
        sizes.append(row.content_bytes)
        parent = row.parent_uuid
    *increments, whole = sizes
    return sum(increments) <= whole
