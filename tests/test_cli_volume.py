"""`voldriver volume`, `trash`, `pool` and `info`: what each prints, where, and its exit status."""

import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Voldriver
from tests.running import Running, scratch_config
from tests.scratch import Scratch
from voldriverd.cli import show
from voldriverd.cli.connection import Connection, Resource
from voldriverd.kernel import mount

pytestmark = pytest.mark.root

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


@pytest.fixture(scope="module")
def daemon(session_scratch: Scratch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("d"), config=scratch_config(session_scratch)) as running:
        yield running


@pytest.fixture
def voldriver(daemon: Running) -> Iterator[Voldriver]:
    """Give the commands on a daemon that has nothing when the test begins."""
    yield Voldriver(daemon.api_socket)
    for volume in daemon.api("GET", "/v1/volumes").body["data"]:
        daemon.api("PUT", f"/v1/volumes/{volume['id']}", {"protected": False})
        daemon.api("POST", f"/v1/volumes/{volume['id']}?action=deactivate")
        daemon.api("DELETE", f"/v1/volumes/{volume['id']}")
    for volume in daemon.api("GET", "/v1/volumes?removed_notnull=1").body["data"]:
        daemon.api("POST", f"/v1/volumes/{volume['id']}?action=purge")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let somebody sit there."""
    monkeypatch.setattr(show, "is_terminal", lambda: True)


def lines(text: str) -> list[list[str]]:
    """Return the cells of a table."""
    return [re.split(r" {2,}", line.strip()) for line in text.splitlines()]


# create


def test_create_prints_the_name(voldriver: Voldriver) -> None:
    result = voldriver("volume", "create", "db")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "db\n", "")


def test_create_passes_driver_options_and_description_on(voldriver: Voldriver) -> None:
    arguments = ("-d", "loop", "-o", "size=32M", "-o", "label.tier=gold", "--description", "the base")
    made = voldriver.json("volume", "create", "db", *arguments)
    assert (made["driver"], made["sizeBytes"], made["description"]) == ("loop", 32 << 20, "the base")
    assert (made["driverOpts"], made["labels"]) == ({"size": "32M", "label.tier": "gold"}, {"tier": "gold"})


@pytest.mark.parametrize(
    ("options", "driver"),
    [([], "btrfs"), (["-o", "driver=directory"], "directory"), (["-o", "pool=plain"], "directory")],
)
def test_create_without_a_driver_takes_what_the_options_say_or_the_default(
    voldriver: Voldriver, options: list[str], driver: str
) -> None:
    assert voldriver.json("volume", "create", "db", *options)["driver"] == driver


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["a b"], "cannot use name 'a b'"),
        (["db", "-d", "zfs"], "btrfs, directory, loop"),
        (["db", "-o", "sise=1"], "did you mean size?"),
        (["db", "-o", "size=much"], "cannot use size 'much'"),
        (["db", "-o", "from=none"], "no volume is named none"),
        (["db", "-o", "pool=none"], "no pool is named 'none'"),
    ],
)
def test_create_refuses_in_one_line(voldriver: Voldriver, arguments: list[str], text: str) -> None:
    assert text in voldriver.refused("volume", "create", *arguments)
    assert voldriver.out("volume", "ls", "-q") == ""


@pytest.mark.parametrize("options", [["-o", "size"], ["-o", "=1"], ["-o", "size=1M", "-o", "size=2M"], ["--frob"], []])
def test_create_used_wrongly_is_status_2(voldriver: Voldriver, options: list[str]) -> None:
    result = voldriver("volume", "create", *(["db", *options] if options else []))
    assert (result.exit_code, result.stdout) == (2, "")


# ls, inspect


def test_ls_is_an_aligned_table(voldriver: Voldriver) -> None:
    for name, driver in (("short", "btrfs"), ("a-longer-name", "directory")):
        voldriver.out("volume", "create", name, "-d", driver)
    voldriver.out("volume", "create", "sized", "-d", "loop", "-o", "size=32M")
    voldriver.out("snapshot", "create", "sized")
    text = voldriver.out("volume", "ls")
    head, *rows = lines(text)
    assert head == ["NAME", "DRIVER", "POOL", "STATE", "SIZE", "USED", "SNAPSHOTS", "CREATED"]
    assert [row[:4] for row in rows] == [
        ["short", "btrfs", "fast", "inactive"],
        ["a-longer-name", "directory", "plain", "inactive"],
        ["sized", "loop", "images", "inactive"],
    ]
    assert (rows[2][4], rows[2][6]) == ("32 MiB", "1")
    assert re.fullmatch(TIME, rows[0][7])
    assert len({line.index(row[1]) for line, row in zip(text.splitlines(), [head, *rows], strict=True)}) == 1
    assert len({line.rindex("  ") for line in text.splitlines() if "CREATED" not in line}) == 1


def test_ls_quiet_prints_names_and_json_resources(voldriver: Voldriver) -> None:
    for name in ("b", "a"):
        voldriver.out("volume", "create", f"{name}1")
    assert voldriver.out("volume", "ls", "-q") == "b1\na1\n"
    assert [volume["name"] for volume in voldriver.json("volume", "ls")] == ["b1", "a1"]


def test_ls_shows_more_than_a_page(voldriver: Voldriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voldriverd.cli.connection._PAGE", 2)
    names = [f"v{number}" for number in range(5)]
    for name in names:
        voldriver.out("volume", "create", name)
    assert voldriver.out("volume", "ls", "-q").split() == names


def test_inspect_tells_all(voldriver: Voldriver) -> None:
    voldriver.out("volume", "create", "db", "-o", "size=32M", "-o", "label.a=1", "--description", "the\nbase")
    place = voldriver.out("volume", "mount", "db").strip()
    voldriver.out("snapshot", "create", "db", "monday")
    voldriver.out("volume", "set", "db", "--protected")
    facts = dict(line.split(":", 1) for line in voldriver.out("volume", "inspect", "db").splitlines())
    shown = {name: value.strip() for name, value in facts.items()}
    expected = {
        "Name": "db",
        "State": "active",
        "Description": "the\\x0abase",
        "Driver": "btrfs",
        "Pool": "fast",
        "Size": "32 MiB",
        "Options": "label.a=1 size=32M",
        "Labels": "a=1",
        "Protected": "yes",
        "Mounted at": place,
        "Held by": "the host",
        "Snapshots": "monday",
    }
    assert {name: shown[name] for name in expected} == expected
    assert "Removed" not in shown


def test_inspect_goes_on_after_a_name_that_is_not_there(voldriver: Voldriver) -> None:
    for name in ("a1", "a2"):
        voldriver.out("volume", "create", name)
    result = voldriver("volume", "inspect", "a1", "none", "a2")
    assert (result.exit_code, result.stderr) == (1, "voldriver: there is no volume 'none'\n")
    assert re.findall(r"^Name: +(.*)", result.stdout, re.MULTILINE) == ["a1", "a2"]


def test_of_a_volume_in_the_trash_it_is_said_how_it_comes_back(voldriver: Voldriver) -> None:
    voldriver.out("volume", "create", "db")
    voldriver("volume", "rm", "db")
    hint = "there is no volume 'db'; one is in the trash: voldriver volume restore db"
    for arguments in (["volume", "inspect", "db"], ["snapshot", "ls", "db"], ["backup", "create", "db"]):
        assert voldriver.refused(*arguments) == hint


def test_json_is_a_resource_for_one_name_and_a_list_for_several(voldriver: Voldriver) -> None:
    for name in ("a1", "a2"):
        voldriver.out("volume", "create", name)
    assert voldriver.json("volume", "inspect", "a1")["name"] == "a1"
    assert [each["name"] for each in voldriver.json("volume", "inspect", "a1", "a2")] == ["a1", "a2"]
    result = voldriver("--json", "volume", "inspect", "none")
    assert (result.exit_code, result.stdout) == (1, "")
    assert voldriver("--json", "volume", "inspect", "none", "other").stdout == "[]\n"


def test_an_id_stands_for_a_name_and_names_win(voldriver: Voldriver) -> None:
    first = voldriver.json("volume", "create", "db")["id"]
    assert voldriver.json("volume", "inspect", first)["name"] == "db"
    voldriver.out("volume", "create", first)
    assert voldriver.json("volume", "inspect", first)["name"] == first


# rm, restore, purge, trash


def test_rm_says_how_to_bring_it_back_and_that_works(voldriver: Voldriver) -> None:
    voldriver.out("volume", "create", "db")
    result = voldriver("volume", "rm", "db")
    assert (result.exit_code, result.stdout) == (0, "db\n")
    line = result.stderr.strip()
    assert re.fullmatch(rf"in the trash until {TIME}; bring it back with: voldriver volume restore db", line)
    assert voldriver(*shlex.split(line.partition("with: voldriver ")[2])).exit_code == 0
    assert voldriver.out("volume", "ls", "-q") == "db\n"


def test_rm_of_several_goes_on_after_a_failure(voldriver: Voldriver) -> None:
    for name in ("a1", "a2", "a3"):
        voldriver.out("volume", "create", name)
    voldriver.out("volume", "set", "a2", "--protected")
    result = voldriver("volume", "rm", "a1", "a2", "none", "a3")
    assert (result.exit_code, result.stdout) == (1, "a1\na3\n")
    refusals = [line for line in result.stderr.splitlines() if line.startswith("voldriver: ")]
    assert refusals == [
        "voldriver: cannot remove volume a2: it is protected; voldriver volume set a2 --no-protected lifts that",
        "voldriver: there is no volume 'none'",
    ]


def test_rm_of_a_volume_in_use_names_process_and_mount_point(voldriver: Voldriver, tmp_path: Path) -> None:
    voldriver.out("volume", "create", "db")
    place = voldriver.out("volume", "mount", "db").strip()
    voldriver.out("volume", "unmount", "db")
    voldriver.out("volume", "mount", "db")
    script = f"mount --bind {place} {tmp_path} && echo done && exec cat"
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == b"done\n"
        voldriver.out("volume", "unmount", "db")
        refusal = voldriver.refused("volume", "rm", "db")
        assert user.stdin is not None
        user.stdin.close()
    assert f"(pid {user.pid})" in refusal
    assert str(tmp_path) in refusal


def test_rm_purge_destroys_without_a_question_where_nobody_sits(voldriver: Voldriver) -> None:
    voldriver.out("volume", "create", "db")
    result = voldriver("volume", "rm", "--purge", "db")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "db\n", "")
    assert voldriver.out("trash", "ls", "-q") == ""


@pytest.mark.usefixtures("terminal")
def test_rm_purge_asks_on_a_terminal_and_no_is_no(voldriver: Voldriver) -> None:
    voldriver.out("volume", "create", "db")
    voldriver.out("snapshot", "create", "db")
    result = voldriver("volume", "rm", "--purge", "db", stdin="n\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.match(r"Destroy volume db \(1v\d+\) and its 1 snapshot for good\? \[y/N\]: ", result.stderr)
    assert voldriver.out("volume", "ls", "-q") == "db\n"
    assert voldriver("volume", "rm", "--purge", "db", stdin="y\n").exit_code == 0
    assert voldriver.out("volume", "ls", "-q") == voldriver.out("trash", "ls", "-q") == ""


@pytest.mark.usefixtures("terminal")
def test_purge_asks_on_a_terminal_and_yes_answers(voldriver: Voldriver) -> None:
    voldriver.out("volume", "create", "db")
    voldriver.out("volume", "rm", "db")
    assert voldriver("volume", "purge", "db", stdin="n\n").exit_code == 1
    result = voldriver("volume", "purge", "db", "--yes")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "db\n", "")
    assert voldriver.out("trash", "ls", "-q") == ""


@pytest.mark.usefixtures("terminal")
def test_nothing_else_asks(voldriver: Voldriver) -> None:
    voldriver.out("volume", "create", "db")
    voldriver.out("snapshot", "create", "db", "s")
    voldriver.out("snapshot", "revert", "db", "s")
    voldriver.out("snapshot", "rm", "db", "s")
    voldriver.out("volume", "rm", "db")
    voldriver.out("volume", "restore", "db")


def test_restore_says_how_to_undo_it_and_what_dockerd_has_forgotten(voldriver: Voldriver) -> None:
    voldriver.out("volume", "create", "db", "-o", "size=32M", "-o", "label.a=it's")
    voldriver.out("volume", "rm", "db")
    result = voldriver("volume", "restore", "db")
    assert (result.exit_code, result.stdout) == (0, "db\n")
    undo, docker = result.stderr.splitlines()
    assert undo == "undo with: voldriver volume rm db"
    assert shlex.split(docker.partition(": ")[2]) == [
        *("docker", "volume", "create", "-d", "voldriver", "-o", "label.a=it's", "-o", "size=32M", "db"),
    ]


def test_the_docker_line_of_restore_is_taken_by_the_plugin(daemon: Running, voldriver: Voldriver) -> None:
    voldriver.out("volume", "create", "origin")
    voldriver.out("snapshot", "create", "origin", "s")
    voldriver.out("volume", "create", "db", "-o", "from=origin@s", "-o", "size=64M")
    voldriver.out("volume", "rm", "db")
    line = voldriver("volume", "restore", "db", "--as", "db2").stderr.splitlines()[1]
    words = shlex.split(line.partition("voldriver ")[2])
    options = dict(word.split("=", 1) for word in words if "=" in word)
    assert daemon.plugin("VolumeDriver.Create", Name=words[-1], Opts=options).body == {"Err": ""}
    assert words[-1] == "db2"


def test_restore_takes_the_newest_of_a_name_and_an_id_takes_any(voldriver: Voldriver) -> None:
    ids = []
    for text in ("old", "new"):
        ids.append(voldriver.json("volume", "create", "db", "--description", text)["id"])
        voldriver.out("volume", "rm", "db")
    # Both may be of the same second, then the list is in the order of ids.
    voldriver.out("volume", "restore", ids[1])
    voldriver.out("volume", "restore", "db", "--as", "db-old")
    assert voldriver.json("volume", "inspect", "db-old")["id"] == ids[0]


def test_restore_into_a_taken_name_names_the_holder(voldriver: Voldriver) -> None:
    voldriver.out("volume", "create", "db")
    voldriver.out("volume", "rm", "db")
    holder = voldriver.json("volume", "create", "db")["id"]
    assert holder in voldriver.refused("volume", "restore", "db")


@pytest.mark.parametrize("verb", ["restore", "purge"])
def test_what_is_not_in_the_trash_is_neither_restored_nor_purged(voldriver: Voldriver, verb: str) -> None:
    number = voldriver.json("volume", "create", "db")["id"]
    for text in ("db", number, "none", "1v999999"):
        assert voldriver.refused("volume", verb, text) == f"there is no volume {text!r} in the trash"


def test_purge_wants_an_id_where_a_name_is_twice_in_the_trash(voldriver: Voldriver) -> None:
    ids = []
    for _ in range(2):
        ids.append(voldriver.json("volume", "create", "db")["id"])
        voldriver.out("volume", "rm", "db")
    refusal = voldriver.refused("volume", "purge", "db")
    assert [each for each in ids if each not in refusal] == []
    voldriver.out("volume", "purge", ids[0])
    assert voldriver.out("trash", "ls", "-q").split() == [ids[1]]


def test_as_goes_with_one_volume(voldriver: Voldriver) -> None:
    result = voldriver("volume", "restore", "a1", "a2", "--as", "b")
    assert (result.exit_code, "--as goes with one volume" in result.stderr) == (2, True)


def test_trash_ls_says_when_each_is_destroyed(voldriver: Voldriver) -> None:
    voldriver.out("volume", "create", "db")
    voldriver.out("snapshot", "create", "db")
    gone = voldriver.json("volume", "rm", "db")
    head, row = lines(voldriver.out("trash", "ls"))
    assert head == ["NAME", "ID", "DRIVER", "SIZE", "USED", "SNAPSHOTS", "REMOVED", "DESTROYED AT"]
    assert (row[0], row[1], row[5]) == ("db", gone["id"], "1")
    kept = datetime.fromisoformat(row[7]) - datetime.fromisoformat(row[6])
    assert kept.days == 7
    assert [each["id"] for each in voldriver.json("trash", "ls")] == [gone["id"]]


# resize, clone, set


def test_resize_waits_and_says_the_new_size(voldriver: Voldriver) -> None:
    voldriver.out("volume", "create", "db", "-o", "size=32M")
    result = voldriver("volume", "resize", "db", "48M")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "db has 48 MiB now\n")
    assert voldriver.json("volume", "resize", "db", "64M")["sizeBytes"] == 64 << 20
    assert "cannot use size 'x'" in voldriver.refused("volume", "resize", "db", "x")


def test_clone_is_of_now_or_of_a_snapshot(voldriver: Voldriver) -> None:
    voldriver.out("volume", "create", "db")
    place = Path(voldriver.out("volume", "mount", "db").strip())
    (place / "file").write_text("then")
    voldriver.out("snapshot", "create", "db", "s")
    (place / "file").write_text("now")
    assert voldriver.out("volume", "clone", "db@s", "then") == "then\n"
    assert voldriver.out("volume", "clone", "db", "now", "--description", "copy") == "now\n"
    for name in ("then", "now"):
        assert (Path(voldriver.out("volume", "mount", name).strip()) / "file").read_text() == name
    assert voldriver.refused("volume", "clone", "db@none", "x") == "volume db has no snapshot 'none'"
    assert voldriver.refused("volume", "clone", "none", "x") == "there is no volume 'none'"
    assert "exists" in voldriver.refused("volume", "clone", "db", "now")


def test_set_changes_what_is_given_and_merges_labels(voldriver: Voldriver) -> None:
    voldriver.out("volume", "create", "db", "-o", "label.a=1", "-o", "label.b=2")
    result = voldriver("volume", "set", "db", "--description", "new", "--protected", "--label", "b=", "--label", "c=3")
    assert (result.exit_code, result.output) == (0, "")
    found = voldriver.json("volume", "inspect", "db")
    assert (found["description"], found["protected"], found["labels"]) == ("new", True, {"a": "1", "c": "3"})
    found = voldriver.json("volume", "set", "db", "--no-protected")
    assert (found["description"], found["protected"]) == ("new", False)
    assert voldriver.json("volume", "set", "db", "--description", "")["description"] is None


def test_set_keeps_labels_without_a_value_that_are_not_named(voldriver: Voldriver) -> None:
    voldriver.out("volume", "create", "db", "-o", "label.mark=", "-o", "label.a=1")
    voldriver.out("volume", "set", "db", "--label", "b=2")
    assert voldriver.json("volume", "inspect", "db")["labels"] == {"mark": "", "a": "1", "b": "2"}
    voldriver.out("volume", "set", "db", "--label", "mark=")
    assert voldriver.json("volume", "inspect", "db")["labels"] == {"a": "1", "b": "2"}


def test_labels_that_are_set_at_the_same_time_are_all_kept(
    voldriver: Voldriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    voldriver.out("volume", "create", "db", "-o", "label.a=1")
    put = Connection.put

    def outrun(self: Connection, path: str, fields: Mapping[str, Any]) -> Resource:
        monkeypatch.setattr(Connection, "put", put)
        voldriver.out("volume", "set", "db", "--label", "b=2", "--label", "a=")
        return put(self, path, fields)

    monkeypatch.setattr(Connection, "put", outrun)
    voldriver("volume", "set", "db", "--label", "c=3")
    assert voldriver.json("volume", "inspect", "db")["labels"] == {"b": "2", "c": "3"}


@pytest.mark.parametrize("options", [[], ["--label", "x"], ["--protected=yes"]])
def test_set_used_wrongly_is_status_2(voldriver: Voldriver, options: list[str]) -> None:
    assert voldriver("volume", "set", "db", *options).exit_code == 2


# mount, unmount, path


def test_mount_prints_where_also_the_second_time_and_unmount_undoes_it(voldriver: Voldriver) -> None:
    voldriver.out("volume", "create", "db")
    refusal = voldriver.refused("volume", "path", "db")
    assert refusal == "volume db is not mounted; mount it with: voldriver volume mount db"
    place = voldriver.out("volume", "mount", "db").strip()
    assert mount.at(Path(place)) is not None
    assert voldriver.out("volume", "mount", "db").strip() == voldriver.out("volume", "path", "db").strip() == place
    assert voldriver.json("volume", "path", "db")["mountpoint"] == place
    assert voldriver.out("volume", "unmount", "db") == ""
    assert mount.at(Path(place)) is None
    assert voldriver.refused("volume", "unmount", "db").endswith("the host does not have it mounted")


# pools and the whole


def test_pool_ls_and_info_show_space_and_health(voldriver: Voldriver) -> None:
    voldriver.out("volume", "create", "db")
    head, *rows = lines(voldriver.out("pool", "ls"))
    assert head == ["NAME", "DRIVER", "HEALTH", "CAPACITY", "FREE", "VOLUMES", "PATH"]
    assert [row[:4] for row in rows] == [
        ["fast", "btrfs", "available", "2 GiB"],
        ["images", "loop", "available", "2 GiB"],
        ["plain", "directory", "available", "2 GiB"],
    ]
    assert [row[5] for row in rows] == ["1", "0", "0"]
    assert voldriver.out("pool", "ls", "-q") == "fast\nimages\nplain\n"
    assert [pool["name"] for pool in voldriver.json("pool", "ls")] == ["fast", "images", "plain"]
    told = voldriver.out("info")
    assert re.search(r"^Volumes: +1 \(0 mounted\)$", told, re.MULTILINE)
    assert voldriver.out("pool", "ls") in told
    assert voldriver.json("info")["volumeCount"] == 1


def test_a_pool_that_is_not_ours_is_not_grown(voldriver: Voldriver) -> None:
    refusal = voldriver.refused("pool", "grow", "fast", "4G")
    assert refusal.startswith("cannot grow pool fast: its file system is not ours; grow what lies under ")
    assert voldriver.refused("pool", "grow", "none", "4G") == "there is no pool 'none'; there is fast, images, plain"


def test_the_embedded_pool_is_grown(tmp_path: Path) -> None:
    with Running(tmp_path) as own:
        voldriver = Voldriver(own.api_socket)
        result = voldriver("pool", "grow", "btrfs", "320M")
        assert (result.exit_code, result.stdout, result.stderr) == (0, "", "btrfs has 320 MiB now\n")
        assert {pool["capacityBytes"] for pool in voldriver.json("pool", "ls")} == {320 << 20}
        assert "can only grow" in voldriver.refused("pool", "grow", "loop", "1M")
