"""Headless Chromium, driven by chromedriver over the WebDriver protocol (W3C), with JavaScript turned off.

with Browser(tmp_path) as browser:
    browser.go("http://127.0.0.1:9580/v1")
    browser.one("nav a").click()
"""

import http.client
import json
import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

TIMEOUT_S: Final = 60.0
"""On a machine that other tests load."""
_TICK_S: Final = 0.01
_ELEMENT: Final = "element-6066-11e4-a52e-4f735466cecf"
_GOING: Final = "does not belong to the document"
"""What chromedriver says of an element whose page goes at that moment, in place of "stale element reference"."""
_FLAGS: Final = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--window-size=1100,1000",
)
_NO_SCRIPTS: Final = {"profile.managed_default_content_settings.javascript": 2}


@dataclass(frozen=True, slots=True)
class Element:
    """One element of the page that is shown."""

    browser: "Browser"
    id: str

    @property
    def text(self) -> str:
        """What of it is seen."""
        return str(self.browser.ask("GET", f"element/{self.id}/text"))

    def property(self, name: str) -> Any:
        """Return a property of the DOM, as `value` or `href`."""
        return self.browser.ask("GET", f"element/{self.id}/property/{name}")

    def click(self) -> None:
        """Click it."""
        self.browser.ask("POST", f"element/{self.id}/click", {})

    def follow(self) -> None:
        """Click it, and return when another page is there; chromedriver itself waits only if that comes at once."""
        before = self.browser.one("html")
        self.click()
        deadline_s = time.monotonic() + TIMEOUT_S
        while before.is_there():
            assert time.monotonic() < deadline_s, f"no other page comes than {self.browser.url}"
            time.sleep(_TICK_S)

    def is_there(self) -> bool:
        """Tell whether the page that it was found on is still shown."""
        try:
            self.browser.ask("GET", f"element/{self.id}/name")
        except LookupError:
            return False
        return True

    def fill(self, text: str) -> None:
        """Replace what is in it by what is typed."""
        self.browser.ask("POST", f"element/{self.id}/clear", {})
        self.browser.ask("POST", f"element/{self.id}/value", {"text": text})

    def all(self, selector: str) -> list["Element"]:
        """Return what is inside it, by a selector of CSS."""
        return self.browser.elements(f"element/{self.id}/elements", selector)


class Browser:
    """One window; the profile and all temporary files lie in a directory of the caller's."""

    def __init__(self, directory: Path) -> None:
        """Start chromedriver and, through it, Chromium."""
        directory.mkdir(exist_ok=True)
        self._log = (directory / "log").open("wb")
        self._driver = subprocess.Popen(
            ["chromedriver", "--port=0"],
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "TMPDIR": str(directory), "HOME": str(directory)},
            text=True,
        )
        try:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port(), timeout=TIMEOUT_S)
            options = {"args": [*_FLAGS, f"--user-data-dir={directory / 'profile'}"], "prefs": _NO_SCRIPTS}
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
            self._session = "session"
            made = self._call("POST", "session", {"capabilities": {"alwaysMatch": wanted}})
            self._session = f"session/{made['sessionId']}"
            self.go("about:blank")  # in place of the page that Chromium begins with
            self.requests()
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._call("DELETE", self._session)
        finally:
            self._end()

    @property
    def url(self) -> str:
        """Where we are."""
        return str(self.ask("GET", "url"))

    def go(self, url: str) -> None:
        """Load a page."""
        self.ask("POST", "url", {"url": url})

    def all(self, selector: str) -> list[Element]:
        """Return what there is, by a selector of CSS."""
        return self.elements("elements", selector)

    def one(self, selector: str) -> Element:
        """Return the one there is."""
        (element,) = self.all(selector)
        return element

    def link(self, text: str) -> Element:
        """Return the first link whose text is this."""
        return next(each for each in self.all("a") if each.text == text)

    def console(self) -> list[str]:
        """Return what the console has said since the last time."""
        return [each["message"] for each in self.ask("POST", "se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        """Return the URLs that were asked for since the last time."""
        messages = [
            json.loads(each["message"])["message"] for each in self.ask("POST", "se/log", {"type": "performance"})
        ]
        sent = [each["params"] for each in messages if each["method"] == "Network.requestWillBeSent"]
        return [each["request"]["url"] for each in sent]

    def screenshot(self) -> str:
        """Return what is seen as a PNG in base64."""
        return str(self.ask("GET", "screenshot"))

    def elements(self, path: str, selector: str) -> list[Element]:
        """Return what a question for elements finds."""
        found = self.ask("POST", path, {"using": "css selector", "value": selector})
        return [Element(self, each[_ELEMENT]) for each in found]

    def ask(self, method: str, path: str, fields: object = None) -> Any:
        """Send a command of the session, and return its value."""
        return self._call(method, f"{self._session}/{path}", fields)

    def _call(self, method: str, path: str, fields: object = None) -> Any:
        self._connection.request(method, f"/{path}", None if fields is None else json.dumps(fields))
        response = self._connection.getresponse()
        value = json.loads(response.read())["value"]
        if response.status != 200 and (value["error"] == "stale element reference" or _GOING in value["message"]):
            raise LookupError(value["message"])
        assert response.status == 200, value
        return value

    def _port(self) -> int:
        assert self._driver.stdout is not None
        for line in self._driver.stdout:
            found = re.search(r"started successfully on port (\d+)", line)
            if found is not None:
                return int(found[1])
        raise AssertionError("chromedriver does not start")

    def _end(self) -> None:
        if hasattr(self, "_connection"):
            self._connection.close()
        self._driver.terminate()
        self._driver.communicate(timeout=TIMEOUT_S)
        self._log.close()
