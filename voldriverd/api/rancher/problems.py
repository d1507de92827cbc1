"""Errors in the words of the API: a status, a code in CamelCase, one line of text, and the field at fault.

Rancher leaves the message of a validation error null; ours always says what is wrong.
"""

import uuid
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Final

from voldriverd.errors import Error, Exists, InUse, Invalid, NotFound, Unsupported, Unusable

_CODES: Final = {
    **dict.fromkeys(("snapshotId", "to", "backupId", "backupTargetId"), "InvalidReference"),
    "name": "InvalidCharacters",
}
"""The codes of our Invalid by its field; of all others it is InvalidOption."""
_OWN_FIELDS: Final = frozenset(
    {
        *(*_CODES, "driver", "driverOpts", "size", "expires", "path", "protected", "labels", "sample"),
        *("url", "nfsConfig", "endpoint", "region", "accessKey", "secretKey", "passphrase"),
    }
)
"""Fields of resources and inputs that an Invalid of the engine may name; what else it names is a driver's option."""


class Problem(Exception):
    """A request that is answered with an error resource."""

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        *,
        code: str | None = None,
        field: str | None = None,
        allowed: Iterable[str] = ("GET", "HEAD"),
    ) -> None:
        """Take the code from the status if none is given; `allowed` are the methods in place of one that is not."""
        super().__init__(message)
        self.status = status
        self.code = code or status.phrase.title().replace(" ", "")
        self.field = field
        self.headers = {"Allow": ", ".join(sorted(allowed))} if status is HTTPStatus.METHOD_NOT_ALLOWED else {}
        """What HTTP wants to be said beside it (RFC 9110, 15.5.6)."""

    def show(self) -> dict[str, Any]:
        """Write it down as a resource."""
        shown: dict[str, Any] = {
            "id": str(uuid.uuid4()),
            "type": "error",
            "links": {},
            "actions": {},
            "status": int(self.status),
            "code": self.code,
            "message": str(self),
            "detail": None,
        }
        if self.field is not None:
            shown["fieldName"] = self.field
        return shown


def invalid(code: str, message: str, *, field: str | None) -> Problem:
    """Return the problem of a field (422)."""
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, message, code=code, field=field)


def not_found(message: str) -> Problem:
    """Return the problem of what is not there (404)."""
    return Problem(HTTPStatus.NOT_FOUND, message)


def of(err: Error) -> Problem:
    """Turn one of our errors into the API's words."""
    message = str(err)
    if isinstance(err, Invalid):
        field = err.field if err.field is None or err.field in _OWN_FIELDS else "driverOpts"
        return invalid(_CODES.get(field or "", "InvalidOption"), message, field=field)
    if isinstance(err, Exists):
        return invalid("NotUnique", message, field="name")
    if isinstance(err, Unsupported):
        return invalid("Unsupported", message, field=None)
    if isinstance(err, NotFound):
        return not_found(message)
    if isinstance(err, InUse):
        return Problem(HTTPStatus.CONFLICT, message)
    assert isinstance(err, Unusable), f"{type(err).__name__} is none of the six kinds"
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, message)
