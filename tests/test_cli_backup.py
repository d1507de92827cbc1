"""`voldriver backup` and `voldriver target`: what each command prints, where, and its exit status."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import Voldriver
from tests.running import CLIENT, Running, scratch_config
from tests.scratch import Scratch

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def daemon(session_scratch: Scratch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("d"), config=scratch_config(session_scratch)) as running:
        yield running


@pytest.fixture
def voldriver(daemon: Running, tmp_path: Path) -> Iterator[Voldriver]:
    """Give the commands on a daemon that has only a volume `db` with one file, and a target `disk`."""
    voldriver = Voldriver(daemon.api_socket)
    (tmp_path / "target").mkdir()
    voldriver.out("volume", "create", "db", "-d", "btrfs")
    write(voldriver, "db", "first")
    voldriver.out("target", "create", "disk", f"file://{tmp_path}/target")
    yield voldriver
    for backup in voldriver.json("backup", "ls"):
        voldriver("backup", "cancel" if backup["state"] == "creating" else "rm", backup["id"])
    voldriver.out("target", "rm", *(target["name"] for target in voldriver.json("target", "ls")))
    for volume in voldriver.json("volume", "ls"):
        voldriver.out("volume", "rm", "--purge", "--yes", volume["name"])


def write(voldriver: Voldriver, volume: str, text: str) -> None:
    (Path(voldriver.out("volume", "mount", volume).strip()) / "file").write_text(text)
    voldriver.out("volume", "unmount", volume)


def read(voldriver: Voldriver, volume: str) -> str:
    text = (Path(voldriver.out("volume", "mount", volume).strip()) / "file").read_text()
    voldriver.out("volume", "unmount", volume)
    return text


def backed_up(voldriver: Voldriver, source: str = "db", *arguments: str) -> str:
    return voldriver.out("backup", "create", source, *arguments).strip()


# create, ls, inspect, rm


def test_create_prints_the_id_of_a_backup_that_is_there(voldriver: Voldriver) -> None:
    backup = backed_up(voldriver, "db", "--name", "nightly")
    (found,) = voldriver.json("backup", "ls", "db")
    assert (found["id"], found["name"], found["state"]) == (backup, "nightly", "created")


def test_create_without_a_snapshot_makes_one_that_expires(voldriver: Voldriver) -> None:
    backed_up(voldriver)
    (snapshot,) = voldriver.json("snapshot", "ls", "db")
    assert snapshot["name"].startswith("backup-")
    assert snapshot["automatic"]
    assert snapshot["expires"] is not None


def test_create_backs_up_the_snapshot_that_is_named(voldriver: Voldriver) -> None:
    voldriver.out("snapshot", "create", "db", "monday")
    write(voldriver, "db", "second")
    backup = backed_up(voldriver, "db@monday")
    voldriver.out("backup", "restore", backup, "--as", "copy")
    assert read(voldriver, "copy") == "first"
    assert len(voldriver.json("snapshot", "ls", "db")) == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["none"], "there is no volume 'none'"),
        (["db@none"], "volume db has no snapshot 'none'"),
        (["db", "--target", "none"], "there is no target 'none'; there is disk"),
    ],
)
def test_create_refuses_in_one_line(voldriver: Voldriver, arguments: list[str], text: str) -> None:
    assert text in voldriver.refused("backup", "create", *arguments)
    assert voldriver.json("backup", "ls") == []


def test_another_name_for_a_snapshot_that_is_backed_up_is_refused(voldriver: Voldriver) -> None:
    voldriver.out("snapshot", "create", "db", "monday")
    backup = backed_up(voldriver, "db@monday")
    result = voldriver("backup", "create", "db@monday", "--name", "nightly")
    cause = f"target disk has it already, as backup {backup} without a name"
    said = f"voldriver: cannot back up snapshot monday with name 'nightly': {cause}\n"
    assert (result.exit_code, result.stderr) == (1, said)
    assert backed_up(voldriver, "db@monday") == backup


def test_of_several_targets_one_must_be_named(voldriver: Voldriver, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    voldriver.out("target", "create", "other", f"file://{tmp_path}/other")
    assert "no target is the default one" in voldriver.refused("backup", "create", "db")
    backup = backed_up(voldriver, "db", "--target", "other")
    assert [each["id"] for each in voldriver.json("backup", "ls", "--target", "other")] == [backup]
    assert voldriver.json("backup", "ls", "--target", "disk") == []


def test_a_target_that_went_away_is_said_and_nothing_counts_as_a_backup(voldriver: Voldriver, tmp_path: Path) -> None:
    (tmp_path / "target").rename(tmp_path / "away")
    (tmp_path / "target").write_text("no directory")
    result = voldriver("backup", "create", "db")
    assert result.exit_code == 1
    assert str(tmp_path / "target") in result.stderr
    (tmp_path / "target").unlink()
    (tmp_path / "away").rename(tmp_path / "target")
    assert [each["state"] for each in voldriver.json("backup", "ls")] in ([], ["error"])


def test_ls_shows_a_table_or_ids(voldriver: Voldriver) -> None:
    backup = backed_up(voldriver, "db", "--name", "nightly")
    head, line = voldriver.out("backup", "ls").splitlines()
    assert head.split()[:6] == ["ID", "VOLUME", "SNAPSHOT", "NAME", "TARGET", "STATE"]
    assert [line.split()[at] for at in (0, 1, 3)] == [backup, "db", "nightly"]
    assert voldriver.out("backup", "ls", "-q") == f"{backup}\n"


def test_inspect_shows_where_it_lies(voldriver: Voldriver, tmp_path: Path) -> None:
    shown = voldriver.out("backup", "inspect", backed_up(voldriver))
    assert f"Address:  file://{tmp_path}/target/volumes/" in shown
    assert "Format:   btrfs" in shown


def test_rm_goes_on_after_one_that_is_not_there(voldriver: Voldriver) -> None:
    backup = backed_up(voldriver)
    result = voldriver("backup", "rm", "1b999", backup)
    assert (result.exit_code, result.stdout) == (1, f"{backup}\n")
    assert voldriver.json("backup", "ls") == []


# restore, get, verify


def test_restore_into_a_volume_keeps_what_it_had(voldriver: Voldriver) -> None:
    backup = backed_up(voldriver)
    write(voldriver, "db", "second")
    result = voldriver("backup", "restore", backup, "--to", "db")
    assert result.exit_code == 0, result.stderr
    kept = result.stdout.strip()
    assert kept.startswith("before-restore-")
    assert read(voldriver, "db") == "first"
    assert f"undo with: voldriver snapshot revert db {kept}" in result.stderr
    voldriver.out("snapshot", "revert", "db", kept)
    assert read(voldriver, "db") == "second"


@pytest.mark.parametrize("driver", ["btrfs", "loop", "directory"])
def test_restore_makes_a_new_volume_of_any_driver(voldriver: Voldriver, driver: str) -> None:
    assert voldriver.out("backup", "restore", backed_up(voldriver), "--as", "new", "-d", driver) == "new\n"
    assert voldriver.json("volume", "inspect", "new")["driver"] == driver
    assert read(voldriver, "new") == "first"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--to", "db", "--as", "new"],
        ["--to", "db", "-d", "loop"],
        ["--as", "new", "--allow-holes"],
        ["--as", "new", "-o", "x"],
    ],
)
def test_restore_used_wrongly_is_status_2(voldriver: Voldriver, arguments: list[str]) -> None:
    assert voldriver("backup", "restore", "1b1", *arguments).exit_code == 2


def test_restore_into_a_volume_in_use_is_refused(voldriver: Voldriver) -> None:
    backup = backed_up(voldriver)
    voldriver.out("volume", "mount", "db")
    assert "db" in voldriver.refused("backup", "restore", backup, "--to", "db")
    voldriver.out("volume", "unmount", "db")


def test_get_copies_one_file_out_of_a_backup(voldriver: Voldriver, tmp_path: Path) -> None:
    backup = backed_up(voldriver)
    voldriver.out("backup", "get", backup, "file", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_text() == "first"
    assert "none" in voldriver.refused("backup", "get", backup, "none", str(tmp_path / "copy2"))


def test_verify_says_what_is_whole_and_what_is_not(voldriver: Voldriver, tmp_path: Path) -> None:
    backup = backed_up(voldriver)
    assert voldriver.out("backup", "verify", backup) == f"{backup} is whole\n"
    assert voldriver.out("backup", "verify", "--sample", "50%", backup) == f"{backup} is right as far as it was read\n"
    for chunk in (tmp_path / "target").glob("volumes/*/chunks/*/*"):
        chunk.write_bytes(b"rot")
    assert backup in voldriver.refused("backup", "verify", backup)


@pytest.mark.parametrize("sample", ["0", "101%", "x", "1.5", ""])
def test_verify_refuses_a_sample_that_is_none(voldriver: Voldriver, sample: str) -> None:
    assert "give a percentage" in voldriver.refused("backup", "verify", "--sample", sample, backed_up(voldriver))


def test_what_is_not_there_is_said(voldriver: Voldriver) -> None:
    for command in ("inspect", "verify", "rm"):
        assert "there is no backup 'none'" in voldriver.refused("backup", command, "none")
    assert "there is no volume 'none'" in voldriver.refused("backup", "cancel", "none")
    assert "there is no backup '1b999'" in voldriver.refused("backup", "cancel", "1b999")


# Ctrl-C, cancel


def test_after_ctrl_c_the_backup_goes_on(voldriver: Voldriver, daemon: Running) -> None:
    place = Path(voldriver.out("volume", "mount", "db").strip())
    with (place / "large").open("wb") as file:
        for _ in range(400):
            file.write(os.urandom(1 << 20))
    voldriver.out("volume", "unmount", "db")
    argv = [sys.executable, "-c", CLIENT, "--socket", str(daemon.api_socket), "backup", "create", "db"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        while not voldriver.json("backup", "ls"):
            pass
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130
    (backup,) = voldriver.json("backup", "ls")
    assert "the daemon goes on with it; to end it: voldriver backup cancel" in said
    assert backup["state"] in {"creating", "created"}


def test_cancel_ends_a_backup(voldriver: Voldriver) -> None:
    place = Path(voldriver.out("volume", "mount", "db").strip())
    with (place / "large").open("wb") as file:
        for _ in range(400):
            file.write(os.urandom(1 << 20))
    voldriver.out("volume", "unmount", "db")
    backup = backed_up(voldriver, "db", "--no-wait")
    voldriver.out("backup", "cancel", backup)
    assert voldriver.json("backup", "ls") == []


def test_cancel_ends_a_restore_and_the_volume_has_what_it_had(voldriver: Voldriver) -> None:
    place = Path(voldriver.out("volume", "mount", "db").strip())
    with (place / "large").open("wb") as file:
        for _ in range(400):
            file.write(os.urandom(1 << 20))
    voldriver.out("volume", "unmount", "db")
    backup = backed_up(voldriver)
    write(voldriver, "db", "second")
    voldriver.out("backup", "restore", backup, "--to", "db", "--no-wait")
    assert voldriver.out("backup", "cancel", "db") == "db\n"
    assert read(voldriver, "db") == "second"


# target, scan, prune


def test_target_ls_marks_the_default_one(voldriver: Voldriver) -> None:
    assert voldriver.out("target", "ls").splitlines()[1].split()[0] == "disk*"
    assert voldriver.out("target", "ls", "-q") == "disk\n"


def test_scan_takes_up_what_was_forgotten(voldriver: Voldriver, tmp_path: Path) -> None:
    backed_up(voldriver)
    voldriver.out("target", "rm", "disk")
    assert voldriver.json("backup", "ls") == []
    voldriver.out("target", "create", "again", f"file://{tmp_path}/target")
    assert voldriver("backup", "scan", "again").stderr == "again holds 1 backup\n"
    (backup,) = voldriver.json("backup", "ls")
    voldriver.out("backup", "restore", backup["id"], "--as", "copy")
    assert read(voldriver, "copy") == "first"


def test_prune_says_what_it_freed(voldriver: Voldriver) -> None:
    result = voldriver("backup", "prune")
    assert (result.exit_code, result.stderr) == (0, "0 chunks deleted, 0 B freed\n")


def test_an_encrypted_target_needs_its_passphrase(voldriver: Voldriver, tmp_path: Path) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("correct horse\n")
    wrong.write_text("battery staple\n")
    url = f"file://{tmp_path}/sealed"
    (tmp_path / "sealed").mkdir()
    voldriver.out("target", "create", "sealed", url, "--passphrase-file", str(right))
    backed_up(voldriver, "db", "--target", "sealed")
    voldriver.out("target", "rm", "sealed")
    assert "passphrase" in voldriver.refused("target", "create", "sealed", url, "--passphrase-file", str(wrong))
    assert "encrypted" in voldriver.refused("target", "create", "sealed", url)
    voldriver.out("target", "create", "sealed", url, "--passphrase-file", str(right))
    voldriver.out("backup", "scan", "sealed")
    assert len(voldriver.json("backup", "ls", "--target", "sealed")) == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["a b", "file:///srv/x"], "name may have a-zA-Z0-9_.- only"),
        (["other", "ftp://x/y"], "ftp://x/y"),
        (["other", "file:///srv/x", "--endpoint", "http://localhost"], "endpoint"),
    ],
)
def test_target_create_refuses_in_one_line(voldriver: Voldriver, arguments: list[str], text: str) -> None:
    assert text in voldriver.refused("target", "create", *arguments)
    assert voldriver.out("target", "ls", "-q") == "disk\n"
