"""Where objects lie: a bucket or a directory, and the little that a repository asks of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from voldriverd.model import Secret


@dataclass(frozen=True, slots=True)
class Place:
    """A place for a repository."""

    url: str
    """`s3://bucket/prefix` or `file:///directory`, which exists."""
    endpoint: str | None = None
    """s3: the URL of the service; None for that of the region."""
    region: str | None = None
    access_key: Secret | None = None
    secret_key: Secret | None = None
    """s3: both or neither; neither: the AWS environment."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One object in a list."""

    name: str
    size_bytes: int
    modified_at: datetime
    """By the clock of the store."""


class Store(Protocol):
    """Objects under names with slashes. Every method blocks, may be called from any thread, and raises Fault."""

    def get(self, name: str, *, most: int) -> bytes:
        """Return an object. Raises Missing; Oversized if it has more than `most` bytes."""
        ...

    def put(self, name: str, content: bytes) -> None:
        """Write an object whole or not at all, in place of one that is there.

        It survives power loss after the next `settle`; if it is there after one that came earlier, it is whole.
        """
        ...

    def create(self, name: str, content: bytes) -> bool:
        """Write an object, durably; tells whether it was this call that made it, since it may be there already."""
        ...

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield all objects in a folder (with its slash at the end) and below, in any order."""
        ...

    def folders(self, prefix: str) -> Iterator[str]:
        """Yield the names of the folders directly in a folder."""
        ...

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects; those that are not there are none."""
        ...

    def settle(self) -> None:
        """Return when all that was put, and all that was listed, survives power loss."""
        ...

    def close(self) -> None:
        """Let go of what is held."""
        ...
