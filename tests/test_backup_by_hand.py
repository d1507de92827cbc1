"""docs/restore-by-hand.md, run as it stands there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import backups
from tests.backups import MIB, PASSPHRASE
from tests.docs import Page
from tests.scratch import Scratch
from voldriverd.backup.manifest import Manifest
from voldriverd.backup.objects import Place
from voldriverd.backup.repository import Repository
from voldriverd.driver import PART_MAX, StreamFormat
from voldriverd.kernel import run

PAGE = Page("docs/restore-by-hand.md")
WORDS = ("json.tool", "hashlib.scrypt", "manifest()", "tar --extract", "btrfs receive", "truncate")
"""One for each example, in the page's order."""


def example(word: str) -> str:
    """Return the example that has this word in it."""
    (found,) = [block for block in PAGE.run("sh", "python") if word in block.text]
    return found.text


def test_each_recipe_is_in_a_test() -> None:
    assert [example(word) for word in WORDS] == [block.text for block in PAGE.run("sh", "python")]
    used = Path(__file__).read_text().partition("class Hand")[2]
    assert [word for word in WORDS if f'"{word}"' not in used] == []


class Hand:
    """Somebody who has a target, this page, and no voldriver."""

    def __init__(self, tmp_path: Path, *, is_encrypted: bool) -> None:
        self.directory = tmp_path
        self.target = tmp_path / "target"
        self.target.mkdir()
        self.passphrase = PASSPHRASE if is_encrypted else None
        self.out = tmp_path / "out"

    def open(self) -> Repository:
        return Repository.open(Place(f"file://{self.target}"), self.passphrase)

    def decrypt(self) -> None:
        if self.passphrase is None:
            return
        plain = self.directory / "plain"
        names = {"TARGET": str(self.target), "PLAIN": str(plain), "PASSPHRASE": self.passphrase.text}
        subprocess.run([sys.executable, "-c", example("hashlib.scrypt")], check=True, env={**os.environ, **names})
        self.target = plain

    def run(self, *words: str, of: Manifest, to: Path) -> str:
        script = "\n".join(["set -eu -o pipefail", *(example(word) for word in words)])
        names = {
            "TARGET": str(self.target),
            "VOLUME": of.volume.uuid,
            "BACKUP": of.uuid,
            "OUT": str(self.out),
            "TO": str(to),
        }
        done = subprocess.run(
            ["bash", "-c", script], check=True, env={**os.environ, **names}, capture_output=True, text=True
        )
        return done.stdout


@pytest.fixture(params=["plain", "encrypted"])
def hand(request: pytest.FixtureRequest, tmp_path: Path) -> Hand:
    return Hand(tmp_path, is_encrypted=request.param == "encrypted")


def test_an_archive_is_extracted(hand: Hand, tmp_path: Path) -> None:
    files = {f"dir/f{number}": backups.data(MIB, number) for number in range(8)}
    with hand.open() as repository:
        done = backups.write(repository, backups.archive(files))
    hand.decrypt()
    to = tmp_path / "to"
    to.mkdir()
    assert f'"content_bytes": {done.content_bytes}' in hand.run("json.tool", of=done, to=to)
    hand.run("manifest()", "tar --extract", of=done, to=to)
    assert {f"dir/{path.name}": path.read_bytes() for path in (to / "dir").iterdir()} == files


def test_an_image_and_its_changes_are_put_together(hand: Hand, tmp_path: Path) -> None:
    whole = [(0, backups.data(5 * MIB, 1)), (16 * MIB, backups.data(PART_MAX, 2))]
    with hand.open() as repository:
        first = backups.write(repository, backups.image(whole))
        changed = backups.image([(MIB, 100_000), (17 * MIB, backups.data(MIB, 3))], is_incremental=True)
        second = backups.write(repository, changed, after=first)
        nothing = backups.write(repository, backups.image([], is_incremental=True), after=second)
        expected = backups.image_of(repository, nothing)
    hand.decrypt()
    for link in (first, second, nothing):
        hand.run("manifest()", "truncate", of=link, to=tmp_path / "image")
    assert (tmp_path / "image").read_bytes() == expected


@pytest.mark.root
def test_a_chain_of_streams_is_received(hand: Hand, scratch: Scratch) -> None:
    place = scratch.make("btrfs")
    tree, to = place / "tree", place / "to"
    to.mkdir()
    run.run(["btrfs", "subvolume", "create", str(tree)])
    done: list[Manifest] = []
    with hand.open() as repository:
        for number in range(3):
            (tree / f"f{number}").write_bytes(backups.data(5 * MIB, number))
            snapshot = place / f"s{number}"
            run.run(["btrfs", "subvolume", "snapshot", "-r", str(tree), str(snapshot)])
            base = ["-p", str(place / f"s{number - 1}")] if number else []
            sent = subprocess.run(["btrfs", "send", "-q", *base, str(snapshot)], check=True, capture_output=True)
            made = backups.stream(sent.stdout, form=StreamFormat.BTRFS, is_incremental=bool(number))
            done.append(backups.write(repository, made, after=done[-1] if done else None))
    hand.decrypt()
    for link in done:
        hand.run("manifest()", "btrfs receive", of=link, to=to)
    expected = {f"f{number}": backups.data(5 * MIB, number) for number in range(3)}
    assert {path.name: path.read_bytes() for path in (to / "s2").iterdir()} == expected


def test_the_name_of_a_chunk_is_what_b2sum_says(tmp_path: Path) -> None:
    hand = Hand(tmp_path, is_encrypted=False)
    with hand.open() as repository:
        backups.write(repository, backups.stream(b"content"))
    chunks = [path for path in hand.target.rglob("chunks/*/*") if path.is_file()]
    for path in chunks:
        script = f"zstd -dcq <{path} | b2sum -l 256"
        said = subprocess.run(["bash", "-c", script], check=True, capture_output=True, text=True).stdout
        assert said.split()[0] == path.name
    assert len(chunks) == 2
    shutil.rmtree(hand.target)
