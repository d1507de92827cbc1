"""What `scripts/` promises: scratch pools that come and go, and a session that fails when a test is skipped."""

import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Final

import pytest

from voldriverd import config
from voldriverd.kernel import fs

CHECKOUT: Final = Path(__file__).parent.parent
LOOPBACK: Final = CHECKOUT / "scripts" / "loopback"
MAGIC: Final = {"btrfs": fs.BTRFS_MAGIC, "xfs": fs.XFS_MAGIC, "ext4": fs.EXT4_MAGIC}
TIMEOUT_S: Final = 60


def run(*argv: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, cwd=cwd, timeout=TIMEOUT_S, capture_output=True, text=True, check=False)


@pytest.mark.root
@pytest.mark.parametrize("fs_type", MAGIC)
def test_a_scratch_pool_is_made_as_configured_and_removed_whole(fs_type: str, tmp_path: Path) -> None:
    made = run(LOOPBACK, "make", "scratch", "--fs", fs_type, "--size", "400M", cwd=tmp_path)
    (pool,) = config.parse(tomllib.loads(made.stdout)).pools
    magic = fs.magic(pool.path)
    removed = run(LOOPBACK, "remove", "scratch", cwd=tmp_path)
    assert (made.returncode, made.stderr, removed.returncode, removed.stderr) == (0, "", 0, "")
    assert (pool.path, magic) == (tmp_path / "scratch", MAGIC[fs_type])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
def test_a_scratch_pool_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    made = run(LOOPBACK, "make", "scratch", "--size", "10K", cwd=tmp_path)
    assert made.returncode == 1
    assert made.stderr.startswith(f"cannot make {tmp_path}/scratch: ERROR: ")
    assert made.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
def test_a_busy_scratch_pool_stays(tmp_path: Path) -> None:
    run(LOOPBACK, "make", "scratch", "--size", "400M", cwd=tmp_path)
    held = run(LOOPBACK, "remove", "../scratch", cwd=tmp_path / "scratch")
    assert (held.returncode, "target is busy" in held.stderr) == (1, True)
    assert fs.magic(tmp_path / "scratch") == fs.BTRFS_MAGIC
    assert run(LOOPBACK, "remove", "scratch", cwd=tmp_path).returncode == 0


def test_a_directory_that_is_no_scratch_pool_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    removed = run(LOOPBACK, "remove", "data", cwd=tmp_path)
    assert (removed.returncode, "data.img" in removed.stderr) == (1, True)
    assert (tmp_path / "data").exists()


def test_what_a_kernel_may_lack_may_be_skipped(tmp_path: Path) -> None:
    done = session_of(
        """
        import pytest
        def test_passes(): pass
        def test_grow(): pytest.skip("ext4 online grow needs CAP_SYS_RESOURCE")
        def test_nfs(): pytest.skip("NFS is not in this kernel")
        """,
        tmp_path,
    )
    assert (done.returncode, "which is a failure here" in done.stdout) == (0, False)


def test_any_other_skip_fails_the_session_and_is_named(tmp_path: Path) -> None:
    done = session_of(
        """
        import pytest
        def test_passes(): pass
        def test_inside(): pytest.skip("needs root")
        @pytest.mark.skip(reason="needs dockerd")
        def test_mark(): pass
        @pytest.mark.xfail(reason="known")
        def test_known(): assert 0
        """,
        tmp_path,
    )
    assert done.returncode == 1
    named = "test_it.py::test_inside: needs root\ntest_it.py::test_mark: needs dockerd\ntest_it.py::test_known: known\n"
    assert "which is a failure here" in done.stdout
    assert named in done.stdout


def test_a_skipped_module_fails_the_session(tmp_path: Path) -> None:
    done = session_of('import pytest\npytest.skip("no btrfs", allow_module_level=True)', tmp_path)
    assert done.returncode != 0
    assert "test_it.py: no btrfs\n" in done.stdout


def test_a_failure_stays_a_failure(tmp_path: Path) -> None:
    assert session_of("def test(): assert 0", tmp_path).returncode == 1


def session_of(source: str, place: Path) -> subprocess.CompletedProcess[str]:
    """Run pytest with the plugin on one file."""
    (place / "test_it.py").write_text(textwrap.dedent(source))
    plugins = ("-p", "tests.no_skips", "-p", "no:cacheprovider")
    return run(sys.executable, "-m", "pytest", *plugins, f"--rootdir={place}", "-c", "/dev/null", place, cwd=CHECKOUT)
