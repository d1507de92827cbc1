"""A backup and its restore take little memory, whatever their size."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

LIMIT_KIB: Final = 200 << 10
"""The window of chunks, and Python with its libraries."""

PROGRAM: Final = """
import os, sys
from tests import backups
from voldriverd.backup.objects import Place
from voldriverd.backup.repository import Repository
from voldriverd.driver import PART_MAX

verb, target = sys.argv[1:]
with Repository.open(Place("file://" + target), backups.PASSPHRASE) as opened:
    if verb == "write":
        rest = os.urandom(PART_MAX // 2) + bytes(PART_MAX // 2 - 4)
        pieces = (number.to_bytes(4, "little") + rest for number in range(256))
        backups.write(opened, backups.stream(pieces))
    else:
        (manifest,) = opened.manifests()
        with opened.read(manifest, progress=backups.ignore) as found:
            assert sum(part.length for part in found.parts) == 1 << 30
(peak,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(peak)
"""


def test_a_gigabyte_passes_through_a_window(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    for verb in ("write", "read"):
        argv = [sys.executable, "-c", PROGRAM, verb, str(target)]
        done = subprocess.run(argv, check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.fail(done.stderr)
        assert int(done.stdout) < LIMIT_KIB, verb
    shutil.rmtree(target)
