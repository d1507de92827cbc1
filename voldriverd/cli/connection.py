"""One HTTP connection to a daemon, over its unix socket or TCP, and what its answers mean.

Errors of the API are resources of type `error`; each becomes one of our kinds by its code.
"""

import http.client
import json
import os
import socket
import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import quote, urlencode, urlsplit

from voldriverd.cli import sending
from voldriverd.errors import Error, Exists, InUse, Invalid, NotFound, Unusable

DEFAULT_SOCKET: Final = Path("/run/voldriver/api.sock")
TIMEOUT_S: Final = 150.0
"""A mount may wait 100 s for a busy volume; every other answer is a matter of seconds."""
UPLOAD_TIMEOUT_S: Final = 3_600.0
"""What is sent may have to wait for others, and is on the disk when it is answered."""
READ_TIMEOUT_S: Final = 3_600.0
"""How long it may be until the next byte of what is read: a driver that cannot snapshot at once copies a volume before
it is compared or exported, a backup of an image is unpacked aside before a file of it is there, and two trees of
millions of files may differ in the last."""
_PAGE: Final = 1_000
_OTHERWISE_WRONG: Final = frozenset({9, 10, 62, 64})
"""Wrong whoever is trusted: not valid yet, expired, another host or address (X509_V_ERR_*, openssl/x509_vfy.h)."""
_PIECE_BYTES: Final = 64 << 10
_KINDS: Final[Mapping[str, type[Error]]] = {
    "NotFound": NotFound,
    "NotUnique": Exists,
    "Conflict": InUse,
    "MethodNotAllowed": InUse,
    "ActionNotAvailable": InUse,
    "ServiceUnavailable": Unusable,
    "InternalServerError": Unusable,
}
"""By the code of an error resource; any other says that the request is wrong."""


class Resource(dict[str, Any]):
    """What a daemon answers, and each object in it. A field that it lacks raises Unusable, not KeyError."""

    def __missing__(self, name: str) -> NoReturn:
        what = self.get("type", "resource")
        raise Unusable(f"cannot understand the daemon's answer: no {name} in a {what}; is it of another version?")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a daemon is: a socket, or a URL with keys."""

    socket: Path = DEFAULT_SOCKET
    url: str | None = None
    """With or without /v1 at its end; None: the socket."""
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    ca_cert: Path | None = None
    """Who may have signed the certificate of an https URL; None: whom this host trusts."""

    def __str__(self) -> str:
        return self.url or str(self.socket)

    @property
    def is_plain(self) -> bool:
        """Whether it is reached over TCP without TLS."""
        return self.url is not None and self.url.lower().startswith("http:")


def place_of(
    *, socket: Path | None, url: str | None, access_key: str | None, secret_key: str | None, ca_cert: Path | None = None
) -> Place:
    """Return where the daemon is: what is given, else VOLDRIVER_SOCKET, a URL of the environment, the usual socket."""
    found = os.environ.get("VOLDRIVER_SOCKET")
    if socket is None and url is None:
        socket, url = (Path(found), None) if found else (None, _environment("URL"))
    if url is None:
        return Place(socket or DEFAULT_SOCKET)
    trusted = _environment("CA_CERT")
    return Place(
        url=url,
        access_key=access_key or _environment("ACCESS_KEY"),
        secret_key=secret_key or _environment("SECRET_KEY"),
        ca_cert=ca_cert or (Path(trusted) if trusted else None),
    )


class Connection:
    """Speaks to one daemon, a request at a time; connects at the first."""

    def __init__(self, place: Place, *, timeout_s: float = TIMEOUT_S) -> None:
        """Check the URL; nothing is connected yet. Raises Invalid."""
        self._place = place
        self._base = "/v1"
        self._headers = {"Accept": "application/json"}
        self._http: http.client.HTTPConnection = _Unix(place.socket, timeout_s)
        if place.url is not None:
            self._http, self._base = _tcp(place.url, timeout_s, place.ca_cert)
        if place.access_key is not None:
            self._headers["Authorization"] = _basic(place.access_key, place.secret_key or "")

    @property
    def place(self) -> Place:
        """Where it connects to."""
        return self._place

    def close(self) -> None:
        """Close it; a later request connects again."""
        self._http.close()

    def get(self, path: str) -> Resource:
        """Return a resource or a collection; a path such as `volumes/1v5`. Raises the kinds of the API's errors."""
        return self._call("GET", path)

    def post(self, path: str, fields: Mapping[str, Any] | None = None) -> Resource:
        """Create, or run an action (`volumes/1v5?action=remove`)."""
        return self._call("POST", path, fields or {})

    def put(self, path: str, fields: Mapping[str, Any]) -> Resource:
        """Change fields."""
        return self._call("PUT", path, fields)

    def delete(self, path: str) -> Resource:
        """Remove."""
        return self._call("DELETE", path)

    def list(self, path: str, **filters: str) -> list[Resource]:
        """Return all resources of a list that meet the filters, page by page."""
        found: list[Resource] = []
        query = {**filters, "limit": str(_PAGE)}
        while True:
            page = self.get(f"{path}?{urlencode(query)}")
            found += page["data"]
            if page["pagination"]["next"] is None:
                return found
            query["marker"] = f"m{len(found)}"

    @contextmanager
    def stream(
        self, where: str, *, headers: Mapping[str, str] | None = None, timeout_s: float | None = None, **query: str
    ) -> Iterator["Streamed"]:
        """Give a long answer to read; it may be `timeout_s` seconds until it begins."""
        if timeout_s is not None:
            self.close()
            self._http.timeout = timeout_s
        text = urlencode(query, errors="surrogateescape")
        response = self._send("GET", f"{where}?{text}" if text else where, headers=headers)
        try:
            if response.headers.get_content_type() == "application/json":
                self._parse(response)
            yield Streamed(response, f"voldriverd at {self._place}")
        finally:
            self.close()

    def upload(
        self, path: str, pieces: Iterable[bytes], *, content_type: str, size_bytes: int | None, query: Mapping[str, str]
    ) -> Resource:
        """Send a body while it is read; `size_bytes` None: nobody knows how long it is. May take UPLOAD_TIMEOUT_S."""
        headers = {**self._headers, "Content-Type": content_type}
        headers |= {"Transfer-Encoding": "chunked"} if size_bytes is None else {"Content-Length": str(size_bytes)}
        with self._told():
            self._http.timeout = UPLOAD_TIMEOUT_S
            self._http.connect()
            self._http.putrequest("POST", f"{self._base}/{path}?{urlencode(query, errors='surrogateescape')}")
            for name, value in headers.items():
                self._http.putheader(name, value)
            self._http.endheaders()
            begun = b""
            with suppress(BrokenPipeError, ConnectionResetError):  # it has answered before the end, and says why
                begun = sending.send(self._http, pieces, is_chunked=size_bytes is None)
            response = sending.answer(self._http, begun)
        try:
            return self._parse(response)
        finally:
            self.close()

    def _call(self, method: str, path: str, fields: Mapping[str, Any] | None = None) -> Resource:
        return self._parse(self._send(method, path, fields))

    def _send(
        self,
        method: str,
        path: str,
        fields: Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> http.client.HTTPResponse:
        content = None if fields is None else json.dumps(fields).encode()
        own = {} if fields is None else {"Content-Type": "application/json"}
        with self._told():
            self._http.request(method, f"{self._base}/{path}", content, {**self._headers, **own, **(headers or {})})
            return self._http.getresponse()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Tell what goes wrong between us and the daemon. Raises Unusable."""
        try:
            yield
        except TimeoutError as err:
            self.close()
            raise Unusable(f"cannot wait any longer for voldriverd at {self._place}: it does not answer") from err
        except (http.client.HTTPException, OSError) as err:
            self.close()
            raise Unusable(f"cannot reach voldriverd at {self._place}: {self._cause(err)}") from err

    def _parse(self, response: http.client.HTTPResponse) -> Resource:
        try:
            found = json.loads(response.read(), object_hook=Resource)
        except (ValueError, http.client.HTTPException, OSError) as err:
            raise Unusable(f"cannot understand {self._place}: its answer is not JSON; is it voldriverd?") from err
        if not isinstance(found, Resource):
            raise Unusable(f"cannot understand {self._place}: its answer is no resource; is it voldriverd?")
        if found.get("type") == "error":
            kind = _KINDS.get(str(found.get("code")), Invalid)
            raise kind(str(found.get("message") or found.get("code")))
        return found

    def _cause(self, err: Exception) -> str:
        if self._place.url is None and isinstance(err, FileNotFoundError | ConnectionRefusedError):
            return "it does not run; start it with `systemctl start voldriverd`, or run `voldriverd` as root"
        if self._place.url is None and isinstance(err, PermissionError):
            return "permission denied; be root or a member of the group that the socket belongs to"
        if isinstance(err, ssl.SSLCertVerificationError):
            is_untrusted = err.verify_code not in _OTHERWISE_WRONG
            hint = "; --ca-cert or VOLDRIVER_CA_CERT names the file of whom to trust" if is_untrusted else ""
            return f"{err.verify_message.rstrip('.')}{hint}"
        if isinstance(err, ssl.SSLError):
            return f"{err.reason or err}; if it does not speak TLS there, its url begins with http://"
        if isinstance(err, ConnectionResetError) and self._place.is_plain:
            return "it closed the connection without an answer; if it speaks TLS there, its url begins with https://"
        return str(err) or type(err).__name__


class Streamed:
    """A long answer while it comes. Raises Unusable if it is cut short."""

    def __init__(self, response: http.client.HTTPResponse, source: str) -> None:
        """Read from a response; `source` names the other end in errors."""
        self._response = response
        self._source = source

    def read(self, size: int) -> bytes:
        """Return at least one byte and at most so many, none at the end."""
        try:
            return self._response.read1(size)
        except (http.client.HTTPException, OSError) as err:
            raise Unusable(f"cannot read from {self._source}: the answer was cut short; its log says why") from err

    def lines(self) -> Iterator[bytes]:
        """Yield one line after the other."""
        begun = b""
        while piece := self.read(_PIECE_BYTES):
            *lines, begun = (begun + piece).split(b"\n")
            yield from lines
        if begun:
            yield begun


class _Unix(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(self.timeout)
            self.sock.connect(str(self._path))
        except OSError:
            self.sock.close()
            raise


def unix(path: Path, timeout_s: float) -> http.client.HTTPConnection:
    """Return a connection to a socket that speaks HTTP; it connects at the first request."""
    return _Unix(path, timeout_s)


def _environment(name: str) -> str | None:
    """Return a variable of ours, or Rancher's; an empty one is none."""
    return os.environ.get(f"VOLDRIVER_{name}") or os.environ.get(f"CATTLE_{name}") or None


def resource_path(*parts: str) -> str:
    """Return a path below the version, each part quoted."""
    return "/".join(quote(part, safe="") for part in parts)


def _tcp(url: str, timeout_s: float, ca_cert: Path | None) -> tuple[http.client.HTTPConnection, str]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as err:
        raise Invalid(f"cannot use url {url!r}: {err}", field="url") from err
    if parts.username is not None:
        raise Invalid("cannot use a url with a key in it: give --access-key, or VOLDRIVER_ACCESS_KEY", field="url")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise Invalid(f"cannot use url {url!r}: it is written as in http://127.0.0.1:9580", field="url")
    prefix = parts.path.rstrip("/")
    base = prefix if prefix.endswith("/v1") else f"{prefix}/v1"
    if parts.scheme == "http":
        return http.client.HTTPConnection(parts.hostname, port, timeout=timeout_s), base
    return http.client.HTTPSConnection(parts.hostname, port, timeout=timeout_s, context=_trusting(ca_cert)), base


def _trusting(ca_cert: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_cert)
    except OSError as err:
        cause = "it holds no certificate in PEM form" if isinstance(err, ssl.SSLError) else err.strerror
        raise Invalid(f"cannot use ca-cert {str(ca_cert)!r}: {cause}", field="ca-cert") from err


def _basic(access_key: str, secret_key: str) -> str:
    from base64 import b64encode  # noqa: PLC0415 - over the socket nobody needs it

    return "Basic " + b64encode(f"{access_key}:{secret_key}".encode()).decode()
