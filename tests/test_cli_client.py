"""`voldriver` as a whole: where it finds the daemon, what it says when that is not well, help and completion."""

import base64
import errno
import fcntl
import json
import os
import re
import shlex
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

import voldriverd
from tests.commands import Voldriver, pretending, run
from tests.running import CLIENT, Running, scratch_config
from tests.scratch import Scratch
from voldriverd.cli import client, connection, session, show
from voldriverd.cli.connection import Connection, Place
from voldriverd.errors import Exists, InUse, Invalid, NotFound, Unusable

NO_SOCKET = Path("/nonexistent/api.sock")
HOST = {"type": "host", "id": "1h1", "defaultDriver": "btrfs"}
PAGE = {"type": "collection", "data": [], "pagination": {"next": None}}
VOLUME = {"type": "volume", "id": "1v1", "name": "db", "transitioning": "yes", "transitioningMessage": None}


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("VOLDRIVER_", "CATTLE_"))]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def daemon(session_scratch: Scratch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("d"), config=scratch_config(session_scratch)) as running:
        for name in ("alpha", "alto", "beta", "gone"):
            running.api("POST", "/v1/volumes", {"name": name, "driver": "btrfs"})
        for name in ("monday", "tuesday"):
            running.api("POST", "/v1/volumes/1v1?action=snapshot", {"name": name})
        running.api("DELETE", "/v1/volumes/1v4")
        running.api("POST", "/v1/apikeys", {"name": "ci"})
        yield running


def body(value: Any) -> bytes:
    return json.dumps(value).encode()


def error(code: str, message: str | None) -> bytes:
    return body({"type": "error", "status": 400, "code": code, "message": message})


# What is shown


def test_columns_stand_under_each_other_whatever_the_letters(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("file:///目的地", "x"), ("file:///cafe\u0301", "y"), ("plain", "z")]
    show.table(("URL", "SIZE"), rows)
    wide, marked, plain = ("file:///目的地   x", "file:///cafe\u0301     y", "plain            z")
    assert capsys.readouterr().out.splitlines()[1:] == [wide, marked, plain]
    show.table(("SIZE", "NAME"), [("目", "a"), ("1", "b")], right=frozenset({"SIZE"}))
    assert capsys.readouterr().out.splitlines()[1:] == ["  目   a", "   1   b"]


# Help


def test_help_lists_what_there_is_and_nothing_that_comes_later() -> None:
    result = CliRunner().invoke(client.main, ["--help"], prog_name="voldriver")
    assert result.exit_code == 0
    commands = [line.split()[0] for line in result.output.partition("Commands:\n")[2].splitlines() if line.strip()]
    assert commands == [
        *("apikey", "backup", "doctor", "events", "export", "import", "info"),
        *("pool", "snapshot", "target", "trash", "volume"),
    ]


COMMANDS = {
    "volume": "clone create inspect ls mount path purge resize restore rm set unmount",
    "snapshot": "create diff get ls revert rm",
    "import": "buttervolume directory docker tar",
    "pool": "grow ls",
    "trash": "ls",
    "apikey": "create ls rm",
}


@pytest.mark.parametrize(("group", "commands"), COMMANDS.items())
def test_each_command_has_help(group: str, commands: str) -> None:
    listed = run(NO_SOCKET, group, "--help").output.partition("Commands:\n")[2]
    assert sorted(line.split()[0] for line in listed.splitlines()) == sorted(commands.split())
    for command in commands.split():
        result = run(NO_SOCKET, group, command, "-h")
        assert (result.exit_code, result.output.startswith(f"Usage: voldriver {group} {command} ")) == (0, True)


def test_the_version_is_that_of_the_package() -> None:
    assert run(NO_SOCKET, "--version").stdout == f"voldriver {voldriverd.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["frob"], ["volume", "frob"], ["--frob"], ["--socket", "s", "--url", "u", "info"]]
)
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(client.main, arguments)
    assert (result.exit_code, result.stdout) == (2, "")


# Where the daemon is


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--access-key=a", "--secret-key=b"], "--access-key and --secret-key without --url or VOLDRIVER_URL"),
        (["--ca-cert=/x"], "--ca-cert without --url or VOLDRIVER_URL"),
        (["--socket=/x", "--ca-cert=/x"], "--ca-cert without --url or VOLDRIVER_URL"),
    ],
)
def test_what_is_for_a_url_alone_is_not_ignored_without_one(options: list[str], said: str) -> None:
    result = CliRunner().invoke(client.main, [*options, "volume", "ls"])
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (2, f"Error: {said}")


def test_a_url_of_the_environment_takes_the_key_of_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str, str]] = []
    with pretending([(200, body(PAGE))] * 2, seen) as url:
        monkeypatch.setenv("VOLDRIVER_URL", url)
        assert CliRunner().invoke(client.main, ["--access-key", "a", "volume", "ls", "-q"]).exit_code == 0
    assert seen[0][2] == "Basic " + base64.b64encode(b"a:").decode()


@pytest.mark.parametrize("words", [["volume", "ls", "--json"], ["info", "--socket=/x"], ["backup", "--url", "x", "ls"]])
def test_a_global_option_behind_the_command_is_told_where_it_stands(words: list[str]) -> None:
    result = CliRunner().invoke(client.main, words)
    hint = "stands before the command, as in: voldriver --json volume ls"
    assert (result.exit_code, hint in result.stderr) == (2, True)
    other = CliRunner().invoke(client.main, ["volume", "ls", "--jason"])
    assert (other.exit_code, hint in other.stderr) == (2, False)


def test_without_a_daemon_it_says_how_to_start_one() -> None:
    result = run(NO_SOCKET, "volume", "ls")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"voldriver: cannot reach voldriverd at {NO_SOCKET}: it does not run; start it with "
        "`systemctl start voldriverd`, or run `voldriverd` as root\n"
    )


@pytest.mark.parametrize(
    ("given", "environment", "place"),
    [
        ({}, {}, Place()),
        ({"socket": Path("/a")}, {"VOLDRIVER_SOCKET": "/b", "VOLDRIVER_URL": "http://c"}, Place(Path("/a"))),
        ({"url": "http://a"}, {"VOLDRIVER_SOCKET": "/b"}, Place(url="http://a")),
        ({}, {"VOLDRIVER_SOCKET": "/b", "CATTLE_URL": "http://c"}, Place(Path("/b"))),
        ({}, {"VOLDRIVER_URL": "http://b", "CATTLE_URL": "http://c"}, Place(url="http://b")),
        ({}, {"VOLDRIVER_SOCKET": "", "VOLDRIVER_URL": ""}, Place()),
        (
            {},
            {"CATTLE_URL": "http://c", "CATTLE_ACCESS_KEY": "k", "CATTLE_SECRET_KEY": "s"},
            Place(url="http://c", access_key="k", secret_key="s"),
        ),
        (
            {"access_key": "x"},
            {"VOLDRIVER_URL": "http://c", "VOLDRIVER_ACCESS_KEY": "k", "VOLDRIVER_SECRET_KEY": "s"},
            Place(url="http://c", access_key="x", secret_key="s"),
        ),
    ],
)
def test_what_is_given_goes_before_the_environment(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], environment: dict[str, str], place: Place
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    nothing = dict.fromkeys(("socket", "url", "access_key", "secret_key"))
    assert connection.place_of(**(nothing | given)) == place


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_over_tcp_it_authenticates_and_the_url_may_end_with_v1(suffix: str) -> None:
    seen: list[tuple[str, str, str]] = []
    with pretending([(200, body(PAGE))], seen) as url:
        arguments = ["--url", f"{url}{suffix}", "--access-key", "key", "--secret-key", "sec:ret", "volume", "ls", "-q"]
        assert CliRunner().invoke(client.main, arguments).exit_code == 0
    ((method, path, credentials),) = seen
    assert (method, path) == ("GET", "/v1/volumes?limit=1000")
    assert base64.b64decode(credentials.removeprefix("Basic ")) == b"key:sec:ret"


def test_without_a_key_no_credentials_are_sent() -> None:
    seen: list[tuple[str, str, str]] = []
    with pretending([(200, body(PAGE))], seen) as url:
        assert CliRunner().invoke(client.main, ["--url", f"{url}/base", "snapshot", "ls", "--quiet"]).exit_code == 1
    assert seen[0] == ("GET", "/base/v1/snapshots?limit=1000", "")


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:80", "http://", "http://h:port", "http://[::1"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    result = CliRunner().invoke(client.main, ["--url", url, "info"])
    assert (result.exit_code, result.stderr.startswith(f"voldriver: cannot use url {url!r}: ")) == (1, True)


def test_a_port_where_nobody_listens_is_said() -> None:
    with pretending([], []) as url:
        pass
    result = CliRunner().invoke(client.main, ["--url", url, "info"])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"voldriver: cannot reach voldriverd at {url}: ")


def test_https_where_nobody_speaks_tls_is_said() -> None:
    with pretending([], []) as url:
        result = CliRunner().invoke(client.main, ["--url", url.replace("http:", "https:"), "info"])
    assert result.exit_code == 1
    assert result.stderr.endswith("; if it does not speak TLS there, its url begins with http://\n")
    assert result.stderr.count("\n") == 1


# Answers


@pytest.mark.parametrize(
    ("status", "answer", "kind", "text"),
    [
        (404, error("NotFound", "there is none"), NotFound, "there is none"),
        (422, error("NotUnique", "taken"), Exists, "taken"),
        (409, error("Conflict", "busy"), InUse, "busy"),
        (405, error("MethodNotAllowed", "mounted"), InUse, "mounted"),
        (422, error("ActionNotAvailable", "not now"), InUse, "not now"),
        (503, error("ServiceUnavailable", "full"), Unusable, "full"),
        (500, error("InternalServerError", "our fault"), Unusable, "our fault"),
        (422, error("InvalidOption", "wrong"), Invalid, "wrong"),
        (401, error("Unauthorized", None), Invalid, "Unauthorized"),
        (200, b"<html>", Unusable, "its answer is not JSON"),
        (200, b"[1]", Unusable, "its answer is no resource"),
        (200, b"\xff", Unusable, "its answer is not JSON"),
    ],
)
def test_an_answer_becomes_one_of_our_kinds(status: int, answer: bytes, kind: type[Exception], text: str) -> None:
    with pretending([(status, answer)], []) as url:
        asked = Connection(Place(url=url))
        with pytest.raises(kind, match=text):
            asked.get("hosts/1h1")
        asked.close()


@pytest.mark.parametrize(
    ("words", "answers", "lacking"),
    [
        (["info"], [HOST], "hostname in a host"),
        (["volume", "ls"], [PAGE | {"data": [{"type": "volume", "name": "db"}]}, PAGE], "driver in a volume"),
        (["volume", "create", "db"], [{}], "defaultDriver in a resource"),
        (["volume", "create", "db", "-d", "loop"], [VOLUME | {"transitioning": "no"}], None),
        (["--json", "volume", "ls"], [PAGE], None),
    ],
)
def test_a_field_that_a_daemon_of_another_version_lacks_is_said(
    words: list[str], answers: list[dict[str, Any]], lacking: str | None
) -> None:
    with pretending([(200, body(answer)) for answer in answers], []) as url:
        result = CliRunner().invoke(client.main, ["--url", url, *words])
    if lacking is None:
        assert (result.exit_code, result.stderr) == (0, "")
        return
    said = f"voldriver: cannot understand the daemon's answer: no {lacking}; is it of another version?\n"
    assert (result.exit_code, result.stderr) == (1, said)


def test_a_message_cannot_write_to_the_terminal() -> None:
    with pretending([(404, error("NotFound", "two\nlines \x1b[31m"))], []) as url:
        result = CliRunner().invoke(client.main, ["--url", url, "info"])
    assert result.stderr == "voldriver: two\\x0alines \\x1b[31m\n"


def test_a_daemon_that_does_not_answer_is_not_waited_for_without_end() -> None:
    with pretending([], []) as url:
        asked = Connection(Place(url=url), timeout_s=0.000001)
        with pytest.raises(Unusable, match=r"does not answer|cannot reach"):
            asked.get("hosts/1h1")


def test_create_waits_until_the_work_is_final(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_POLL_MIN_S", 0.0)
    seen: list[tuple[str, str, str]] = []
    done = VOLUME | {"transitioning": "no"}
    answers = [(201, body(VOLUME)), (200, body(VOLUME)), (200, body(done))]
    with pretending(answers, seen) as url:
        result = CliRunner().invoke(client.main, ["--url", url, "volume", "create", "db", "-d", "btrfs"])
    assert (result.exit_code, result.stdout) == (0, "db\n")
    assert [path for _, path, _ in seen] == ["/v1/volumes", "/v1/volumes/1v1", "/v1/volumes/1v1"]


def test_no_wait_ends_with_the_first_answer() -> None:
    with pretending([(201, body(VOLUME))], []) as url:
        arguments = ["--url", url, "volume", "create", "db", "-d", "btrfs", "--no-wait"]
        assert CliRunner().invoke(client.main, arguments).exit_code == 0


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (VOLUME | {"transitioning": "error", "transitioningMessage": "the disk is full"}, "the disk is full"),
        (VOLUME | {"transitioning": "error"}, "volume 1v1 has failed"),
        (
            {"type": "error", "code": "NotFound", "message": "there is no volume 1v1: why"},
            "there is no volume 1v1: why",
        ),
    ],
)
def test_work_that_comes_to_nothing_is_status_1(
    monkeypatch: pytest.MonkeyPatch, answer: dict[str, object], text: str
) -> None:
    monkeypatch.setattr(session, "_POLL_MIN_S", 0.0)
    with pretending([(201, body(VOLUME)), (200, body(answer))], []) as url:
        result = CliRunner().invoke(client.main, ["--url", url, "volume", "create", "db", "-d", "btrfs"])
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"voldriver: {text}\n")


@pytest.mark.parametrize("columns", [0, 1, 40, 80, 200])
def test_the_bar_stays_on_its_line(columns: int) -> None:
    message = f"1.1 of 1.2 GiB, 126 MiB/s, 1 s left, {'and more ' * 9}"
    begun = VOLUME | {"transitioningProgress": 41, "transitioningMessage": message}
    answers = [(200, body(each)) for each in (begun, begun, begun, VOLUME | {"transitioning": "no"})]
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with pretending(answers, []) as url:
        words = ["--url", url, "import", "directory", "/etc", "db"]
        done = subprocess.run([sys.executable, "-c", CLIENT, *words], stdout=subprocess.PIPE, stderr=theirs, check=True)
    os.close(theirs)
    shown = os.read(ours, 65_536).decode()
    os.close(ours)
    lines = [re.sub(r"\x1b\[\?\d+[hl]", "", line) for line in re.split(r"[\r\n]+", shown)]
    assert max(map(len, lines)) < max(columns or 80, 10)
    assert ("1.1 of" in shown, done.stdout) == (columns != 1, b"db\n")


def test_work_that_failed_before_it_was_answered_is_status_1_too() -> None:
    failed = VOLUME | {"transitioning": "error", "transitioningMessage": "the disk is full"}
    with pretending([(201, body(failed))], []) as url:
        result = CliRunner().invoke(client.main, ["--url", url, "volume", "create", "db", "-d", "btrfs"])
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "voldriver: the disk is full\n")


@pytest.mark.parametrize(
    ("end", "status", "out", "said"),
    [("removed", 0, "1b1\n", ""), ("created", 1, "", "voldriver: cannot cancel backup 1b1: it was made before that\n")],
)
def test_a_cancel_waits_until_nobody_works_on_the_backup_any_more(
    monkeypatch: pytest.MonkeyPatch, end: str, status: int, out: str, said: str
) -> None:
    monkeypatch.setattr(session, "_POLL_MIN_S", 0.0)
    going = {"type": "backup", "id": "1b1", "state": "creating", "transitioning": "yes"}
    answers = [going, going, going, going | {"state": end, "transitioning": "no"}]
    seen: list[tuple[str, str, str]] = []
    with pretending([(200, body(each)) for each in answers], seen) as url:
        result = CliRunner().invoke(client.main, ["--url", url, "backup", "cancel", "1b1"])
    assert len(seen) == len(answers)
    assert (result.exit_code, result.stdout, result.stderr) == (status, out, said)


@pytest.mark.parametrize(
    ("end", "status", "out", "said"),
    [
        ({"type": "error", "code": "NotFound", "message": "there is no volume 1v1"}, 0, "db\n", ""),
        (VOLUME | {"transitioning": "error", "transitioningMessage": "it was cancelled"}, 0, "db\n", ""),
        (VOLUME | {"transitioning": "no"}, 1, "", "cannot cancel what was done to volume db: it was done before that"),
    ],
)
def test_a_cancel_waits_until_nobody_works_on_the_volume_any_more(
    monkeypatch: pytest.MonkeyPatch, end: dict[str, object], status: int, out: str, said: str
) -> None:
    monkeypatch.setattr(session, "_POLL_MIN_S", 0.0)
    going = VOLUME | {"transitioning": "yes"}
    answers = [{"type": "collection", "data": [going], "pagination": {"next": None}}, going, going, end]
    seen: list[tuple[str, str, str]] = []
    with pretending([(200, body(each)) for each in answers], seen) as url:
        result = CliRunner().invoke(client.main, ["--url", url, "backup", "cancel", "db"])
    assert len(seen) == len(answers)
    assert (result.exit_code, result.stdout) == (status, out)
    assert said in result.stderr


class Late(list[tuple[str, str, str]]):
    """Notes requests, and keeps those that are answered with a stream waiting."""

    def append(self, request: tuple[str, str, str]) -> None:
        super().append(request)
        if re.search("/(difference|archive|export)", request[1]):
            time.sleep(0.5)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("snapshot", "diff", "db@s"), ["volume", "snapshot"]),
        (("snapshot", "get", "db@s", "/", "-"), ["volume", "snapshot"]),
        (("export", "db", "-"), ["volume"]),
        (("backup", "get", "1b1", "/", "-"), []),
    ],
)
def test_what_is_read_may_take_long_until_it_begins(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], found: list[str]
) -> None:
    """A directory is copied before it is compared, and a backup of an image is unpacked aside whole."""
    monkeypatch.setattr(Connection.__init__, "__kwdefaults__", {"timeout_s": 0.25})
    rows = {"volume": VOLUME, "snapshot": {"type": "snapshot", "id": "1s1", "name": "s"}}
    answers: list[dict[str, object]] = [
        {"type": "collection", "data": [rows[each]], "pagination": {"next": None}} for each in found
    ]
    answers += [] if found else [{"type": "backup", "id": "1b1", "volumeName": "db"}]
    with pretending([(200, body(each)) for each in [*answers, {"type": "stream"}]], Late()) as url:
        result = CliRunner().invoke(client.main, ["--url", url, *words])
    assert (result.exit_code, result.stderr) == (0, "")


@pytest.mark.parametrize(("going", "said"), [("yes", "db will have 1 GiB\n"), ("no", "db has 1 GiB now\n")])
def test_a_resize_that_is_not_waited_for_is_not_said_to_be_done(going: str, said: str) -> None:
    resized = VOLUME | {"transitioning": going, "sizeBytes": 1 << 30}
    with pretending([(200, body(PAGE | {"data": [resized]})), (202, body(resized))], []) as url:
        result = CliRunner().invoke(client.main, ["--url", url, "volume", "resize", "db", "1G", "--no-wait"])
    assert (result.exit_code, result.stderr) == (0, said)


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ([], {"url": "nfs://[fd00::1]/exports/backups"}),
        (
            ["--mount-options", "nfsvers=4.2,soft"],
            {"nfsConfig": {"server": "[fd00::1]", "share": "/exports/backups", "mountOptions": "nfsvers=4.2,soft"}},
        ),
    ],
)
def test_a_share_is_mounted_as_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, options: list[str], place: dict[str, object]
) -> None:
    sent: list[object] = []

    def post(_: Connection, path: str, fields: object) -> dict[str, str]:
        sent.append((path, fields))
        return {"name": "far"}

    monkeypatch.setattr(Connection, "post", post)
    words = ["--url", "http://127.0.0.1:1", "target", "create", "far", "nfs://[fd00::1]/exports/backups", *options]
    assert CliRunner().invoke(client.main, words).exit_code == 0
    assert sent == [("backuptargets", {"name": "far", **place})]


def test_mount_options_are_for_a_share_alone() -> None:
    words = ["--url", "http://127.0.0.1:1", "target", "create", "near", "file:///x", "--mount-options", "soft"]
    result = CliRunner().invoke(client.main, words)
    said = "voldriver: cannot use --mount-options: they are for nfs targets, and this one is file:///x\n"
    assert (result.exit_code, result.stderr) == (1, said)


def test_what_was_backed_up_last_comes_last_whatever_its_id() -> None:
    listed = [{"id": f"1b{number}", "takenTS": taken} for number, taken in ((1, 3_000), (2, 1_000), (3, 2_000))]
    with pretending([(200, body({"data": listed, "pagination": {"next": None}}))], []) as url:
        result = CliRunner().invoke(client.main, ["--url", url, "backup", "ls", "--quiet"])
    assert (result.exit_code, result.stdout) == (0, "1b2\n1b3\n1b1\n")


def test_who_may_not_connect_is_told_about_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(connection._Unix, "connect", connect)
    result = run(NO_SOCKET, "info")
    assert result.exit_code == 1
    assert "permission denied; be root or a member of the group" in result.stderr


# Texts


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text é", "plain text é"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\tb\r\n", "a\\x09b\\x0d\\x0a"),
        (os.fsdecode(b"\xff\xfe"), "\\xff\\xfe"),
        ("\u202eabc", "\\u202eabc"),
        ("\U000e0041", "\\U000e0041"),
        ("\x9b1m", "\\x9b1m"),
        ("a\\b", "a\\b"),
    ],
)
def test_what_a_terminal_would_obey_is_shown_as_its_code(text: str, shown: str) -> None:
    assert show.plain(text) == shown


# Completion


@pytest.mark.root
@pytest.mark.parametrize(
    "words", [["volume", "ls"], ["--json", "volume", "ls"], ["snapshot", "get", "alpha", "monday", ".", "-"]]
)
def test_an_output_that_cannot_be_written_is_one_line_and_status_1(daemon: Running, words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "VOLDRIVER_SOCKET": str(daemon.api_socket)},
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "voldriver: cannot write standard output: No space left on device\n")


@pytest.mark.root
def test_who_reads_no_further_is_no_error(daemon: Running) -> None:
    listing = shlex.join([sys.executable, "-c", CLIENT, "--json", "volume", "ls"])
    done = subprocess.run(
        ["bash", "-c", f"{listing} | head -c 1"],
        capture_output=True,
        text=True,
        env={**os.environ, "VOLDRIVER_SOCKET": str(daemon.api_socket)},
        check=True,
    )
    assert (done.stdout, done.stderr) == ("[", "")


@pytest.mark.root
@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("voldriver vol", ["volume"]),
        ("voldriver volume inspect al", ["alpha", "alto"]),
        ("voldriver volume rm alpha b", ["beta"]),
        ("voldriver volume restore ", ["gone"]),
        ("voldriver snapshot ls be", ["beta"]),
        ("voldriver snapshot revert al", ["alpha", "alto"]),
        ("voldriver snapshot revert alpha ", ["monday", "tuesday"]),
        ("voldriver snapshot diff alpha mon", ["monday"]),
        ("voldriver snapshot get alpha@t", ["alpha@tuesday"]),
        ("voldriver volume clone alpha@", ["alpha@monday", "alpha@tuesday"]),
        ("voldriver snapshot revert none@", []),
        ("voldriver pool grow i", ["images"]),
        ("voldriver apikey rm c", ["ci"]),
    ],
)
def test_the_shell_completes_names(daemon: Running, words: str, found: list[str]) -> None:
    assert complete(words, socket=daemon.api_socket) == found


@pytest.mark.root
@pytest.mark.parametrize(
    ("line", "replies"),
    [
        ("voldriver backup create al", ["alpha", "alto"]),
        ("voldriver backup create alpha@", ["monday", "tuesday"]),
        ("voldriver backup create alpha@m", ["monday"]),
        ("voldriver snapshot rm alpha@monday alpha@t", ["tuesday"]),
        ('voldriver export "alpha@t', ["alpha@tuesday"]),
        ("voldriver volume resi web", ["resize"]),
        ("voldriver apikey create --role=f", ["full"]),
    ],
)
def test_bash_replaces_what_stands_behind_the_last_break(
    daemon: Running, tmp_path: Path, line: str, replies: list[str]
) -> None:
    program = tmp_path / "voldriver"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{CLIENT}" "$@"\n')
    program.chmod(0o755)
    typed = line.removesuffix(" web")  # the cursor stands before that
    ask = f"COMP_LINE={shlex.quote(line)} COMP_POINT={len(typed)}; _voldriver_completion voldriver"
    script = f'eval "$(_VOLDRIVER_COMPLETE=bash_source voldriver)"; {ask}; printf "%s\\n" "${{COMPREPLY[@]}}"'
    path = f"{tmp_path}:{os.environ['PATH']}"
    environment = {**os.environ, "VOLDRIVER_SOCKET": str(daemon.api_socket), "PATH": path}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert (done.stdout.splitlines(), done.stderr) == (replies, "")


def test_completion_without_a_daemon_says_nothing() -> None:
    assert complete("voldriver volume inspect al", socket=NO_SOCKET) == []


def test_the_shell_gets_its_script() -> None:
    script = "import sys; sys.argv[0] = 'voldriver'; from voldriverd.cli.client import main; main()"
    environment = {**os.environ, "_VOLDRIVER_COMPLETE": "zsh_source"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert "#compdef voldriver" in done.stdout


def complete(words: str, *, socket: Path) -> list[str]:
    """Return what a shell is told to offer for the last word of a line."""
    *arguments, incomplete = words.split(" ")[1:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOLDRIVER_SOCKET", str(socket))
        shell = ShellComplete(client.main, {}, "voldriver", "_VOLDRIVER_COMPLETE")
        return [str(item.value) for item in shell.get_completions(arguments, incomplete)]


# Quick


@pytest.mark.root
def test_a_list_takes_little_of_the_processor(daemon: Running) -> None:
    """Measure processor time, which other work does not lengthen: 0.09 s here, 0.01 s of it for Python alone."""
    before = os.times()
    for _ in range(3):
        assert daemon.cli("volume", "ls").returncode == 0
    after = os.times()
    spent_s = (after.children_user + after.children_system - before.children_user - before.children_system) / 3
    assert spent_s < 0.3


def test_only_what_a_command_needs_is_imported() -> None:
    script = (
        "import sys\nfrom voldriverd.cli import client, volume, snapshot\n"
        "print(*sorted({'aiohttp', 'asyncio', 'tarfile', 'sqlite3', 'ssl', 'base64'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"ssl", "base64"}


def test_the_time_of_an_answer_is_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "XXX-5")
    time.tzset()
    try:
        assert show.time("2024-05-06T20:00:00Z") == "2024-05-07 01:00:00"
        assert show.time(None) == "-"
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.root
def test_quiet_lists_are_nothing_when_there_is_nothing(daemon: Running) -> None:
    voldriver = Voldriver(daemon.api_socket)
    assert voldriver.out("snapshot", "ls", "beta", "-q") == ""
    assert voldriver.out("snapshot", "ls", "beta").split("\n")[1:] == [""]
