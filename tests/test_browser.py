"""The API in a browser: who gets pages, what is on them, and what Chromium does with them."""

import base64
import hashlib
import html
import http.client
import json
import re
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlencode

import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from tests import doors
from tests.browser import Browser, Element
from tests.running import SMALL, Answer, Running
from voldriverd.api.rancher import html as pages
from voldriverd.api.rancher import schemas
from voldriverd.api.rancher.html import data, forms, style
from voldriverd.api.rancher.schema import Schema

pytestmark = pytest.mark.root

MOZILLA: Final = "Mozilla/5.0 (X11; Linux x86_64)"
ACCEPT: Final = "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"
EVIL: Final = "</script></pre><img src=x onerror=alert(1)>\"'&<!--"


class Site:
    """One daemon, with the address and a key of its API on TCP."""

    def __init__(self, daemon: Running, port: int) -> None:
        self.daemon = daemon
        self.base = f"http://127.0.0.1:{port}"
        self.port = port
        self.key = doors.make_key(daemon, name="browser")

    @property
    def url(self) -> str:
        """The address with the key in it, as one may type it."""
        return self.base.replace("//", f"//{self.key[0]}:{self.key[1]}@")

    def page(self, path: str, method: str = "GET", body: object = None, **headers: str) -> Answer:
        """Ask as a browser does; a body is a form."""
        form = {"Content-Type": "application/x-www-form-urlencoded"} if body is not None else {}
        given = {"Accept": ACCEPT, "User-Agent": MOZILLA, **form, **headers}
        content = None if body is None else urlencode(body).encode()  # type: ignore[arg-type]
        answer = self.daemon.api(method, path, content, headers=given)
        text = answer.body.decode() if isinstance(answer.body, bytes) else answer.body
        return Answer(answer.status, answer.headers, text)

    def create(self, name: str, **fields: object) -> dict[str, Any]:
        made = self.daemon.api("POST", "/v1/volumes", {"name": name, "driver": "btrfs", **fields})
        assert made.status == 201, made.body
        return dict(made.body)

    def volume(self, name: str) -> dict[str, Any]:
        (found,) = self.daemon.api("GET", f"/v1/volumes?name={name}").body["data"]
        return dict(found)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    port = doors.free_port()
    with Running(tmp_path_factory.mktemp("site"), config=SMALL + doors.listening(port)) as daemon:
        yield Site(daemon, port)


def embedded(page: str) -> Any:
    """Return the answer that a page has for scripts."""
    found = re.search(r'<script type="application/json" id="answer">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def seen(page: str) -> Any:
    """Return the JSON that a page shows."""
    found = re.search(r'<pre id="data">(.*?)</pre>', page, re.DOTALL)
    assert found is not None
    return json.loads(html.unescape(re.sub(r"<[^>]*>", "", found[1])))


# Who gets a page.


@pytest.mark.parametrize(
    ("path", "headers", "is_page"),
    [
        ("/v1", {"Accept": ACCEPT, "User-Agent": MOZILLA}, True),
        ("/v1", {"Accept": "*/*", "User-Agent": "mozilla"}, True),
        ("/v1", {"Accept": "text/html", "User-Agent": MOZILLA}, False),
        ("/v1", {"Accept": "*/*", "User-Agent": "curl/8"}, False),
        ("/v1", {"User-Agent": MOZILLA}, False),
        ("/v1", {}, False),
        ("/v1?_format=html", {}, True),
        ("/v1?_format=HTML", {"Accept": "application/json"}, True),
        ("/v1?_format=json", {"Accept": ACCEPT, "User-Agent": MOZILLA}, False),
        ("/v1?_format=xml", {"Accept": ACCEPT, "User-Agent": MOZILLA}, True),
    ],
)
def test_a_browser_gets_a_page_and_format_decides_for_anybody(
    site: Site, path: str, headers: dict[str, str], *, is_page: bool
) -> None:
    answer = site.daemon.api("GET", path, headers=headers)
    kind = "text/html; charset=utf-8" if is_page else "application/json; charset=utf-8"
    assert (answer.status, answer.headers["Content-Type"]) == (200, kind)


def paths() -> list[str]:
    """Return a path of every sort: roots, lists, schemas, and what there is not."""
    lists = [f"/v1/{schema.plural.lower()}" for schema in schemas.ALL.values() if schema.is_listable]
    return ["/", "/v1", *lists, *(f"/v1/schemas/{name}" for name in schemas.ALL)]


def test_every_answer_is_a_page_that_has_all_of_it(site: Site) -> None:
    site.create("whole", labels={"a": "b"})
    found = [each["links"]["self"] for each in site.daemon.api("GET", "/v1/volumes").body["data"]]
    for path in [*paths(), *(url.removeprefix("http://localhost") for url in found)]:
        page, answer = site.page(path), site.daemon.api("GET", path)
        assert page.status == 200, path
        for each in (embedded(page.body), seen(page.body)):
            assert each.keys() == answer.body.keys(), path
            assert each.get("links") == answer.body.get("links"), path


@pytest.mark.parametrize(("path", "status"), [("/v1/nothing", 404), ("/v1/volumes/1v99", 404), ("/v2", 404)])
def test_an_error_is_a_page_that_says_why(site: Site, path: str, status: int) -> None:
    page = site.page(path)
    message = site.daemon.api("GET", path).body["message"]
    assert page.status == status
    assert f'<p class="note">{html.escape(message)}</p>' in page.body
    assert page.headers["X-API-Schemas"].endswith("/v1/schemas")


def test_who_has_no_key_gets_a_page_and_is_asked_for_one(site: Site) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", site.port)
    connection.request("GET", "/v1", headers={"Accept": ACCEPT, "User-Agent": MOZILLA})
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    assert (response.status, response.headers["Content-Type"]) == (401, "text/html; charset=utf-8")
    assert response.headers["WWW-Authenticate"].startswith("Basic realm=")
    assert embedded(text)["code"] == "Unauthorized"


def test_a_page_forbids_scripts_and_everything_from_outside(site: Site) -> None:
    page = site.page("/v1/volumes")
    rules = dict(rule.split(" ", 1) for rule in page.headers["Content-Security-Policy"].split("; "))
    found = re.findall(r"<style>(.*?)</style>", page.body, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(found[0].encode()).digest()).decode()
    assert rules == {
        "default-src": "'none'",
        "style-src": f"'sha256-{digest}'",
        "img-src": "data:",
        "form-action": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    assert found == [style.STYLE]
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert not re.search(r'\s(src|style|on\w+)=|<script(?! type="application/json")', page.body)
    urls = re.findall(r'(?:href|action)="([^"]*)"', page.body)
    assert all(url.startswith(("/", "http://localhost/v1", "data:,")) for url in urls), urls


def test_what_is_in_an_answer_stays_text(site: Site) -> None:
    volume = site.create("evil", description=EVIL, labels={EVIL: EVIL})
    page = site.page(f"/v1/volumes/{volume['id']}").body
    assert (seen(page)["description"], embedded(page)["labels"]) == (EVIL, {EVIL: EVIL})
    assert "<img" not in page
    assert page.count("</script>") == page.count("</pre>") == 1
    embedded_text = page.partition('id="answer">')[2].partition("</script>")[0]
    assert not re.search(r"(?<!\\)/|<", embedded_text)
    assert "<img" not in site.page(f"/v1/volumes?name={EVIL}&{EVIL}={EVIL}".replace(" ", "%20")).body


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_what_is_seen_and_what_is_embedded_is_the_answer(answer: Any) -> None:
    page = f'<pre id="data">{data.readable(answer, "http://h/v1")}</pre>'
    page += f'<script type="application/json" id="answer">{data.embedded(answer)}</script>'
    assert seen(page) == answer
    assert embedded(page) == answer


def test_links_and_references_can_be_followed_and_actions_cannot() -> None:
    answer = {
        "type": "snapshot",
        "links": {"self": "http://h/v1/snapshots/1s1", "other": "http://h.evil/v1", "near": "http://h/v10"},
        "actions": {"remove": "http://h/v1/snapshots/1s1/?action=remove"},
        "volumeId": "1v7",
        "accountId": "1a1",
        "name": "http://h/v1",
        "description": None,
    }
    text = data.readable(answer, "http://h/v1")
    assert re.findall(r'href="([^"]*)"', text) == [
        "http://h/v1/snapshots/1s1",
        "http://h/v1/volumes/1v7",
        "http://h/v1",
    ]


# Forms, sent without a browser.


def token(site: Site, path: str) -> dict[str, str]:
    """Return what a form on a page sends, and the cookie that goes with it."""
    page = site.page(path)
    (hidden,) = set(re.findall(r'name="CSRF" value="([^"]*)"', page.body))
    assert page.headers["Set-Cookie"].startswith(f"CSRF={hidden};")
    return {"CSRF": hidden, "cookie": f"CSRF={hidden}"}


def test_a_form_creates_and_leads_to_the_page_of_what_it_made(site: Site) -> None:
    sent = token(site, "/v1/volumes")
    fields = {"name": "formed", "driver": "btrfs", "driverOpts": "", "labels": "a=b\r\nc=d=e\r\n", "protected": ""}
    page = site.page("/v1/volumes", "POST", {**fields, "CSRF": sent["CSRF"]}, Cookie=sent["cookie"])
    volume = site.volume("formed")
    assert (page.status, page.headers["Location"]) == (303, volume["links"]["self"])
    assert (volume["labels"], volume["protected"]) == ({"a": "b", "c": "d=e"}, False)
    line = doors.audited(site.daemon)[-1]
    assert (line["path"], line["id"], line["status"]) == ("/v1/volumes", volume["id"], "201")


def test_a_form_without_the_token_is_refused_with_a_page(site: Site) -> None:
    sent = token(site, "/v1/volumes")
    page = site.page("/v1/volumes", "POST", {"name": "forged", "driver": "btrfs"}, Cookie=sent["cookie"])
    assert (page.status, embedded(page.body)["code"]) == (403, "InvalidCSRFToken")


def test_an_update_empties_what_is_blank(site: Site) -> None:
    volume = site.create("emptied", description="long", labels={"a": "b"})
    sent = token(site, f"/v1/volumes/{volume['id']}")
    fields = {"description": "", "labels": "", "protected": "true", "CSRF": sent["CSRF"]}
    page = site.page(f"/v1/volumes/{volume['id']}?_method=PUT", "POST", fields, Cookie=sent["cookie"])
    assert page.status == 303
    found = site.volume("emptied")
    assert (found["description"] or "", found["labels"], found["protected"]) == ("", {}, True)


def test_a_secret_is_shown_on_the_page_that_answers(site: Site) -> None:
    sent = token(site, "/v1/apikeys")
    page = site.page("/v1/apikeys", "POST", {"name": "shown", "CSRF": sent["CSRF"]}, Cookie=sent["cookie"])
    assert page.status == 201
    assert len(seen(page.body)["secretValue"]) > 20
    assert page.body.count(seen(page.body)["secretValue"]) == 2


def test_a_client_that_is_no_browser_gets_the_answer_itself(site: Site) -> None:
    made = site.daemon.api("POST", "/v1/volumes?_format=json", {"name": "plain", "driver": "btrfs"})
    assert (made.status, made.body["name"]) == (201, "plain")


# Forms, made from schemas.


def made(answer: dict[str, Any]) -> str:
    return "".join(forms.of(answer, "http://h/v1", "t0ken"))


def names(text: str) -> list[str]:
    return [name for name in re.findall(r' name="([^"]*)"', text) if name != "CSRF"]


def resource(kind: str, **fields: object) -> dict[str, Any]:
    return {"type": kind, "id": "1x1", "links": {"self": "http://h/v1/xs/1x1"}, "actions": {}, **fields}


@pytest.mark.parametrize("schema", schemas.ALL.values(), ids=lambda schema: schema.id)
def test_a_list_has_a_form_for_what_can_be_created(schema: Schema) -> None:
    url = f"http://h/v1/{schema.plural.lower()}"
    text = made({"type": "collection", "resourceType": schema.id, "links": {"self": url}, "createDefaults": {}})
    wanted = {name for name, field in schema.fields.items() if field.create}
    is_creatable = "POST" in schema.collection_methods
    assert {name.partition(".")[0] for name in names(text)} == (wanted if is_creatable else set())
    assert text.count("<form") == is_creatable


def test_a_list_below_a_resource_has_a_form_only_if_one_can_create_there() -> None:
    answer = {"type": "collection", "resourceType": "snapshot", "links": {"self": "http://h/v1/volumes/1v1/snapshots"}}
    text = made({**answer, "createDefaults": {"volumeId": "1v1"}})
    assert 'name="volumeId" required placeholder="1v5" value="1v1"' in text
    assert made({**answer, "createDefaults": {}}) == ""


def test_a_resource_has_a_form_for_each_action_that_it_offers() -> None:
    url = "http://h/v1/xs/1x1/?action="
    text = made(resource("volume", actions={"resize": f"{url}resize", "remove": f"{url}remove"}, removed="2026"))
    assert re.findall(r'action="([^"]*)"', text) == [f"{url}resize", f"{url}remove"]
    assert names(text) == ["size"]
    assert text.count('name="CSRF" value="t0ken"') == 2


def test_an_update_begins_with_what_is_there_and_leaves_out_what_would_not_come_back() -> None:
    text = made(resource("volume", description='a "b"\nc', labels={"k": "1=2", "l": "ü"}, protected=True))
    assert 'action="http://h/v1/xs/1x1?_method=PUT"' in text
    assert ">\na &quot;b&quot;\nc</textarea>" in text
    assert ">\nk=1=2\nl=ü</textarea>" in text
    assert "<option>false" in text
    assert "<option selected>true" in text
    for labels in ({"k=": "v"}, {"k": "v\nw"}, {"k\r": "v"}):
        asked = names(made(resource("volume", labels=labels, protected=False)))
        assert asked == ["description", "labelChanges", "protected"]


def test_the_openapi_document_is_no_page(site: Site) -> None:
    assert site.page("/v1/openapi.json").body["openapi"] == "3.1.0"


def test_what_is_still_being_made_is_loaded_again(site: Site) -> None:
    volume = site.create("again")
    assert 'http-equiv="refresh"' not in site.page(f"/v1/volumes/{volume['id']}").body
    request = make_mocked_request("POST", "/v1/volumes/1v1/?action=resize")
    page = pages._text(resource("volume", name="a", transitioning="yes"), "http://h/v1", "t0ken", request)
    assert '<meta http-equiv="refresh" content="2; url=http://h/v1/xs/1x1">' in page


def test_a_page_leads_to_what_is_above_it_and_to_its_json(site: Site) -> None:
    page = site.page("/v1//Volumes?name=a%26b&limit=5")
    links = [
        html.unescape(url)
        for url in re.findall(r'href="([^"]*)"', page.body.partition("<nav>")[2].partition("<h1>")[0])
    ]
    assert links == ["/", "/v1", "/v1/Volumes", "/v1//Volumes?name=a%26b&limit=5&_format=json"]
    assert site.page(links[-1]).body["type"] == "collection"


def test_a_browser_is_not_led_to_ask_for_an_icon(site: Site) -> None:
    assert '<link rel="icon" href="data:,">' in site.page("/v1").body


# Chromium.


@pytest.fixture(scope="module")
def browser(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as browser:
        browser.go(f"{site.url}/v1")  # it keeps the key
        yield browser


@pytest.fixture
def quiet(site: Site, browser: Browser) -> Iterator[Browser]:
    """The browser, at the root; at the end it must have asked nobody else, and complained of nothing."""
    browser.go(f"{site.base}/v1")
    browser.requests()
    yield browser
    assert browser.console() == []
    asked = browser.requests()
    assert asked
    assert [url for url in asked if not url.startswith((f"{site.base}/", "data:"))] == []


def filled(browser: Browser, title: str, **fields: str) -> Element:
    """Open a form and fill it; returns its button."""
    details = next(each for each in browser.all("details") if each.all("summary")[0].text == title)
    details.all("summary")[0].click()
    for name, text in fields.items():
        details.all(f"[name={name}]")[0].fill(text)
    return details.all("button")[0]


def submit(browser: Browser, title: str, **fields: str) -> None:
    """Send a form, and wait for the page that it leads to."""
    filled(browser, title, **fields).follow()


def shown(browser: Browser) -> Any:
    """Return the answer that is seen."""
    return json.loads(browser.one("#data").text)


def test_links_lead_through_the_api(site: Site, quiet: Browser) -> None:
    site.create("linked")
    quiet.link(f'"{site.base}/v1/volumes"').follow()
    assert (quiet.url, shown(quiet)["resourceType"]) == (f"{site.base}/v1/volumes", "volume")
    quiet.link(f'"{site.volume("linked")["links"]["self"].replace("http://localhost", site.base)}"').follow()
    assert quiet.one("h1").text == "volume linked"
    quiet.link('"1sp1"').follow()
    assert shown(quiet)["type"] == "storagePool"
    quiet.link("v1").follow()
    assert quiet.url == f"{site.base}/v1"


def test_a_volume_is_made_changed_snapshotted_removed_and_brought_back(site: Site, quiet: Browser) -> None:
    quiet.link(f'"{site.base}/v1/volumes"').follow()
    submit(quiet, "create volume", name="life", driver="btrfs", labels="tier=db\nowner=me", description="ü & <b>")
    assert quiet.one("h1").text == "volume life"
    volume = site.volume("life")
    assert (volume["labels"], volume["description"]) == ({"tier": "db", "owner": "me"}, "ü & <b>")
    submit(quiet, "update", description="", labels="tier=web")
    assert (shown(quiet)["labels"], shown(quiet)["description"] or "") == ({"tier": "web"}, "")
    submit(quiet, "snapshot", name="one")
    assert (quiet.one("h1").text, shown(quiet)["volumeId"]) == ("snapshot one", volume["id"])
    quiet.link(f'"{volume["id"]}"').follow()
    submit(quiet, "remove")
    assert shown(quiet)["state"] == "removed"
    assert [each.text for each in quiet.all("summary")] == ["purge", "restore"]
    submit(quiet, "restore", name="life-2")
    assert (shown(quiet)["name"], shown(quiet)["state"]) == ("life-2", "inactive")


def test_a_refusal_is_seen_and_the_form_is_as_it_was_when_one_goes_back(site: Site, browser: Browser) -> None:
    browser.go(f"{site.base}/v1/volumes")
    submit(browser, "create volume", name="wrong", driver="floppy")
    assert "floppy" in browser.one(".note").text
    assert browser.one("h1").text.startswith("422 ")
    browser.ask("POST", "back", {})
    assert browser.one("[name=name]").property("value") == "wrong"
    assert all("422" in line for line in browser.console())


def test_what_is_evil_does_nothing(site: Site, quiet: Browser) -> None:
    volume = site.create("harmless", description=EVIL, labels={"x": EVIL})
    quiet.go(f"{site.base}/v1/volumes/{volume['id']}")
    assert quiet.all("img") == []
    assert shown(quiet)["labels"] == {"x": EVIL}
    submit(quiet, "update", description=EVIL * 2)
    assert site.volume("harmless")["description"] == EVIL * 2
    assert site.volume("harmless")["labels"] == {"x": EVIL}


def test_a_required_field_is_asked_for_by_the_browser_itself(site: Site, quiet: Browser) -> None:
    quiet.go(f"{site.base}/v1/volumes")
    filled(quiet, "create volume", name="nodriver").click()
    assert quiet.url == f"{site.base}/v1/volumes"
    assert site.daemon.api("GET", "/v1/volumes?name=nodriver").body["data"] == []
