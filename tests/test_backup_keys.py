"""Master keys are kept for a while, for exactly the passphrase and the repository that they came of."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests import backups
from voldriverd.backup import sealing
from voldriverd.backup.faults import Fault, Kind
from voldriverd.backup.keys import KEEP_S, KEYS_MAX, Keys
from voldriverd.backup.objects import Place
from voldriverd.backup.repository import Repository
from voldriverd.model import Secret

HEADER = sealing.Header("x", sealing.Encryption(salt=b"s", n=2, r=1, p=1, key=b"k"))


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def unwrapped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The passphrases that were stretched; `wrong` is none."""
    seen: list[str] = []

    def unwrap(header: sealing.Header, passphrase: Secret) -> bytes:
        seen.append(passphrase.text)
        if passphrase.text == "wrong":
            raise sealing.WrongPassphrase
        return f"{header.uuid} {passphrase.text}".encode()

    monkeypatch.setattr(sealing, "unwrap", unwrap)
    return seen


def test_a_key_is_unwrapped_once(clock: Clock, unwrapped: list[str]) -> None:
    known = Keys(clock)
    assert [known.unwrap(HEADER, Secret("y")) for _ in range(3)] == [b"x y"] * 3
    assert unwrapped == ["y"]


@pytest.mark.parametrize(
    "other",
    [
        lambda header: replace(header, uuid="z"),
        lambda header: replace(header, encryption=replace(header.encryption, salt=b"t")),
        lambda header: replace(header, encryption=replace(header.encryption, key=b"l")),
        lambda header: replace(header, encryption=replace(header.encryption, n=4)),
    ],
)
def test_a_key_is_of_one_repository_as_it_is(
    clock: Clock, unwrapped: list[str], other: Callable[[sealing.Header], sealing.Header]
) -> None:
    known = Keys(clock)
    known.unwrap(HEADER, Secret("y"))
    known.unwrap(other(HEADER), Secret("y"))
    assert unwrapped == ["y", "y"]


def test_a_wrong_passphrase_is_wrong_each_time(clock: Clock, unwrapped: list[str]) -> None:
    known = Keys(clock)
    known.unwrap(HEADER, Secret("y"))
    for _ in range(2):
        with pytest.raises(sealing.WrongPassphrase):
            known.unwrap(HEADER, Secret("wrong"))
    assert unwrapped == ["y", "wrong", "wrong"]


def test_a_key_is_forgotten_however_often_it_is_wanted(clock: Clock, unwrapped: list[str]) -> None:
    known = Keys(clock)
    for _ in range(3):
        known.unwrap(HEADER, Secret("y"))
        clock.now_s += KEEP_S / 2
    assert unwrapped == ["y", "y"]


def test_what_is_old_is_not_kept_in_memory(clock: Clock, unwrapped: list[str]) -> None:
    known = Keys(clock)
    known.unwrap(HEADER, Secret("y"))
    clock.now_s = KEEP_S
    known.unwrap(HEADER, Secret("z"))
    assert [key for _, key in known._known.values()] == [b"x z"]
    assert unwrapped == ["y", "z"]


def test_the_number_of_keys_is_bounded(clock: Clock, unwrapped: list[str]) -> None:
    known = Keys(clock)
    for number in range(KEYS_MAX + 2):
        known.unwrap(HEADER, Secret(str(number)))
    assert len(known._known) == KEYS_MAX
    known.unwrap(HEADER, Secret("2"))
    known.unwrap(HEADER, Secret("1"))
    assert unwrapped[-1] == "1"


def test_passphrases_are_not_kept(clock: Clock, unwrapped: list[str]) -> None:
    known = Keys(clock)
    known.unwrap(HEADER, Secret("y"))
    assert unwrapped == ["y"]
    assert "'y'" not in repr(vars(known))


def test_a_repository_opened_again_asks_for_the_same_passphrase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, known = Place(f"file://{tmp_path}"), Keys()
    with Repository.open(place, backups.PASSPHRASE, keys=known) as opened:
        done = backups.write(opened, backups.stream(b"x"))
    with pytest.raises(Fault, match="the passphrase is wrong") as caught:
        Repository.open(place, Secret("wrong"), keys=known)
    assert caught.value.kind is Kind.PASSPHRASE
    monkeypatch.delattr(sealing, "_stretch")
    with Repository.open(place, backups.PASSPHRASE, keys=known) as opened:
        assert backups.content(opened, done) == b"x"
