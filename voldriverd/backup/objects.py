"""Where objects lie: a bucket or a directory, and the little that a repository asks of it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Final, Protocol
from urllib.parse import urlsplit

from voldriverd import errors
from voldriverd.backup.faults import Fault, Kind
from voldriverd.backup.retries import Retries
from voldriverd.model import Secret

_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_PREFIX: Final = re.compile(r"[A-Za-z0-9!_.*'()@=+,-]+(/[A-Za-z0-9!_.*'()@=+,-]+)*")
"""What S3 calls safe, and a few more that need no quoting."""


class Missing(Fault):
    """There is no such object."""


class Unreadable(Fault):
    """An object is nothing that was written there: too large, no file, or on a broken disk."""

    def __init__(self, name: str, place: "Place", cause: str) -> None:
        """Keep the cause."""
        super().__init__(f"cannot read {name} in {place.url}: {cause}", kind=Kind.DAMAGED)
        self.cause = cause


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
class Limits:
    """How patient to be with a service."""

    connect_s: float
    request_s: float
    """For one request with its whole body."""
    give_up_s: float
    """From the first failure of a call to its end, however often it is tried meanwhile."""


OPENING: Final = Limits(connect_s=3, request_s=4, give_up_s=6)
"""Somebody waits for the answer."""
WORKING: Final = Limits(connect_s=10, request_s=120, give_up_s=300)
"""A chunk of 4 MiB passes at 35 kB/s; a server may restart, or a cable be out for a moment."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One object in a list."""

    name: str
    size_bytes: int
    modified_at: datetime
    """By the clock of the store."""


class Store(Protocol):
    """Objects under names with slashes. Every method blocks, may be called from any thread, and raises Fault."""

    deletes_at_once: int
    """How many names `delete` asks for at once: with more its time grows with them."""

    def get(self, name: str, *, most: int) -> bytes:
        """Return an object. Raises Missing, Unreadable (also if it has more than `most` bytes)."""
        ...

    def put(self, name: str, content: bytes) -> None:
        """Write an object whole or not at all, in place of one that is there.

        It survives power loss after the next `settle`; where it is there after an earlier one, it is whole.
        """
        ...

    def create(self, name: str, content: bytes) -> bool:
        """Write an object as `put`, unless there is one; tells whether this call wrote it."""
        ...

    def list(self, folder: str) -> Iterator[Entry]:
        """Yield all objects in a folder ("" for all, else with its slash) and below, in any order."""
        ...

    def folders(self, folder: str) -> Iterator[str]:
        """Yield the names of the folders directly in a folder."""
        ...

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects; one that is not there is deleted."""
        ...

    def settle(self) -> None:
        """Return when what was put, and what was listed, survives power loss."""
        ...

    def again(self, limits: Limits, retries: Retries) -> "Store":
        """Return another store of the very same place, with other patience; it is closed by itself."""
        ...

    def close(self) -> None:
        """Let go of what is held."""
        ...


@dataclass(frozen=True, slots=True)
class Bucket:
    """What an s3 URL names."""

    name: str
    prefix: str


@dataclass(frozen=True, slots=True)
class Directory:
    """What a file URL names."""

    path: str


def parse(place: Place) -> Bucket | Directory:
    """Read a place's URL. Raises Invalid."""
    try:
        found = urlsplit(place.url)
        is_plain = not (found.query or found.fragment or "@" in found.netloc)
    except ValueError as err:
        raise _invalid(place, "it is no URL") from err
    if not is_plain:
        raise _invalid(place, "it has more than a scheme, a place and a path")
    if found.scheme == "file":
        if found.netloc or not found.path.startswith("/") or "\0" in found.path:
            raise _invalid(place, "the form is file:///directory")
        return Directory(str(PurePosixPath(found.path)))
    if found.scheme != "s3":
        raise _invalid(place, "the scheme is s3 or file")
    _check_service(place)
    prefix = found.path.strip("/")
    parts = prefix.split("/")
    if not _BUCKET.fullmatch(found.netloc) or (prefix and not _PREFIX.fullmatch(prefix)) or {".", ".."} & set(parts):
        raise _invalid(place, "the form is s3://bucket/prefix")
    return Bucket(found.netloc, prefix)


def fault(verb: str, name: str, place: Place, cause: str, kind: Kind) -> Fault:
    """Return an error about an object ("": about the place itself)."""
    what = f"{name} in {place.url}" if name else place.url
    return _CLASSES.get(kind, Fault)(f"cannot {verb} {what}: {cause}", kind=kind)


def oversized(name: str, place: Place, size_bytes: int, most: int) -> Unreadable:
    """Return the error about an object that is too large."""
    return Unreadable(name, place, f"it has {size_bytes} bytes, and at most {most} may be there")


def _check_service(place: Place) -> None:
    if (place.access_key is None) != (place.secret_key is None):
        raise errors.Invalid(f"cannot use {place.url}: an access key and a secret key go together", field="access_key")
    if place.endpoint is None:
        return
    found = urlsplit(place.endpoint)
    if found.scheme not in {"http", "https"} or not found.hostname or "@" in found.netloc:
        raise errors.Invalid(f"cannot use {place.url}: its endpoint is no http:// or https:// URL", field="endpoint")


def _invalid(place: Place, cause: str) -> errors.Invalid:
    shown = place.url.rpartition("@")[2]  # what stands before it may be a secret
    return errors.Invalid(f"cannot use {shown} for backups: {cause}", field="url")


_CLASSES: Final[dict[Kind, type[Fault]]] = {Kind.MISSING: Missing}
