"""`scripts/torture`: the long forms, for as long as asked, with a report that can be checked and repeated.

What fails prints its seed; the same seed begins with the same choices, though the instants of kills differ.
"""

import argparse
import functools
import itertools
import logging
import platform
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.running import Running
from tests.torture import backups, calls, daemons, fuzz, kills, machine, malice
from tests.torture.bench import KINDS, Bench, Places, daemon_config, places_in_memory
from tests.torture.crowd import NAME, Crowd
from tests.torture.outages import BATCH, INSTANTS, RECORDS, Outages
from tests.torture.power import LAYOUTS
from tests.torture.scale import Scale
from tests.torture.soak import Soak
from voldriverd.kernel import fs

ROUNDS_MAX: Final = 1_000_000
_say: Final = functools.partial(print, flush=True)


def torture_machine(places: Places, *, seed: int, time_s: float) -> None:
    """The verbs in any order beside a model, on each driver."""
    for kind in KINDS:
        seeds = machine.run_for(kind, places, seed=seed, time_s=time_s / len(KINDS))
        _say(f"machine {kind.name}: {seeds * machine.LONG_EXAMPLES} examples of {machine.LONG_STEPS} steps at most")


def torture_kills(places: Places, *, seed: int, time_s: float) -> None:
    """Engines that are killed in the middle of verbs, on each driver."""
    for number, kind in enumerate(KINDS):
        bench = Bench(kind, places.base / f"kills{number}", places.pools[kind.name] / f"kills{number}")
        try:
            done = kills.run(bench, seed=seed, rounds=ROUNDS_MAX, until_s=time.monotonic() + time_s / len(KINDS))
        finally:
            bench.vanish()
        cut = ", ".join(f"{verb} {count}" for verb, count in sorted(Counter(done.verbs_cut).items()))
        _say(f"kills {kind.name}: {len(done.restarts_s)} kills in the middle of {cut}")
        _say(f"kills {kind.name}: {done.verbs_ended} verbs had ended")
        _say(f"kills {kind.name}: a start took {_spread(done.restarts_s)}")


def torture_calls(places: Places, *, seed: int, time_s: float) -> None:
    """Every call of every verb of every driver, killed before it and failing; an hour or two for all of them."""
    until_s = time.monotonic() + time_s
    benches: dict[str, Bench] = {}
    done = calls.Done()
    try:
        for kind in KINDS:
            place = f"calls-{kind.name}"
            benches[kind.name] = Bench(kind, places.base / place, places.pools[kind.name] / place)
            calls.prepare(benches[kind.name])
        left = calls.run_all(benches, done, seed=seed, until_s=until_s)
    finally:
        for bench in benches.values():
            bench.vanish()
    for what, count in sorted(done.verbs.items()):
        _say(f"calls: {what}: {count}")
    _say(f"calls: {', '.join(f'{fault} {count}' for fault, count in sorted(done.faults.items()))}")
    _say(f"calls: {done.told} errors said what and why, {done.passed_over} calls were made again or not needed")
    _say(f"calls: {done.absent} were not made again, missed: {', '.join(done.missed) or 'none'}")
    _say(f"calls: no time for: {', '.join(left) or 'none'}")


def torture_daemon(places: Places, *, seed: int, time_s: float) -> None:
    """The daemon, killed under three clients and three writers."""
    with Running(places.base / "daemon", config=daemon_config(places)) as daemon:
        killing = daemons.Killing(daemon, seed=seed)
        killing.run(ROUNDS_MAX, until_s=time.monotonic() + time_s)
    _say(f"daemon: {len(killing.starts_s)} kills, {killing.ended} verbs acknowledged, {killing.written} lines written")
    _say(f"daemon: a start, the interpreter included, took {_spread(killing.starts_s)}")


def torture_crowd(places: Places, *, seed: int, time_s: float) -> None:
    """The daemon with many clients on the same few volumes."""
    with Running(places.base / NAME, config=daemon_config(places, NAME)) as daemon:
        crowd = Crowd(daemon, seed=seed)
        crowd.run(places, time_s=time_s)
    for word, counts in (("done", crowd.done), ("refused with a reason", crowd.refused)):
        _say(f"crowd: {word}: {', '.join(f'{verb} {count}' for verb, count in sorted(counts.items()))}")


def torture_soak(places: Places, *, seed: int, time_s: float) -> None:
    """All verbs by 32 clients on all drivers, with backups; what the daemon holds is counted before and after."""
    soak = Soak(places, seed=seed)
    soak.run(time_s=time_s)
    for word, counts in (("done", soak.done), ("refused with a reason", soak.refused)):
        _say(f"soak: {word}: {counts.total()}: {', '.join(f'{verb} {n}' for verb, n in sorted(counts.items()))}")
    _say(f"soak: held before and after: {soak.before}; memory grew by {soak.growth_bytes >> 10} KiB")
    _say(f"soak: the event loop never stood still for longer than {soak.longest_stall_ms} ms")


def torture_scale(_places: Places, *, seed: int, time_s: float) -> None:
    """10,000 volumes and 100,000 snapshots, or as many as the time allows, beside a host that is empty; on the disk."""
    with tempfile.TemporaryDirectory(prefix="voldriver-scale-") as base:
        Scale(Path(base) / "scale", seed=seed).run(time_s=time_s, say=_say)


def torture_backups(places: Places, *, seed: int, time_s: float) -> None:
    """Backups and restores that meet a killed daemon, a cut network or a full target."""
    with backups.disturbed(places, seed=seed) as disturbing:
        disturbing.run(ROUNDS_MAX, until_s=time.monotonic() + time_s)
    _say(f"backups: rounds: {_counted(disturbing.rounds)}")
    _say(f"backups: of which the fault met what had not ended: {_counted(disturbing.met)}")
    _say(f"backups: {disturbing.checked} backups restored and compared")


def torture_power(places: Places, *, seed: int, time_s: float) -> None:
    """The whole host loses power: copies of its disk at so many instants, or until the time is over."""
    outages = Outages(places.base / "power", seed=seed)
    _until(time_s, INSTANTS // BATCH, outages.instants)
    _say(f"power: {outages.seen.acknowledged} verbs acknowledged; promises kept on {_counted(outages.seen.cuts)}")


def torture_writes(places: Places, *, seed: int, time_s: float) -> None:
    """And what the disk was not told to flush is lost: so many recorded lives, or until the time is over."""
    outages = Outages(places.base / "writes", seed=seed)
    runs = _until(time_s, RECORDS, outages.writes)
    seen = outages.seen
    _say(f"writes: {runs} records of {seen.acknowledged} acknowledged verbs and {seen.flushes} flushes")
    _say(f"writes: promises kept after cuts: {_counted(seen.cuts)}")
    _say(f"writes: of the blocks after the last flush {seen.kept} were kept and {seen.lost} lost")


def _until(time_s: float, rounds: int, cut: Callable[[str, int], None]) -> int:
    """Let hosts of all layouts in turn live and lose power so often, or until the time is over; return how many."""
    end_s = time.monotonic() + time_s
    for number, layout in zip(range(rounds), itertools.cycle(LAYOUTS), strict=False):
        if time.monotonic() > end_s:
            return number
        cut(layout, BATCH)
    return rounds


def _counted(counts: Counter[str]) -> str:
    return f"{counts.total()} ({', '.join(f'{name} {count}' for name, count in sorted(counts.items()))})"


def torture_malice(places: Places, *, seed: int, time_s: float) -> None:
    """What a container's root may do to its volume, one by one, together, and with damaged images."""
    done = malice.run(places, seed=seed, time_s=time_s)
    _say(f"malice: {', '.join(f'{what} {count}' for what, count in sorted(done.items()))}")


def torture_fuzz(_places: Places, *, seed: int, time_s: float) -> None:
    """Parsers of what others have written, under atheris."""
    for line in fuzz.run_for(time_s, seed=seed):
        _say(f"fuzz {line}")


def _spread(times_s: list[float]) -> str:
    return f"{statistics.median(times_s) * 1e3:.0f} ms, {max(times_s) * 1e3:.0f} at most"


FORMS: Final[dict[str, Callable[..., None]]] = {
    "machine": torture_machine,
    "kills": torture_kills,
    "calls": torture_calls,
    "daemon": torture_daemon,
    "crowd": torture_crowd,
    "backups": torture_backups,
    "soak": torture_soak,
    "scale": torture_scale,
    "power": torture_power,
    "writes": torture_writes,
    "malice": torture_malice,
    "fuzz": torture_fuzz,
}


def main() -> None:
    """Run the forms one after the other; an exception ends it with the traceback and status 1."""
    parser = argparse.ArgumentParser(prog="scripts/torture", description=__doc__.partition("\n")[0])
    parser.add_argument("forms", nargs="*", metavar="FORM", help=f"{', '.join(FORMS)}; all of them if none is given")
    parser.add_argument("--time", type=float, default=60.0, metavar="SECONDS", help="for each form (default 60)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="default: a new one")
    given = parser.parse_args()
    unknown = set(given.forms) - FORMS.keys()
    if unknown:
        parser.error(f"there is no form {', '.join(sorted(unknown))}; valid: {', '.join(FORMS)}")
    logging.disable(logging.WARNING)
    _say(f"seed {given.seed}, {given.time:.0f} s for each form, Linux {platform.release()}")
    with tempfile.TemporaryDirectory(prefix="voldriver-torture-") as base, places_in_memory(Path(base)) as places:
        for name in given.forms or FORMS:
            begun_s = time.monotonic()
            FORMS[name](places, seed=given.seed, time_s=given.time)
            _, free_bytes = fs.capacity(places.base)
            _say(f"{name}: ok after {time.monotonic() - begun_s:.0f} s, {free_bytes >> 20} MiB free in memory")
    _say("nothing was lost, and nothing is left")


if __name__ == "__main__":
    main()
