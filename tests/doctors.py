"""`voldriver doctor` on a root of a test's own: what it finds, and the means to make trouble there for a moment."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from click.testing import CliRunner

from tests.running import CLIENT, Running
from voldriverd.cli import client

Found = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What it said."""

    status: int
    findings: list[Found]
    mended: list[str]

    @property
    def levels(self) -> list[str]:
        """Return the levels in their order."""
        return [found["level"] for found in self.findings]

    @property
    def only(self) -> Found:
        """Return the one finding that is not ok."""
        (found,) = [found for found in self.findings if found["level"] != "ok"]
        return found

    def of(self, level: str) -> list[str]:
        """Return the texts of a level."""
        return [found["text"] for found in self.findings if found["level"] == level]


class Patient:
    """A root with its configuration and sockets, and perhaps a daemon."""

    def __init__(self, daemon: Running) -> None:
        self.daemon = daemon
        self.root = daemon.root

    @property
    def places(self) -> list[str]:
        """Return the options that say where everything is."""
        daemon = self.daemon
        return ["--config", str(daemon.config_file), "--root", str(daemon.root), "--run-dir", str(daemon.run_dir)]

    def look(self, *arguments: str) -> Diagnosis:
        """Run it in this process."""
        return diagnosis(*arguments, *self.places)

    def look_from(self, *prefix: str, checks: tuple[str, ...]) -> Diagnosis:
        """Run it in a process of its own, behind the words of a command such as unshare(1)."""
        done = subprocess.run(
            [*prefix, sys.executable, "-c", CLIENT, "--json", "doctor", *checks, *self.places],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={name: value for name, value in os.environ.items() if not name.startswith(("VOLDRIVER_", "CATTLE_"))},
        )
        return _parsed(done.returncode, done.stdout, done.stderr)

    @contextmanager
    def changed(self, change: Callable[[sqlite3.Connection], object]) -> Iterator[None]:
        """Have another database for the block; no daemon may run."""
        with self.kept():
            with closing(sqlite3.connect(self.root / "voldriver.db", isolation_level=None)) as database:
                change(database)
            yield

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Put the database back after the block as it was before, with its journal."""
        before = {path: path.read_bytes() for path in self.root.glob("voldriver.db*")}
        try:
            yield
        finally:
            for path in self.root.glob("voldriver.db*"):
                path.unlink()
            for path, content in before.items():
                path.write_bytes(content)
                path.chmod(0o600)


def found(diagnosis: Diagnosis, level: str, text: str) -> None:
    """Check that one finding alone is not ok, which it is and what it says."""
    only = diagnosis.only
    assert (only["level"], text in only["text"]) == (level, True), only
    assert only["meaning"]
    assert only["remedy"]
    assert "{" not in only["meaning"] + only["remedy"]
    assert diagnosis.status == {"note": 0, "warning": 3, "bad": 1}[level]


def well(diagnosis: Diagnosis) -> None:
    """Check that nothing but good is said, and something."""
    assert [each for each in diagnosis.findings if each["level"] != "ok"] == []
    assert diagnosis.findings
    assert diagnosis.status == 0


def diagnosis(*arguments: str, before: tuple[str, ...] = ()) -> Diagnosis:
    """Run `voldriver doctor` in this process; what is no exit fails the test."""
    result = CliRunner().invoke(client.main, [*before, "--json", "doctor", *arguments], catch_exceptions=False)
    return _parsed(result.exit_code, result.stdout, result.stderr)


def _parsed(status: int, stdout: str, stderr: str) -> Diagnosis:
    assert stdout, stderr
    found = json.loads(stdout)
    return Diagnosis(status, found["findings"], found["mended"])
