"""Lines of the log, and the journal of systemd in its own protocol: read back as journald reads it."""

import asyncio
import json
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.doors import fields_of
from tests.running import Running, pools_config
from voldriverd import errors, journal, logs

BUFFER_BYTES = 1 << 20


def record(template: object, *values: object, level: int = logging.INFO, error: Exception | None = None) -> Any:
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord("voldriverd.x", level, __file__, 1, template, values, exc_info)


class Listener:
    """journald as its protocol says it: a socket, and the entries that came to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    def entries(self) -> list[dict[str, str]]:
        found = []
        while True:
            try:
                found.append(parsed(self.socket.recv(BUFFER_BYTES)))
            except BlockingIOError:
                return found


def parsed(datagram: bytes) -> dict[str, str]:
    """Read one entry: `NAME=value`, or NAME, a length of 8 bytes and as many bytes (JOURNAL_NATIVE_PROTOCOL)."""
    fields: dict[str, str] = {}
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        name, is_plain, value = line.partition(b"=")
        if not is_plain:
            length = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + length], rest[8 + length :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        assert re.fullmatch(rb"[A-Z][A-Z0-9_]{0,63}", name), name
        fields[name.decode()] = value.decode()
        datagram = rest
    return fields


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    listener = Listener(tmp_path / "socket")
    yield listener
    listener.socket.close()


@pytest.fixture
def handler(listener: Listener) -> Iterator[journal.Journal]:
    handler = journal.Journal(listener.path)
    yield handler
    handler.close()


# Lines


@pytest.mark.parametrize(
    ("template", "values", "line"),
    [
        ("verb=open pool=%s result=%s", ("a", "it is away"), 'verb=open pool=a result="it is away"'),
        ("verb=x volume=1v%d result=the end", (7,), 'verb=x volume=1v7 result="the end"'),
        ("verb=serve result=%d %s", (400, "bad"), 'verb=serve result="400 bad"'),
        ("verb=x share=%d%% of=%.1f", (5, 2.25), 'verb=x share="5%" of=2.2'),
        ("verb=x name=%s", ("a result=ok",), 'verb=x name="a result=ok"'),
        ("verb=x name=%s", ("a\nverb=y",), 'verb=x name="a\\nverb=y"'),
        ("verb=x name=%s", ("",), 'verb=x name=""'),
        ("verb=x name=%s", ("ü",), 'verb=x name="\\u00fc"'),
        ("no pairs: %s", ("a=b",), "no pairs: a=b"),
        ("Task %s is=so", ("t",), "Task t is=so"),
        (logs.Line({"verb": "x", "driver": None, "error": "of a"}, word="audit"), (), 'audit verb=x error="of a"'),
    ],
)
def test_a_line_is_pairs_of_which_no_value_passes_for_another(
    template: object, values: tuple[object, ...], line: str
) -> None:
    assert logs.text(record(template, *values)) == line


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.Invalid("cannot"), "invalid"),
        (errors.NotFound("cannot"), "not_found"),
        (errors.Exists("cannot"), "exists"),
        (errors.InUse("cannot"), "in_use"),
        (errors.Unsupported("cannot"), "unsupported"),
        (errors.Unusable("cannot"), "unusable"),
        (OSError(5, "cannot"), "system"),
        (ZeroDivisionError("cannot"), "internal"),
        (asyncio.CancelledError("cannot"), "cancelled"),
    ],
)
def test_an_error_is_told_by_its_kind_and_its_text(error: BaseException, kind: str) -> None:
    found = logs.facts(record("verb=x result=%s id=%s", error, "1"))
    assert found == {"verb": "x", "result": kind, "error": str(error), "id": "1"}


def test_values_that_do_not_fit_the_template_are_as_logging_has_them() -> None:
    assert logs.text(record("verb=%(verb)s", {"verb": "x"})) == "verb=x"


@given(st.text(max_size=2_000))
def test_no_text_can_pass_for_another_field_or_line(text: str) -> None:
    line = logs.text(record("a=%s b=1", text))
    assert "\n" not in line
    assert fields_of(line) == {"a": text, "b": "1"}


def test_a_value_without_end_is_cut() -> None:
    assert len(logs.shown("x" * 1_000_000)) == logs.VALUE_MAX


def test_for_people_a_line_has_time_and_level_and_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logs.Formatter())
    try:
        handler.handle(record("verb=x result=%s", "not so", level=logging.ERROR, error=ZeroDivisionError("of ours")))
    finally:
        handler.close()
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ERROR verb=x result="not so"', first)
    assert second == "ZeroDivisionError: of ours"


# The journal


def test_a_line_comes_with_its_facts_as_fields(listener: Listener, handler: journal.Journal) -> None:
    handler.handle(record("verb=open pool=%s result=%s", "fast", errors.Unusable("its disk is gone")))
    assert listener.entries() == [
        {
            "MESSAGE": 'verb=open pool=fast result=unusable error="its disk is gone"',
            "PRIORITY": "6",
            "SYSLOG_IDENTIFIER": "voldriverd",
            "LOGGER": "voldriverd.x",
            "VOLDRIVER_VERB": "open",
            "VOLDRIVER_POOL": "fast",
            "VOLDRIVER_RESULT": "unusable",
            "VOLDRIVER_ERROR": "its disk is gone",
        }
    ]


@pytest.mark.parametrize(
    ("level", "priority"),
    [
        (logging.DEBUG, "7"),
        (logging.INFO, "6"),
        (logging.WARNING, "4"),
        (logging.ERROR, "3"),
        (logging.CRITICAL, "2"),
        (1, "7"),
    ],
)
def test_a_level_is_a_priority_of_syslog(
    listener: Listener, handler: journal.Journal, level: int, priority: str
) -> None:
    handler.handle(record("text", level=level))
    assert [each["PRIORITY"] for each in listener.entries()] == [priority]


def test_a_traceback_is_part_of_the_message_and_its_lines_stay(listener: Listener, handler: journal.Journal) -> None:
    handler.handle(record("verb=x result=internal error", error=ZeroDivisionError("of ours")))
    (entry,) = listener.entries()
    assert entry["MESSAGE"].splitlines() == ['verb=x result="internal error"', "ZeroDivisionError: of ours"]
    assert entry["VOLDRIVER_RESULT"] == "internal error"


@given(st.text(), st.text())
def test_whatever_a_value_holds_it_is_one_field(name: str, error: str) -> None:
    entry = b"".join(
        journal._field(*each) for each in journal._fields(record("verb=x name=%s error=%s", name, error), "")
    )
    found = parsed(entry)
    assert (found["VOLDRIVER_NAME"], found["VOLDRIVER_ERROR"]) == (name, error)
    assert len(found) == 7


def test_a_message_without_end_is_cut(listener: Listener, handler: journal.Journal) -> None:
    handler.handle(record("%s", "x" * BUFFER_BYTES))
    assert [len(each["MESSAGE"]) for each in listener.entries()] == [journal.MESSAGE_MAX_BYTES]


def test_what_a_busy_journal_does_not_take_is_lost_counted_and_told(
    listener: Listener, handler: journal.Journal
) -> None:
    sent = 0
    while handler.lost < 3:
        handler.handle(record("verb=x number=%d", sent))
        sent += 1
    taken = listener.entries()
    assert [each["VOLDRIVER_NUMBER"] for each in taken] == [str(number) for number in range(sent - 3)]
    handler.handle(record("verb=x number=%d", sent))
    handler.handle(record("verb=x number=%d", sent + 1))
    told, *later = listener.entries()
    assert (told["VOLDRIVER_LOST"], told["PRIORITY"]) == ("3", "4")
    assert [each["VOLDRIVER_NUMBER"] for each in later] == [str(sent), str(sent + 1)]
    assert handler.lost == 3


def test_a_journal_that_goes_and_comes_back_is_found_again(listener: Listener, handler: journal.Journal) -> None:
    listener.socket.close()
    handler.handle(record("verb=x of=the dead"))
    listener.path.unlink()
    handler.handle(record("verb=x of=nobody"))
    later = Listener(listener.path)
    handler.handle(record("verb=x of=the next"))
    entries = later.entries()
    later.socket.close()
    assert [each.get("VOLDRIVER_LOST") or each["VOLDRIVER_OF"] for each in entries] == ["2", "the next"]


def test_after_the_end_nothing_is_raised(listener: Listener, handler: journal.Journal) -> None:
    handler.close()
    handler.handle(record("verb=x"))
    assert (listener.entries(), handler.lost) == ([], 1)


def test_lost_lines_of_the_process_are_counted(listener: Listener, handler: journal.Journal) -> None:
    listener.path.unlink()
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        root.error("verb=x")
        assert journal.lost() == 1
    finally:
        root.removeHandler(handler)
    assert journal.lost() == 0


def identity(fd: int) -> str:
    status = os.fstat(fd)
    return f"{status.st_dev}:{status.st_ino}"


@pytest.mark.parametrize("given", ["", "1", "a:b", "1:", ":1", "8:1:2", "0:0"])
def test_what_does_not_name_standard_error_is_no_journal(given: str) -> None:
    assert not journal.is_standard_error({"JOURNAL_STREAM": given})
    assert not journal.is_standard_error({})


def test_standard_error_is_the_journal_when_the_environment_names_it() -> None:
    assert journal.is_standard_error({"JOURNAL_STREAM": identity(2)})


# A daemon


class UnderJournal(Running):
    """A daemon whose standard error is what JOURNAL_STREAM names, and whose journal is ours."""

    def __init__(self, base: Path, listener: Listener) -> None:
        super().__init__(base, config=pools_config(plain=("directory", base / "pool")))
        self.listener = listener
        self.preamble = (
            "import os; status = os.fstat(2); os.environ['JOURNAL_STREAM'] = f'{status.st_dev}:{status.st_ino}'; "
            "from pathlib import Path; from voldriverd import journal; "
            f"journal.Journal.__init__.__defaults__ = (Path({str(listener.path)!r}),); "
        )
        self.entries: list[dict[str, str]] = []

    @property
    def log(self) -> str:
        """What the journal has, as text."""
        self.entries += self.listener.entries()
        return "\n".join(each["MESSAGE"] for each in self.entries)


@pytest.mark.root
def test_a_daemon_tells_the_journal_what_its_verbs_came_to(tmp_path: Path, listener: Listener) -> None:
    with UnderJournal(tmp_path / "d", listener) as daemon:
        daemon.plugin("VolumeDriver.Create", Name="db", Opts={"label.secret": "hidden"})
        daemon.plugin("VolumeDriver.Mount", Name="db", ID="c1")
        daemon.plugin("VolumeDriver.Get", Name="db")
        daemon.plugin("VolumeDriver.Remove", Name="db")
        daemon.plugin("VolumeDriver.Unmount", Name="db", ID="c1")
        daemon.plugin("VolumeDriver.List")
        assert "hidden" not in daemon.log
    told = [each for each in daemon.entries if each.get("VOLDRIVER_VOLUME") == "db"]
    verbs = [(each["VOLDRIVER_VERB"], each["VOLDRIVER_RESULT"], each["LOGGER"]) for each in told]
    assert verbs == [
        ("create", "ok", "audit"),
        ("mount", "ok", "audit"),
        ("remove", "in_use", "audit"),
        ("unmount", "ok", "audit"),
    ], "one line each, and none for what only reads"
    refused = told[2]
    assert refused["VOLDRIVER_ERROR"].startswith("cannot remove volume db: ")
    assert f"error={json.dumps(refused['VOLDRIVER_ERROR'])}" in refused["MESSAGE"]
    shared = {
        f"VOLDRIVER_{name}" for name in ("POOL", "DRIVER", "DURATION_MS", "BY", "FROM", "METHOD", "PATH", "STATUS")
    }
    assert all(shared <= set(each) for each in told)
    assert (told[0]["VOLDRIVER_POOL"], told[0]["VOLDRIVER_DRIVER"]) == ("plain", "directory")
    assert (told[0]["VOLDRIVER_BY"], told[0]["VOLDRIVER_FROM"]) == ("uid:0", f"pid:{os.getpid()}")
    assert "verb=" not in daemon.log_file.read_text(), "nothing of it goes to standard error too"


@pytest.mark.root
def test_a_daemon_serves_without_its_journal(tmp_path: Path, listener: Listener) -> None:
    with UnderJournal(tmp_path / "d", listener) as daemon:
        listener.path.unlink()
        assert daemon.plugin("VolumeDriver.Create", Name="db").status == 200
        daemon.plugin("VolumeDriver.List")  # the line comes after the answer, and before the next
        daemon.listener = Listener(listener.path)
        assert daemon.plugin("VolumeDriver.Remove", Name="db").status == 200
        daemon.plugin("VolumeDriver.List")
        daemon.log  # noqa: B018 - reads what came
        daemon.listener.socket.close()
    last = [each.get("VOLDRIVER_LOST") or each.get("VOLDRIVER_VERB") for each in daemon.entries][-2:]
    assert last == ["1", "remove"]


class Loud(Running):
    """A daemon that tells everything."""

    def _places(self) -> list[str]:
        return [*super()._places(), "--log-level", "debug"]


@pytest.mark.root
def test_what_only_reads_is_told_at_the_level_debug(tmp_path: Path) -> None:
    with Loud(tmp_path / "d", config=pools_config(plain=("directory", tmp_path / "pool"))) as daemon:
        daemon.plugin("VolumeDriver.Create", Name="db")
        daemon.plugin("VolumeDriver.Get", Name="db")
        daemon.plugin("VolumeDriver.Get", Name="d b")
        daemon.api("GET", "/v1/volumes")
        lines = [re.sub(r"^\S+ \S+ ", "", line) for line in daemon.log.splitlines()]
    assert "DEBUG call=/VolumeDriver.Get name=db holder=None status=200" in lines
    assert 'DEBUG call=/VolumeDriver.Get name="d b" holder=None status=500' in lines
    assert "DEBUG call=GET path=/v1/volumes status=200" in lines
    assert len([line for line in lines if "verb=create" in line]) == 1


JOURNALD = """
mount -t tmpfs tmpfs /etc && mount -t tmpfs tmpfs /run
echo 0123456789abcdef0123456789abcdef >/etc/machine-id
mkdir -p /etc/systemd /run/systemd/journal /run/log/journal/0123456789abcdef0123456789abcdef
printf '[Journal]\\nStorage=volatile\\nReadKMsg=no\\n' >/etc/systemd/journald.conf
/usr/lib/systemd/systemd-journald & journald=$!
until [ -S /run/systemd/journal/socket ]; do kill -0 $journald || exit 1; sleep 0.02; done
"$@"
journalctl --sync
journalctl --directory=/run/log/journal --output=json --all --no-pager SYSLOG_IDENTIFIER=voldriverd
kill $journald; wait $journald
"""
SENDER = """
import logging
from voldriverd import journal, logs
logging.basicConfig(level="INFO", handlers=[journal.Journal()])
logging.info("verb=open pool=%s result=%s", "fast", "a\\nVOLDRIVER_POOL=faked")
try:
    1 / 0
except ZeroDivisionError:
    logging.exception("%s", "x" * 100_000)
"""


@pytest.mark.root
def test_a_real_journald_reads_the_same() -> None:
    argv = ["unshare", "--mount", "--propagation=private", "sh", "-c", JOURNALD, "sh", sys.executable, "-c", SENDER]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    opened, failed = map(json.loads, done.stdout.splitlines())
    assert (opened["VOLDRIVER_POOL"], opened["VOLDRIVER_RESULT"]) == ("fast", "a\nVOLDRIVER_POOL=faked")
    assert (opened["MESSAGE"], opened["PRIORITY"]) == (
        'verb=open pool=fast result="a\\nVOLDRIVER_POOL=faked"',
        "6",
    )
    assert (len(failed["MESSAGE"]), failed["PRIORITY"]) == (journal.MESSAGE_MAX_BYTES, "3")


def test_the_fields_of_this_file_are_read_as_journald_reads_them() -> None:
    assert parsed(b"A=1\nB\n\x03\0\0\0\0\0\0\0a\nb\nC=\n") == {"A": "1", "B": "a\nb", "C": ""}
