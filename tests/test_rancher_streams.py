"""What is read out of snapshots: differences and archives, as streams that nothing leaves half open."""

import http.client
import io
import json
import os
import tarfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.running import Running, UnixConnection, scratch_config
from tests.scratch import Scratch
from voldriverd.kernel import mount

pytestmark = pytest.mark.root

DRIVERS = ["btrfs", "loop", "directory"]
BIG_BYTES = 48 << 20
"""More than the socket and both ends buffer, so that a client that does not read stops the daemon."""
PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def daemon(session_scratch: Scratch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("d"), config=scratch_config(session_scratch)) as running:
        yield running


class Volume:
    """A volume of a daemon, mounted while it is changed."""

    def __init__(self, daemon: Running, driver: str) -> None:
        options = {"size": "128M"} if driver == "loop" else {}
        fields = {"name": f"v{uuid.uuid4().hex}", "driver": driver, "driverOpts": options}
        self.daemon = daemon
        self.id = daemon.api("POST", "/v1/volumes", fields).body["id"]

    def act(self, action: str) -> dict[str, str]:
        answer = self.daemon.api("POST", f"/v1/volumes/{self.id}?action={action}")
        assert answer.status == 200, answer.body
        return dict(answer.body)

    def change(self, work: Callable[[Path], object]) -> None:
        place = Path(self.act("activate")["mountpoint"])
        try:
            work(place)
        finally:
            self.act("deactivate")

    def snapshot(self) -> str:
        return self.act("snapshot")["id"]


def fill(place: Path) -> None:
    (place / "sub").mkdir()
    (place / "same").write_text("same")
    (place / "sub" / "gone").write_text("gone")
    (place / "sub" / "changed").write_text("before")
    (place / "link").symlink_to("/etc/passwd")


def alter(place: Path) -> None:
    (place / "sub" / "gone").unlink()
    (place / "sub" / "changed").write_text("after and longer")
    (place / "new").write_text("new")
    (place / os.fsdecode(b"odd\xff\n")).write_text("odd")


ALTERED = [
    {"path": "new", "change": "added"},
    {"path": os.fsdecode(b"odd\xff\n"), "change": "added"},
    {"path": "sub/changed", "change": "changed"},
    {"path": "sub/gone", "change": "removed"},
]


@pytest.fixture(params=DRIVERS)
def altered(daemon: Running, request: pytest.FixtureRequest) -> tuple[Volume, str, str]:
    """Return a volume with a snapshot before and one after a change."""
    volume = Volume(daemon, request.param)
    volume.change(fill)
    before = volume.snapshot()
    volume.change(alter)
    return volume, before, volume.snapshot()


@pytest.fixture
def mortal(session_scratch: Scratch, tmp_path: Path) -> Iterator[Running]:
    """Give a daemon that a test may kill."""
    with Running(tmp_path, config=scratch_config(session_scratch)) as running:
        yield running


@pytest.fixture
def big(daemon: Running) -> tuple[Volume, str]:
    """Return a volume with a snapshot whose archive fills every buffer."""
    return make_big(daemon)


def make_big(daemon: Running) -> tuple[Volume, str]:
    volume = Volume(daemon, "btrfs")

    def make(place: Path) -> None:
        with (place / "big").open("wb") as file:
            file.truncate(BIG_BYTES)

    volume.change(make)
    return volume, volume.snapshot()


def changes(daemon: Running, snapshot: str, query: str = "") -> list[dict[str, str]]:
    answer = daemon.api("GET", f"/v1/snapshots/{snapshot}/difference{query}")
    assert answer.status == 200, answer.body
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    assert answer.headers["X-API-Schemas"]
    return [json.loads(line) for line in answer.body.splitlines()]


def archived(daemon: Running, snapshot: str, path: str) -> tarfile.TarFile:
    answer = daemon.api("GET", f"/v1/snapshots/{snapshot}/archive?path={path}")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/x-tar"), answer.body
    return tarfile.open(fileobj=io.BytesIO(answer.body))


@contextmanager
def opened(daemon: Running, path: str) -> Iterator[http.client.HTTPResponse]:
    """Give an answer of which only the beginning has come."""
    connection = UnixConnection(daemon.api_socket)
    connection.request("GET", path)
    response = connection.getresponse()
    assert response.status == 200
    try:
        yield response
    finally:
        response.close()
        connection.close()


def attached(daemon: Running, snapshot: str) -> bool:
    return mount.at(daemon.root / "mounts" / snapshot.removeprefix("1")) is not None


def soon(holds: Callable[[], bool]) -> bool:
    """Ask again and again, for what the daemon does on its own."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > deadline_s:
            return False
    return True


def trees(daemon: Running) -> set[str]:
    pools = daemon.api("GET", "/v1/storagepools").body["data"]
    return {name for pool in pools for name in os.listdir(f"{pool['path']}/trees")}


def test_the_difference_between_two_snapshots_names_what_was_added_changed_and_removed(
    daemon: Running, altered: tuple[Volume, str, str]
) -> None:
    _, before, after = altered
    found = changes(daemon, before, f"?to={after}")
    assert [change for change in found if change["path"] not in {".", "sub"}] == ALTERED


def test_the_other_way_round_it_is_the_opposite(daemon: Running, altered: tuple[Volume, str, str]) -> None:
    _, before, after = altered
    found = {change["path"]: change["change"] for change in changes(daemon, after, f"?to={before}")}
    assert (found["new"], found["sub/gone"], found["sub/changed"]) == ("removed", "added", "changed")


def test_a_snapshot_does_not_differ_from_itself(daemon: Running, altered: tuple[Volume, str, str]) -> None:
    _, before, _ = altered
    assert changes(daemon, before, f"?to={before}") == []


def test_without_another_one_it_is_the_difference_to_now_and_leaves_no_tree(
    daemon: Running, altered: tuple[Volume, str, str]
) -> None:
    volume, before, after = altered
    there = trees(daemon)
    found = changes(daemon, before)
    assert [change for change in found if change["path"] not in {".", "sub"}] == ALTERED
    assert changes(daemon, after) == []
    assert soon(lambda: trees(daemon) == there)
    assert daemon.api("GET", f"/v1/snapshots?volumeId={volume.id}").body["data"][-1]["id"] == after


def test_the_present_content_of_a_mounted_volume_can_be_compared(daemon: Running) -> None:
    volume = Volume(daemon, "btrfs")
    before = volume.snapshot()

    def work(place: Path) -> None:
        (place / "new").write_text("new")
        assert {"path": "new", "change": "added"} in changes(daemon, before)
        assert (place / "new").write_text("still writable")

    volume.change(work)


def test_what_cannot_be_one_instant_is_not_compared_while_it_is_mounted(daemon: Running) -> None:
    volume = Volume(daemon, "directory")
    before = volume.snapshot()
    if daemon.api("GET", f"/v1/volumes/{volume.id}").body["driver"] != "directory":
        pytest.fail("another driver than asked for")
    volume.act("activate")
    answer = daemon.api("GET", f"/v1/snapshots/{before}/difference")
    volume.act("deactivate")
    assert (answer.status, answer.body["code"]) == (422, "Unsupported")
    assert "allow_live_copy" in answer.body["message"]


def test_an_archive_holds_one_file(daemon: Running, altered: tuple[Volume, str, str]) -> None:
    _, before, _ = altered
    with archived(daemon, before, "sub/gone") as archive:
        (member,) = archive.getmembers()
        content = archive.extractfile(member)
        assert content is not None
        assert (member.name, content.read()) == ("gone", b"gone")


def test_an_archive_holds_one_folder(daemon: Running, altered: tuple[Volume, str, str]) -> None:
    _, before, _ = altered
    with archived(daemon, before, "/sub/") as archive:
        assert set(archive.getnames()) == {"sub", "sub/gone", "sub/changed"}


def test_an_archive_of_a_symlink_is_the_link_itself(daemon: Running, altered: tuple[Volume, str, str]) -> None:
    _, before, _ = altered
    with archived(daemon, before, "link") as archive:
        assert [(member.issym(), member.linkname) for member in archive] == [(True, "/etc/passwd")]


def test_the_same_path_can_be_read_after_a_change(daemon: Running, altered: tuple[Volume, str, str]) -> None:
    _, before, after = altered
    texts = []
    for snapshot in (before, after):
        with archived(daemon, snapshot, "sub/changed") as archive:
            content = archive.extractfile("changed")
            assert content is not None
            texts.append(content.read())
    assert texts == [b"before", b"after and longer"]


def test_nothing_stays_attached(daemon: Running, altered: tuple[Volume, str, str]) -> None:
    _, before, after = altered
    changes(daemon, before, f"?to={after}")
    archived(daemon, before, "sub").close()
    daemon.api("GET", f"/v1/snapshots/{before}/archive?path=none")
    assert soon(lambda: not attached(daemon, before) and not attached(daemon, after))


def test_a_snapshot_is_readable_in_the_trash(daemon: Running, altered: tuple[Volume, str, str]) -> None:
    volume, before, after = altered
    daemon.api("DELETE", f"/v1/volumes/{volume.id}")
    archived(daemon, before, "sub").close()
    assert changes(daemon, before, f"?to={after}")
    assert [change for change in changes(daemon, before) if change["path"] not in {".", "sub"}] == ALTERED
    daemon.api("POST", f"/v1/volumes/{volume.id}?action=purge")
    assert daemon.api("GET", f"/v1/snapshots/{before}/archive").status == 404


def test_what_is_read_is_not_destroyed_and_is_afterwards(daemon: Running, big: tuple[Volume, str]) -> None:
    volume, snapshot = big
    with opened(daemon, f"/v1/snapshots/{snapshot}/archive?path=big"):
        answer = daemon.api("DELETE", f"/v1/snapshots/{snapshot}")
        assert (answer.status, answer.body["code"]) == (409, "Conflict")
        assert "is being read" in answer.body["message"]
        assert daemon.api("DELETE", f"/v1/volumes/{volume.id}").status == 409
    assert soon(lambda: not attached(daemon, snapshot))
    assert soon(lambda: daemon.api("DELETE", f"/v1/snapshots/{snapshot}").status == 200)


def test_the_first_of_two_readers_to_end_does_not_disturb_the_other(daemon: Running, big: tuple[Volume, str]) -> None:
    _, snapshot = big
    path = f"/v1/snapshots/{snapshot}/archive?path=big"
    with opened(daemon, path) as slow:
        with opened(daemon, path) as gone:
            gone.read(10)
        archived(daemon, snapshot, "big").close()
        assert attached(daemon, snapshot)
        assert len(slow.read()) > BIG_BYTES
    assert soon(lambda: not attached(daemon, snapshot))


def test_a_stream_that_breaks_off_cannot_be_taken_for_whole(mortal: Running) -> None:
    _, snapshot = make_big(mortal)
    with opened(mortal, f"/v1/snapshots/{snapshot}/archive?path=big") as answer:
        mortal.kill()
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            answer.read()


def test_a_kill_in_the_middle_leaves_nothing_attached_and_no_tree(mortal: Running) -> None:
    volume, snapshot = make_big(mortal)
    there = trees(mortal)

    def make(place: Path) -> None:
        for number in range(6_000):  # more lines than every buffer holds
            (place / f"{'x' * 200}{number}").touch()

    volume.change(make)
    with (
        opened(mortal, f"/v1/snapshots/{snapshot}/archive?path=big"),
        opened(mortal, f"/v1/snapshots/{snapshot}/difference"),
    ):
        assert attached(mortal, snapshot)
        assert trees(mortal) > there
        mortal.kill()
    assert attached(mortal, snapshot)
    mortal.restart()
    assert not attached(mortal, snapshot)
    assert soon(lambda: trees(mortal) == there)


def test_streams_and_verbs_go_on_beside_a_slow_reader(daemon: Running, big: tuple[Volume, str]) -> None:
    volume, snapshot = big
    with opened(daemon, f"/v1/snapshots/{snapshot}/archive?path=big"):
        assert volume.snapshot()
        revert = daemon.api("POST", f"/v1/volumes/{volume.id}?action=reverttosnapshot", {"snapshotId": snapshot})
        assert revert.status == 200, revert.body
        assert Volume(daemon, "btrfs").snapshot()
