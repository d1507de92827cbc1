"""Streams kept in memory, so that a test can give them to any driver, whole or spoilt."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tests.contract.conftest import Pool
from voldriverd.driver import Capability, Driver, Key, Part, Stream, StreamFormat, TreeOptions


@dataclass(frozen=True, slots=True)
class Sent:
    """A stream that was read to its end."""

    stream: Stream
    parts: tuple[Part, ...]

    @property
    def data_bytes(self) -> int:
        """How much data it has."""
        return sum(part.length for part in self.parts if part.data is not None)

    def again(self) -> Stream:
        """Return the stream as it was."""
        return replace(self.stream, parts=iter(self.parts))

    def spoilt(self, spoil: Callable[[list[Part]], list[Part]]) -> Stream:
        """Return the stream with other parts."""
        return replace(self.stream, parts=iter(spoil(list(self.parts))))


def send(
    driver: Driver,
    key: str,
    base: str | None = None,
    *,
    wanted: StreamFormat | None = None,
    is_thorough: bool = False,
) -> Sent:
    """Read a stream to its end."""
    based_on = None if base is None else Key(base)
    with driver.send(Key(key), based_on, wanted=wanted, is_thorough=is_thorough) as stream:
        return Sent(stream, tuple(stream.parts))


def receive(driver: Driver, key: str, *chain: Sent, options: TreeOptions | None = None) -> tuple[str, ...]:
    """Make a tree from a chain."""
    return driver.receive(Key(key), iter([sent.again() for sent in chain]), options or driver.complete(sized(driver)))


def sized(driver: Driver) -> TreeOptions:
    """Return options of a small tree."""
    return TreeOptions(size_bytes=64 << 20 if Capability.SIZE in driver.capabilities else None)


def filled(pool: Pool, key: str, make: Callable[..., None]) -> None:
    """Make a tree with content."""
    pool.create(key, sized(pool.driver))
    changed(pool, key, make)


def changed(pool: Pool, key: str, make: Callable[..., None]) -> None:
    """Change the content of a tree."""
    make(pool.attach(key))
    pool.driver.detach(Key(key))


def snapshot(pool: Pool, source: str, key: str) -> None:
    """Make a read-only clone."""
    pool.driver.clone(Key(source), Key(key), read_only=True)


def raising(sent: Sent, err: BaseException, *, after: int) -> Stream:
    """Return a stream that raises after so many parts."""

    def parts() -> Iterator[Part]:
        yield from sent.parts[:after]
        raise err

    return replace(sent.stream, parts=parts())
