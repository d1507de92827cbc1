"""Objects in an S3 bucket, through obstore.

obstore has a class for what a service answers where HTTP has a status of its own (401, 403, 404, 412); all else, and
everything about lists, is a GenericError whose text has the status and the service's error code (object_store 0.13,
client/retry.rs). Those two are read here, in one function, and nowhere else. It retries nothing itself: its pauses
could not be cancelled.
"""

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeVar

import obstore
from obstore import exceptions
from obstore.store import S3Store

from voldriverd.backup import objects
from voldriverd.backup.faults import Fault, Kind
from voldriverd.backup.objects import Entry, Limits, Place
from voldriverd.backup.retries import Retries, Transient

if TYPE_CHECKING:  # they exist for type checkers only
    from obstore import ObjectMeta
    from obstore.store import S3Credential

_LISTED_AT_ONCE: Final = 1000
_DEFAULT_REGION: Final = "us-east-1"

_T = TypeVar("_T")

_STATUS: Final = re.compile(r"\bstatus: (\d{3})\b")
_CODE: Final = re.compile(r"<Code>(\w{1,60})</Code>")
_TIMEOUT: Final = re.compile(r"\bkind: Timeout\b")
_OS_ERROR: Final = re.compile(r'Os \{\s*code: \d+,\s*kind: \w+,\s*message: "([^"]{1,80})"')
_LOOKUP: Final = re.compile(r"\bdns error\b")

_CREDENTIALS: Final = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "ExpiredToken",
    "TokenRefreshRequired",
    "AuthorizationHeaderMalformed",
    "RequestTimeTooSkewed",
}
_FULL: Final = {"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "EntityTooLargeForStorage"}
"""S3 itself is never full; these are the words of others."""
_PASSING: Final = {408, 409, 425, 429}
"""And all from 500 on, but 501 and 507: timeout, conflict, too early, too many."""


class BucketStore:
    """A Store in a bucket, below a prefix."""

    deletes_at_once = 500
    """S3 takes a thousand names in one request."""

    def __init__(self, place: Place, where: objects.Bucket, limits: Limits, retries: Retries) -> None:
        """Connect to nothing yet. Raises Fault (the AWS environment cannot be used)."""
        self._place = place
        self._where = where
        self._limits = limits
        self._retries = retries
        self._prefix = f"{where.prefix}/" if where.prefix else ""
        try:
            self._store = _connect(place, where.name, limits)
        except (exceptions.BaseError, ValueError) as err:
            raise objects.fault("use", "", place, "its settings cannot be used", Kind.FAILING) from err

    def get(self, name: str, *, most: int) -> bytes:
        """Return an object."""

        def once() -> bytes:
            found = obstore.get(self._store, self._prefix + name)
            size_bytes = found.meta["size"]
            if size_bytes > most:
                raise objects.oversized(name, self._place, size_bytes, most)
            return bytes(found.bytes())

        return self._call("read", name, once)

    def put(self, name: str, content: bytes) -> None:
        """Write an object; a service answers when it is durable."""

        def once() -> None:
            obstore.put(self._store, self._prefix + name, content, use_multipart=False)

        self._call("write", name, once)

    def create(self, name: str, content: bytes) -> bool:
        """Write an object unless there is one, as far as the service knows If-None-Match; else write it."""

        def once() -> bool:
            try:
                obstore.put(self._store, self._prefix + name, content, mode="create", use_multipart=False)
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
                return False
            except exceptions.NotSupportedError:
                obstore.put(self._store, self._prefix + name, content, use_multipart=False)
            return True

        return self._call("write", name, once)

    def list(self, folder: str) -> Iterator[Entry]:
        """Yield what is in a folder; a list that breaks off goes on behind its last name."""
        last: str | None = None
        while True:
            batch = self._call("list", folder, functools.partial(self._listed, folder, last))
            yield from (self._entry(found) for found in batch)
            if len(batch) < _LISTED_AT_ONCE:
                return
            last = batch[-1]["path"]

    def folders(self, folder: str) -> Iterator[str]:
        """Yield the names of folders."""
        prefix = (self._prefix + folder).rstrip("/") or None
        found = self._call("list", folder, lambda: obstore.list_with_delimiter(self._store, prefix))
        return (path.rpartition("/")[2] for path in found["common_prefixes"])

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects, many in one request."""
        for start in range(0, len(names), self.deletes_at_once):
            paths = [self._prefix + name for name in names[start : start + self.deletes_at_once]]
            self._call("delete", names[start], functools.partial(obstore.delete, self._store, paths))

    def settle(self) -> None:
        """Do nothing: what a service has answered is durable."""

    def again(self, limits: Limits, retries: Retries) -> "BucketStore":
        """Connect anew."""
        return BucketStore(self._place, self._where, limits, retries)

    def close(self) -> None:
        """Close the connections."""
        del self._store

    def _listed(self, folder: str, after: str | None) -> "Sequence[ObjectMeta]":
        prefix = (self._prefix + folder).rstrip("/") or None
        pages = obstore.list(self._store, prefix, offset=after, chunk_size=_LISTED_AT_ONCE)
        return next(pages, [])

    def _entry(self, found: "ObjectMeta") -> Entry:
        return Entry(found["path"].removeprefix(self._prefix), found["size"], found["last_modified"])

    def _call(self, verb: str, name: str, once: Callable[[], _T]) -> _T:
        """Do one thing, again while that may help."""

        def attempt() -> _T:
            try:
                return once()
            except (exceptions.BaseError, FileNotFoundError) as err:
                raise self._fault(verb, name, err) from err

        return self._retries.call(attempt)

    def _fault(self, verb: str, name: str, err: Exception) -> Fault:
        """Say what an exception of obstore's means."""
        status, code = _answer(err)
        kind, cause = _meaning(err, status, code, self._limits)
        if kind is Kind.MISSING and (verb != "read" or code == "NoSuchBucket"):
            kind, cause = Kind.BUCKET, "there is no such bucket"
        if kind is Kind.UNREACHABLE or (kind is Kind.FAILING and _may_pass(status)):
            where = self._place.endpoint or self._place.url
            return Transient(f"cannot {verb} {name or self._place.url} at {where}: {cause}", kind=kind)
        return objects.fault(verb, name, self._place, cause, kind)


def _connect(place: Place, bucket: str, limits: Limits) -> S3Store:
    endpoint = place.endpoint
    settings = {}
    if endpoint is not None:
        settings["endpoint"] = endpoint.rstrip("/")
    if place.region is not None or endpoint is not None:
        settings["region"] = place.region or _DEFAULT_REGION
    return S3Store(
        bucket,
        client_options={
            "connect_timeout": timedelta(seconds=limits.connect_s),
            "timeout": timedelta(seconds=limits.request_s),
            "allow_http": endpoint is not None and endpoint.startswith("http:"),
        },
        retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=limits.request_s)},
        credential_provider=_credentials(place),
        **settings,  # type: ignore[arg-type]  # the names of its keywords
    )


def _credentials(place: Place) -> "Callable[[], S3Credential] | None":
    """Return what gives the keys; so given, a session token in the environment is not mixed into them."""
    if place.access_key is None or place.secret_key is None:
        return None
    access, secret = place.access_key.text, place.secret_key.text
    return lambda: {"access_key_id": access, "secret_access_key": secret, "token": None, "expires_at": None}


def _answer(err: Exception) -> tuple[int | None, str | None]:
    """Return the status and error code that a service answered with; None where there is none."""
    text = str(err)
    status, code = _STATUS.search(text), _CODE.search(text)
    return int(status[1]) if status else None, code[1] if code else None


def _meaning(err: Exception, status: int | None, code: str | None, limits: Limits) -> tuple[Kind, str]:
    if isinstance(err, FileNotFoundError) or status == 404:
        return Kind.MISSING, "there is none"
    if isinstance(err, exceptions.UnauthenticatedError) or status == 401 or code in _CREDENTIALS:
        return Kind.CREDENTIALS, f"the credentials are refused ({code or status})"
    if isinstance(err, exceptions.PermissionDeniedError) or status == 403:
        return Kind.PERMISSION, f"it is forbidden ({code or status})"
    if status == 507 or code in _FULL:
        return Kind.FULL, f"the target is full ({code or status})"
    if status is not None:
        return Kind.FAILING, f"the service answered {status}" + (f" ({code})" if code else "")
    return Kind.UNREACHABLE, _silence(str(err), limits)


def _silence(text: str, limits: Limits) -> str:
    """Say in words why there was no answer; nothing is decided by it."""
    if _TIMEOUT.search(text):
        return f"no answer within {limits.request_s:g} s"
    if found := _OS_ERROR.search(text):
        return found[1].lower()
    return "its name is not known" if _LOOKUP.search(text) else "no connection"


def _may_pass(status: int | None) -> bool:
    return status is not None and (status in _PASSING or (status >= 500 and status not in {501, 507}))
