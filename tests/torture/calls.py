"""Every call that changes something, in every verb of every driver: killed before it once, and failing once.

`strace` attaches to a forked engine that runs one verb, and has the kernel answer the n-th call of a name with an
errno, or sends SIGKILL as the process enters it. Nothing of ours is replaced, so what is met are the calls that are
really made: those of SQLite and of the interpreter too, which neither a hook in `kernel/` nor a preloaded library
would see (ctypes and static code go past both). What the tools do (mkfs, e2fsck, resize2fs) is met by wrappers on the
PATH that run them under a strace of their own. A call is named by what it is and how often it came before, for the
number of looks at loop devices differs from run to run; one that was missed is aimed at again.

After each fault: the error is one of ours and names verb, volume and cause; no descriptor is left; the verb succeeds
when asked again; and on the next start every tree is whole or absent, no part, mount or loop device is left.
"""

import errno
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.contract import sending
from tests.scratch import loops_under
from tests.torture.bench import MIB, Bench
from voldriverd.driver import Key
from voldriverd.engine import failures, mounts, snapshots, trash, volumes
from voldriverd.engine.context import Limits
from voldriverd.errors import Error
from voldriverd.kernel import mount
from voldriverd.model import SnapshotState, VolumeState

LIMIT_S: Final = 60
"""For one verb, the second try included; a child that takes longer is ended by SIGALRM."""
SIZE_MIB: Final = 24
KEY: Final = Key("v900.1")
"""Of what is received."""
TRIES: Final = 6
"""How often a call is aimed at whose number differed from the run before."""
KILL: Final = "SIGKILL"

_ROOM: Final = ("EIO", "ENOSPC", "EDQUOT")
_NAMES: Final = (*_ROOM, "ENOMEM")
_CALLS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("mkdir", "mkdirat", "openat", "symlink", "symlinkat", "link", "linkat", "mknod"), _NAMES),
    **dict.fromkeys(("mknodat", "unlink", "unlinkat"), ("EIO", "ENOMEM", "EBUSY")),
    **dict.fromkeys(("rename", "renameat", "renameat2"), (*_NAMES, "EBUSY")),
    **dict.fromkeys(("rmdir", "mount", "umount2"), ("EIO", "ENOMEM", "EBUSY")),
    **dict.fromkeys(
        ("fsync", "fdatasync", "syncfs", "sync_file_range", "pwrite64", "pwritev", "write", "writev"), _ROOM
    ),
    **dict.fromkeys(("setxattr", "lsetxattr", "fsetxattr"), _ROOM),
    **dict.fromkeys(("copy_file_range", "sendfile"), ("EIO", "ENOMEM", "ENOSPC")),
    **dict.fromkeys(("chmod", "fchmod", "fchmodat", "chown", "fchown", "lchown", "fchownat"), ("EIO", "ENOMEM")),
    **dict.fromkeys(("removexattr", "fremovexattr", "lremovexattr", "utimensat", "ftruncate", "truncate"), ("EIO",)),
    "fallocate": ("EIO", "ENOSPC"),
}
"""What changes something, with EIO and those of the other errors that its man page lists."""
_IOCTLS: Final = {
    "BTRFS_IOC_CLONE": ("EIO", "ENOSPC"),  # strace's name for FICLONE
    "BTRFS_": ("EIO", "ENOSPC", "EDQUOT", "ENOMEM"),
    "LOOP_": ("EIO", "EBUSY", "ENOMEM"),
    "FICLONE": ("EIO", "ENOSPC"),
    "": ("EIO",),
}
_LOOKS: Final = (
    *(
        "GETFLAGS",
        "GET_STATUS",
        "TREE_SEARCH",
        "INO_LOOKUP",
        "FS_INFO",
        "FIEMAP",
        "TCGETS",
        "FSGETXATTR",
        "GET_FREE",
        "IOC_SEND",
    ),
    *("BLKGETSIZE", "BLKSSZGET", "BLKROGET", "FSGEOMETRY", "BLKPBSZGET", "BLKIOOPT", "GETFSLABEL"),
)
"""Parts of the names of ioctls that change nothing."""
_END: Final = "/the verb has ended"
_TRACED: Final = ",".join(f"?{name}" for name in (*_CALLS, "ioctl", "access", "faccessat", "faccessat2"))
_LINE: Final = re.compile(r"(\d+)\s+(\w+)\((.*)")
_IOCTL: Final = re.compile(r"\d+(?:<.*?>)?, (?:\(?)([A-Za-z_0-9]+)")
_STREAM: Final = re.compile(r"\d+<(?:pipe|socket|anon_inode|UNIX|/dev/(?:null|pts))")
_BY_TOOLS: Final = "by its tools"
_WITH_TOOLS: Final = ("create", "resize", "receive")
_sent: Final[list[sending.Sent]] = []
"""In a child: what is to be received."""
_TOOLS: Final = ("mkfs.ext4", "e2fsck", "resize2fs")


@dataclass(frozen=True, slots=True)
class Call:
    """One call that changes something."""

    name: str
    """`mkdir`, or `ioctl BTRFS_IOC_SNAP_CREATE_V2`."""
    earlier: int
    """How many of that name the same thread made before it."""
    number: int
    """Which of its system call it is in that thread, from 1, as strace counts; differs between runs."""
    text: str = ""

    @property
    def place(self) -> tuple[str, int]:
        """Return what it is found by in another run."""
        return self.name, self.earlier

    @property
    def errors(self) -> tuple[str, ...]:
        """Return what it can be made to fail with."""
        name, _, request = self.name.partition(" ")
        if name != "ioctl":
            return _CALLS[name]
        return next(errors for prefix, errors in _IOCTLS.items() if request.startswith(prefix))


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb on the volume `base`, or on its clone `victim`, which is made before it."""

    name: str
    act: Callable[[Bench], object]
    """May be called again after it has failed."""
    check: Callable[[Bench], None]
    """Checks that what it makes is whole, if it is there."""
    needs_victim: bool = False
    is_mounted: bool = False
    """Whether `base` is mounted before."""
    of_driver: bool = False
    """Whether the driver is called without the engine: its errors are OSError, and its key is absent then."""


@dataclass(slots=True)
class Done:
    """What was met."""

    verbs: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    told: int = 0
    passed_over: int = 0
    """How many verbs succeeded although a call failed: it was made again, or was not needed."""
    absent: int = 0
    """Calls that are made only now and then, such as the second count of what was not written out yet."""
    missed: list[str] = field(default_factory=list)


def run_all(benches: Mapping[str, Bench], done: Done, *, seed: int, until_s: float) -> list[str]:
    """Meet every call of every verb of every driver in an order that the seed gives; return what time was lacking for.

    The tools are met on the loop driver, which alone has some.
    """
    left = [(kind, name) for kind, bench in benches.items() for name in verbs(bench)]
    left += [(kind, f"{name} {_BY_TOOLS}") for kind, name in left if kind == "loop" and name in _WITH_TOOLS]
    random.Random(seed).shuffle(left)
    while left and time.monotonic() < until_s:
        kind, name = left.pop()
        verb = verbs(benches[kind])[name.removesuffix(f" {_BY_TOOLS}")]
        (run if verb.name == name else run_tools)(benches[kind], verb, done)
    return sorted(f"{kind} {name}" for kind, name in left)


def verbs(bench: Bench) -> dict[str, Verb]:
    """Return the verbs that a driver has."""
    found = [
        Verb("create", lambda each: each.create("new"), _check_new_is_empty),
        Verb("clone", lambda each: each.create("new", **{"from": "base"}), _check_new_is_copy),
        Verb("snapshot", _snapshot, _check_snapshot),
        Verb("revert", _revert, _check_reverted),
        Verb("remove", _remove, _check_removed, needs_victim=True),
        Verb("attach", lambda each: each.mount("base"), _check_base),
        Verb("detach", lambda each: each.unmount("base"), _check_base, is_mounted=True),
        Verb("send", _send, _check_base, of_driver=True),
        Verb("receive", _receive, _check_received, of_driver=True),
    ]
    if bench.has_sizes:
        found.append(Verb("resize", _resize, _check_resized, needs_victim=True))
    return {verb.name: verb for verb in found}


def prepare(bench: Bench) -> None:
    """Make the volume `base` with `now` in it, and its snapshot `one`, where it was `then`."""
    bench.limits = Limits(trash_retention_s=0, reserve=0.0)
    bench.restart()
    bench.create("base", **({"size": f"{SIZE_MIB}M"} if bench.has_sizes else {}))
    _write(bench, "base", "then")
    snapshots.create(bench.engine, bench.volume("base"), snapshots.Wish("one"))
    _write(bench, "base", "now")
    bench.upkeep()


def run(bench: Bench, verb: Verb, done: Done, *, name: str | None = None, most: int | None = None) -> None:
    """Meet every call of a verb, or those of one name, with each fault that it can have, or evenly chosen ones."""
    spare = bench.base / "calls"
    spare.mkdir(exist_ok=True)
    found = _meet(bench, verb, spare, []).calls
    wanted = [(call, fault) for call in found for fault in (KILL, *call.errors) if name in {None, call.name}]
    known = {call.place: call for call in found}
    for call, fault in _spread(wanted, most):
        for _ in range(TRIES):
            aimed = known.get(call.place, call)
            outcome = _meet(bench, verb, spare, _inject(aimed, fault))
            known |= {each.place: each for each in outcome.calls}
            if outcome.hit == call.place:
                _note(f"{bench.kind.name} {verb.name}", fault, outcome, done)
                break
            if outcome.hit is None and call.place not in {each.place for each in outcome.calls}:
                done.absent += 1
                break
        else:
            done.missed.append(f"{bench.kind.name} {verb.name} {call.name} {call.earlier} {fault}")


def run_tools(bench: Bench, verb: Verb, done: Done, *, most: int | None = None) -> None:
    """Meet the calls of the tools that a verb runs in the same way; a write that fails does so from then on.

    mkfs.ext4 (1.47.0) makes a write that failed once again in another way, but when that fails as well and later ones
    do not, it may end as if all were well: of 18 writes 7.
    """
    spare = bench.base / "calls"
    spare.mkdir(exist_ok=True)
    for tool in _TOOLS:
        _meet(bench, verb, spare, [], tool=tool)
        calls = _read(spare / "tool")[0] if (spare / "tool").exists() else []
        wanted = [(call, fault) for call in calls for fault in (KILL, *call.errors) if fault not in {"ENOMEM", "EBUSY"}]
        for call, fault in _spread(wanted, most):
            inject = _inject(call, fault)
            if call.name == "pwrite64" and fault != KILL:  # from then on, for libext2fs makes one that fails again
                inject = ["-e", f"{inject[1]}+", "-e", f"inject=write:error={fault}"]
            outcome = _meet(bench, verb, spare, inject, tool=tool)
            _note(f"{bench.kind.name} {verb.name} {tool}", fault, outcome, done)


@dataclass(frozen=True, slots=True)
class _Outcome:
    calls: list[Call]
    hit: tuple[str, int] | None
    """The call that was met, None if it was none of the verb's."""
    said: str | None
    """What the verb raised, None: nothing, or it was killed."""


def _meet(bench: Bench, verb: Verb, spare: Path, inject: list[str], *, tool: str | None = None) -> _Outcome:
    """Run a verb in a child with one fault, check it there and after the next start, and leave all as it was."""
    if verb.needs_victim:
        bench.create("victim", **{"from": "base"})
    if verb.is_mounted:
        bench.mount("base")
    bench.close()
    trace = spare / "trace"
    for path in (trace, spare / "tool"):
        path.unlink(missing_ok=True)
    fault = " ".join(inject)
    what = f"{bench.kind.name} {verb.name} {tool or ''} {fault}"
    with _wrapped(spare, tool, inject):
        said = _watch(bench, verb, trace, [] if tool else inject, what)
    calls, hit = _read(trace)
    bench.restart()
    try:
        _check_start(bench, verb)
    except (AssertionError, Error, OSError) as err:
        raise AssertionError(f"{what}: hit {hit}, said {said!r}: {err}\n{_tail(trace)}") from err
    if said is not None and inject:
        _check_words(verb, said, fault, what, is_tool=tool is not None)
    return _Outcome(calls, hit, said)


def _check_words(verb: Verb, said: str, fault: str, what: str, *, is_tool: bool) -> None:
    """Check that an error says what could not be done with what, and why."""
    number = getattr(errno, fault.partition("error=")[2].partition(":")[0], 0)
    words = [os.strerror(number), failures._WHY.get(number, "-"), "database"]
    if is_tool or not number:
        words += [f"{name} ended with status" for name in _TOOLS]
    known = ("base", "new", "victim", "database") if not verb.of_driver else ("",)
    if not (any(word in said for word in words) and any(name in said for name in known)):
        raise AssertionError(f"{what}: it says {said!r}, and that names no cause")


def _watch(bench: Bench, verb: Verb, trace: Path, inject: list[str], what: str) -> str | None:
    """Run the verb in a child under strace; return what it raised."""
    ours, theirs = socket.socketpair()  # a call on it is none of those that are met
    pid = os.fork()
    if not pid:
        _live(bench, verb, theirs)
    theirs.close()
    try:
        with ours, ours.makefile("rb") as reader:
            assert reader.readline() == b"ready\n", f"{what}: the engine does not start"
            argv = ["strace", "-f", "-b", "execve", "-y", "-s", "64", "-o", str(trace), "-e", f"trace={_TRACED}"]
            with subprocess.Popen([*argv, *inject, "-p", str(pid)], stderr=subprocess.PIPE) as strace:
                assert strace.stderr is not None
                assert b" attached" in strace.stderr.readline(), f"{what}: strace does not attach"
                ours.sendall(b"x")
                text = reader.read()
                _, status = os.waitpid(pid, 0)
                pid = 0
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGKILL:
        return None
    if code or not text:
        raise AssertionError(f"{what}: the engine ended with {code}: {text.decode()}\n{_tail(trace)}")
    found: dict[str, Any] = json.loads(text)
    if found["faults"]:
        raise AssertionError(f"{what}: said {found['said']!r}: {'; '.join(found['faults'])}\n{_tail(trace)}")
    said: str | None = found["said"]
    return said


def _live(bench: Bench, verb: Verb, parent: socket.socket) -> None:
    """Be the child: run the verb, and again if it failed, and tell."""
    signal.alarm(LIMIT_S)
    try:
        bench.restart()
        if verb.name == "receive":
            _sent.append(sending.send(bench.driver, bench.snapshot("base", "one").tree))
        before = _descriptors()
        parent.sendall(b"ready\n")
        parent.recv(1)
        said, faults = _tried(bench, verb)
        os.access(_END, os.F_OK)
        if left := _descriptors() - before:
            faults.append(f"descriptors are left: {', '.join(sorted(left))}")
        if said is not None:
            again, more = _tried(bench, verb)
            faults += more
            if again is not None:
                faults.append(f"the second try is refused: {again}")
        parent.sendall(json.dumps({"said": said, "faults": faults}).encode())
        os._exit(0)
    except BaseException as err:  # noqa: BLE001 - the child must not go on in its parent's frames
        parent.sendall(f"{type(err).__name__}: {err}".encode())
        os._exit(1)


def _tried(bench: Bench, verb: Verb) -> tuple[str | None, list[str]]:
    faults = []
    try:
        verb.act(bench)
    except Error as err:
        said = str(err)
    except OSError as err:
        said = str(err)
        if not verb.of_driver:
            faults.append(f"{type(err).__name__} reaches who asked")
    else:
        return None, faults
    if verb.of_driver and KEY in bench.driver.trees():
        faults.append("its key is there")
    return said, faults


def _descriptors() -> set[str]:
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:  # a fault that came late
        names = os.listdir("/proc/self/fd")
    found = set()
    for name in names:
        try:
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:  # the listing's own
            continue
    return found


def _check_start(bench: Bench, verb: Verb) -> None:
    """Check what the next start found, and leave `base` and its snapshot alone."""
    states = {row.state for row in bench.store.volumes()}
    assert states <= {VolumeState.INACTIVE}, f"volumes are {states}"
    assert {row.state for row in bench.store.snapshots()} <= {SnapshotState.CREATED}
    verb.check(bench)
    for row in bench.store.volumes():
        for held in bench.store.mounts(row.id):
            bench.unmount(row.name, held.holder)
        if row.name != "base":
            trash.remove(bench.engine, row)
    for snapshot in bench.store.snapshots(bench.volume("base").id):
        if snapshot.name != "one":
            snapshots.remove(bench.engine, bench.volume("base"), snapshot)
    bench.upkeep()
    bench.check_trees()
    if verb.name == "revert":
        _write(bench, "base", "now")
    _check_base(bench)
    mounts.reconcile(bench.engine, bench.store.volumes(), mounts.used_keys(bench.engine))
    left = [entry.mount_point for entry in mount.table() if entry.mount_point.startswith(f"{bench.root}/")]
    assert not left, f"mounts are left: {left}"
    images = loops_under(bench.pool_root)
    assert not images, f"loop devices are left: {images}"


def _snapshot(bench: Bench) -> None:
    snapshots.create(bench.engine, bench.volume("base"), snapshots.Wish("two"))


def _revert(bench: Bench) -> None:
    snapshots.revert(bench.engine, bench.volume("base"), bench.snapshot("base", "one"))


def _remove(bench: Bench) -> None:
    volume = bench.store.volume_named("victim")
    if volume is not None:
        trash.remove(bench.engine, volume)
    bench.upkeep()


def _resize(bench: Bench) -> None:
    volumes.resize(bench.engine, bench.volume("victim"), 2 * SIZE_MIB * MIB)


def _send(bench: Bench) -> None:
    with bench.driver.send(bench.snapshot("base", "one").tree) as stream:
        for _ in stream.parts:
            pass


def _receive(bench: Bench) -> None:
    if KEY not in bench.driver.trees():
        sending.receive(bench.driver, KEY, _sent[-1])


def _check_base(bench: Bench) -> None:
    assert _read_file(bench, bench.volume("base").tree) == "now"
    assert _read_file(bench, bench.snapshot("base", "one").tree) == "then"


def _check_new_is_empty(bench: Bench) -> None:
    _check_new(bench, None)


def _check_new_is_copy(bench: Bench) -> None:
    _check_new(bench, "now")


def _check_new(bench: Bench, expected: str | None) -> None:
    _check_base(bench)
    volume = bench.store.volume_named("new")
    if volume is not None:
        assert _read_file(bench, volume.tree) == expected
        _write(bench, "new", "more")


def _check_snapshot(bench: Bench) -> None:
    _check_base(bench)
    found = bench.store.snapshot_named(bench.volume("base").id, "two")
    if found is not None:
        assert _read_file(bench, found.tree) == "now"


def _check_reverted(bench: Bench) -> None:
    kept = [row for row in bench.store.snapshots(bench.volume("base").id) if row.name != "one"]
    assert [_read_file(bench, row.tree) for row in kept] == ["now"] * len(kept)
    content = _read_file(bench, bench.volume("base").tree)
    assert content == "now" or (content == "then" and kept)
    assert _read_file(bench, bench.snapshot("base", "one").tree) == "then"


def _check_removed(bench: Bench) -> None:
    _check_base(bench)
    volume = bench.store.volume_named("victim")
    if volume is not None:
        assert _read_file(bench, volume.tree) == "now"


def _check_resized(bench: Bench) -> None:
    _check_removed(bench)
    volume = bench.volume("victim")
    limit_bytes = bench.driver.usage(volume.tree).limit_bytes
    assert limit_bytes == volume.size_bytes, f"it has {limit_bytes} bytes, and its row says {volume.size_bytes}"
    assert limit_bytes in {SIZE_MIB * MIB, 2 * SIZE_MIB * MIB}


def _check_received(bench: Bench) -> None:
    if KEY in bench.driver.trees():
        assert _read_file(bench, KEY) == "then"
        bench.driver.remove(KEY)
        bench.driver.sync()
        bench.restart()  # which has forgotten that no row knew it
    _check_base(bench)


def _read_file(bench: Bench, key: Key) -> str | None:
    """Return what a tree holds, None if it is empty."""
    with bench.shown(key) as place:
        names = os.listdir(place)
        return (place / "file").read_text().rstrip("\0") if names else None


def _write(bench: Bench, name: str, content: str) -> None:
    with bench.written(name) as place:
        (place / "file").write_text(content.ljust(5_000, "\0"))
        (place / "directory").mkdir(exist_ok=True)


@contextmanager
def _wrapped(spare: Path, tool: str | None, inject: list[str]) -> Iterator[None]:
    """Have a tool run under strace for the block."""
    if tool is None:
        yield
        return
    real = shutil.which(tool)
    assert real is not None, f"{tool} is not installed"
    place = spare / "bin"
    place.mkdir(exist_ok=True)
    script = place / tool
    argv = ["strace", "-f", "-y", "-qq", "-s", "64", "-A", "-o", f"{spare}/tool", "-e", f"trace={_TRACED}", *inject]
    once = spare / "once"  # for the verb is tried again, and then all is well
    once.mkdir(exist_ok=True)
    script.write_text(f'#!/bin/sh\nrmdir {once} 2>/dev/null || exec {real} "$@"\nexec {" ".join(argv)} {real} "$@"\n')
    script.chmod(0o755)
    path = os.environ["PATH"]
    os.environ["PATH"] = f"{place}:{path}"
    try:
        yield
    finally:
        os.environ["PATH"] = path
        script.unlink()


def _inject(call: Call, fault: str) -> list[str]:
    name = call.name.partition(" ")[0]
    what = f"signal={KILL}" if fault == KILL else f"error={fault}"
    return ["-e", f"inject={name}:{what}:when={call.number}"]


def _read(trace: Path) -> tuple[list[Call], tuple[str, int] | None]:
    """Return the calls of a trace that change something, and the one that was met, up to the end of the verb."""
    numbers: Counter[tuple[str, str]] = Counter()
    names: Counter[tuple[str, str]] = Counter()
    calls: list[Call] = []
    hit = None
    last: dict[str, tuple[str, int] | None] = {}
    for line in trace.read_text(errors="replace").splitlines():
        parsed = _LINE.match(line)
        if parsed is None:
            if "(INJECTED)" in line or "killed by SIGKILL" in line:
                hit = hit or last.get(line.split(" ", 1)[0])
            continue
        pid, call, rest = parsed.groups()
        if _END in rest:
            break
        numbers[pid, call] += 1
        name = _named(call, rest)
        place = None
        if name is not None:
            place = name, names[pid, name]
            names[pid, name] += 1
            calls.append(Call(*place, numbers[pid, call], line))
        last[pid] = place
        if "(INJECTED)" in line:
            hit = hit or place
    return calls, hit


def _named(call: str, rest: str) -> str | None:
    """Return the name of a call, None if it changes nothing that lasts."""
    if call == "ioctl":
        found = _IOCTL.match(rest)
        request = found[1] if found else "?"
        return None if any(look in request for look in _LOOKS) else f"ioctl {request}"
    if call not in _CALLS or (call == "openat" and "O_CREAT" not in rest) or _STREAM.match(rest):
        return None
    return call


def _spread(wanted: list[tuple[Call, str]], most: int | None) -> list[tuple[Call, str]]:
    if most is None or len(wanted) <= most:
        return wanted
    return [wanted[round(index * (len(wanted) - 1) / (most - 1))] for index in range(most)]


def _note(what: str, fault: str, outcome: _Outcome, done: Done) -> None:
    done.verbs[what] += 1
    done.faults[fault] += 1
    if outcome.said is not None:
        done.told += 1
    elif fault != KILL:
        done.passed_over += 1


def _tail(trace: Path) -> str:
    lines = trace.read_text(errors="replace").splitlines() if trace.exists() else []
    return "\n".join(line[:300] for line in lines[-40:])
