"""Imports and exports at the API of a real daemon: what comes in is whole or absent, and equal to what it was."""

import asyncio
import functools
import gzip
import io
import itertools
import json
import lzma
import os
import pwd
import socket
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.contract import content
from tests.contract.content import likeness
from tests.doors import free_port, listening, make_key
from tests.likeness import Facts
from tests.running import Running, UnixConnection, request, scratch_config
from tests.scratch import Scratch
from tests.world import until
from voldriverd.api.rancher import imports
from voldriverd.cli.connection import Connection, Place
from voldriverd.errors import Unusable

pytestmark = pytest.mark.root

DRIVERS = ("btrfs", "loop", "directory")
PORT = free_port()


@pytest.fixture(scope="module")
def daemon(session_scratch: Scratch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    config = scratch_config(session_scratch) + listening(PORT)
    with Running(tmp_path_factory.mktemp("imports") / "d", config=config) as daemon:
        yield daemon
        assert "internal error" not in daemon.log
        assert "Traceback" not in daemon.log, daemon.log


@pytest.fixture
def name() -> str:
    return f"v-{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("filled") / "data"
    place.mkdir()
    content.fill(place)
    return place


def gnu_tar(place: Path, *options: str) -> bytes:
    argv = ["tar", "--format=pax", "--xattrs", "--xattrs-include=*", "--acls", "--sparse", "-C", str(place), *options]
    return subprocess.run([*argv, "-c", "."], stdout=subprocess.PIPE, check=True).stdout


def upload(daemon: Running, archive: bytes, name: str, **query: str) -> Any:
    words = "&".join(f"{key}={value}" for key, value in {"name": name, **query}.items())
    return daemon.api("POST", f"/v1/volumes/import?{words}", archive, headers={"Content-Type": "application/x-tar"})


def by_path(daemon: Running, path: Path, name: str, **fields: object) -> Any:
    return daemon.api("POST", "/v1/volumes/import", {"name": name, "path": str(path), **fields}, headers=JSON)


JSON = {"Content-Type": "application/json"}


def volume(daemon: Running, name: str) -> dict[str, Any] | None:
    found = daemon.api("GET", f"/v1/volumes?name={name}").body["data"]
    return found[0] if found else None


def rested(daemon: Running, name: str) -> dict[str, Any]:
    until(lambda: (volume(daemon, name) or {}).get("transitioning") != "yes", "the import")
    found = volume(daemon, name)
    assert found is not None, daemon.log[-2_000:]
    return found


def mounted(daemon: Running, name: str) -> Path:
    path = daemon.plugin("VolumeDriver.Mount", Name=name, ID="test").body
    assert path["Err"] == "", path
    return Path(path["Mountpoint"])


def removed(daemon: Running, name: str) -> None:
    daemon.plugin("VolumeDriver.Unmount", Name=name, ID="test")
    # A copy of our mounts in the namespace of a container that starts elsewhere on this machine goes by itself.
    until(lambda: daemon.plugin("VolumeDriver.Remove", Name=name).body["Err"] == "", "the volume to be removed")


def trees(daemon: Running) -> set[str]:
    return {str(path) for pool in daemon.api("GET", "/v1/storagepools").body["data"] for path in trees_of(pool["path"])}


def trees_of(pool: str) -> list[Path]:
    return [path for path in (Path(pool) / "trees").iterdir() if not path.name.startswith(".")]


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_directory_becomes_a_volume_equal_to_it(daemon: Running, filled: Path, name: str, driver: str) -> None:
    before = likeness(filled)
    answer = by_path(daemon, filled, name, driver=driver, labels={"tier": "gold"}, description="mine")
    assert answer.status in {201, 202}, answer
    row = rested(daemon, name)
    assert (row["state"], row["labels"], row["description"]) == ("inactive", {"tier": "gold"}, "mine")
    assert row["transitioningMessage"] is None
    assert likeness(mounted(daemon, name)) == before
    assert likeness(filled) == before
    removed(daemon, name)


@pytest.mark.parametrize("driver", DRIVERS)
def test_what_gnu_tar_made_becomes_a_volume_equal_to_it(daemon: Running, filled: Path, name: str, driver: str) -> None:
    answer = upload(daemon, gnu_tar(filled), name, driver=driver, **{"labels.tier": "gold"})
    assert (answer.status, answer.body["state"], answer.body["labels"]) == (201, "inactive", {"tier": "gold"})
    assert as_gnu_tar_has_it(likeness(mounted(daemon, name))) == as_gnu_tar_has_it(likeness(filled))
    removed(daemon, name)


def test_what_is_given_without_a_value_beside_an_archive_is_not_dropped(
    daemon: Running, name: str, tmp_path: Path
) -> None:
    archive = gnu_tar(tmp_path)
    for field in ("driverOpts.size", "driver"):
        answer = upload(daemon, archive, name, **{field: ""})
        assert (answer.status, answer.body["fieldName"]) == (422, field.removeprefix("driverOpts.")), answer
        assert f"cannot use {answer.body['fieldName']} ''" in answer.body["message"]
    answer = upload(daemon, archive, name, **{"labels.mark": "", "driverOpts.label.old": ""})
    assert (answer.status, answer.body["labels"]) == (201, {"mark": "", "old": ""})
    removed(daemon, name)


def as_gnu_tar_has_it(facts: dict[bytes, Facts]) -> dict[bytes, Facts]:
    """Leave out which names are one fifo or device: GNU tar 1.34 makes a file of each."""
    return {
        path: {key: fact for key, fact in found.items() if "device" not in found or key != "names"}
        for path, found in facts.items()
    }


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zstandard.ZstdCompressor().compress])
def test_a_compressed_archive_is_taken(daemon: Running, name: str, pack: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    assert upload(daemon, pack(gnu_tar(tmp_path)), name).status == 201
    assert (mounted(daemon, name) / "file").read_bytes() == b"content"
    removed(daemon, name)


@pytest.mark.parametrize("driver", DRIVERS)
def test_what_is_exported_and_imported_is_equal(daemon: Running, filled: Path, name: str, driver: str) -> None:
    assert by_path(daemon, filled, name, driver=driver).status in {201, 202}
    row = rested(daemon, name)
    first = mounted(daemon, name)
    daemon.plugin("VolumeDriver.Unmount", Name=name, ID="test")
    archive = daemon.api("GET", f"/v1/volumes/{row['id']}/export")
    assert (archive.status, archive.headers["Content-Type"]) == (200, "application/x-tar")
    assert archive.headers.get("Content-Length") is None
    for other in DRIVERS:
        assert upload(daemon, archive.body, f"{name}-{other}", driver=other).status == 201
        assert likeness(mounted(daemon, f"{name}-{other}")) == likeness(filled)
        removed(daemon, f"{name}-{other}")
    assert not any(first.iterdir())
    removed(daemon, name)


def test_an_exported_snapshot_is_what_the_volume_was(daemon: Running, name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"then")
    row = upload(daemon, gnu_tar(tmp_path), name).body
    snapshot = daemon.api("POST", "/v1/snapshots", {"volumeId": row["id"], "name": "then"}).body
    (mounted(daemon, name) / "file").write_bytes(b"now")
    found = {}
    for path in (f"/v1/snapshots/{snapshot['id']}/export", f"/v1/volumes/{row['id']}/export"):
        with tarfile.open(fileobj=io.BytesIO(daemon.api("GET", path).body)) as archive:
            member = archive.extractfile("./file")
            assert member is not None
            found[path] = member.read()
    assert list(found.values()) == [b"then", b"now"]
    removed(daemon, name)


def test_gnu_tar_reads_what_was_exported(daemon: Running, filled: Path, name: str, tmp_path: Path) -> None:
    assert by_path(daemon, filled, name).status in {201, 202}
    archive = daemon.api("GET", f"/v1/volumes/{rested(daemon, name)['id']}/export").body
    (tmp_path / "out").mkdir()
    argv = ["tar", "-x", "--numeric-owner", "-p", "--xattrs", "--xattrs-include=*", "-C", str(tmp_path / "out")]
    subprocess.run(argv, input=archive, check=True)
    assert likeness(tmp_path / "out") == likeness(filled)
    removed(daemon, name)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("/etc/passwd", tarfile.REGTYPE, "")], "leads out of the tree"),
        ([("../out", tarfile.REGTYPE, "")], "leads out of the tree"),
        ([("link", tarfile.LNKTYPE, "../../etc/passwd")], "leads out of the tree"),
        ([("out", tarfile.SYMTYPE, "/"), ("out/etc", tarfile.DIRTYPE, "")], "it is no directory"),
        ([("out", tarfile.SYMTYPE, "/"), ("link", tarfile.LNKTYPE, "out/etc/passwd")], "no such directory"),
        ([("one", tarfile.REGTYPE, ""), ("one", tarfile.REGTYPE, "")], "the archive has two of it"),
    ],
)
def test_a_hostile_archive_is_refused_and_leaves_nothing(
    daemon: Running, name: str, members: list[tuple[str, bytes, str]], said: str
) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for path, kind, link in members:
            member = tarfile.TarInfo(path)
            member.type, member.linkname = kind, link
            archive.addfile(member)
    answer = upload(daemon, made.getvalue(), name)
    assert answer.status in {422, 503}, answer
    assert said in answer.body["message"]
    assert volume(daemon, name) is None


@pytest.mark.parametrize("archive", [b"", b"no archive" * 1_000, b"BZh9" + b"x" * 1_000])
def test_what_is_no_archive_is_refused_and_leaves_nothing(daemon: Running, name: str, archive: bytes) -> None:
    answer = upload(daemon, archive, name)
    assert (answer.status, answer.body["message"].partition(":")[0]) == (422, "cannot read the archive")
    assert volume(daemon, name) is None


def test_who_goes_in_the_middle_leaves_nothing(daemon: Running, name: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(daemon.api_socket))
        client.sendall(head(name) + half_an_archive())
        until(lambda: volume(daemon, name), "the volume to be there")
        found = volume(daemon, name)
        assert found is not None
        assert (found["state"], found["transitioning"], list(found["actions"])) == ("registering", "yes", ["cancel"])
        refused = daemon.plugin("VolumeDriver.Mount", Name=name, ID="c1").body["Err"]
        assert refused == f"cannot mount volume {name}: it is importing"
    until(lambda: volume(daemon, name) is None, "the volume to go")


def head(name: str, *, driver: str = "btrfs") -> bytes:
    where = f"/v1/volumes/import?name={name}&driver={driver}"
    told = "Host: h\r\nContent-Type: application/x-tar\r\nContent-Length: 1000000"
    return f"POST {where} HTTP/1.1\r\n{told}\r\n\r\n".encode()


def half_an_archive() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        member = tarfile.TarInfo("file")
        member.size = 500_000
        archive.addfile(member, io.BytesIO(bytes(500_000)))
    return made.getvalue()[:100_000]


@pytest.mark.parametrize("way", ["cancel", "remove"])
def test_a_cancelled_import_leaves_nothing_and_says_so(daemon: Running, name: str, way: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(20)
        client.connect(str(daemon.api_socket))
        client.sendall(head(name) + half_an_archive())
        until(lambda: volume(daemon, name), "the volume to be there")
        until(lambda: "%" in str((volume(daemon, name) or {}).get("transitioningMessage")), "some progress")
        found = volume(daemon, name)
        assert found is not None
        assert found["transitioningProgress"] == 10
        where = f"/v1/volumes/{found['id']}"
        ended = daemon.api("POST", f"{where}?action=cancel") if way == "cancel" else daemon.api("DELETE", where)
        assert (ended.status, ended.body["state"]) == (200, "purged")
        assert volume(daemon, name) is None
        said = client.recv(65_536)
    assert b" 409 " in said.splitlines()[0]
    assert f"cannot import volume {name}: it was cancelled".encode() in said


def test_a_daemon_that_is_killed_leaves_no_half_volume(session_scratch: Scratch, tmp_path: Path) -> None:
    with Running(tmp_path / "d", config=scratch_config(session_scratch)) as daemon, ExitStack() as stack:
        for driver in DRIVERS:
            client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.connect(str(daemon.api_socket))
            client.sendall(head(driver, driver=driver) + half_an_archive())
            until(functools.partial(volume, daemon, driver), "the volume")
        daemon.kill()
        daemon.start()
        assert daemon.api("GET", "/v1/volumes").body["data"] == []
        until(lambda: trees(daemon) == set(), "the trees to go")
        client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        client.connect(str(daemon.api_socket))
        client.sendall(head("late") + half_an_archive())
        until(functools.partial(volume, daemon, "late"), "the volume")
        daemon.stop()
        assert "verb=import volume=late" in daemon.log
        assert "it was interrupted" in daemon.log
        daemon.start()
        assert daemon.api("GET", "/v1/volumes").body["data"] == []


def test_a_volume_of_the_name_is_refused(daemon: Running, name: str, tmp_path: Path) -> None:
    assert upload(daemon, gnu_tar(tmp_path), name).status == 201
    for answer in (upload(daemon, gnu_tar(tmp_path), name), by_path(daemon, tmp_path, name)):
        assert (answer.status, answer.body["code"]) == (422, "NotUnique")
    removed(daemon, name)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/nowhere", "/nowhere: No such file or directory"),
        ("/etc/passwd", "/etc/passwd: Not a directory"),
        ("etc", "'etc' is no absolute path"),
        ("/", "which is voldriverd's own"),
    ],
)
def test_a_path_that_cannot_be_is_refused(daemon: Running, name: str, path: str, said: str) -> None:
    answer = daemon.api("POST", "/v1/volumes/import", {"name": name, "path": path}, headers=JSON)
    if answer.status == 202:
        until(lambda: volume(daemon, name) is None, "the import")
        answer = daemon.api("GET", f"/v1/volumes/{answer.body['id']}")
    assert answer.status in {404, 422}
    assert said in answer.body["message"]
    assert volume(daemon, name) is None


def test_our_own_root_and_pools_are_refused_by_any_name(daemon: Running, name: str, tmp_path: Path) -> None:
    (pool, *_) = daemon.api("GET", "/v1/storagepools").body["data"]
    (tmp_path / "link").symlink_to(Path(pool["path"]) / "trees")
    for path in (tmp_path / "link", daemon.root / "mounts", Path(pool["path"]).parent):
        answer = by_path(daemon, path, name)
        assert (answer.status, answer.body["fieldName"]) == (422, "path"), answer
        assert "which is voldriverd's own" in answer.body["message"]


def test_only_root_may_name_a_directory(
    daemon: Running, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.run_dir.chmod(0o755)
    daemon.api_socket.chmod(0o666)
    monkeypatch.chdir(daemon.run_dir)  # nobody may come there by its whole path
    client = UnixConnection(Path("api.sock"))
    os.seteuid(pwd.getpwnam("nobody").pw_uid)
    try:
        client.connect()
    finally:
        os.seteuid(0)
    with closing(client):
        client.request("POST", "/v1/volumes/import", json.dumps({"name": name, "path": str(tmp_path)}), JSON)
        answer = client.getresponse()
        said = json.loads(answer.read())["message"]
    assert answer.status == 403
    assert said.startswith("cannot import a directory of the host: only root may name one, at the unix socket")
    assert "tar -C DIRECTORY -c . | voldriver import tar - NAME" in said
    assert volume(daemon, name) is None


def test_who_sees_another_directory_there_is_refused(daemon: Running, name: str, tmp_path: Path) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent.parent)!r})\n"
        "from pathlib import Path; from tests.running import request\n"
        f"answer = request(Path({str(daemon.api_socket)!r}), 'POST', '/v1/volumes/import', "
        f"{{'name': {name!r}, 'path': {str(tmp_path)!r}}}, headers={JSON!r})\n"
        "print(answer.status, answer.body['message'])"
    )
    hide = f'mount -t tmpfs none {tmp_path} && exec {sys.executable} -c "$0"'
    done = subprocess.run(["unshare", "-m", "sh", "-c", hide, program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"403 cannot import {tmp_path}: the process that asks does not see"), done


def test_a_directory_that_is_written_to_meanwhile_is_refused(daemon: Running, name: str, tmp_path: Path) -> None:
    (tmp_path / "mounted").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path / "mounted"], check=True)
    try:
        answer = by_path(daemon, tmp_path, name)
    finally:
        subprocess.run(["umount", tmp_path / "mounted"], check=True)
    assert (answer.status, answer.body["message"]) == (
        409,
        f"cannot import volume {name}: something is mounted there (mounted)",
    )
    assert volume(daemon, name) is None


def test_a_socket_is_left_out_and_told(daemon: Running, name: str, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "s"))
    assert by_path(daemon, tmp_path, name, driver="loop").status in {201, 202}
    row = rested(daemon, name)
    assert row["transitioning"] == "no"
    assert row["transitioningMessage"] == f"imported from {tmp_path}, but: tar cannot hold sockets: s"
    removed(daemon, name)


def test_a_loop_volume_gets_the_size_that_its_content_needs(daemon: Running, name: str, tmp_path: Path) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(20 << 30)
    (tmp_path / "small").write_bytes(b"x" * (4 << 20))
    row = by_path(daemon, tmp_path, name, driver="loop", driverOpts={"size": "64M"})
    assert row.status in {201, 202}
    assert rested(daemon, name)["sizeBytes"] == 64 << 20
    removed(daemon, name)


def test_what_is_larger_than_its_size_is_refused(daemon: Running, name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(40 << 20))
    answer = upload(daemon, gnu_tar(tmp_path), name, driver="loop", **{"driverOpts.size": "32M"})
    assert (answer.status, answer.body["fieldName"]) == (422, "size")
    assert "size 32 MiB is below the" in answer.body["message"]
    assert volume(daemon, name) is None


@pytest.mark.parametrize("option", ["uid", "gid", "mode", "from"])
def test_options_of_the_root_directory_are_refused(daemon: Running, name: str, tmp_path: Path, option: str) -> None:
    value = {"from": "other", "mode": "755"}.get(option, "1")
    answer = upload(daemon, gnu_tar(tmp_path), name, **{f"driverOpts.{option}": value})
    assert answer.status == 422
    assert f"option {option} does not go with an import" in answer.body["message"]


def test_over_tcp_archives_come_and_go_and_paths_do_not(daemon: Running, name: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_bytes(b"content")
    (tmp_path / "web.tar").write_bytes(gnu_tar(tmp_path / "in"))
    access, secret = make_key(daemon, name="full")
    reader = make_key(daemon, name="reader", role="read-only")
    place = {"VOLDRIVER_SOCKET": "", "VOLDRIVER_URL": f"http://127.0.0.1:{PORT}"}
    full = {**place, "VOLDRIVER_ACCESS_KEY": access, "VOLDRIVER_SECRET_KEY": secret}
    looking = {**place, "VOLDRIVER_ACCESS_KEY": reader[0], "VOLDRIVER_SECRET_KEY": reader[1]}
    assert daemon.cli("import", "tar", str(tmp_path / "web.tar"), name, **full).stdout == f"{name}\n"
    assert "read-only" in daemon.cli("import", "tar", str(tmp_path / "web.tar"), "other", **looking).stderr
    assert "only root may name one" in daemon.cli("import", "directory", str(tmp_path), "other", **full).stderr
    done = daemon.cli("export", name, str(tmp_path / "out.tar"), **looking)
    assert done.returncode == 0, done
    with tarfile.open(tmp_path / "out.tar") as archive:
        assert archive.getnames() == [".", "./file"]
    removed(daemon, name)


def test_a_directory_volume_in_use_is_not_exported(daemon: Running, name: str, tmp_path: Path) -> None:
    row = upload(daemon, gnu_tar(tmp_path), name, driver="directory").body
    mounted(daemon, name)
    answer = daemon.api("GET", f"/v1/volumes/{row['id']}/export")
    assert (answer.status, answer.body["code"]) == (422, "Unsupported")
    assert "cannot copy a volume in use as one instant" in answer.body["message"]
    removed(daemon, name)


def test_memory_is_bounded_whatever_comes_and_goes(daemon: Running, name: str) -> None:
    piece, pieces = os.urandom(1 << 20), 160
    member = tarfile.TarInfo("file")
    member.size = pieces << 20
    before_kb = peak_kb(daemon)
    archive = itertools.chain([member.tobuf()], itertools.repeat(piece, pieces), [bytes(1024)])
    connection = Connection(Place(daemon.api_socket))
    query = {"name": name, "driver": "btrfs"}
    row = connection.upload("volumes/import", archive, content_type="application/x-tar", size_bytes=None, query=query)
    taken = 0
    with connection.stream(f"volumes/{row['id']}/export") as stream:
        while found := stream.read(1 << 20):
            taken += len(found)
    assert taken > pieces << 20
    assert peak_kb(daemon) - before_kb < 48 << 10
    removed(daemon, name)


def peak_kb(daemon: Running) -> int:
    """Return the most memory that a daemon had so far."""
    (line,) = [line for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines() if "VmHWM" in line]
    return int(line.split()[1])


def test_who_sends_nothing_for_long_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "STALL_S", 0.2)
    monkeypatch.setattr(imports, "_LOOK_S", 0.1)

    async def read() -> None:
        class Content:
            async def readany(self) -> bytes:
                await asyncio.Event().wait()
                return b""

        upload = imports._Upload(Content())  # type: ignore[arg-type]
        with pytest.raises(Unusable, match="cannot wait for the archive: nothing came for"):
            await asyncio.to_thread(list, upload.pieces())
        await upload.close()

    asyncio.run(read())


def test_a_browser_sends_no_archive(daemon: Running, name: str) -> None:
    headers = {"Content-Type": "application/x-tar", "User-Agent": "Mozilla/5.0"}
    answer = daemon.api("POST", f"/v1/volumes/import?name={name}", b"archive", headers=headers)
    assert answer.status == 403
    assert volume(daemon, name) is None


def test_nothing_is_left_after_all_that(daemon: Running) -> None:
    assert daemon.api("GET", "/v1/volumes").body["data"] == []
    assert request(daemon.api_socket, "GET", "/v1/volumes/import").status == 405
