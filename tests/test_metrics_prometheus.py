"""Prometheus as Debian has it: its tool on our rules, and a real server that scrapes a real daemon as the docs say."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.doors import free_port, listening, make_key
from tests.running import Running, pools_config

CHECKOUT: Final = Path(__file__).parent.parent
DOCS: Final = CHECKOUT / "docs" / "metrics.md"
RULES: Final = CHECKOUT / "prometheus" / "voldriverd.rules.yml"
TESTS: Final = sorted((CHECKOUT / "prometheus").glob("*.test.yml"))
PATIENCE_S: Final = 30.0


def tool(name: str) -> str:
    """Return the path of a program of the package; scripts/setup puts them beside Python."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found, f"{name} is missing: scripts/setup test fetches it"
    return found


def promtool(*arguments: str) -> str:
    done = subprocess.run(
        [tool("promtool"), *arguments], cwd=RULES.parent, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alerts() -> dict[str, str]:
    """Return each alert of the rules with its severity."""
    found = re.findall(r"^ +- alert: (\w+)\n(?:.*\n)*? +labels: {severity: (\w+)}", RULES.read_text(), re.MULTILINE)
    return dict(found)


# The rules


def test_the_rules_are_rules() -> None:
    assert f"SUCCESS: {len(alerts())} rules found" in promtool("check", "rules", RULES.name)


def test_each_alert_fires_when_it_should_and_not_before() -> None:
    assert promtool("test", "rules", *(path.name for path in TESTS)).count("SUCCESS") == len(TESTS)


@pytest.mark.parametrize("alert", alerts())
def test_each_alert_is_tried_both_ways_and_explained(alert: str) -> None:
    tried = "".join(path.read_text() for path in TESTS)
    assert f"alertname: {alert}, exp_alerts: []}}" in tried
    assert f"alertname: {alert}\n        exp_alerts:\n          - exp_labels: {{severity: {alerts()[alert]}, " in tried
    assert f"| `{alert}` | {alerts()[alert]} | " in DOCS.read_text()


def test_the_docs_explain_no_other_alert() -> None:
    assert set(re.findall(r"^\| `(Vold\w+)` \|", DOCS.read_text(), re.MULTILINE)) == set(alerts())


def test_the_rules_ask_for_metrics_that_there_are() -> None:
    documented = set(re.findall(r"^\| `(\w+)` \|", DOCS.read_text(), re.MULTILINE))
    asked = set(re.findall(r"\b(?:voldriver_|process_)\w+", re.sub(r"action: .*", "", RULES.read_text())))
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in asked} <= documented


# A server


class Prometheus:
    """A server with the configuration of the docs."""

    def __init__(self, base: Path, config: str) -> None:
        base.mkdir()
        self.port = free_port()
        self.log = base / "log"
        (base / "prometheus.yml").write_text(config)
        argv = [tool("prometheus"), f"--config.file={base}/prometheus.yml", f"--storage.tsdb.path={base}/data"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*argv, f"--web.listen-address=127.0.0.1:{self.port}"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def ask(self, path: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> dict[str, float]:
        """Return the values of an expression by the label that tells them apart, or by nothing."""
        found = self.ask("query", query=expression)["result"]
        return {each["metric"].get("volume", each["metric"].get("pool", "")): float(each["value"][1]) for each in found}

    def until(self, expression: str) -> dict[str, float]:
        """Wait until an expression has an answer."""
        end_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < end_s:
            try:
                found = self.query(expression)
            except (urllib.error.URLError, ConnectionError):  # it starts
                found = {}
            if found:
                return found
            time.sleep(0.05)
        raise AssertionError(f"nothing for {expression}: {self.log.read_text()}")

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE_S)


def documented(port: int, secret_file: Path, public: str) -> str:
    """Return the configuration of the docs for a daemon of ours, which has no TLS."""
    (config,) = re.findall(r"^```yaml\n(scrape_configs:.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    places = {
        "box:9580": f"127.0.0.1:{port}",
        "scheme: https": "scheme: http",
        "scrape_interval: 15s": "scrape_interval: 200ms\n    scrape_timeout: 200ms",
        "the access key": public,
        "/etc/prometheus/voldriverd.secret": str(secret_file),
        "/etc/prometheus/voldriverd.rules.yml": str(RULES),
    }
    for theirs, ours in places.items():
        assert config.count(theirs) == 1, theirs
        config = config.replace(theirs, ours)
    return f"global:\n  evaluation_interval: 200ms\n{config}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Prometheus]]:
    base = tmp_path_factory.mktemp("prometheus")
    port = free_port()
    config = listening(port) + pools_config(plain=("directory", base / "pool"))
    with Running(base / "d", config=config) as daemon:
        public, secret = make_key(daemon, name="prometheus", role="read-only")
        secret_file = base / "secret"
        secret_file.touch(0o600)
        secret_file.write_text(secret)
        server = Prometheus(base / "p", documented(port, secret_file, public))
        try:
            yield daemon, server
        finally:
            server.close()


@pytest.mark.root
def test_a_real_server_scrapes_a_real_daemon_and_answers(server: tuple[Running, Prometheus], tmp_path: Path) -> None:
    daemon, prometheus = server
    place = tmp_path / "target"
    place.mkdir()
    daemon.api("POST", "/v1/backuptargets", {"name": "disk", "url": f"file://{place}"})
    daemon.plugin("VolumeDriver.Create", Name="db")
    assert prometheus.until('up{job="voldriverd"} == 1') == {"": 1}
    assert prometheus.until("voldriver_pool_volumes == 1") == {"plain": 1}
    assert prometheus.until('voldriver_requests_total{method="Create"} == 1') == {"": 1}
    before_s = time.time()
    daemon.api("POST", "/v1/volumes/1v1?action=backup", {})
    (age_s,) = prometheus.until('time() - voldriver_volume_last_backup_timestamp_seconds{volume="db"}').values()
    assert 0 <= age_s < time.time() - before_s + 1
    slow = 'histogram_quantile(0.95, sum by (le) (voldriver_verb_duration_seconds_bucket{verb="create"})) > 0'
    assert prometheus.until(slow)[""] < PATIENCE_S


@pytest.mark.root
def test_the_server_takes_the_rules_and_one_fires(server: tuple[Running, Prometheus]) -> None:
    daemon, prometheus = server
    (group,) = prometheus.ask("rules")["groups"]
    assert [rule["name"] for rule in group["rules"]] == list(alerts())
    prometheus.until('voldriver_pool_health{health="available"} == 1')
    os.rename(daemon.base.parent / "pool", daemon.base.parent / "elsewhere")
    try:
        daemon.plugin("VolumeDriver.Create", Name="none")  # notices that the pool is gone
        found = prometheus.until('ALERTS{alertname="VoldriverPoolUnavailable", alertstate="pending"}')
    finally:
        os.rename(daemon.base.parent / "elsewhere", daemon.base.parent / "pool")
    assert found == {"plain": 1}


def test_the_configurations_of_the_docs_are_sound(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch()
    config = documented(9580, secret, "key")
    (relabel,) = re.findall(r"^```yaml\n( +metric_relabel_configs:.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    whole = config.replace(
        "    static_configs:", f"{textwrap.indent(textwrap.dedent(relabel), ' ' * 4)}    static_configs:"
    )
    file = tmp_path / "prometheus.yml"
    file.write_text(whole)
    assert "SUCCESS" in promtool("check", "config", str(file))
