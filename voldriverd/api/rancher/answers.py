"""How an answer is sent: as JSON, with the URL of the schemas, an ETag, and compressed where that pays.

Also under which address the client knows us, which all links begin with. A proxy says it by `X-Forwarded-Proto`,
`-Host` and `-Port`; these are believed only where everybody who may connect is trusted as much as a proxy is: on the
unix socket, and from this host's own addresses. From elsewhere anybody could send them, and `Host` alone counts.
"""

import asyncio
import gzip
import ipaddress
import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

VERSION: Final = "v1"
READING: Final = frozenset({"GET", "HEAD"})

GZIP_MIN_BYTES: Final = 16 << 10
"""From here on compressing (10 ms a MB at level 1, to a tenth) takes less time than a network of 100 Mbit/s saves."""
GZIP_THREAD_BYTES: Final = 256 << 10
"""From here on it is done beside the event loop."""
WRITTEN_MAX: Final = 1_024
"""Of how many resources the last answer is kept: some 6 MB, and 8 of 100 µs of a GET."""
WRITTEN_MAX_BYTES: Final = 8 << 10
"""What is longer (labels without end, what was included) is not kept."""
_HASH_MASK: Final = (1 << 64) - 1
_HOST: Final = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}", re.ASCII)
_NAME: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)", re.ASCII)
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)
_ENCODER: Final = json.JSONEncoder(default=dict, check_circular=False, separators=(",", ":"))
_USUAL_PORTS: Final = {"http": "80", "https": "443"}


def base(request: web.BaseRequest) -> str:
    """Return the absolute URL of the version, by the name that the client has for us."""
    scheme, host = request.scheme, request.headers.get("Host", "")
    if "X-Forwarded-Proto" in request.headers or "X-Forwarded-Host" in request.headers:
        scheme, host = _forwarded(request, scheme, host)
    return f"{scheme}://{host if _HOST.fullmatch(host) else 'localhost'}/{VERSION}"


def schemas_url(base: str) -> str:
    """Return the URL of the schemas, which every answer names."""
    return f"{base}/schemas"


def respond(
    base: str,
    status: HTTPStatus,
    shown: Mapping[str, Any],
    others: Mapping[str, str] | None = None,
    *,
    written: bytes | None = None,
) -> web.Response:
    """Return a resource or a collection as an answer, with other headers if there are any; `written` is its JSON."""
    headers = {"Content-Type": "application/json; charset=utf-8", "X-API-Schemas": schemas_url(base), **(others or {})}
    return web.Response(status=status, body=written or write(shown), headers=headers)


def write(shown: Mapping[str, Any]) -> bytes:
    """Write an answer as JSON."""
    return _ENCODER.encode(shown).encode()


def write_list(shown: Mapping[str, Any]) -> bytes:
    """Write a collection as JSON, for a thread: one row at a time, for the encoder keeps the GIL to its end."""
    head = _ENCODER.encode({key: value for key, value in shown.items() if key != "data"})
    rows = ",".join(map(_ENCODER.encode, shown["data"]))
    return f'{head[:-1]},"data":[{rows}]}}'.encode()


class Written:
    """The answers of single resources that were written last: what is the same again is not written again."""

    def __init__(self) -> None:
        """Know nothing."""
        self._known: OrderedDict[str, tuple[Mapping[str, Any], bytes]] = OrderedDict()

    def write(self, shown: Mapping[str, Any]) -> bytes:
        """Write a resource as JSON."""
        url = shown["links"]["self"]
        known = self._known.get(url)
        if known is not None and known[0] == shown:
            return known[1]
        body = write(shown)
        self._known.pop(url, None)
        if len(body) <= WRITTEN_MAX_BYTES:
            self._known[url] = shown, body
        if len(self._known) > WRITTEN_MAX:
            self._known.popitem(last=False)
        return body


async def polish(request: web.BaseRequest, response: web.Response) -> web.Response:
    """Give what was read its ETag, say 304 to who has it, and compress what is long for who can read that."""
    client_ip = _client_ip(request)
    if client_ip is not None:
        response.headers["X-API-Client-IP"] = client_ip
    if request.method not in READING or response.status != HTTPStatus.OK or not isinstance(response.body, bytes):
        return response
    tag = f'W/"{hash(response.body) & _HASH_MASK:x}"'  # SipHash, kept with the bytes; another one in each process
    wanted = request.headers.get("If-None-Match")
    if wanted is not None and _is_named(tag, wanted):
        headers = {"ETag": tag, "X-API-Schemas": response.headers["X-API-Schemas"], "Vary": "Accept-Encoding"}
        return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
    response.headers["ETag"] = tag
    if len(response.body) >= GZIP_MIN_BYTES:
        response.headers["Vary"] = "Accept-Encoding"
        if _reads_gzip(request.headers.get("Accept-Encoding", "")):
            await _compress(response, response.body)
    return response


async def _compress(response: web.Response, body: bytes) -> None:
    if len(body) < GZIP_THREAD_BYTES:
        response.body = gzip.compress(body, 1)
    else:
        response.body = await asyncio.to_thread(gzip.compress, body, 1)
    response.headers["Content-Encoding"] = "gzip"


def _is_named(tag: str, wanted: str) -> bool:
    """Compare as If-None-Match does: weakly, any of a list (RFC 9110, 13.1.2)."""
    found = {each.strip().removeprefix("W/") for each in wanted.split(",")}
    return "*" in found or tag.removeprefix("W/") in found


def _reads_gzip(accepted: str) -> bool:
    """Tell whether gzip is accepted, and not with the weight 0 (RFC 9110, 12.5.3)."""
    for each in accepted.lower().split(","):
        coding, _, weight = each.partition(";")
        if coding.strip() in {"gzip", "x-gzip"}:
            return re.fullmatch(r"\s*q=0(\.0*)?\s*", weight) is None
    return False


def _is_trusted(request: web.BaseRequest) -> bool:
    """Tell whether the other end is on this host: a unix socket or a loopback address."""
    peer = None if request.transport is None else request.transport.get_extra_info("peername")
    if not isinstance(peer, tuple):
        return True
    ip = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    return ip.is_loopback or (isinstance(ip, ipaddress.IPv6Address) and _is_mapped_loopback(ip))


def _is_mapped_loopback(ip: ipaddress.IPv6Address) -> bool:
    return ip.ipv4_mapped is not None and ip.ipv4_mapped.is_loopback


def _forwarded(request: web.BaseRequest, scheme: str, host: str) -> tuple[str, str]:
    """Return scheme and host as the first of the proxies had them; what is malformed is as if it were not there."""
    if not _is_trusted(request):
        return scheme, host
    wanted, name, port = (_first(request, f"X-Forwarded-{each}") for each in ("Proto", "Host", "Port"))
    scheme = wanted.lower() if wanted.lower() in _USUAL_PORTS else scheme
    host = name if name and _HOST.fullmatch(name) else host
    found = _NAME.match(host)
    if found is None:
        return scheme, host
    port = port if _PORT.fullmatch(port) else host[found.end() :].removeprefix(":")
    return scheme, found[0] if port in {"", _USUAL_PORTS[scheme]} else f"{found[0]}:{port}"


def _client_ip(request: web.BaseRequest) -> str | None:
    """Return the address, without a port, that a proxy says the client has."""
    given = _first(request, "X-Forwarded-For")
    if not given or not _is_trusted(request):
        return None
    bare = given[1:].partition("]")[0] if given.startswith("[") else given
    bare = bare.partition(":")[0] if bare.count(":") == 1 else bare
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        return None


def _first(request: web.BaseRequest, header: str) -> str:
    return request.headers.get(header, "").partition(",")[0].strip()
