"""The kernel: its version, its file systems, loop devices; and the capabilities of who uses them."""

import errno
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from voldriverd.doctor.finding import Check, Finding, Level, Trouble, fine, or_fine, told
from voldriverd.doctor.scope import Scope
from voldriverd.kernel import loop

MODULES: Final = Path("/lib/modules")
_PROBE_BYTES: Final = 1 << 20
_DRIVERS_NEED: Final = {"btrfs": ("btrfs",), "loop": ("ext4", "xfs")}

# The kernel's version

TOO_OLD: Final = Trouble(
    Level.BAD,
    "the kernel is older than 5.8",
    "Loop devices are made by LOOP_CONFIGURE (5.8) and trees are walked by openat2 (5.6): neither the embedded image "
    "nor loop volumes can be mounted.",
    "Install a newer kernel; 6.7 or later knows all that is used.",
)
NO_SIMPLE_QUOTAS: Final = Trouble(
    Level.BAD,
    "the kernel is older than 6.7, and simple quotas are configured or the embedded image is used",
    "The kernel knows no simple quotas: a btrfs pool with them is not opened, and its volumes cannot be mounted.",
    'Install kernel 6.7 or later, or configure [pools.*] with quota = "off" or "full".',
)
OLD_STREAMS: Final = Trouble(
    Level.NOTE,
    "the kernel is older than 6.0",
    "It sends btrfs streams of version 1 alone: compressed data are unpacked for a backup and packed again.",
    "Nothing; a kernel of 6.0 or later makes such backups cheaper.",
)


@dataclass(frozen=True, slots=True)
class Kernel:
    """What uname(2) says, and what is wanted of it."""

    release: str
    wants_simple_quotas: bool


def _look_kernel(scope: Scope) -> Kernel:
    return Kernel(os.uname().release, any(place.config.quota == "simple" for place in scope.places))


def judge_kernel(kernel: Kernel) -> Iterator[Finding]:
    """Judge a version."""
    found = re.match(r"(\d+)\.(\d+)", kernel.release)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    text = f"Linux {kernel.release}"
    if version < (5, 8):
        yield told(TOO_OLD, text)
    elif version < (6, 7) and kernel.wants_simple_quotas:
        yield told(NO_SIMPLE_QUOTAS, text)
    elif version < (6, 0):
        yield told(OLD_STREAMS, text)
    else:
        yield fine(text)


# File systems

NOT_KNOWN: Final = Trouble(
    Level.BAD,
    "the kernel knows no file system that a pool needs",
    "What lies in such pools, or in such volumes, cannot be mounted.",
    "Load the module (`modprobe {name}`), or install a kernel that has it.",
)
NO_XFS: Final = Trouble(
    Level.NOTE,
    "there is a loop pool, and the kernel knows no xfs",
    "Loop volumes can be ext4 alone; one of `-o fs=xfs` cannot be mounted.",
    "`modprobe xfs`, if such volumes are wanted.",
)


@dataclass(frozen=True, slots=True)
class FileSystems:
    """What is needed, and what the kernel has or can load."""

    needed: frozenset[str]
    known: frozenset[str]


def _look_file_systems(scope: Scope) -> FileSystems:
    drivers = {place.config.driver for place in scope.places}
    needed = {name for driver in drivers for name in _DRIVERS_NEED.get(driver, ())}
    needed |= {"btrfs"} if any(place.is_embedded for place in scope.places) else set()
    known = {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}
    modules = MODULES / os.uname().release
    lists = [modules / name for name in ("modules.dep", "modules.builtin")]
    loadable = "".join(path.read_text() for path in lists if path.exists())
    known |= {name for name in needed if re.search(rf"/{name}\.ko", loadable)}
    return FileSystems(frozenset(needed), frozenset(known))


def judge_file_systems(found: FileSystems) -> Iterator[Finding]:
    """Judge what is missing."""

    def troubles() -> Iterator[Finding]:
        for name in sorted(found.needed - found.known):
            yield told(NO_XFS if name == "xfs" else NOT_KNOWN, f"no {name}", name=name)

    yield from or_fine(troubles(), ", ".join(sorted(found.needed)) or "the pools need none")


# Loop devices

NO_LOOP: Final = Trouble(
    Level.BAD,
    "a loop device could not be made and taken away again",
    "Neither the embedded image nor loop volumes can be mounted.",
    "`modprobe loop`; in a container, give it /dev/loop-control and the block devices of major number 7.",
)


def _look_loop(_scope: Scope) -> OSError | None:
    """Make a loop device of an image for a moment, as the daemon does (LOOP_CONFIGURE); it clears itself."""
    with tempfile.NamedTemporaryFile(prefix="voldriver-probe-") as image:
        image.truncate(_PROBE_BYTES)
        try:
            with loop.held(Path(image.name)):
                return None
        except OSError as err:
            return err


def judge_loop(fault: OSError | None) -> Iterator[Finding]:
    """Judge what became of the try."""
    if fault is None:
        yield fine("LOOP_CONFIGURE makes one, and it clears itself")
        return
    name = errno.errorcode.get(fault.errno or 0, "")
    yield told(NO_LOOP, f"LOOP_CONFIGURE fails: {fault.strerror} ({name})")


# Capabilities

CAPABILITIES: Final[Mapping[int, tuple[str, str]]] = {
    0: ("CAP_CHOWN", "clones and restores give files their owners"),
    1: ("CAP_DAC_OVERRIDE", "files of volumes belong to anybody, with any mode"),
    2: ("CAP_DAC_READ_SEARCH", "the same, and subvolumes that lie in others are found by it"),
    3: ("CAP_FOWNER", "the same files get their modes and times"),
    4: ("CAP_FSETID", "setuid bits that files had"),
    9: ("CAP_LINUX_IMMUTABLE", "mount points that cannot be written to while nothing is mounted"),
    18: ("CAP_SYS_CHROOT", "`btrfs receive` locks itself in"),
    19: ("CAP_SYS_PTRACE", "who uses a volume is asked of the mount tables of other processes"),
    21: ("CAP_SYS_ADMIN", "mounts, loop devices, everything of btrfs"),
    24: ("CAP_SYS_RESOURCE", "ext4 grows while it is mounted"),
    27: ("CAP_MKNOD", "device files in volumes, and loop devices without udev"),
    31: ("CAP_SETFCAP", "capabilities that files had"),
}
"""linux/capability.h; those of the unit, but for ports below 1024."""
_OPTIONAL: Final = frozenset({24})

LACKS: Final = Trouble(
    Level.BAD,
    "the daemon (or, when there is none, this shell) lacks a capability that it needs",
    "Verbs that need it fail: {reasons}",
    "Under systemd, give it back in `CapabilityBoundingSet=` of the unit (`systemctl cat voldriverd`); in a container, "
    "with `--cap-add`.",
)
NO_GROWTH: Final = Trouble(
    Level.NOTE,
    "the same lacks CAP_SYS_RESOURCE alone",
    "A loop volume with ext4 cannot grow while it is mounted; xfs can, and ext4 while it is not.",
    "Nothing, or give CAP_SYS_RESOURCE; some hosts have taken it from all.",
)


@dataclass(frozen=True, slots=True)
class Held:
    """Whose capabilities, and which."""

    who: str
    effective: int


def _look_capabilities(scope: Scope) -> Held:
    pid = scope.daemon_pid
    status = Path(f"/proc/{pid or 'self'}/status").read_text(errors="replace")
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    who = "this shell" if pid is None else f"the daemon (pid {pid})"
    return Held(who, int(effective, 16))


def judge_capabilities(held: Held) -> Iterator[Finding]:
    """Judge what is missing."""
    lacking = [number for number in CAPABILITIES if not held.effective >> number & 1]
    needed = [number for number in lacking if number not in _OPTIONAL]
    names = ", ".join(CAPABILITIES[number][0] for number in lacking)
    if needed:
        reasons = "; ".join(f"{CAPABILITIES[number][0]}: {CAPABILITIES[number][1]}" for number in needed)
        finding = told(LACKS, f"{held.who} lacks {names}")
        yield Finding(finding.level, finding.text, LACKS.meaning.format(reasons=reasons), finding.remedy)
    elif lacking:
        yield told(NO_GROWTH, f"{held.who} lacks {names}")
    else:
        yield fine(f"{held.who} has all that are needed")


CHECKS: Final = (
    Check(
        "kernel",
        "Host",
        "the version of the kernel",
        lambda scope: judge_kernel(_look_kernel(scope)),
        (TOO_OLD, NO_SIMPLE_QUOTAS, OLD_STREAMS),
    ),
    Check(
        "file-systems",
        "Host",
        "whether the kernel knows, or can load, the file systems that the pools need",
        lambda scope: judge_file_systems(_look_file_systems(scope)),
        (NOT_KNOWN, NO_XFS),
    ),
    Check(
        "loop-devices",
        "Host",
        "whether a loop device can be made: one of a temporary file, for a moment",
        lambda scope: judge_loop(_look_loop(scope)),
        (NO_LOOP,),
        needs_root=True,
    ),
    Check(
        "capabilities",
        "Host",
        "the capabilities of the daemon, or of this shell if there is no daemon",
        lambda scope: judge_capabilities(_look_capabilities(scope)),
        (LACKS, NO_GROWTH),
        needs_root=True,
    ),
)
