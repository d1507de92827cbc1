"""send and receive: a tree written down has all it had, for every driver and from each into each other."""

import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from tests.contract import content
from tests.contract.conftest import Pool
from tests.contract.pools import KINDS, making_increments, making_no_increments, not_promising, promising
from tests.contract.sending import Sent, changed, filled, raising, receive, send, sized, snapshot
from tests.likeness import Facts
from tests.scratch import Scratch, unmount_under
from tests.watchers import Enough, Watcher
from voldriverd.driver import PART_MAX, Capability, Driver, Key, Part, Stream, StreamFormat, TreeOptions
from voldriverd.errors import Exists, NotFound, Unsupported, Unusable
from voldriverd.kernel import watch

pytestmark = pytest.mark.root

_TARGETS: Final = ("btrfs", "loop-btrfs", "loop-ext4", "directory-btrfs", "directory-ext4", "memory")
"""Each driver, and the directory driver where there are no reflinks."""
_numbers: Final = itertools.count()


@pytest.fixture
def other(request: pytest.FixtureRequest, session_scratch: Scratch, tmp_path: Path) -> Iterator[Pool]:
    """Return a second pool, of the kind that the parameter names."""
    kind = next(kind for kind in KINDS if kind.name == request.param)
    place = session_scratch.shared(kind.name, kind.fs_type)
    root = place / f"other{next(_numbers)}"
    root.mkdir(0o700)
    mounts = tmp_path / "other-mounts"
    mounts.mkdir(0o700)
    driver = kind.make(root, mounts)
    driver.open()
    yield Pool(kind, place, root, mounts, driver)
    unmount_under(tmp_path)


def likeness(pool: Pool, key: str) -> dict[bytes, Facts]:
    """Describe the content of a tree."""
    try:
        return content.likeness(pool.attach(key, read_only=True))
    finally:
        pool.driver.detach(Key(key))


def listing(pool: Pool) -> set[str]:
    """Return all that is in a pool, and who serves it."""
    return {os.path.join(place, name) for place, names, files in os.walk(pool.root) for name in (*names, *files)}


def test_a_whole_stream_keeps_everything(pool: Pool) -> None:
    filled(pool, "v1.1", content.fill)
    snapshot(pool, "v1.1", "s1")
    sent = send(pool.driver, "s1")
    assert not sent.stream.is_incremental
    assert sent.stream.notes == ()
    assert receive(pool.driver, "v2.1", sent) == ()
    assert likeness(pool, "v2.1") == likeness(pool, "s1")


def test_its_own_format_is_the_first(pool: Pool) -> None:
    pool.create("v1.1", sized(pool.driver))
    snapshot(pool, "v1.1", "s1")
    assert send(pool.driver, "s1").stream.format is pool.driver.formats[0]
    assert StreamFormat.TAR in pool.driver.formats


def test_a_received_tree_is_writable_and_shares_nothing(pool: Pool) -> None:
    filled(pool, "v1.1", content.fill)
    snapshot(pool, "v1.1", "s1")
    before = likeness(pool, "s1")
    receive(pool.driver, "v2.1", send(pool.driver, "s1"))
    changed(pool, "v2.1", content.change)
    assert likeness(pool, "s1") == before
    after = likeness(pool, "v2.1")
    assert after != before
    pool.driver.remove(Key("v1.1"))
    pool.driver.remove(Key("s1"))
    assert pool.driver.trees() == {"v2.1"}
    assert likeness(pool, "v2.1") == after


def test_a_new_instance_sees_a_received_tree(pool: Pool) -> None:
    filled(pool, "v1.1", content.fill)
    snapshot(pool, "v1.1", "s1")
    receive(pool.driver, "v2.1", send(pool.driver, "s1"))
    again = replace(pool, driver=pool.reopen())
    assert again.driver.trees() == {"v1.1", "s1", "v2.1"}
    assert likeness(again, "v2.1") == likeness(again, "s1")


@making_increments()
@pytest.mark.parametrize("is_thorough", [False, True])
def test_an_increment_is_smaller_and_a_chain_restores_each_of_its_trees(pool: Pool, *, is_thorough: bool) -> None:
    filled(pool, "v1.1", content.fill)
    snapshot(pool, "v1.1", "b1")
    chain = [send(pool.driver, "b1")]
    for number, change in enumerate((content.change, lambda root: (root / "new").unlink()), 2):
        changed(pool, "v1.1", change)
        snapshot(pool, "v1.1", f"b{number}")
        chain.append(send(pool.driver, f"b{number}", f"b{number - 1}", is_thorough=is_thorough))
    for number in (1, 2, 3):
        receive(pool.driver, f"v{number}.2", *chain[:number])
        assert likeness(pool, f"v{number}.2") == likeness(pool, f"b{number}")
    assert [sent.stream.is_incremental for sent in chain] == [False, True, True]
    assert chain[1].data_bytes < chain[0].data_bytes / 2
    assert chain[2].data_bytes < chain[0].data_bytes / 4


@making_increments()
def test_an_increment_does_not_need_the_tree_that_both_come_from(pool: Pool) -> None:
    filled(pool, "v1.1", content.fill)
    snapshot(pool, "v1.1", "b1")
    whole = send(pool.driver, "b1")
    changed(pool, "v1.1", content.change)
    snapshot(pool, "v1.1", "b2")
    pool.driver.remove(Key("v1.1"))
    increment = send(pool.driver, "b2", "b1")
    pool.driver.remove(Key("b1"))
    receive(pool.driver, "v2.1", whole, increment)
    assert likeness(pool, "v2.1") == likeness(pool, "b2")


@making_increments()
def test_a_received_tree_is_backed_up_and_restored_in_turn(pool: Pool) -> None:
    filled(pool, "v1.1", content.fill)
    snapshot(pool, "v1.1", "b1")
    receive(pool.driver, "v2.1", send(pool.driver, "b1"))
    pool.driver.remove(Key("v1.1"))
    pool.driver.remove(Key("b1"))
    snapshot(pool, "v2.1", "b2")
    whole = send(pool.driver, "b2")
    changed(pool, "v2.1", content.change)
    snapshot(pool, "v2.1", "b3")
    receive(pool.driver, "v3.1", whole, send(pool.driver, "b3", "b2"))
    assert likeness(pool, "v3.1") == likeness(pool, "v2.1")


@making_increments()
def test_an_increment_without_what_it_builds_on_is_unusable(pool: Pool) -> None:
    filled(pool, "v1.1", content.fill)
    snapshot(pool, "v1.1", "b1")
    changed(pool, "v1.1", content.change)
    snapshot(pool, "v1.1", "b2")
    increment = send(pool.driver, "b2", "b1")
    with pytest.raises(Unusable, match=r"v2\.1"):
        receive(pool.driver, "v2.1", increment)
    assert "v2.1" not in pool.driver.trees()


@making_no_increments()
def test_without_delta_a_base_is_unsupported(pool: Pool) -> None:
    pool.create("v1.1", sized(pool.driver))
    snapshot(pool, "v1.1", "b1")
    snapshot(pool, "v1.1", "b2")
    with pytest.raises(Unsupported, match="b2"):
        send(pool.driver, "b2", "b1")


def test_the_same_tree_gives_the_same_bytes_again(pool: Pool) -> None:
    filled(pool, "v1.1", content.fill)
    snapshot(pool, "v1.1", "b1")
    changed(pool, "v1.1", content.change)
    snapshot(pool, "v1.1", "b2")
    base = "b1" if Capability.DELTA in pool.driver.capabilities else None
    for wanted, based_on in ((None, None), (None, base), (StreamFormat.TAR, None)):
        first = send(pool.driver, "b2", based_on, wanted=wanted)
        assert send(pool.reopen(), "b2", based_on, wanted=wanted).parts == first.parts


def test_parts_are_what_they_say(pool: Pool) -> None:
    filled(pool, "v1.1", lambda root: (root / "large").write_bytes(os.urandom(9 << 20)))
    snapshot(pool, "v1.1", "s1")
    for wanted in pool.driver.formats:
        sent = send(pool.driver, "s1", wanted=wanted)
        assert sent.stream.format is wanted
        is_image = wanted is StreamFormat.BLOCKS
        assert (sent.stream.image_bytes is not None) == is_image
        assert all(part.length == len(part.data) for part in sent.parts if part.data is not None)
        assert all(0 < part.length <= PART_MAX for part in sent.parts if part.data is not None)
        assert all((part.offset is not None) == is_image for part in sent.parts)
        assert is_image or all(part.data is not None for part in sent.parts)
        if is_image:
            _expect_ascending(sent)


def _expect_ascending(sent: Sent) -> None:
    position = 0
    for part in sent.parts:
        assert part.offset is not None
        assert position <= part.offset
        position = part.offset + part.length
    assert position <= (sent.stream.image_bytes or 0)


@pytest.mark.parametrize("other", _TARGETS, indirect=True)
def test_a_tree_goes_into_a_pool_of_any_driver_as_tar(pool: Pool, other: Pool) -> None:
    filled(pool, "v1.1", content.fill)
    snapshot(pool, "v1.1", "s1")
    sent = send(pool.driver, "s1", wanted=StreamFormat.TAR)
    assert receive(other.driver, "v1.1", sent) == ()
    assert likeness(other, "v1.1") == likeness(pool, "s1")


@pytest.mark.parametrize("other", _TARGETS, indirect=True)
def test_a_chain_goes_into_another_pool_of_its_driver(pool: Pool, other: Pool) -> None:
    if pool.driver.formats[0] not in other.driver.formats:
        with pytest.raises(Unsupported, match=r"v1\.1"):
            receive(other.driver, "v1.1", _nothing(pool.driver.formats[0]))
        assert other.driver.trees() == set()
        return
    if pool.kind.pretends != other.kind.pretends:  # the same format by name only
        return
    filled(pool, "v1.1", content.fill)
    snapshot(pool, "v1.1", "b1")
    chain = [send(pool.driver, "b1")]
    if Capability.DELTA in pool.driver.capabilities:
        changed(pool, "v1.1", content.change)
        snapshot(pool, "v1.1", "b2")
        chain.append(send(pool.driver, "b2", "b1"))
    receive(other.driver, "v1.1", *chain)
    assert likeness(other, "v1.1") == likeness(pool, "v1.1")


def _nothing(form: StreamFormat) -> Sent:
    image_bytes = 64 << 20 if form is StreamFormat.BLOCKS else None
    return Sent(Stream(form, 1, False, image_bytes, None, iter(())), ())


def test_a_tar_by_hand_is_received(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    content.fill(tmp_path / "tree")
    (tmp_path / "tree" / "directory" / "fifo").unlink()  # a second name of one is a second fifo to GNU tar
    options = ["--format=posix", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--sparse-version=1.0", "-S"]
    made = subprocess.run(["tar", "-c", *options, "-C", tmp_path / "tree", "."], check=True, capture_output=True).stdout
    parts = tuple(Part(made[at : at + 99_999], len(made[at : at + 99_999])) for at in range(0, len(made), 99_999))
    assert receive(pool.driver, "v1.1", replace(_nothing(StreamFormat.TAR), parts=parts)) == ()
    assert likeness(pool, "v1.1") == content.likeness(tmp_path / "tree")


@pytest.mark.parametrize("wanted", StreamFormat)
def test_a_format_that_it_has_not_is_unsupported(pool: Pool, wanted: StreamFormat) -> None:
    pool.create("v1.1", sized(pool.driver))
    snapshot(pool, "v1.1", "s1")
    if wanted in pool.driver.formats:
        assert send(pool.driver, "s1", wanted=wanted).stream.format is wanted
        return
    with pytest.raises(Unsupported, match="s1"):
        send(pool.driver, "s1", wanted=wanted)
    with pytest.raises(Unsupported, match=r"v2\.1"):
        receive(pool.driver, "v2.1", _nothing(wanted))
    assert pool.driver.trees() == {"v1.1", "s1"}


def test_what_is_absent_is_not_found(pool: Pool) -> None:
    pool.create("v1.1", sized(pool.driver))
    snapshot(pool, "v1.1", "s1")
    for wanted in pool.driver.formats:
        with pytest.raises(NotFound, match="s9"):
            send(pool.driver, "s9", wanted=wanted)
    if Capability.DELTA in pool.driver.capabilities:
        with pytest.raises(NotFound, match="s9"):
            send(pool.driver, "s1", "s9")


def test_receive_refuses_a_key_that_exists_and_leaves_its_content(pool: Pool) -> None:
    pool.create("v1.1", sized(pool.driver))
    pool.write("v1.1", "file", b"content")
    snapshot(pool, "v1.1", "s1")
    for wanted in pool.driver.formats:
        sent = send(pool.driver, "s1", wanted=wanted)
        with pytest.raises(Exists, match=r"v1\.1"):
            receive(pool.driver, "v1.1", sent)
    assert pool.read("v1.1", "file") == b"content"


def test_what_the_parts_raise_passes_through_and_leaves_nothing(pool: Pool) -> None:
    filled(pool, "v1.1", content.fill)
    snapshot(pool, "v1.1", "s1")
    pool.driver.sync()
    before = listing(pool)
    for wanted in pool.driver.formats:
        sent = send(pool.driver, "s1", wanted=wanted)
        for err in (ValueError("theirs"), OSError(5, "theirs"), EOFError("theirs"), KeyboardInterrupt("theirs")):
            for after in (0, 1, len(sent.parts)):
                stream = raising(sent, err, after=after)
                with pytest.raises(type(err), match="theirs") as caught:
                    pool.driver.receive(Key("v2.1"), iter([stream]), pool.driver.complete(sized(pool.driver)))
                assert caught.value is err
                assert listing(pool) == before
        receive(pool.driver, "v2.1", sent)
        assert likeness(pool, "v2.1") == likeness(pool, "s1")
        pool.driver.remove(Key("v2.1"))
        pool.driver.sync()


def test_what_the_chain_raises_passes_through_and_leaves_nothing(pool: Pool) -> None:
    filled(pool, "v1.1", content.fill)
    snapshot(pool, "v1.1", "s1")
    before = listing(pool)
    for wanted in pool.driver.formats:
        sent = send(pool.driver, "s1", wanted=wanted)

        def chain(sent: Sent = sent) -> Iterator[Stream]:
            yield sent.again()
            raise ValueError("theirs")

        with pytest.raises(ValueError, match="theirs"):
            pool.driver.receive(Key("v2.1"), chain(), pool.driver.complete(sized(pool.driver)))
        assert listing(pool) == before


def test_a_chain_is_read_lazily(pool: Pool) -> None:
    filled(pool, "v1.1", content.fill)
    snapshot(pool, "v1.1", "b1")
    chain = [send(pool.driver, "b1")]
    if Capability.DELTA in pool.driver.capabilities:
        changed(pool, "v1.1", content.change)
        snapshot(pool, "v1.1", "b2")
        chain.append(send(pool.driver, "b2", "b1"))
    is_read = [True]

    def parts(sent: Sent) -> Iterator[Part]:
        yield from sent.parts
        is_read[0] = True

    def streams() -> Iterator[Stream]:
        for sent in chain:
            assert is_read[0], "the one before has been read to its end"
            is_read[0] = False
            yield replace(sent.stream, parts=parts(sent))

    pool.driver.receive(Key("v2.1"), streams(), pool.driver.complete(sized(pool.driver)))
    assert is_read[0]
    assert likeness(pool, "v2.1") == likeness(pool, "v1.1")


def test_a_stream_that_is_none_is_unusable_and_leaves_nothing(pool: Pool) -> None:
    filled(pool, "v1.1", content.fill)
    snapshot(pool, "v1.1", "s1")
    before = listing(pool)
    options = pool.driver.complete(sized(pool.driver))
    with pytest.raises(Unusable, match=r"v2\.1"):
        pool.driver.receive(Key("v2.1"), iter(()), options)
    for wanted in pool.driver.formats:
        sent = send(pool.driver, "s1", wanted=wanted)
        whole_and_whole = iter([sent.again(), sent.again()])
        with pytest.raises(Unusable, match=r"v2\.1"):
            pool.driver.receive(Key("v2.1"), whole_and_whole, options)
        assert listing(pool) == before
        if wanted is not StreamFormat.BLOCKS:  # of which any bytes are some image
            garbage = sent.spoilt(lambda parts: [replace(part, data=os.urandom(part.length)) for part in parts])
            short = sent.spoilt(lambda parts: [*parts[:-1], Part(b"x", 1)])
            for stream in (garbage, short):
                with pytest.raises(Unusable):
                    pool.driver.receive(Key("v2.1"), iter([stream]), options)
                assert listing(pool) == before


def test_an_early_end_of_the_block_leaves_nothing(pool: Pool) -> None:
    filled(pool, "v1.1", content.fill)
    snapshot(pool, "v1.1", "s1")
    before = listing(pool)
    for wanted in pool.driver.formats:
        with pool.driver.send(Key("s1"), wanted=wanted):
            pass
        with pool.driver.send(Key("s1"), wanted=wanted) as stream:
            next(stream.parts)
        with pytest.raises(ValueError, match="ours"):
            _fail_inside(pool.driver, wanted)
        assert listing(pool) == before
        assert not any(os.path.ismount(pool.mounts / name) for name in os.listdir(pool.mounts))
    pool.driver.remove(Key("s1"))
    assert pool.driver.trees() == {"v1.1"}


def test_who_watches_can_end_what_comes_before_the_first_part(pool: Pool) -> None:
    filled(pool, "v1.1", content.fill)
    snapshot(pool, "v1.1", "s1")
    before = listing(pool)
    with pytest.raises(Enough), watch.watched(Watcher(ends_after=0)), _tar(pool):
        pytest.fail("nobody was told")
    assert listing(pool) == before
    assert not any(os.path.ismount(pool.mounts / name) for name in os.listdir(pool.mounts))
    watcher = Watcher()
    with watch.watched(watcher), _tar(pool):
        (told_bytes,) = watcher.told_bytes.values()
        assert told_bytes > 0


def _tar(pool: Pool) -> AbstractContextManager[Stream]:
    return pool.driver.send(Key("s1"), wanted=StreamFormat.TAR)


@not_promising(Capability.COW)
def test_who_watches_can_end_a_clone_that_copies(pool: Pool) -> None:
    filled(pool, "v1.1", content.fill)
    before = listing(pool)
    with pytest.raises(Enough), watch.watched(Watcher(ends_after=0)):
        pool.driver.clone(Key("v1.1"), Key("s1"), read_only=True)
    assert listing(pool) == before


def _fail_inside(driver: Driver, wanted: StreamFormat) -> None:
    with driver.send(Key("s1"), wanted=wanted) as stream:
        next(stream.parts)
        raise ValueError("ours")


def test_a_tree_in_use_is_sent_and_stays_in_use(pool: Pool) -> None:
    filled(pool, "v1.1", content.fill)
    snapshot(pool, "v1.1", "s1")
    path = pool.attach("s1", read_only=True)
    for wanted in pool.driver.formats:
        sent = send(pool.driver, "s1", wanted=wanted)
        assert (path / "tiny").read_bytes() == b"x"
        receive(pool.driver, "v2.1", sent)
        assert content.likeness(path) == likeness(pool, "v2.1")
        pool.driver.remove(Key("v2.1"))
    pool.driver.detach(Key("s1"))


def test_an_empty_tree_is_sent_and_looks_empty_again(pool: Pool) -> None:
    options = sized(pool.driver)
    pool.create("v1.1", replace(options, uid=5, gid=6, mode=0o1770))
    snapshot(pool, "v1.1", "s1")
    for number, wanted in enumerate(pool.driver.formats, 2):
        receive(pool.driver, f"v{number}.1", send(pool.driver, "s1", wanted=wanted))
        assert pool.names(f"v{number}.1") == set()
        status = pool.attach(f"v{number}.1", read_only=True).stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (5, 6, 0o1770)


@promising(Capability.SIZE)
def test_a_tree_from_tar_has_the_size_of_its_options(pool: Pool) -> None:
    pool.create("v1.1", TreeOptions(size_bytes=64 << 20))
    snapshot(pool, "v1.1", "s1")
    sent = send(pool.driver, "s1", wanted=StreamFormat.TAR)
    receive(pool.driver, "v2.1", sent, options=pool.driver.complete(TreeOptions(size_bytes=96 << 20)))
    assert pool.driver.usage(Key("v2.1")).limit_bytes == 96 << 20
