"""What keeps other web pages from using the browser of somebody who is logged in here.

A browser sends the key with every request, whichever page made it. So, of browsers only (their `User-Agent` contains
"mozilla"), a request must show that no other site is behind it:

- `Origin` must name the host that is asked. Browsers send it with every change; a page on another site cannot forge it.
- `Sec-Fetch-Site` must not name another site, unless a link is followed.
- The cookie `CSRF`, which only our own pages can read, must come back with a change, as the header `X-API-CSRF` or the
  parameter `CSRF` (rancher-api 1.2). It is set where it is missing, and a change without it is let through as it was in
  Rancher: scripts call themselves Mozilla too, and `Origin` has spoken.
- On a loopback address `Host` must be a loopback name: a name of the attacker's that leads to 127.0.0.1 is none.
"""

import hmac
import ipaddress
import os
import secrets
from contextvars import ContextVar
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qs, urlsplit

from aiohttp import web

from voldriverd.api.rancher.problems import Problem

COOKIE: Final = "CSRF"
HEADER: Final = "X-API-CSRF"
_TOKEN_BYTES: Final = 5
"""10 hex digits, as Rancher."""
_PORTS: Final = {"http": 80, "https": 443}
_new_token: Final[ContextVar[str]] = ContextVar("new_token")


def is_browser(request: web.BaseRequest) -> bool:
    """Tell browsers from other clients as Rancher does."""
    return "mozilla" in request.headers.get("User-Agent", "").lower()


def check_origin(request: web.BaseRequest, *, is_change: bool, is_loopback: bool) -> None:
    """Refuse what another site is behind. Raises Problem (403)."""
    host = _authority(f"//{request.headers.get('Host', '')}")
    if is_loopback and not _is_loopback(host[0]):
        raise _forbidden(request, "the Host header names another host than this one")
    origin = request.headers.get("Origin")
    if is_change and origin is not None and (_authority(origin) != host or not host[0]):
        raise _forbidden(request, "a page of another origin asks for it")
    is_foreign = request.headers.get("Sec-Fetch-Site", "none") not in {"same-origin", "none"}
    if is_foreign and (is_change or request.headers.get("Sec-Fetch-Mode") != "navigate"):
        raise _forbidden(request, "a page of another site asks for it")


async def check_token(request: web.BaseRequest) -> None:
    """Refuse a change that does not repeat the cookie, if there is one. Raises Problem (403). Needs the body read."""
    cookie = request.cookies.get(COOKIE)
    if not cookie:
        return
    given = request.headers.get(HEADER) or request.query.get(COOKIE) or _form_token(await request.read())
    if not hmac.compare_digest(os.fsencode(given), os.fsencode(cookie)):  # aiohttp decodes headers as os.fsdecode does
        message = f"cannot {request.method} {request.path[:200]}: {HEADER} is not what the cookie {COOKIE} is"
        raise Problem(HTTPStatus.FORBIDDEN, message, code="InvalidCSRFToken")


def token(request: web.BaseRequest) -> str:
    """Return what a form on the page that answers this request must send as `CSRF`."""
    found = request.cookies.get(COOKIE) or _new_token.get("")
    if not found:
        found = secrets.token_hex(_TOKEN_BYTES)
        _new_token.set(found)
    return found


def hand_token(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Set the cookie where it is missing; scripts of our pages read it, so it is not HttpOnly."""
    if not request.cookies.get(COOKIE) and not response.prepared:
        response.set_cookie(COOKIE, token(request), path="/", samesite="Lax", secure=request.scheme == "https")


def _authority(url: str) -> tuple[str, int | None]:
    """Return name and port of a URL, no port for the usual ones: a proxy before us may have ended TLS."""
    try:
        parts = urlsplit(url)
        name, port = parts.hostname or "", parts.port
    except ValueError:
        return "", None
    return name, None if port in _PORTS.values() else port


def _is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _form_token(body: bytes) -> str:
    if body.lstrip().startswith(b"{"):
        return ""
    try:
        return parse_qs(body.decode(), max_num_fields=1_000).get(COOKIE, [""])[-1]
    except ValueError:
        return ""


def _forbidden(request: web.BaseRequest, cause: str) -> Problem:
    return Problem(HTTPStatus.FORBIDDEN, f"cannot {request.method} {request.path[:200]}: {cause}")
