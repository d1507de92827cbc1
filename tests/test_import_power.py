"""The power switch in imports: a cut at every single step, then recovery. A new volume is whole, or was never there."""

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from drivers import archive
from tests.engines import Bench
from tests.memory import Memory
from voldriverd import model, names
from voldriverd.driver import Adopted, Key, Stream, TreeOptions
from voldriverd.engine import adoption, creation
from voldriverd.errors import Exists, InUse, Invalid, Unsupported, Unusable
from voldriverd.jobs import Job
from voldriverd.model import VolumeState

pytestmark = pytest.mark.root

STEPS_MAX: Final = 40
TAKEN_AT: Final = datetime(2026, 8, 26, 10, 0, tzinfo=UTC)


def packed(content: bytes = b"whole") -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as file:
        member = tarfile.TarInfo("content")
        member.size = len(content)
        file.addfile(member, io.BytesIO(content))
    return made.getvalue()


def begin(bench: Bench, *earlier: adoption.Earlier, **options: str) -> adoption.Begun:
    request = creation.Request("new", names.parse_options(options), options)
    return adoption.begin(bench.engine, request, model.VolumeId(bench.store.reserve_id("volumes")), earlier)


def from_archive(bench: Bench) -> None:
    begun = begin(bench, size="2M")
    arrived = adoption.bring_archive(bench.engine, begun, iter([packed()]), None, Job("import"))
    adoption.finish(bench.engine, begun, arrived, "an archive")


def from_directory(bench: Bench, place: Path) -> None:
    engine = replace(bench.engine, archive=archive.stream)
    begun = begin(bench, size="2M")
    arrived = adoption.bring_directory(engine, begun, str(place), Job("import"))
    adoption.finish(engine, begun, arrived, str(place))


def from_snapshots(bench: Bench, place: Path) -> None:
    begun = begin(bench, adoption.Earlier("then", str(place), TAKEN_AT))
    arrived = adoption.bring_directory(bench.engine, begun, str(place), Job("import"), is_instant=True)
    adoption.finish(bench.engine, begun, arrived, str(place))


def adopt_instantly(self: Memory, key: Key, source: Path, options: TreeOptions, **_: object) -> Adopted:
    """Take a directory over as a driver does that snapshots it."""
    self._switch.step(f"before adopt {key}")
    with archive.stream(source) as stream:
        self._inner.receive(key, iter([stream]), TreeOptions())
    self._switch.step(f"after adopt {key}")
    assert options == TreeOptions()
    return Adopted.INSTANT


def _check_rest(bench: Bench, where: str) -> None:
    bench.upkeep()
    (pool,) = bench.engine.pools
    assert not pool.orphans, where
    owned = bench.store.pointed_keys(pool.row.id)
    assert bench.driver.trees() == owned, where
    assert bench.tree_rows() == owned, where


@pytest.mark.parametrize("loss", ["nothing", "all"])
@pytest.mark.parametrize("kind", ["archive", "directory", "snapshots"])
def test_a_new_volume_is_whole_or_absent(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, loss: str
) -> None:
    (tmp_path / "content").write_text("whole")
    if kind == "snapshots":
        monkeypatch.setattr(Memory, "adopt", adopt_instantly)
    ways: dict[str, Callable[[], None]] = {
        "archive": lambda: from_archive(bench),
        "directory": lambda: from_directory(bench, tmp_path),
        "snapshots": lambda: from_snapshots(bench, tmp_path),
    }
    seen = set()
    for step in range(STEPS_MAX):
        bench.renew()
        was_cut = bench.is_cut(step, ways[kind])
        where = f"after {bench.switch.steps}"
        bench.unmount_all()
        bench.lose_power(loss)
        bench.restart()
        found = [volume.state for volume in bench.store.volumes()]
        seen.add(len(found))
        assert found in ([], [VolumeState.INACTIVE]), where
        _check_rest(bench, where)
        if found:
            assert bench.read("new") == "whole", where
        if not was_cut:
            assert found, where
            break
    assert seen == {0, 1}
    assert step > 3


def test_the_snapshots_are_there_with_their_times(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Memory, "adopt", adopt_instantly)
    (tmp_path / "content").write_text("whole")
    from_snapshots(bench, tmp_path)
    snapshot = bench.snapshot("new", "then")
    assert (snapshot.created_at, snapshot.state) == (TAKEN_AT, model.SnapshotState.CREATED)
    assert bench.read_snapshot("new", "then") == "whole"


def test_what_cannot_be_snapshotted_is_refused_and_given_up(bench: Bench, tmp_path: Path) -> None:
    begun = begin(bench, adoption.Earlier("then", str(tmp_path), TAKEN_AT))
    with pytest.raises(Unsupported, match="is no subvolume of the btrfs that pool memory"):
        adoption.bring_directory(bench.engine, begun, str(tmp_path), Job("import"), is_instant=True)
    adoption.give_up(bench.engine, begun)
    assert bench.store.volumes() == []
    _check_rest(bench, "given up")


def test_a_copy_that_is_not_like_its_source_is_refused(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "content").write_text("whole")
    receive = Memory.receive

    def spoilt(self: Memory, key: Key, chain: Iterator[Stream], options: TreeOptions) -> tuple[str, ...]:
        notes = receive(self, key, chain, options)
        (self._tree(key) / "files" / "content").write_text("holed")
        status = (tmp_path / "content").stat()
        os.utime(self._tree(key) / "files" / "content", ns=(status.st_atime_ns, status.st_mtime_ns))
        return notes

    monkeypatch.setattr(Memory, "receive", spoilt)
    with pytest.raises(Unusable, match="is not like its source, content: its content differs, from byte 0 on"):
        from_directory(bench, tmp_path)


def test_an_import_that_was_cancelled_ends_soon(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "content").write_text("whole")
    job = Job("import")
    job.cancel()
    with pytest.raises(InUse, match="cannot import volume new: it was cancelled"):
        adoption.bring_directory(bench.engine, begin(bench), str(tmp_path), job)


def test_a_name_that_is_taken_changes_nothing(bench: Bench) -> None:
    bench.create("new")
    with pytest.raises(Exists):
        begin(bench)
    assert len(bench.store.volumes()) == 1


def test_what_is_larger_than_its_size_is_refused(bench: Bench) -> None:
    begun = begin(bench, size="1M")
    engine = bench.engine
    arrived = adoption.bring_archive(engine, begun, iter([packed()]), None, Job("import"))
    assert arrived.size_bytes == 1 << 20
    bench.driver.resize(begun.volume.tree, 2 << 20)
    with pytest.raises(Invalid, match="size 1 MiB is below the 2 MiB that it takes"):
        adoption._arrived(begun, bench.driver, Job("import"), ())
