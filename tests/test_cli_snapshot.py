"""`voldriver snapshot`: what each command prints, where, and its exit status; and files that come out of snapshots."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.commands import Voldriver
from tests.running import Running, scratch_config
from tests.scratch import Scratch

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def daemon(session_scratch: Scratch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("d"), config=scratch_config(session_scratch)) as running:
        yield running


@pytest.fixture
def voldriver(daemon: Running) -> Iterator[Voldriver]:
    """Give the commands on a daemon that has only a volume `db`, mounted."""
    voldriver = Voldriver(daemon.api_socket)
    voldriver.out("volume", "create", "db")
    yield voldriver
    for volume in daemon.api("GET", "/v1/volumes").body["data"]:
        daemon.api("POST", f"/v1/volumes/{volume['id']}?action=deactivate")
        daemon.api("DELETE", f"/v1/volumes/{volume['id']}")
    for volume in daemon.api("GET", "/v1/volumes?removed_notnull=1").body["data"]:
        daemon.api("POST", f"/v1/volumes/{volume['id']}?action=purge")


@pytest.fixture
def place(voldriver: Voldriver) -> Path:
    """Return where the volume is mounted."""
    return Path(voldriver.out("volume", "mount", "db").strip())


# create, ls, rm


def test_create_prints_the_name_or_the_id_of_a_nameless_one(voldriver: Voldriver) -> None:
    assert voldriver.out("snapshot", "create", "db", "monday") == "monday\n"
    assert voldriver.out("snapshot", "create", "db@tuesday") == "tuesday\n"
    assert re.fullmatch(r"1s\d+\n", voldriver.out("snapshot", "create", "db"))


def test_create_takes_a_description_and_a_time_to_live(voldriver: Voldriver) -> None:
    made = voldriver.json("snapshot", "create", "db", "s", "--description", "why", "--expires", "1d12h")
    left = datetime.fromisoformat(made["expires"]) - datetime.now(UTC)
    assert made["description"] == "why"
    assert timedelta(hours=35, minutes=59) < left <= timedelta(hours=36)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["none"], "there is no volume 'none'"),
        (["db", "a@b"], "cannot use name 'a@b'"),
        (["db", "taken"], "has a snapshot named taken already"),
    ],
)
def test_create_refuses_in_one_line(voldriver: Voldriver, arguments: list[str], text: str) -> None:
    voldriver.out("snapshot", "create", "db", "taken")
    assert text in voldriver.refused("snapshot", "create", *arguments)


@pytest.mark.parametrize("arguments", [["db", "s", "--expires", "soon"], ["db@a", "b"], []])
def test_create_used_wrongly_is_status_2(voldriver: Voldriver, arguments: list[str]) -> None:
    assert voldriver("snapshot", "create", *arguments).exit_code == 2


def test_ls_lists_all_or_those_of_a_volume(voldriver: Voldriver) -> None:
    voldriver.out("volume", "create", "web")
    voldriver.out("snapshot", "create", "db", "monday", "--description", "two\nlines")
    nameless = voldriver.out("snapshot", "create", "db").strip()
    voldriver.out("snapshot", "create", "web", "noon")
    head, *rows = (re.split(r" {2,}", line) for line in voldriver.out("snapshot", "ls").splitlines())
    assert head == ["VOLUME", "NAME", "ID", "SIZE", "CREATED", "EXPIRES", "DESCRIPTION"]
    assert [row[:2] for row in rows] == [["db", "monday"], ["db", "-"], ["web", "noon"]]
    assert rows[0][6] == "two\\x0alines"
    assert voldriver.out("snapshot", "ls", "db", "-q") == f"db@monday\ndb@{nameless}\n"
    assert [each["name"] for each in voldriver.json("snapshot", "ls", "web")] == ["noon"]


def test_what_ls_quiet_prints_is_taken_by_the_other_commands(voldriver: Voldriver) -> None:
    for _ in range(2):
        voldriver.out("snapshot", "create", "db")
    pairs = voldriver.out("snapshot", "ls", "-q").split()
    assert voldriver.out("snapshot", "rm", *pairs).split() == [pair.removeprefix("db@") for pair in pairs]
    assert voldriver.out("snapshot", "ls", "-q") == ""


def test_rm_takes_a_volume_and_its_snapshots_and_goes_on_after_a_failure(voldriver: Voldriver) -> None:
    for name in ("a1", "a2"):
        voldriver.out("snapshot", "create", "db", name)
    result = voldriver("snapshot", "rm", "db", "a1", "none", "a2")
    assert (result.exit_code, result.stdout) == (1, "a1\na2\n")
    assert result.stderr == "voldriver: volume db has no snapshot 'none'\n"


def test_names_win_over_ids(voldriver: Voldriver) -> None:
    number = voldriver.json("snapshot", "create", "db", "first")["id"]
    voldriver.out("snapshot", "create", "db", number)
    voldriver.out("snapshot", "rm", "db", number)
    assert voldriver.out("snapshot", "ls", "-q") == "db@first\n"
    voldriver.out("snapshot", "rm", "db", number)
    assert voldriver.out("snapshot", "ls", "-q") == ""


def test_the_snapshot_of_another_volume_is_not_found_by_its_id(voldriver: Voldriver) -> None:
    voldriver.out("volume", "create", "web")
    number = voldriver.out("snapshot", "create", "web").strip()
    assert voldriver.refused("snapshot", "rm", "db", number) == f"volume db has no snapshot {number!r}"


@pytest.mark.parametrize(
    "arguments",
    [
        ["rm"],
        ["rm", "db"],
        ["rm", "db@a", "b"],
        ["revert", "db"],
        ["revert", "db@a", "b"],
        ["revert", "db", "a", "b"],
        ["diff", "db"],
        ["diff", "db", "a", "b", "c"],
        ["diff", "db@a", "b", "c"],
        ["get", "db@a"],
        ["get", "db", "a"],
        ["get", "db", "a", "path", "to", "more"],
    ],
)
def test_wrong_usage_is_status_2(voldriver: Voldriver, arguments: list[str]) -> None:
    result = voldriver("snapshot", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")


# revert


@pytest.mark.parametrize("arguments", [["db", "s"], ["db@s"]])
def test_revert_prints_what_keeps_the_displaced_and_how_to_undo_it(
    voldriver: Voldriver, place: Path, arguments: list[str]
) -> None:
    (place / "file").write_text("then")
    voldriver.out("snapshot", "create", "db", "s")
    (place / "file").write_text("now")
    voldriver.out("volume", "unmount", "db")
    result = voldriver("snapshot", "revert", *arguments)
    kept = result.stdout.strip()
    assert (result.exit_code, re.fullmatch(r"before-revert-\d{8}T\d{6}Z", kept) is None) == (0, False)
    assert result.stderr == f"undo with: voldriver snapshot revert db {kept}\n"
    assert (Path(voldriver.out("volume", "mount", "db").strip()) / "file").read_text() == "then"
    voldriver.out("volume", "unmount", "db")
    voldriver.out(*shlex.split(result.stderr.partition("voldriver ")[2]))
    assert (Path(voldriver.out("volume", "mount", "db").strip()) / "file").read_text() == "now"


def test_revert_in_json_is_the_volume_with_what_keeps_the_displaced(voldriver: Voldriver) -> None:
    voldriver.out("snapshot", "create", "db", "s")
    reverted = voldriver.json("snapshot", "revert", "db", "s")
    kept = next(each for each in voldriver.json("snapshot", "ls", "db") if each["automatic"])
    assert (reverted["name"], reverted["displacedSnapshotId"]) == ("db", kept["id"])


def test_revert_of_a_mounted_volume_is_refused_and_the_holder_named(voldriver: Voldriver, place: Path) -> None:
    assert place.is_dir()
    voldriver.out("snapshot", "create", "db", "s")
    assert voldriver.refused("snapshot", "revert", "db", "s") == "cannot revert volume db: it is mounted by the host"


# diff


def test_diff_marks_what_was_added_changed_and_removed(voldriver: Voldriver, place: Path) -> None:
    (place / "gone").write_text("1")
    (place / "changed").write_text("1")
    voldriver.out("snapshot", "create", "db", "a")
    (place / "gone").unlink()
    (place / "changed").write_text("22")
    (place / "new").write_text("1")
    voldriver.out("snapshot", "create", "db", "b")
    (place / "newer").write_text("1")
    wanted = ["~ changed", "- gone", "+ new"]
    for arguments in (["db", "a", "b"], ["db@a", "b"], ["db@a", "db@b"], ["db", "a", "db@b"]):
        found = voldriver.out("snapshot", "diff", *arguments).splitlines()
        assert [line for line in found if line != "~ ."] == wanted
    now = voldriver.out("snapshot", "diff", "db", "a").splitlines()
    assert [line for line in now if line != "~ ."] == [*wanted, "+ newer"]
    assert {"path": "new", "change": "added"} in voldriver.json("snapshot", "diff", "db", "a", "b")
    assert voldriver.out("snapshot", "diff", "db", "a", "a") == ""


def test_diff_shows_no_control_character_of_a_name(voldriver: Voldriver, place: Path) -> None:
    voldriver.out("snapshot", "create", "db", "a")
    (place / "\x1b[31mred\nline\u202e").write_text("")
    (place / os.fsdecode(b"raw\xff")).write_text("")
    shown = voldriver.out("snapshot", "diff", "db", "a").splitlines()
    assert [line for line in shown if line != "~ ."] == ["+ \\x1b[31mred\\x0aline\\u202e", "+ raw\\xff"]


@pytest.mark.parametrize("arguments", [["db", "none"], ["db@a", "none"], ["none", "a"], ["none@a"], ["@", "a"]])
def test_diff_of_what_is_not_there_is_refused(voldriver: Voldriver, arguments: list[str]) -> None:
    voldriver.out("snapshot", "create", "db", "a")
    assert re.search(r"has no snapshot|there is no volume", voldriver.refused("snapshot", "diff", *arguments))


def test_diff_with_the_snapshot_of_another_volume_is_refused(voldriver: Voldriver) -> None:
    voldriver.out("volume", "create", "web")
    voldriver.out("snapshot", "create", "db", "a")
    voldriver.out("snapshot", "create", "web", "b")
    assert voldriver.refused("snapshot", "diff", "db@a", "web@b") == "cannot compare snapshots of volumes db and web"


def test_diff_into_a_pipe_that_closes_ends_quietly(daemon: Running, voldriver: Voldriver, place: Path) -> None:
    voldriver.out("snapshot", "create", "db", "a")
    for number in range(5_000):
        (place / f"{'x' * 100}{number}").touch()
    script = "import sys; sys.argv[0] = 'voldriver'; from voldriverd.cli.client import main; main()"
    arguments = [sys.executable, "-c", script, "--socket", str(daemon.api_socket), "snapshot", "diff", "db", "a"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.readline()
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait() == 1


# get


@pytest.fixture
def filled(voldriver: Voldriver, place: Path) -> Voldriver:
    """Give the commands on a volume with files and a snapshot `s`."""
    (place / "etc").mkdir(0o750)
    (place / "etc" / "conf").write_text("content")
    (place / "etc" / "conf").chmod(0o640)
    os.chown(place / "etc" / "conf", 1234, 2345)
    os.utime(place / "etc" / "conf", ns=(1, 1_700_000_000_123_456_789))
    (place / "etc" / "link").symlink_to("/etc/passwd")
    os.link(place / "etc" / "conf", place / "etc" / "hard")
    os.mkfifo(place / "etc" / "fifo")
    (place / "dash file").write_text("dash")
    voldriver.out("snapshot", "create", "db", "s")
    (place / "etc" / "conf").write_text("later")
    return voldriver


def test_get_copies_one_file_here(filled: Voldriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = filled("snapshot", "get", "db", "s", "etc/conf")
    assert (result.exit_code, result.output) == (0, "")
    status = (tmp_path / "conf").stat()
    assert (tmp_path / "conf").read_text() == "content"
    assert (status.st_mode & 0o777, status.st_uid, status.st_gid) == (0o640, 1234, 2345)
    assert status.st_mtime_ns == 1_700_000_000_123_456_789
    assert os.listdir(tmp_path) == ["conf"]


def test_get_copies_a_folder_into_a_directory_or_under_a_name(filled: Voldriver, tmp_path: Path) -> None:
    for target, made in ((tmp_path, tmp_path / "etc"), (tmp_path / "copy", tmp_path / "copy")):
        result = filled("snapshot", "get", "db@s", "/etc/", str(target))
        assert (result.exit_code, result.stdout) == (0, "")
        assert result.stderr == "left out: etc/fifo is a fifo\n"
        assert set(os.listdir(made)) == {"conf", "link", "hard"}
        assert (made / "conf").stat().st_ino == (made / "hard").stat().st_ino
        assert os.readlink(made / "link") == "/etc/passwd"
        assert made.stat().st_mode & 0o777 == 0o750


def test_get_copies_the_whole_under_the_name_of_the_pair(filled: Voldriver, tmp_path: Path) -> None:
    assert filled("snapshot", "get", "db@s", "/", str(tmp_path)).exit_code == 0
    assert set(os.listdir(tmp_path / "db@s")) == {"etc", "dash file"}


def test_get_replaces_a_file_but_no_folder(filled: Voldriver, tmp_path: Path) -> None:
    (tmp_path / "conf").write_text("old")
    assert filled("snapshot", "get", "db@s", "etc/conf", str(tmp_path)).exit_code == 0
    assert (tmp_path / "conf").read_text() == "content"
    (tmp_path / "etc").mkdir()
    assert filled.refused("snapshot", "get", "db@s", "etc/link", str(tmp_path / "none" / "x")).startswith(
        "cannot write"
    )
    result = filled("snapshot", "get", "db@s", "etc", str(tmp_path))
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (
        1,
        f"voldriver: cannot write {tmp_path}/etc: it exists",
    )
    assert set(os.listdir(tmp_path)) == {"conf", "etc"}


@pytest.mark.parametrize("path", ["none", "etc/conf/x", "../etc", "etc/link/x"])
def test_get_of_what_is_not_there_leaves_nothing(filled: Voldriver, tmp_path: Path, path: str) -> None:
    assert "cannot read path" in filled.refused("snapshot", "get", "db@s", path, str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_get_to_standard_output_is_a_tar_archive(daemon: Running, filled: Voldriver) -> None:
    assert filled.out("snapshot", "ls", "-q") == "db@s\n"
    done = subprocess.run(
        [sys.executable, "-c", "from voldriverd.cli.client import main; main()", "snapshot", "get", "db@s", "etc", "-"],
        capture_output=True,
        check=True,
        env={**os.environ, "VOLDRIVER_SOCKET": str(daemon.api_socket)},
    )
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        assert "etc/conf" in archive.getnames()


def test_get_finds_names_that_are_no_utf_8(voldriver: Voldriver, place: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"raw\xff & more")
    (place / name).write_text("raw")
    voldriver.out("snapshot", "create", "db", "s")
    assert voldriver("snapshot", "get", "db@s", name, str(tmp_path)).exit_code == 0
    assert (tmp_path / name).read_text() == "raw"


def test_readme_s_example_works_as_processes(daemon: Running, voldriver: Voldriver) -> None:
    assert voldriver.out("snapshot", "ls") != ""
    assert daemon.cli("volume", "create", "web").stdout == "web\n"
    assert daemon.cli("snapshot", "create", "web", "monday").stdout == "monday\n"
    assert daemon.cli("snapshot", "revert", "web", "monday").returncode == 0
    assert daemon.cli("volume", "create", "-o", "from=web@monday", "copy").stdout == "copy\n"
    assert daemon.cli("volume", "rm", "web", "copy").stdout == "web\ncopy\n"
    assert daemon.cli("volume", "restore", "web").stdout == "web\n"
    assert json.loads(daemon.cli("--json", "volume", "ls").stdout)[-1]["name"] == "web"
