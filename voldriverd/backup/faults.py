"""What can be wrong with a target or with what lies there."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from voldriverd import errors
from voldriverd.kernel import tree

HITS_SHOWN: Final = 5
"""How many files or ranges a message names; a chunk of small files can hold thousands."""
HITS_MAX: Final = 1000
"""How many a damage keeps."""


class Kind(StrEnum):
    """Why a target, or something in it, cannot be used."""

    UNREACHABLE = "unreachable"
    """Nobody answers, or not in time. It may later."""
    CREDENTIALS = "credentials"
    """It does not know who asks."""
    PERMISSION = "permission"
    """It knows, and forbids."""
    BUCKET = "bucket"
    """The bucket, or the directory, does not exist."""
    FULL = "full"
    """It has no room."""
    FAILING = "failing"
    """It answers, with an error of its own."""
    OCCUPIED = "occupied"
    """Something else lies there."""
    FORMAT = "format"
    """It was written by a newer version, or by nothing that we know."""
    PASSPHRASE = "passphrase"  # noqa: S105 - the name of a kind
    """The passphrase is wrong, missing, or one too many."""
    MISSING = "missing"
    """An object that should be there is not."""
    DAMAGED = "damaged"
    """An object is not what was written."""
    BUSY = "busy"
    """Another host does something here that excludes this. It will end."""


class Fault(errors.Unusable):
    """A target, or something in it, cannot be used; `kind` says why, for callers that act on it."""

    def __init__(self, message: str, *, kind: Kind) -> None:
        """Keep the kind beside the text."""
        super().__init__(message)
        self.kind = kind


class Cancelled(Exception):
    """The event that the repository was opened with is set: the work has ended where it was, and can be taken up."""


@dataclass(frozen=True, slots=True)
class Damage:
    """One object of a backup that is missing or not what was written, and what it hits."""

    volume_uuid: str
    backup_uuid: str
    name: str
    """The object, as a path in the target."""
    cause: str
    """For people: "it is missing"."""
    is_missing: bool = False
    ranges: tuple[tuple[int, int], ...] = ()
    """(offset, length) of what is lost: of the image if `is_image`, else of the stream. None of them: not known."""
    is_image: bool = False
    files: tuple[str, ...] = ()
    """Those that lose content, of a TAR."""

    def __str__(self) -> str:
        """Say it in one line."""
        whose = "image" if self.is_image else "stream"
        spans = _some([f"{offset} to {offset + length}" for offset, length in self.ranges])
        lost = f", bytes {spans} of its {whose}" if spans else ""
        files = f", in {tree.legible(_some(self.files))}" if self.files else ""
        return f"backup {self.backup_uuid}: object {self.name}: {self.cause}{lost}{files}"


class Damaged(Fault):
    """Something of a backup is missing or damaged; `damage` says what."""

    def __init__(self, verb: str, damage: Damage) -> None:
        """Say what cannot be done for it."""
        super().__init__(f"cannot {verb} {damage}", kind=Kind.MISSING if damage.is_missing else Kind.DAMAGED)
        self.damage = damage


def _some(words: Sequence[str]) -> str:
    """Return the first few of many."""
    more = len(words) - HITS_SHOWN
    return ", ".join(words[:HITS_SHOWN]) + (f" and {more} more" if more > 0 else "")
