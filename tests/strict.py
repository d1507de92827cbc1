"""A client as strict as go-rancher's (rancher-api 5.2): exact statuses, declared types, 10 seconds.

What Go's encoding/json cannot decode into the declared type is an error there, so it is one here: null is a zero
value, keys are compared without case, unknown ones are skipped.
"""

import http.client
import json
import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from tests.doors import basic

TIMEOUT_S: Final = 10.0
SETTLE_S: Final = 60.0
PAUSE_S: Final = 0.02
Shape = Any
"""str, int, bool, object (interface{}), [shape] (a slice), {str: shape} (a map), or the fields of a struct."""

STRINGS: Final[Shape] = {str: str}
_RESOURCE: Final = {"id": str, "type": str, "links": STRINGS, "actions": STRINGS}
_COMMON: Final = _RESOURCE | {
    **dict.fromkeys(("accountId", "created", "description", "kind", "name", "removeTime", "removed", "state"), str),
    **dict.fromkeys(("transitioning", "transitioningMessage", "uuid"), str),
    "data": {str: object},
    "transitioningProgress": int,
}
_VOLUME: Final = _COMMON | {
    **dict.fromkeys(("accessMode", "allocationState", "driver", "externalId", "imageId", "instanceId", "uri"), str),
    "driverOpts": {str: object},
    "isHostPath": bool,
}
_FIELD: Final = {
    **dict.fromkeys(("type", "validChars", "invalidChars", "description"), str),
    **dict.fromkeys(("unique", "nullable", "create", "required", "update"), bool),
    **dict.fromkeys(("minLength", "maxLength", "min", "max"), int),
    "default": object,
    "options": [str],
}
_ACTION: Final = {"input": str, "output": str}
SHAPES: Final[dict[str, Shape]] = {
    "volume": _VOLUME,
    "snapshot": _COMMON | {"volumeId": str},
    "backup": _COMMON | dict.fromkeys(("backupTargetId", "snapshotId", "uri", "volumeId"), str),
    "backupTarget": _COMMON | {"nfsConfig": {"server": str, "share": str, "mountOptions": str}},
    "storagePool": _COMMON
    | dict.fromkeys(("blockDevicePath", "driverName", "externalId", "volumeAccessMode"), str)
    | {"volumeCapabilities": [str]},
    "mount": _COMMON | dict.fromkeys(("instanceId", "path", "permissions", "volumeId"), str),
    "host": _COMMON | {"hostname": str},
    "apiKey": _COMMON | dict.fromkeys(("publicValue", "secretValue"), str),
    "schema": _RESOURCE
    | {
        "pluralName": str,
        **{key: [str] for key in ("resourceMethods", "collectionMethods", "includeableLinks")},
        **{key: {str: _FIELD} for key in ("resourceFields", "collectionFields")},
        **{key: {str: _ACTION} for key in ("resourceActions", "collectionActions")},
        "collectionFilters": {str: {"modifiers": [str]}},
    },
}
_PAGINATION: Final = {
    **dict.fromkeys(("marker", "first", "previous", "next"), str),
    **dict.fromkeys(("limit", "total"), int),
    "partial": bool,
}
_COLLECTION: Final[Shape] = {
    **dict.fromkeys(("type", "resourceType"), str),
    **dict.fromkeys(("links", "createTypes", "actions", "sortLinks"), STRINGS),
    "pagination": _PAGINATION,
    "sort": dict.fromkeys(("name", "order", "reverse"), str),
    "filters": {str: [{"modifier": str, "value": object}]},
    "createDefaults": {str: object},
}


class Refused(Exception):
    """An answer that is an error: its status and its resource."""

    def __init__(self, status: int, error: Mapping[str, Any]) -> None:
        super().__init__(f"{status}: {error.get('message')}")
        self.status, self.error = status, error


class Strict:
    """A client of one URL with a key."""

    def __init__(self, url: str, key: tuple[str, str]) -> None:
        """Load the schemas as go-rancher's setupClient does."""
        self._key = key
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
        headers, body = self._ask("GET", url, wanted=200)
        schemas_url = headers["X-API-Schemas"]
        assert schemas_url, "no X-API-Schemas"
        if schemas_url != url:
            _, body = self._ask("GET", schemas_url, wanted=200)
        decode(_COLLECTION | {"data": [SHAPES["schema"]]}, body)
        self.schemas = {each["id"]: each for each in body["data"]}

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def list(self, kind: str, **options: object) -> Any:
        """GET a collection: 200 exactly."""
        assert "GET" in self.schemas[kind]["collectionMethods"]
        _, body = self._ask("GET", f"{self._collection(kind)}?{urlencode(options)}", wanted=200)
        return decode(_COLLECTION | {"data": [SHAPES[kind]]}, body)

    def next(self, kind: str, page: Any) -> Any:
        """Follow `pagination.next`; None on the last page."""
        url = page["pagination"]["next"]
        return url and decode(_COLLECTION | {"data": [SHAPES[kind]]}, self._ask("GET", url, wanted=200)[1])

    def by_id(self, kind: str, resource_id: str) -> Any:
        """GET by the collection's URL: 200 exactly; 404 is nil."""
        assert "GET" in self.schemas[kind]["resourceMethods"]
        try:
            return decode(SHAPES[kind], self._ask("GET", f"{self._collection(kind)}/{resource_id}", wanted=200)[1])
        except Refused as err:
            if err.status == 404:
                return None
            raise

    def create(self, kind: str, **fields: object) -> Any:
        """POST to the collection."""
        assert "POST" in self.schemas[kind]["collectionMethods"]
        return decode(SHAPES[kind], self._ask("POST", self._collection(kind), fields)[1])

    def update(self, resource: Any, **fields: object) -> Any:
        """PUT to `links.self`."""
        assert "PUT" in self.schemas[resource["type"]]["resourceMethods"]
        return decode(SHAPES[resource["type"]], self._ask("PUT", resource["links"]["self"], fields)[1])

    def delete(self, resource: Any) -> None:
        """DELETE `links.self`; the answer is not looked at."""
        assert "DELETE" in self.schemas[resource["type"]]["resourceMethods"]
        self._ask("DELETE", resource["links"]["self"])

    def act(self, resource: Any, action: str, fields: object = None) -> Any:
        """POST to an action that is offered; decode the answer as the declared output."""
        declared = self.schemas[resource["type"]]["resourceActions"][action]
        assert (fields is None) or declared["input"] in self.schemas
        return decode(SHAPES[declared["output"]], self._ask("POST", resource["actions"][action], fields)[1])

    def settled(self, resource: Any) -> Any:
        """GET until nothing goes on any more; an error is one."""
        end_s = time.monotonic() + SETTLE_S
        while resource["transitioning"] == "yes":
            assert time.monotonic() < end_s, resource
            time.sleep(PAUSE_S)
            resource = self.by_id(resource["type"], resource["id"])
        assert resource["transitioning"] == "no", resource
        return resource

    def _collection(self, kind: str) -> str:
        return str(self.schemas[kind]["links"]["collection"])

    def _ask(self, method: str, url: str, fields: object = None, *, wanted: int | None = None) -> Any:
        headers = {"Authorization": basic(self._key)}
        if fields is not None:
            headers["Content-Type"] = "application/json"
        parts = urlsplit(url)
        begun_s = time.monotonic()
        self._connection.request(method, f"{parts.path or '/'}?{parts.query}", _json(fields), headers)
        response = self._connection.getresponse()
        body = json.loads(response.read())
        assert time.monotonic() - begun_s < TIMEOUT_S
        if (response.status != wanted) if wanted else response.status >= 300:
            raise Refused(response.status, body)
        return response.headers, body


def decode(shape: Shape, value: Any, where: str = "") -> Any:
    """Check a value as Go decodes it, and return it. Raises AssertionError where Go has an UnmarshalTypeError."""
    if value is None or shape is object:
        return value
    if isinstance(shape, list):
        assert isinstance(value, list), f"{where} is no list: {value!r}"
        for each in value:
            decode(shape[0], each, where)
    elif isinstance(shape, dict):
        assert isinstance(value, dict), f"{where} is no object: {value!r}"
        fields = {str(name).lower(): inner for name, inner in shape.items()}
        for name, each in value.items():
            inner = shape[str] if str in shape else fields.get(name.lower(), object)
            decode(inner, each, f"{where}.{name}")
    else:
        assert type(value) is shape, f"{where} is no {shape.__name__}: {value!r}"
    return value


def _json(fields: object) -> bytes | None:
    return None if fields is None else json.dumps(fields).encode()
