"""Mounts: mount(2), umount2(2), and what /proc/PID/mountinfo says (proc(5), section mountinfo)."""

import ctypes
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_NOATIME: Final = 1024
MS_BIND: Final = 4096
"""linux/mount.h"""

CAP_SYS_PTRACE: Final = 19
"""linux/capability.h"""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)

_DELETED = "//deleted"
_NLINK_OF_ONE_THREAD: Final = 3
"""fs/proc/base.c, proc_task_getattr: the link count of /proc/PID/task is 2 and the number of threads."""
_ESCAPED: Final = frozenset(" \t\n\\#")
"""Written as \\ooo in mountinfo (fs/proc_namespace.c)."""
_TAGS: Final = frozenset({"shared", "master"})


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a mountinfo file; `device` is major:minor of the superblock (not of a btrfs subvolume)."""

    mount_id: int
    device: str
    root: str
    """The path inside the file system that forms the root of this mount."""
    mount_point: str
    options: str
    fs_type: str
    source: str
    groups: frozenset[str] = frozenset()
    """The peer groups of propagation that it is in or receives from (`shared:N` and `master:N`, the numbers)."""
    super_options: str = ""
    """Those of the file system, which all its mounts share; `options` are those of this mount."""


def mount(source: str, target: Path, *, fs_type: str | None = None, flags: int = 0, data: str = "") -> None:
    """Mount; raises OSError with the errno of mount(2)."""
    kind = fs_type.encode() if fs_type else None
    if _libc.mount(os.fsencode(source), os.fsencode(target), kind, flags, data.encode() or None) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


def bind(source: Path, target: Path, *, read_only: bool) -> None:
    """Bind-mount a directory; a read-only one is never visible as writable: it is undone if that fails."""
    mount(str(source), target, flags=MS_BIND)
    if not read_only:
        return
    try:
        set_read_only(target, read_only=True)
    except OSError:
        unmount(target)
        raise


def set_read_only(target: Path, *, read_only: bool) -> None:
    """Make one mount read-only or writable, not its file system nor other mounts of it.

    Raises OSError (EBUSY: something is open for writing through it; EINVAL: not a mount point).
    Without atime flags mount(2) keeps those it has; the others must be repeated.
    """
    kept = os.statvfs(target).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("none", target, flags=MS_BIND | MS_REMOUNT | kept | (MS_RDONLY if read_only else 0))


def unmount(target: Path) -> None:
    """Unmount; raises OSError (EBUSY: in use; EINVAL: not a mount point). Never lazy: that keeps the loop alive."""
    if _libc.umount2(os.fsencode(target), 0) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


def table(pid: int | None = None, *, device: str = "", inside: str = "") -> list[Entry]:
    """Return the mounts of a process's (or thread's) namespace, ours if None; raises OSError if it has gone.

    With a device and a directory inside it: at least those that show it or something below it, few others.
    """
    # Parsing takes most of the time: 2,000 mounts, all of them 13 ms, a filtered few 3.7 ms.
    wanted = f" {device} {inside}" if device and not _ESCAPED.intersection(inside) else ""
    return [_parse(line) for line in _lines(pid) if wanted in line]


def at(path: Path) -> Entry | None:
    """Return the uppermost mount at exactly this mount point in our namespace, None if there is none."""
    point = str(path)
    wanted = "" if _ESCAPED.intersection(point) else f" {point} "
    found = None
    for line in _lines(None):
        if wanted in line and (entry := _parse(line)).mount_point == point:
            found = entry
    return found


def containing(path: Path) -> Entry:
    """Return the mount on which a path lies (through `mnt_id` of /proc/self/fdinfo). Raises OSError."""
    mount_id = id_of(path)
    for line in _lines(None):
        if line.startswith(f"{mount_id} "):
            return _parse(line)
    message = "its mount is in no mount table"
    raise OSError(2, message, str(path))


def id_of(path: Path) -> int:
    """Return the id of the mount on which a path lies. Raises OSError."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        info = Path(f"/proc/self/fdinfo/{fd}").read_text()
    finally:
        os.close(fd)
    return int(next(line.split()[1] for line in info.splitlines() if line.startswith("mnt_id:")))


def matching(pattern: re.Pattern[str]) -> list[Entry]:
    """Return the mounts of our namespace whose line a pattern is found in (2,000 mounts: see `table`)."""
    return [_parse(line) for line in _lines(None) if pattern.search(line)]


def location(path: Path) -> tuple[str, str]:
    """Return (device, path inside the file system), by which mounts of it are found in every namespace."""
    real = path.resolve()
    entry = containing(real)
    inside = os.path.relpath(real, entry.mount_point)
    return entry.device, os.path.normpath(os.path.join(entry.root, inside))


def everywhere(*, device: str = "", inside: str = "") -> Iterator[tuple[int, Entry]]:
    """Yield (pid, entry) for all mounts of all mount namespaces, each mount once, ours first; limited as in `table`.

    The pid is one process of that namespace; a single thread may have one of its own. Mounts outside the root
    directory of all processes of their namespace are not seen, nor a namespace that only a bind mount or a
    descriptor keeps alive. What ends meanwhile is passed over, and so is who cannot be looked at even with
    CAP_SYS_PTRACE, such as a first process from outside of our container. Raises PermissionError: without it hardly
    anybody can, and nothing is known to be unused.
    """
    views: set[tuple[str, str]] = set()
    seen: set[int] = set()
    for pid, task in _tasks():
        try:
            view = os.readlink(f"/proc/{task}/ns/mnt"), os.readlink(f"/proc/{task}/root")
            if view in views:
                continue
            entries = table(task, device=device, inside=inside)
        except PermissionError as err:
            if _may_look():
                continue
            message = f"the mounts of process {pid} cannot be seen without CAP_SYS_PTRACE"
            raise PermissionError(err.errno, message) from err
        except OSError:  # it ended between the listing and the look: it holds nothing any more
            continue
        views.add(view)
        for entry in entries:
            if entry.mount_id not in seen:
                yield pid, entry
        seen.update(entry.mount_id for entry in entries)


def _may_look() -> bool:
    """Tell whether this process has the capability to look at all others (proc_pid_ns(5))."""
    status = Path("/proc/self/status").read_text(errors="replace")
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> CAP_SYS_PTRACE & 1)


def _tasks() -> Iterator[tuple[int, int]]:
    """Yield (pid, thread id) of every thread of every process, our own first.

    Directories of single threads are not listed: with 270 processes that took 8 ms, and this 1.6 ms (a busy
    machine of 2 cores, 6.18).
    """
    own = os.getpid()
    for pid in (own, *(int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != own)):
        try:
            is_alone = os.stat(f"/proc/{pid}/task").st_nlink <= _NLINK_OF_ONE_THREAD
            tasks = [str(pid)] if is_alone else os.listdir(f"/proc/{pid}/task")
        except OSError:  # it ended
            continue
        yield from ((pid, int(task)) for task in tasks)


def elsewhere(device: str, inside: str, *, own: Path) -> list[tuple[int, Entry]]:
    """Return (pid, entry) of all mounts that show a directory of a device, in any namespace, but ours at `own`.

    Copies of ours that propagation made are ours too: they go when it goes (see is_copy).
    """
    shown = [(pid, entry) for pid, entry in everywhere(device=device, inside=inside) if covers(entry, device, inside)]
    ours = {entry for pid, entry in shown if pid == os.getpid() and entry.mount_point == str(own)}
    found = -1
    while len(ours) > found:  # a copy may have been copied on
        found = len(ours)
        groups = frozenset[str]().union(*(entry.groups for entry in ours))
        ours |= {entry for pid, entry in shown if is_copy(pid, entry, own, groups)}
    return [(pid, entry) for pid, entry in shown if entry not in ours]


def is_copy(pid: int, entry: Entry, own: Path, groups: frozenset[str]) -> bool:
    """Tell whether a mount in the namespace of a process is a copy that propagation made of ours at `own`.

    It is in one of the peer groups of ours, and lies on the same directory: seen at the same path (every service of
    systemd with PrivateTmp has such copies) or at another one (dockerd has them, of a managed plugin's mounts). A
    private copy stays when ours goes, and so does a bind mount elsewhere, although it is in our group.
    """
    if not entry.groups & groups:
        return False
    place = Path(entry.mount_point)
    if place == own:
        return True
    try:
        seen = os.stat(f"/proc/{pid}/root{place.parent}")
        return place.name == own.name and os.path.samestat(seen, os.stat(own.parent))
    except OSError:  # it ended, or something else hides the place
        return False


def is_seen(pid: int, path: Path) -> bool:
    """Tell whether our mount at a path, or a copy that propagation made of it, is in the namespace of a process."""
    ours = at(path)
    try:
        return ours is not None and any(is_copy(pid, entry, path, ours.groups) for entry in table(pid))
    except OSError:  # it ended: there is nobody any more who does not see it
        return True


def process_name(pid: int) -> str:
    """Return the command name of a process, printable as it is, `?` if it has gone."""
    try:
        name = Path(f"/proc/{pid}/comm").read_bytes()
    except OSError:
        return "?"
    return "".join(char if char.isprintable() else "?" for char in name.decode(errors="replace").rstrip("\n"))


def covers(entry: Entry, device: str, inside: str) -> bool:
    """Tell whether a mount shows the directory `inside` of a device, or something below it."""
    root = entry.root.removesuffix(_DELETED)
    return entry.device == device and (root == inside or root.startswith(inside.rstrip("/") + "/"))


def _lines(pid: int | None) -> Iterator[str]:
    with open(f"/proc/{pid or 'self'}/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        yield from file  # a name may hold a bare \r


def _parse(line: str) -> Entry:
    before, _, after = line.rstrip("\n").partition(" - ")
    fields = before.split(" ")
    fs_type, source, super_options, *_ = after.split(" ")
    groups = frozenset(group for kind, _, group in (field.partition(":") for field in fields[6:]) if kind in _TAGS)
    place = (fields[2], _decode(fields[3]), _decode(fields[4]), fields[5])
    return Entry(int(fields[0]), *place, fs_type, _decode(source), groups, super_options)


def _decode(text: str) -> str:
    if "\\" not in text:
        return text
    raw = re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), os.fsencode(text))
    return os.fsdecode(raw)
