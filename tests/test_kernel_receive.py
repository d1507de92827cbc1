"""Streams looked through on their way to `btrfs receive`: the same whatever pieces they come in."""

import uuid
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sendstreams import (
    CLONE_CTRANSID,
    CLONE_LEN,
    CLONE_OFFSET,
    CLONE_PATH,
    DATA,
    END,
    FILE_OFFSET,
    HEAD,
    INODE,
    command,
    commands,
)
from voldriverd.kernel import receive
from voldriverd.kernel.send import (
    CLONE_UUID,
    CTRANSID,
    HEADER,
    PATH,
    PATH_TO,
    UUID,
    XATTR_DATA,
    XATTR_NAME,
    Command,
)

_OWN: Final = uuid.UUID(int=1)
_SENT: Final = uuid.UUID(int=2).bytes
_PARENT: Final = receive.Received(uuid.UUID(int=3).bytes, uuid.UUID(int=4).bytes, {b"btrfs.compression": b"zstd"})


@pytest.fixture(autouse=True, scope="module")
def known_uuid() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uuid, "uuid4", lambda: _OWN)
        yield


def first(name: bytes, own: bytes, parent: bytes) -> bytes:
    return command(Command.SNAPSHOT, {PATH: name, UUID: own, CTRANSID: 5, CLONE_UUID: parent, CLONE_CTRANSID: 4})


def clone(source: bytes) -> bytes:
    numbers: dict[int, bytes | int] = {FILE_OFFSET: 0, CLONE_LEN: 4096, PATH: b"file", CLONE_UUID: source}
    return command(Command.CLONE, numbers | {CLONE_CTRANSID: 4, CLONE_PATH: b"other", CLONE_OFFSET: 0})


def set_xattr(path: bytes, name: bytes) -> bytes:
    return command(Command.SET_XATTR, {PATH: path, XATTR_NAME: name, XATTR_DATA: b"value"})


_MAKE: Final = command(Command.MKFILE, {PATH: b"o257-1-0", INODE: 257})
_RENAME: Final = command(Command.RENAME, {PATH: b"o257-1-0", PATH_TO: b"file"})
_WRITE: Final = command(Command.WRITE, {PATH: b"file", FILE_OFFSET: 0, DATA: bytes(range(256)) * 20})
_UNSET: Final = command(Command.REMOVE_XATTR, {PATH: b"", XATTR_NAME: b"btrfs.compression"})
_OTHER_XATTRS: Final = set_xattr(b"", b"user.x") + set_xattr(b"file", b"btrfs.compression")

_BEFORE: Final = b"".join(
    (
        HEAD,
        first(b"name of the sender", _SENT, _PARENT.sent),
        set_xattr(b"", b"system.posix_acl_default"),
        _UNSET,
        _OTHER_XATTRS,
        _MAKE + _RENAME + _WRITE,
        clone(_PARENT.sent),
        clone(_SENT),
        END,
    )
)
_AFTER: Final = b"".join(
    (
        HEAD,
        first(b"0", _OWN.bytes, _PARENT.own),
        _OTHER_XATTRS,
        _MAKE + _RENAME + _WRITE,
        clone(_PARENT.own),
        clone(_OWN.bytes),
        END,
    )
)


def translated(pieces: list[bytes]) -> tuple[bytes, receive.Received]:
    translation = receive._Translation("0", _PARENT)
    found = b"".join(bytes(part) for piece in pieces for part in translation.translate(piece))
    return found, translation.end()


@given(cuts=st.sets(st.integers(min_value=1, max_value=len(_BEFORE) - 1)))
def test_a_stream_is_translated_whatever_pieces_it_comes_in(cuts: set[int]) -> None:
    pieces = [_BEFORE[start:end] for start, end in pairwise([0, *sorted(cuts), len(_BEFORE)])]
    found, received = translated(pieces)
    assert found == _AFTER
    assert received == receive.Received(_SENT, _OWN.bytes, {b"system.posix_acl_default": b"value"})


def test_a_stream_is_translated_byte_by_byte() -> None:
    found, _ = translated([_BEFORE[at : at + 1] for at in range(len(_BEFORE))])
    assert found == _AFTER


def test_the_parent_keeps_what_was_kept_back_there() -> None:
    translated([_BEFORE])
    assert _PARENT.kept_back == {b"btrfs.compression": b"zstd"}


def test_what_was_translated_has_right_checksums() -> None:
    for found in commands(_AFTER):
        assert found == receive._sealed(HEADER.unpack_from(found)[1], found[HEADER.size :])


@pytest.mark.parametrize(("data", "checksum"), [(b"", 0), (b"123456789", 0x58E3FA20)])
def test_the_checksum_is_that_of_streams(data: bytes, checksum: int) -> None:
    assert receive.crc32c(data) == checksum


@pytest.mark.root
def test_the_tool_is_there_and_reads_version_2() -> None:
    assert receive.newest_version() == 2


def test_a_tool_that_is_exchanged_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = [receive.newest_version()]
    for version in ("6.1", "6.2", "5.16"):
        tool = tmp_path / "new"
        tool.write_text(f"#!/bin/sh\necho btrfs-progs v{version}\necho asked >> {tmp_path}/asked\n")
        tool.chmod(0o755)
        tool.rename(tmp_path / "btrfs")
        found += [receive.newest_version(), receive.newest_version()]
    assert found == [0, 1, 1, 2, 2, 1, 1]
    assert (tmp_path / "asked").read_text() == "asked\n" * 3


@pytest.mark.root
def test_what_is_not_confined_is_not_released(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        receive.release(tmp_path)
