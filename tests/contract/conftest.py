"""One pool per test, on the real kernel, of every kind in `pools.KINDS`."""

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.contract.pools import Kind, chosen
from tests.scratch import Scratch, unmount_under
from voldriverd.driver import Driver, Key, TreeOptions

_numbers: Final = itertools.count()
_PLAIN: Final = TreeOptions()


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool directory, the driver on it, and what the tests do to its trees."""

    kind: Kind
    place: Path
    """Where its file system is mounted."""
    root: Path
    mounts: Path
    driver: Driver

    def reopen(self) -> Driver:
        """Return a new instance, as after a restart of the daemon."""
        driver = self.kind.make(self.root, self.mounts)
        driver.open()
        return driver

    def after_power_cut(self, scratch: Scratch, session_scratch: Scratch, mounts: Path) -> "Pool":
        """Return this pool as it comes back if the power fails now."""
        place = scratch.power_cut(self.place, of=session_scratch)
        root = place / self.root.relative_to(self.place)
        mounts.mkdir()
        driver = self.kind.make(root, mounts)
        driver.open()
        return Pool(self.kind, place, root, mounts, driver)

    def create(self, key: str, options: TreeOptions = _PLAIN) -> Key:
        """Make a tree from options as a user gives them."""
        self.driver.create(Key(key), self.driver.complete(options))
        return Key(key)

    def attach(self, key: str, *, read_only: bool = False) -> Path:
        """Attach a tree for writing."""
        return self.driver.attach(Key(key), read_only=read_only)

    def write(self, key: str, name: str, content: bytes) -> None:
        """Attach, write one file durably, detach."""
        path = self.attach(key) / name
        path.write_bytes(content)
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        self.driver.detach(Key(key))

    def read(self, key: str, name: str) -> bytes:
        """Attach read-only, read one file, detach."""
        content = (self.attach(key, read_only=True) / name).read_bytes()
        self.driver.detach(Key(key))
        return content

    def names(self, key: str) -> set[str]:
        """Attach read-only, list the root, detach."""
        names = set(os.listdir(self.attach(key, read_only=True)))
        self.driver.detach(Key(key))
        return names


def pytest_configure(config: pytest.Config) -> None:
    """Declare the mark of pools.py."""
    config.addinivalue_line("markers", "pools(where): the kinds of pool that a contract test is for")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test once per kind of pool that it is for."""
    if "pool" in metafunc.fixturenames:
        kinds = chosen(metafunc.definition.iter_markers("pools"))
        metafunc.parametrize("pool", kinds, indirect=True, ids=[kind.name for kind in kinds])


@pytest.fixture
def pool(request: pytest.FixtureRequest, session_scratch: Scratch, tmp_path: Path) -> Iterator[Pool]:
    """Return a new, empty, open pool; what is still mounted at the end is unmounted."""
    kind: Kind = request.param
    place = session_scratch.shared(kind.name, kind.fs_type)
    root = place / f"pool{next(_numbers)}"
    root.mkdir(0o700)
    mounts = tmp_path / "mounts"
    mounts.mkdir(0o700)
    driver = kind.make(root, mounts)
    driver.open()
    yield Pool(kind, place, root, mounts, driver)
    unmount_under(tmp_path)
