"""buttervolume (PyPI) with the same client on the same machine, each on a btrfs of its own, in turn."""

import os
import subprocess
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from bench.client import Client, request
from bench.daemon import running, scratch, wait_for

PEER = "buttervolume==3.13"


def run(rounds: int) -> list[tuple[str, str, str]]:
    """Measure Create, Get, Mount and List of 200 volumes of both."""
    ours: dict[str, list[float]] = {}
    theirs: dict[str, list[float]] = {}
    with (
        scratch() as base,
        running(base) as daemon,
        buttervolume(base) as peer,
        Client(daemon.plugin) as mine,
        Client(peer) as other,
    ):
        for number in range(rounds):
            for client, times in ((mine, ours), (other, theirs)):
                _measure(client, times, number, per_round=-(-200 // rounds))
        for client, times in ((mine, ours), (other, theirs)):
            times["List of 200"] = [client.timed(request("/VolumeDriver.List", {})) for _ in range(5)]
    return [_row(verb, median(theirs[verb]), median(ours[verb])) for verb in ours]


def _measure(client: Client, times: dict[str, list[float]], number: int, *, per_round: int) -> None:
    for each in range(per_round):
        name = f"peer{number}-{each}"
        for verb, body in (("Create", {"Name": name}), ("Get", {"Name": name}), ("Mount", {"Name": name, "ID": "a"})):
            times.setdefault(verb, []).append(client.timed(request(f"/VolumeDriver.{verb}", body)))
        client.post("/VolumeDriver.Unmount", {"Name": name, "ID": "a"})


def _row(verb: str, theirs: float, ours: float) -> tuple[str, str, str]:
    return (f"{verb}: buttervolume / voldriverd", f"{theirs / ours:.0f}  ({theirs:.2f} ms / {ours:.2f} ms)", "> 1")


@contextmanager
def buttervolume(base: Path) -> Iterator[Path]:
    """Install and run buttervolume in a btrfs subvolume beside our pools, and give its socket."""
    environment = base / "peer"
    venv.create(environment, with_pip=True)
    subprocess.run([environment / "bin" / "pip", "-q", "install", PEER, "setuptools<81"], check=True)
    home = base / "root" / "embedded" / "peer"
    for name in ("volumes", "snapshots", "received"):
        (home / name).mkdir(parents=True)
    path = base / "peer.sock"
    settings = {"VOLUMES_PATH": f"{home}/volumes/", "SNAPSHOTS_PATH": f"{home}/snapshots/", "SOCKET": str(path)}
    settings |= {"SCHEDULE": str(base / "schedule.csv"), "LOGLEVEL": "ERROR", "RUNPATH": str(base)}
    process = subprocess.Popen(
        [environment / "bin" / "buttervolume", "run"],
        env={**os.environ, **{f"BUTTERVOLUME_{name}": value for name, value in settings.items()}},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for(path)
        yield path
    finally:
        process.terminate()
        process.wait()
