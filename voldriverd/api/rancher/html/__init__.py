"""The API in a browser: the same answers as pages, with links to follow and forms for what can be done.

A browser is known as in Rancher (rancher-api 1.1): its `Accept` has `*/*` and its `User-Agent` has "mozilla";
`_format=html` or `_format=json` in the query decides for anybody. Pages are made from the answer and its schema alone.
They need no script and load nothing, and the Content-Security-Policy holds them to that: what is in a volume's name or
label can do no more than be read. A form is a POST to the URL that a client would use, with `_method` where that is no
POST, and the token of `api.auth.browsers`; a change that has succeeded leads back to the page of what it was made to.
"""

import asyncio
import hashlib
import json
from base64 import b64encode
from collections.abc import Iterator
from html import escape
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

from aiohttp import web

from voldriverd.api.rancher import schemas
from voldriverd.api.rancher.answers import READING
from voldriverd.api.rancher.html import data, forms
from voldriverd.api.rancher.html.style import STYLE

FORMAT: Final = "_format"
REFRESH_S: Final = 2
"""How often the page of what is still being made is loaded again."""
THREAD_BYTES: Final = 128 << 10
"""From here on a page is made beside the event loop: that takes some 50 ms a MB."""
_CSP: Final = "; ".join(
    [
        "default-src 'none'",
        f"style-src 'sha256-{b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'",
        "img-src data:",  # the empty icon, in place of one that the browser would ask for
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)
_HEADERS: Final = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": _CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with less, browsers would not say the Origin of a form either
    "Cache-Control": "private, no-cache",
}


def is_wanted(request: web.BaseRequest) -> bool:
    """Tell whether an answer is to be a page."""
    forced = request.query.get(FORMAT, "").lower()
    if forced in {"html", "json"}:
        return forced == "html"
    return "*/*" in request.headers.get("Accept", "") and "mozilla" in request.headers.get("User-Agent", "").lower()


async def turn(request: web.BaseRequest, response: web.Response, *, base: str, token: str) -> None:
    """Turn an answer in JSON into a page; `base` is the URL of the version, `token` what forms send as `CSRF`.

    What is no resource (the OpenAPI document) stays as it is.
    """
    assert isinstance(response.body, bytes), "an answer in JSON has its bytes"
    answer = json.loads(response.body)
    if "links" not in answer:
        return
    if request.method not in READING and response.status < HTTPStatus.BAD_REQUEST and not _is_shown_once(answer):
        response.set_status(HTTPStatus.SEE_OTHER)
        response.headers["Location"] = answer["links"]["self"]
    if len(response.body) < THREAD_BYTES:
        text = _text(answer, base, token, request)
    else:
        text = await asyncio.to_thread(_text, answer, base, token, request)
    response.body = text.encode(errors="backslashreplace")
    response.headers.update(_HEADERS)


def _is_shown_once(answer: dict[str, Any]) -> bool:
    """Tell whether an answer has what no later one will have: the secret of an API key."""
    schema = schemas.ALL[answer["type"]]
    return any(answer.get(name) is not None for name, field in schema.fields.items() if field.is_shown_once)


def _text(answer: dict[str, Any], base: str, token: str, request: web.BaseRequest) -> str:
    title = escape(_title(answer))
    plain = str(request.rel_url.update_query({FORMAT: "json"}))
    return "".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
            f"<title>{title} - voldriverd</title>\n",
            '<meta name="viewport" content="width=device-width">\n<link rel="icon" href="data:,">\n',
            _refresh(answer),
            f"<style>{STYLE}</style>\n</head>\n<body>\n",
            f'<nav>{" / ".join(_crumbs(request.path))} <a href="{escape(plain)}">JSON</a></nav>\n',
            f"<h1>{title}</h1>\n",
            "".join(f'<p class="note">{escape(note)}</p>\n' for note in _notes(answer)),
            *forms.of(answer, base, token),
            f'<pre id="data">{data.readable(answer, base)}</pre>\n',
            f'<script type="application/json" id="answer">{data.embedded(answer)}</script>\n',
            "</body>\n</html>\n",
        ]
    )


def _refresh(answer: dict[str, Any]) -> str:
    if answer.get("transitioning") != "yes":
        return ""
    return f'<meta http-equiv="refresh" content="{REFRESH_S}; url={escape(answer["links"]["self"])}">\n'


def _title(answer: dict[str, Any]) -> str:
    if answer["type"] == "collection":
        return schemas.ALL[answer["resourceType"]].plural
    if answer["type"] == "error":
        return f"{answer['status']} {answer['code']}"
    return f"{answer['type']} {answer.get('name') or answer['id']}"


def _notes(answer: dict[str, Any]) -> Iterator[str]:
    """Yield what is to be seen first: why it was refused, what goes on, or what has failed."""
    texts = (answer.get("message") if answer["type"] == "error" else None, answer.get("transitioningMessage"))
    return (text for text in texts if text)


def _crumbs(path: str) -> Iterator[str]:
    """Yield the links to what is above a page."""
    parts = [part for part in path.split("/") if part]
    yield '<a href="/">voldriverd</a>'
    for count, part in enumerate(parts, 1):
        url = "/".join(quote(each, safe="") for each in parts[:count])
        yield f'<a href="/{url}">{escape(part)}</a>'
