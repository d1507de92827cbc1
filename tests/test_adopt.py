"""`voldriver import` and `voldriver export`, against a real daemon; Docker's part is in tests/docker/test_adopt.py."""

import gzip
import io
import os
import pty
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.commands import Voldriver, run
from tests.contract import content
from tests.contract.content import likeness
from tests.running import CLIENT, Running, scratch_config
from tests.scratch import Scratch
from voldriverd.cli import adopt, dockerd
from voldriverd.errors import InUse
from voldriverd.kernel import btrfs, tree

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def daemon(session_scratch: Scratch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("adopt") / "d", config=scratch_config(session_scratch)) as daemon:
        yield daemon
        assert "Traceback" not in daemon.log, daemon.log


@pytest.fixture
def voldriver(daemon: Running) -> Iterator[Voldriver]:
    program = Voldriver(daemon.api_socket)
    yield program
    for name in program.out("volume", "ls", "-q").split():
        program.out("volume", "rm", "--purge", "--yes", name)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    place = tmp_path / "source"
    place.mkdir()
    (place / "file").write_bytes(b"content")
    return place


def packed(place: Path) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        archive.add(place, ".")
    return made.getvalue()


def exported(voldriver: Voldriver, source: str, target: Path) -> dict[str, bytes]:
    voldriver.out("export", source, str(target))
    with tarfile.open(target) as archive:
        files = ((member.name, archive.extractfile(member)) for member in archive.getmembers())
        return {name: file.read() for name, file in files if file is not None}


def test_a_directory_is_imported_with_labels_options_and_description(voldriver: Voldriver, source: Path) -> None:
    options = ["-d", "loop", "-o", "size=64M", "--label", "tier=gold", "--description", "mine"]
    assert voldriver.out("import", "directory", str(source), "web", *options) == "web\n"
    row = voldriver.json("volume", "inspect", "web")
    assert (row["driver"], row["sizeBytes"], row["labels"]) == ("loop", 64 << 20, {"tier": "gold"})
    assert (row["description"], row["state"]) == ("mine", "inactive")


def test_a_relative_path_is_that_of_who_asks(
    voldriver: Voldriver, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source.parent)
    assert voldriver.out("import", "directory", "source", "web") == "web\n"


def test_an_archive_of_a_file_or_of_standard_input_is_imported(
    daemon: Running, voldriver: Voldriver, source: Path, tmp_path: Path
) -> None:
    file = tmp_path / "web.tar.gz"
    file.write_bytes(gzip.compress(packed(source)))
    assert voldriver.out("import", "tar", str(file), "web", "--label", "a=b", "-d", "directory") == "web\n"
    assert voldriver.json("volume", "inspect", "web")["labels"] == {"a": "b"}
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, "import", "tar", "-", "db"],
        input=packed(source),
        capture_output=True,
        check=True,
        env={**os.environ, "VOLDRIVER_SOCKET": str(daemon.api_socket)},
    )
    assert done.stdout == b"db\n"
    for name in ("web", "db"):
        assert exported(voldriver, name, tmp_path / f"{name}.tar") == {"./file": b"content"}


def test_what_is_refused_before_all_is_sent_says_why(voldriver: Voldriver, tmp_path: Path) -> None:
    file = tmp_path / "large.tar"
    with file.open("wb") as large:
        large.write(b"no archive" * 100_000)
        large.truncate(200 << 20)
    said = voldriver.refused("import", "tar", str(file), "web")
    assert said.startswith("cannot read the archive: it is no tar archive")
    assert voldriver.refused("import", "tar", str(file), "no/name").startswith("cannot use name")
    assert voldriver.refused("import", "tar", str(tmp_path / "none"), "web").endswith("none: No such file or directory")


def test_a_snapshot_is_exported_as_it_was_and_completed(
    daemon: Running, voldriver: Voldriver, source: Path, tmp_path: Path
) -> None:
    voldriver.out("import", "directory", str(source), "web")
    voldriver.out("snapshot", "create", "web", "then")
    place = Path(voldriver.out("volume", "mount", "web").strip())
    (place / "file").write_bytes(b"changed")
    assert exported(voldriver, "web@then", tmp_path / "then.tar") == {"./file": b"content"}
    assert exported(voldriver, "web", tmp_path / "now.tar") == {"./file": b"changed"}
    voldriver.out("volume", "unmount", "web")
    words = {"COMP_LINE": "voldriver export web@", "_VOLDRIVER_COMPLETE": "bash_complete"}
    assert daemon.cli(**words).stdout.split() == ["plain,web@then"]


def test_a_file_is_never_replaced_unless_forced_and_never_half_there(
    daemon: Running, voldriver: Voldriver, source: Path, tmp_path: Path
) -> None:
    voldriver.out("import", "directory", str(source), "web")
    file = tmp_path / "out" / "web.tar"
    file.parent.mkdir()
    file.write_bytes(b"mine")
    assert voldriver.refused("export", "web", str(file)) == f"cannot write {file}: it exists; --force replaces it"
    assert voldriver.refused("export", "web@none", str(file), "--force") == "volume web has no snapshot 'none'"
    assert file.read_bytes() == b"mine"
    voldriver.out("export", "web", str(file), "--force")
    assert tarfile.is_tarfile(file)
    assert voldriver.refused("export", "web", str(file.parent)).endswith("it is no file; send the output there with -")
    assert (
        voldriver.refused("export", "web", "/nowhere/x.tar") == "cannot write /nowhere/x.tar: No such file or directory"
    )
    assert [path.name for path in file.parent.iterdir()] == ["web.tar"]
    piped = subprocess.run(
        [sys.executable, "-c", CLIENT, "export", "web", "-"],
        capture_output=True,
        check=True,
        env={**os.environ, "VOLDRIVER_SOCKET": str(daemon.api_socket)},
    )
    assert piped.stdout == file.read_bytes()


def test_an_archive_goes_neither_to_nor_from_a_terminal(daemon: Running, voldriver: Voldriver, source: Path) -> None:
    voldriver.out("import", "directory", str(source), "web")
    main, side = pty.openpty()
    try:
        for words, said in (
            (("export", "web", "-"), b"cannot write an archive to a terminal"),
            (("import", "tar", "-", "db"), b"cannot read an archive from a terminal"),
        ):
            done = subprocess.run(
                [sys.executable, "-c", CLIENT, *words],
                stdin=side,
                stdout=side,
                stderr=subprocess.PIPE,
                check=False,
                env={**os.environ, "VOLDRIVER_SOCKET": str(daemon.api_socket)},
            )
            assert (done.returncode, said in done.stderr) == (1, True), done.stderr
    finally:
        os.close(main)
        os.close(side)


@pytest.fixture
def buttervolume(daemon: Running, voldriver: Voldriver) -> Iterator[Path]:
    """A root of buttervolume beside the pool `fast`: two volumes, snapshots of one, and what is kept of one sent."""
    del voldriver  # its volumes go first
    pools = {pool["name"]: Path(pool["path"]) for pool in daemon.api("GET", "/v1/storagepools").body["data"]}
    root = pools["fast"].parent / f"buttervolume-{uuid.uuid4().hex}"
    for directory in ("volumes", "snapshots"):
        (root / directory).mkdir(parents=True)
    with btrfs.opened(root / "volumes") as volumes, btrfs.opened(root / "snapshots") as snapshots:
        for name in ("www", "other"):
            btrfs.create(volumes, name)
        with btrfs.opened("www", directory_fd=volumes) as www:
            for number, date in enumerate(DATES):
                (root / "volumes" / "www" / "number").write_text(str(number))
                btrfs.snapshot(www, snapshots, f"www@{date}", read_only=True)
        content.fill(root / "volumes" / "www")
        yield root
    tree.vanish(root)


DATES = ("2026-08-26T10:00:00.000000", "2026-08-27T10:00:00.500000", "2026-08-27T10:00:00.500000@node2")


def test_a_root_of_buttervolume_is_taken_over_by_snapshots(
    voldriver: Voldriver, buttervolume: Path, tmp_path: Path
) -> None:
    before = likeness(buttervolume / "volumes" / "www")
    assert voldriver.out("import", "buttervolume", str(buttervolume)) == "other-imported\nwww-imported\n"
    row = voldriver.json("volume", "inspect", "www-imported")
    assert (row["driver"], row["snapshotCount"]) == ("btrfs", 3)
    place = Path(voldriver.out("volume", "mount", "www-imported").strip())
    assert likeness(place) == before == likeness(buttervolume / "volumes" / "www")
    (place / "new").touch()
    voldriver.out("volume", "unmount", "www-imported")
    shown = voldriver.json("snapshot", "ls", "www-imported")
    taken = [datetime.fromisoformat(date).astimezone(UTC).replace(microsecond=0) for date in DATES[:2]]
    assert [each["name"] for each in shown] == [
        "2026-08-26T10.00.00.000000",
        "2026-08-27T10.00.00.500000",
        "2026-08-27T10.00.00.500000-node2",
    ]
    assert [datetime.fromisoformat(each["created"]) for each in shown] == [*taken, taken[1]]
    for number, snapshot in enumerate(shown):
        found = exported(voldriver, f"www-imported@{snapshot['name']}", tmp_path / f"{number}.tar")
        assert found == {"./number": str(number).encode()}
    voldriver.out("snapshot", "revert", "www-imported", shown[0]["name"])


def test_of_a_root_of_buttervolume_some_may_be_chosen(voldriver: Voldriver, buttervolume: Path) -> None:
    assert voldriver.out("import", "buttervolume", str(buttervolume), "other", "--suffix", "") == "other\n"
    assert voldriver.refused("import", "buttervolume", str(buttervolume), "none").startswith(
        "there is no volume 'none'"
    )
    said = voldriver.refused("import", "buttervolume", str(buttervolume / "volumes"))
    assert said.endswith("there is no directory volumes in it")


def test_a_root_of_buttervolume_elsewhere_is_refused_saying_what_to_do(
    voldriver: Voldriver, buttervolume: Path, tmp_path: Path
) -> None:
    for root, options in ((tmp_path, ()), (buttervolume, ("-d", "loop"))):
        (tmp_path / "volumes" / "www").mkdir(parents=True, exist_ok=True)
        said = voldriver.refused("import", "buttervolume", str(root), "www", *options)
        assert "is no subvolume of the btrfs that pool" in said
        assert "give -o pool= a btrfs pool on its file system, or import it as a directory" in said
    assert voldriver.out("volume", "ls", "-q") == ""


@pytest.fixture
def docker(monkeypatch: pytest.MonkeyPatch, source: Path) -> pytest.MonkeyPatch:
    """Have docker know the source as its volume db, which no container uses."""
    monkeypatch.setattr(dockerd.Dockerd, "volume", lambda _, name: dockerd.Local(name, str(source), {}))
    monkeypatch.setattr(dockerd.Dockerd, "ensure_unused", lambda *_: None)
    return monkeypatch


def test_what_a_container_was_started_on_meanwhile_is_said_to_be_made(
    voldriver: Voldriver, docker: pytest.MonkeyPatch
) -> None:
    answers = iter([None, InUse("cannot import Docker's volume db: it is used by container c (running)")])

    def ensure_unused(*_: object) -> None:
        if (err := next(answers)) is not None:
            raise err

    docker.setattr(dockerd.Dockerd, "ensure_unused", ensure_unused)
    assert voldriver.refused("import", "docker", "db").endswith(
        "(running); volume db-imported is made, and what was written meanwhile may be half in it: "
        "voldriver volume rm db-imported, and import it again"
    )
    assert voldriver.out("volume", "ls", "-q") == "db-imported\n"


def test_the_removal_of_what_is_still_being_imported_is_not_advised(
    voldriver: Voldriver, docker: pytest.MonkeyPatch
) -> None:
    begun = {"name": "db-imported", "transitioning": "yes", "transitioningMessage": None}
    docker.setattr(adopt, "_import", lambda *_: begun)
    done = voldriver("import", "docker", "db", "--no-wait")
    assert done.stdout == "db-imported\n"
    assert done.stderr == "it is being imported: keep docker's volume until db-imported is inactive\n"


def test_each_command_tells_what_it_does() -> None:
    for words in (("import",), ("import", "docker"), ("import", "tar"), ("import", "buttervolume"), ("export",)):
        done = run(Path("/nowhere"), *words, "--help")
        assert done.exit_code == 0
        assert "Usage: voldriver" in done.stdout
    assert run(Path("/nowhere"), "import", "docker").exit_code == 2
    assert run(Path("/nowhere"), "import", "docker", "--all", "db").exit_code == 2
    assert run(Path("/nowhere"), "import", "docker", "a", "b", "--as", "c").exit_code == 2
