"""A backup made into a tree, in any driver; or one file of it read.

What a driver takes it is given as it was sent. Anything else is unpacked aside by a driver whose format it is, and goes
on from there as a tar archive, which every driver takes. Every piece of data is verified when it is read, and every
stream by who receives it, so nothing is compared once more at the end.
"""

import logging
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

from voldriverd import model, names
from voldriverd.backup.faults import Cancelled, Damage
from voldriverd.backup.manifest import Manifest
from voldriverd.driver import Driver, Key, Part, Stream, StreamFormat, TreeOptions
from voldriverd.engine import extract, failures, scratch, targets, watching
from voldriverd.engine.context import Engine
from voldriverd.errors import Error, InUse, Invalid, NotFound, Unsupported, Unusable
from voldriverd.kernel import watch
from voldriverd.model import BackupState

if TYPE_CHECKING:
    from voldriverd.backup.repository import Repository

_log = logging.getLogger(__name__)

HEADROOM: Final = 1.25
"""How much larger than its content a file system is made that was asked for in no size."""
HEADROOM_BYTES: Final = 64 << 20
"""And that much in any case, for its journal."""
_MIB: Final = 1 << 20
HOLES_MAX: Final = 1_000
"""How many lines the log has of the damage of one backup."""


class Work(Protocol):
    """Who watches a long job and may end it (`jobs.Job`)."""

    cancelled: threading.Event
    is_given_up: bool
    """Whether somebody ended it, and not the end of the daemon."""
    step: str | None
    """What it does before or after its bytes pass, in words; None while they do."""

    def restart(self) -> None:
        """Note that all is counted anew: what was done before was a preparation."""

    def expect(self, total_bytes: int | None) -> None:
        """Note how much will come."""

    def advance(self, done_bytes: int) -> None:
        """Note how much is done, all in all."""


@dataclass(frozen=True, slots=True)
class Supply:
    """A backup whose chain is complete, and its repository, which stays open until `close`."""

    backup: model.Backup
    chain: tuple[Manifest, ...]
    """The whole one first."""
    repository: "Repository"
    close: Callable[[], None]

    @property
    def manifest(self) -> Manifest:
        """That of the backup itself."""
        return self.chain[-1]

    @property
    def format(self) -> StreamFormat:
        """Of every stream of the chain."""
        return self.manifest.format

    @property
    def stream_bytes(self) -> int:
        """How much will be read."""
        return sum(manifest.content_bytes for manifest in self.chain)

    @property
    def needed_bytes(self) -> int:
        """How much room it takes, roughly: an increment replaces some of what is there."""
        image_bytes = self.manifest.image_bytes
        return self.stream_bytes if image_bytes is None else min(self.stream_bytes, image_bytes)


def look(engine: Engine, backup: model.Backup, *, work: Work, what: str) -> Supply:
    """Open the target of a backup and see that nothing of its chain is missing; blocks on the network.

    `what` is "cannot VERB THING NAME". Raises NotFound (it is not a backup any more, here or there), InUse (it is being
    made, or `work` is ended), Unusable (the target cannot be reached, or a link is missing).
    """
    if backup.state is BackupState.CREATING:
        raise InUse(f"{what}: backup {backup.shown_name} is being made")
    if backup.state is not BackupState.CREATED:
        raise NotFound(f"{what}: backup {backup.shown_name} is {backup.state.value}")
    with ExitStack() as stack, told_as(what, work):
        repository = stack.enter_context(targets.opened(engine, backup.target_id, cancelled=work.cancelled))
        chain = tuple(repository.chain(repository.manifest(backup.volume_uuid, backup.uuid)))
        if len({manifest.format for manifest in chain}) != 1:
            raise Unusable(f"{what}: backup {backup.uuid} builds on one of another format")
        return Supply(backup, chain, repository, stack.pop_all().close)


def ensure_holes_allowed(supply: Supply, what: str) -> None:
    """Refuse to leave damage out of what cannot be read on without it. Raises Unsupported."""
    if supply.format is StreamFormat.BTRFS:
        cause = "what is damaged of a btrfs stream cannot be left out; of an image or an archive it can"
        raise Unsupported(f"{what}: {cause}")


@dataclass(frozen=True, slots=True)
class Order:
    """What a tree is to be made from, and how."""

    supply: Supply
    options: TreeOptions
    """Completed ones."""
    what: str
    """ "cannot VERB THING NAME"."""
    may_grow: bool = True
    """Whether a file system that is too small for the content is made larger than the options say."""
    allow_holes: bool = False
    """Whether damaged data may become zeros."""


def unpack(engine: Engine, order: Order, driver: Driver, key: Key, work: Work) -> tuple[str, ...]:
    """Make the tree of a backup. Returns what could not be kept and what is damaged, for people.

    Raises Unusable (damage, the place of it named; no room; the target does not answer), Invalid (the content is
    larger than the size), Unsupported, and InUse when `work` is ended; then the key is absent.
    """
    supply = order.supply
    delivery = _Delivery(order, work)
    with told_as(order.what, work), watch.watched(watching.Shown(work)), closing(delivery.streams()) as streams:
        if is_taken(driver, supply, order.options):
            work.expect(supply.stream_bytes)
            options = _fitted(order, driver, supply.stream_bytes if supply.format is StreamFormat.TAR else 0)
            kept_not = driver.receive(key, streams, options)
        else:
            work.expect(2 * supply.stream_bytes)
            with scratch.room(engine, supply.format, supply.needed_bytes, order.what) as (aside, aside_key):
                kept_not = aside.receive(aside_key, streams, aside.complete(TreeOptions()))
                with aside.send(aside_key, wanted=StreamFormat.TAR) as stream:
                    options = _fitted(order, driver, stream.expected_bytes or 0)
                    kept_not += driver.receive(key, iter([delivery.once_more(stream)]), options)
    return tuple(dict.fromkeys((*delivery.notes, *kept_not, *delivery.holes)))


def is_taken(driver: Driver, supply: Supply, options: TreeOptions) -> bool:
    """Tell whether a driver can be given a backup as it was sent and makes of it what the options want.

    An image keeps its own file system and is never made smaller; another one is filled with its files.
    """
    if supply.format not in driver.formats and supply.format is not StreamFormat.TAR:
        return False
    if supply.format is not StreamFormat.BLOCKS:
        return True
    image_bytes = supply.manifest.image_bytes or 0
    is_large_enough = options.size_bytes is None or options.size_bytes >= image_bytes
    return is_large_enough and options.fs in {None, supply.manifest.tree.fs}


def archive(
    engine: Engine, backup: model.Backup, path: str, *, work: Work | None = None
) -> Generator[bytes, None, None]:
    """Yield a tar stream of one file or folder of a backup; closing it lets go of all.

    Of a tar backup what is asked for is fetched, anything else is unpacked aside whole first. Raises what `look` and
    `unpack` raise, NotFound (nothing is there) and Invalid (it leads out).
    """
    what = f"cannot read backup {backup.shown_name}"
    work = work or _Unwatched()
    with ExitStack() as stack, told_as(what, work):
        supply = look(engine, backup, work=work, what=what)
        stack.callback(supply.close)
        if supply.format is StreamFormat.TAR:
            yield from supply.repository.fetch(supply.manifest, path)
            return
        driver, key = stack.enter_context(scratch.room(engine, supply.format, supply.needed_bytes, what))
        unpack(engine, Order(supply, driver.complete(TreeOptions()), what), driver, key, work)
        stack.callback(driver.detach, key)
        yield from extract.archive(driver.attach(key, read_only=True), path)


def fitted(driver: Driver, options: TreeOptions, content_bytes: int, *, may_grow: bool, what: str) -> TreeOptions:
    """Return options with a size that holds a content, where that must be known before a file system is made.

    Raises Invalid: the size is below the content, and may not grow.
    """
    if "fs" not in driver.options or options.size_bytes is None or not content_bytes:
        return options
    if may_grow:
        wanted_bytes = -(-int(content_bytes * HEADROOM + HEADROOM_BYTES) // _MIB) * _MIB
        return driver.complete(replace(options, size_bytes=max(wanted_bytes, options.size_bytes)))
    if content_bytes > options.size_bytes:
        sizes = names.format_size(options.size_bytes), names.format_size(content_bytes)
        raise Invalid(f"{what}: size {sizes[0]} is below the {sizes[1]} that it is to hold", field="size")
    return options


def _fitted(order: Order, driver: Driver, content_bytes: int) -> TreeOptions:
    return fitted(driver, order.options, content_bytes, may_grow=order.may_grow, what=order.what)


@contextmanager
def told_as(what: str, work: Work) -> Iterator[None]:
    """As `failures.told_as`; that work is ended is told too, for what is cut off fails in its own way."""
    try:
        with failures.told_as(what):
            yield
    except (Cancelled, Error) as err:
        if not work.cancelled.is_set():
            raise
        raise InUse(f"{what}: it was {'cancelled' if work.is_given_up else 'interrupted'}") from err


class _Unwatched:
    """Work that nobody watches."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.is_given_up = False
        self.step: str | None = None

    def restart(self) -> None:
        pass

    def expect(self, total_bytes: int | None) -> None:
        pass

    def advance(self, done_bytes: int) -> None:
        pass


class _Delivery:
    """The streams of a chain on their way to who receives them: counted, and ended when the work is."""

    def __init__(self, order: Order, work: Work) -> None:
        self.notes: list[str] = []
        self.holes: list[str] = []
        self._supply = order.supply
        self._work = work
        self._on_damage = self._note_damage if order.allow_holes else None
        self._done_bytes = 0

    def streams(self) -> Generator[Stream, None, None]:
        """Yield them, the whole one first, each to be read before the next."""
        for manifest in self._supply.chain:
            with self._supply.repository.read(manifest, progress=self._advance, on_damage=self._on_damage) as stream:
                # Of btrfs each tells of what changed only; of others the last tells what it could not hold of the tree.
                before = self.notes if stream.format is StreamFormat.BTRFS else []
                self.notes = [*before, *stream.notes]
                yield replace(stream, parts=self._watched(stream.parts))

    def once_more(self, stream: Stream) -> Stream:
        """Return the stream of what was unpacked aside."""
        self._work.expect(self._done_bytes + (stream.expected_bytes or self._supply.stream_bytes))
        self.notes += stream.notes
        return replace(stream, parts=self._counted(stream.parts))

    def _counted(self, parts: Iterator[Part]) -> Iterator[Part]:
        for part in self._watched(parts):
            yield part
            self._advance(part.length)

    def _watched(self, parts: Iterator[Part]) -> Iterator[Part]:
        for part in parts:
            if self._work.cancelled.is_set():
                raise Cancelled
            yield part

    def _advance(self, more_bytes: int) -> None:
        self._done_bytes += more_bytes
        self._work.step = None
        self._work.advance(self._done_bytes)

    def _note_damage(self, damage: Damage) -> None:
        self.holes.append(f"damaged, and left as zeros: {damage}")
        if len(self.holes) <= HOLES_MAX:
            _log.warning("verb=restore backup=%s damage=%s", self._supply.backup.shown_name, damage)
