"""`voldriver doctor` beside a daemon that runs, over TCP, and what it prints."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

import voldriverd
from tests.commands import pretending
from tests.doctors import Patient, diagnosis, found, well
from tests.doors import free_port, listening, make_key
from tests.running import SMALL, Running
from tests.world import until
from voldriverd.cli import client
from voldriverd.cli import doctor as cli
from voldriverd.doctor import root
from voldriverd.kernel import mount, run

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[Patient]:
    """Give a daemon with nothing configured but a port, and a volume of each driver; `img` is mounted."""
    with Running(tmp_path_factory.mktemp("d"), config=SMALL + listening(port)) as daemon:
        for name, driver in (("db", "btrfs"), ("img", "loop"), ("www", "directory")):
            options = {"size": "20M"} if driver == "loop" else {}
            daemon.api("POST", "/v1/volumes", {"name": name, "driver": driver, "driverOpts": options})
        daemon.plugin("VolumeDriver.Mount", Name="img", ID="c1")
        until(lambda: len(list((daemon.root / "by-name").iterdir())) == 3, "the links")
        yield Patient(daemon)


@pytest.mark.parametrize(
    "check",
    [
        *("daemon", "configuration", "database", "modes", "links", "pools", "reflinks", "direct-io", "quotas", "space"),
        *("leaked-loops", "leaked-mounts", "orphan-trees", "missing-trees", "file-systems", "loop-devices"),
    ],
)
def test_beside_a_daemon_that_is_well_nothing_is_said(patient: Patient, check: str) -> None:
    well(patient.look(check))


def test_mending_where_nothing_is_wrong_does_nothing(patient: Patient) -> None:
    assert patient.look("--fix").mended == []
    assert patient.daemon.api("GET", "/v1/volumes").status == 200


# The daemon


def test_a_daemon_of_another_version_is_found(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voldriverd, "__version__", "99.0")
    found(patient.look("daemon"), "warning", "this is 99.0")


def test_a_daemon_that_stands_still_is_found(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "TIMEOUT_S", 0.2)
    os.kill(patient.daemon.pid, signal.SIGSTOP)
    try:
        looked = patient.look("daemon", "database", "links")
    finally:
        os.kill(patient.daemon.pid, signal.SIGCONT)
    (text,) = looked.of("bad")
    assert text.startswith(f"a daemon (pid {patient.daemon.pid}): ")
    assert f"kill -ABRT {patient.daemon.pid}" in looked.findings[0]["remedy"]
    assert looked.of("note") == ["not looked at: neither a daemon nor its database tells what there is"]


def test_a_daemon_with_another_root_is_found(patient: Patient, tmp_path: Path) -> None:
    before = ("--socket", str(patient.daemon.api_socket))
    looked = diagnosis("daemon", "--root", str(tmp_path / "other"), before=before)
    found(looked, "warning", f"its root is {patient.root}")
    other = tmp_path / "other"
    (other / "by-name").mkdir(parents=True)
    looked = diagnosis("links", "leaked-mounts", "--fix", "--root", str(other), before=before)
    assert looked.of("note") == ["not looked at: neither a daemon nor its database tells what there is"]
    assert list((other / "by-name").iterdir()) == [], "what one daemon tells is not made true of another's root"


def test_a_daemon_in_another_mount_namespace_is_found(patient: Patient) -> None:
    found(patient.look_from("unshare", "--mount", checks=("daemon",)), "warning", "a mount namespace of its own")


def test_a_socket_that_was_removed_is_found(patient: Patient) -> None:
    path = patient.daemon.plugin_socket
    aside = path.with_suffix(".aside")
    path.rename(aside)
    try:
        (text,) = patient.look("sockets").of("bad")
        assert text == f"plugin: {path} is missing"
    finally:
        aside.rename(path)


def test_a_dead_socket_in_the_place_of_a_living_daemons_is_not_removed(patient: Patient) -> None:
    path = patient.daemon.plugin_socket
    aside = path.with_suffix(".aside")
    path.rename(aside)
    try:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
        looked = patient.look("sockets", "--fix")
        assert (looked.of("bad"), looked.mended) == ([f"plugin: {path} has nobody behind it"], [])
        assert path.exists()
    finally:
        aside.rename(path)


# What it may do beside a daemon


def test_a_mount_of_a_number_above_all_that_are_known_is_left(patient: Patient, tmp_path: Path) -> None:
    """The daemon may have made that volume since it told which there are."""
    point = patient.root / "mounts" / "v99.1"
    point.mkdir()
    mount.bind(tmp_path, point, read_only=False)
    try:
        assert patient.look("leaked-mounts", "--fix").mended == []
        assert mount.at(point) is not None
    finally:
        mount.unmount(point)
        point.rmdir()


def test_a_mount_of_a_volume_that_was_purged_is_found_and_unmounted(patient: Patient, tmp_path: Path) -> None:
    made, later = (
        patient.daemon.api("POST", "/v1/volumes", {"name": name, "driver": "directory"}).body
        for name in ("brief", "later")
    )
    purge(patient, made["id"])
    point = patient.root / "mounts" / f"v{made['id'][2:]}.1"
    point.mkdir(exist_ok=True)
    mount.bind(tmp_path, point, read_only=False)
    try:
        found(patient.look("leaked-mounts"), "warning", str(point))
        assert patient.look("leaked-mounts", "--fix").mended == [f"unmounted {point}"]
    finally:
        if mount.at(point):
            mount.unmount(point)
        purge(patient, later["id"])


def purge(patient: Patient, volume_id: str) -> None:
    patient.daemon.api("DELETE", f"/v1/volumes/{volume_id}")
    assert patient.daemon.api("POST", f"/v1/volumes/{volume_id}?action=purge").status == 200


@pytest.mark.parametrize("name", ["img", "db"])
def test_a_missing_link_is_made_whether_the_volume_is_mounted_or_not(
    patient: Patient, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = patient.root / "by-name" / name
    leads = os.readlink(link)
    link.unlink()
    monkeypatch.setattr(root, "_BEHIND", timedelta(hours=1))
    well(patient.look("links"))  # the volume is new: the daemon may be about to make its link
    monkeypatch.setattr(root, "_BEHIND", timedelta(0))
    found(patient.look("links"), "warning", f"volume {name} has no link")
    well(patient.look("links", "--fix"))
    assert os.readlink(link) == leads


# The image


def test_an_image_with_holes_is_found(patient: Patient) -> None:
    image = patient.root / "embedded.img"
    run.run(["fallocate", "--punch-hole", "--offset", "200M", "--length", "8M", str(image)])
    try:
        looked = patient.look("pools")
        found(looked, "warning", " of its space is not reserved")
        command = looked.only["remedy"].partition("`")[2].partition("`")[0]
        assert command == f"fallocate -l {300 << 20} {image}"
        subprocess.run(command.split(), check=True)
        well(patient.look("pools"))
    finally:
        run.run(["fallocate", "-l", "300M", str(image)])


# Over TCP


def test_over_tcp_only_what_the_api_tells_is_looked_at_and_that_is_said(
    patient: Patient, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    access, secret = make_key(patient.daemon, role="read-only")
    for name, value in (("URL", f"http://127.0.0.1:{port}"), ("ACCESS_KEY", access), ("SECRET_KEY", secret)):
        monkeypatch.setenv(f"VOLDRIVER_{name}", value)
    looked = diagnosis()
    checks = {each["check"] for each in looked.findings}
    told = {"daemon", "clock", "pools", "space", "orphan-trees", "missing-trees", "targets", "backups"}
    assert checks == told | {"host"}
    assert looked.status == 0
    (left,) = [each for each in looked.findings if each["check"] == "host"]
    assert "propagation" in left["text"]
    assert "on the host itself" in left["remedy"]


@pytest.mark.parametrize("option", ["--fix", "--root=/x", "--run-dir=/x", "--config=/x"])
def test_over_tcp_options_of_the_host_are_wrong_usage(option: str) -> None:
    result = CliRunner().invoke(client.main, ["--url", "http://127.0.0.1:1", "doctor", option])
    assert result.exit_code == 2


def test_an_empty_place_is_wrong_usage() -> None:
    result = CliRunner().invoke(client.main, ["doctor", "kernel", "--root", ""])
    assert (result.exit_code, "it is empty" in result.stderr) == (2, True)


def test_over_tcp_a_daemon_that_cannot_be_reached_is_an_error() -> None:
    with pretending([], []) as url:
        pass
    result = CliRunner().invoke(client.main, ["--url", url, "doctor"])
    assert (result.exit_code, result.stdout) == (1, "")


def test_a_daemon_that_speaks_of_other_things_is_an_error_of_one_line() -> None:
    with pretending([(200, b"{}")], []) as url:
        result = CliRunner().invoke(client.main, ["--url", url, "doctor"])
    assert result.exit_code == 1
    cause = "no version in a resource; is it of another version?"
    assert result.stderr == f"voldriver: cannot understand the daemon's answer: {cause}\n"


def test_a_daemon_that_answers_in_another_form_is_an_error_of_one_line() -> None:
    with pretending([(200, b'{"version": "9", "root": null}')], []) as url:
        result = CliRunner().invoke(client.main, ["--url", url, "doctor"])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"voldriver: cannot use the answers of voldriverd at {url}: TypeError(")
    assert result.stderr.endswith("; is it of another version?\n")


def test_what_the_daemon_says_of_pools_and_volumes_is_told() -> None:
    pool: dict[str, object] = {
        "id": "1sp1",
        "name": "p",
        "driverName": "loop",
        "path": "/p",
        "uuid": None,
        "health": "unavailable",
    }
    pool |= {"transitioningMessage": "it is gone", "orphans": ["v9.1"], "capacityBytes": None, "freeBytes": None}
    volume = {"id": "1v1", "name": "db", "state": "inactive", "storagePoolId": "1sp1", "mountpoint": None}
    volume |= {"created": "2026-01-01T00:00:00Z", "removed": None, "transitioning": "error"}
    volume |= {"transitioningMessage": "its tree is missing"}
    target = {"name": "nas", "url": "nfs://s/x", "health": "unavailable", "transitioningMessage": "no route"}
    host = {"version": voldriverd.__version__, "root": "/r"}

    def page(*rows: object) -> dict[str, object]:
        return {"data": rows, "pagination": {"next": None}}

    answers = [host, page(pool), page(volume), page(), page(), page(), page(target)]
    with pretending([(200, json.dumps(each).encode()) for each in answers], []) as url:
        looked = diagnosis("pools", "orphan-trees", "missing-trees", "targets", before=("--url", url))
    texts = ["p (loop, /p): it is gone", "p: v9.1", "volume db: its tree is missing", "nas: no route"]
    assert [each["text"] for each in looked.findings] == texts
    assert looked.levels == ["bad", "warning", "warning", "warning"]


# Without the daemon, from here on


def end(patient: Patient) -> None:
    if patient.daemon.api_socket.exists():
        patient.daemon.stop()


def test_backups_are_found_missing_old_and_given_up(patient: Patient, tmp_path: Path) -> None:
    daemon = patient.daemon
    found(patient.look("backups"), "note", " volumes, and no target")
    (tmp_path / "t").mkdir()
    target = daemon.api("POST", "/v1/backuptargets", {"name": "t", "url": f"file://{tmp_path}/t"})
    assert target.status == 201, target.body
    well(patient.look("backups"))
    assert daemon.cli("backup", "create", "www").returncode == 0
    well(patient.look("backups"))
    end(patient)

    def change(text: str) -> None:
        with closing(sqlite3.connect(patient.root / "voldriver.db", isolation_level=None)) as database:
            database.execute(text)

    well(patient.look("backups"))
    change("UPDATE volumes SET created_at = '2020-01-01T00:00:00+00:00'")
    found(patient.look("backups"), "warning", "never: db, img")
    change("UPDATE volumes SET state = 'removed' WHERE name != 'www' AND state = 'inactive'")
    change("UPDATE backups SET created_at = '2020-01-01T00:00:00+00:00'")
    found(patient.look("backups"), "warning", "old: www (")
    change("UPDATE backups SET created_at = '2099-01-01T00:00:00+00:00'")
    insert = "INSERT INTO backups SELECT id + 1, 'u', target_id, volume_id, volume_uuid, volume_name, snapshot_id, "
    insert += "snapshot_uuid, snapshot_name, name, description, driver, format, host, 'error', created_at, taken_at, "
    insert += (
        "parent_uuid, NULL, size_bytes, content_bytes, stored_bytes, 'the target is full', verified_at, removed_at, "
    )
    change(f"{insert} is_of_snapshot FROM backups")
    found(patient.look("backups"), "warning", "www: the target is full")


# What it prints


def printed(patient: Patient, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(client.main, ["doctor", *arguments, *patient.places], catch_exceptions=False)
    return result.exit_code, result.stdout


def test_people_read_what_is_wrong_by_subject_with_meaning_and_remedy(patient: Patient) -> None:
    end(patient)
    status, text = printed(patient, "daemon", "configuration", "database")
    lines = text.splitlines()
    assert status == 1
    assert lines[0] == "Daemon"
    assert lines[1].startswith("  bad      daemon         no daemon: ")
    assert lines[2].strip().startswith("means: Nothing can be created")
    assert lines[3].strip().startswith("do:    Mend what is bad below")
    assert lines[4] == "  ok       configuration  it can be read"
    assert lines[-1] == "1 bad, 0 warnings, 0 notes, 2 ok"


def test_what_can_be_mended_is_counted_and_what_was_is_said(patient: Patient) -> None:
    patient.root.chmod(0o700)
    status, text = printed(patient, "modes")
    assert (status, text.splitlines()[-1]) == (0, "0 bad, 0 warnings, 1 notes, 0 ok; --fix can mend 1")
    result = CliRunner().invoke(client.main, ["doctor", "modes", "--fix", *patient.places])
    assert result.stderr == f"mended: set the mode of {patient.root} to 711\n"
    assert result.stdout.splitlines()[-1] == "0 bad, 0 warnings, 0 notes, 1 ok"


def test_the_names_of_others_cannot_write_to_the_terminal(patient: Patient) -> None:
    link = patient.root / "by-name" / "\x1b[31mred"
    link.symlink_to("x")
    try:
        assert "\x1b" not in printed(patient, "links")[1]
        assert "\\x1b[31mred" in printed(patient, "links")[1]
    finally:
        link.unlink()


def test_a_check_that_there_is_not_is_wrong_usage_and_names_those_that_there_are(patient: Patient) -> None:
    result = CliRunner().invoke(client.main, ["doctor", "frob", *patient.places])
    assert (result.exit_code, "leaked-loops" in result.stderr) == (2, True)


def test_an_image_that_is_not_mounted_or_missing_is_told(patient: Patient) -> None:
    end(patient)
    assert patient.daemon.release() == ""
    found(patient.look("pools"), "note", "is not mounted")
    image = patient.root / "embedded.img"
    image.rename(patient.root / "aside")
    try:
        assert f"{image} is not there" in patient.look("pools").of("bad")
    finally:
        (patient.root / "aside").rename(image)
