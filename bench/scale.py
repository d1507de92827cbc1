"""Many volumes: List, start and memory with 10,000; eight clients; verbs beside many volumes and snapshots."""

import threading
import time
from collections.abc import Iterable
from statistics import median

from bench.client import Client, request
from bench.daemon import Daemon, running, scratch

MANY = 10_000
CLIENTS = 8


def run(rounds: int) -> list[tuple[str, str, str]]:
    """Measure all of it."""
    return [*_clients(rounds), *_lists(rounds), *_beside_many(rounds)]


def _clients(rounds: int) -> list[tuple[str, str, str]]:
    with scratch() as base, running(base) as daemon:
        rates = [_create_all(daemon, f"c{number}", 125) for number in range(rounds)]
    return [("Create with 8 clients", f"{median(rates):.0f} a second", "≥ 500")]


def _create_all(daemon: Daemon, prefix: str, each: int) -> float:
    def work(client_number: int) -> None:
        with Client(daemon.plugin) as client:
            for number in range(each):
                client.post("/VolumeDriver.Create", {"Name": f"{prefix}-{client_number}-{number}"})

    threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return CLIENTS * each / (time.monotonic() - begun)


def _lists(rounds: int) -> list[tuple[str, str, str]]:
    figures = []
    with scratch() as base:
        with running(base) as daemon:
            _create(daemon, (f"v{number}" for number in range(200)))
            figures.append(("List of 200", f"{_list_ms(daemon, rounds):.2f} ms", "< 4 ms"))
            _create_all(daemon, "m", (MANY - 200) // CLIENTS)
            figures.append((f"List of {MANY:,}", f"{_list_ms(daemon, rounds):.1f} ms", "< 50 ms"))
        starts, memory = [], []
        for _ in range(3):
            with running(base) as daemon:
                starts.append(daemon.start_s)
                Client(daemon.plugin).post("/VolumeDriver.List", {})
                memory.append(daemon.memory_mib())
    figures.append((f"start with {MANY:,} volumes", f"{median(starts):.2f} s", "< 3 s"))
    figures.append((f"memory with {MANY:,} volumes", f"{median(memory):.0f} MiB", "< 120 MB"))
    return figures


def _list_ms(daemon: Daemon, rounds: int) -> float:
    with Client(daemon.plugin) as client:
        return median(client.timed(request("/VolumeDriver.List", {})) for _ in range(rounds * 3))


def _create(daemon: Daemon, names: Iterable[str]) -> None:
    with Client(daemon.plugin) as client:
        for name in names:
            client.post("/VolumeDriver.Create", {"Name": name})


def _beside_many(rounds: int) -> list[tuple[str, str, str]]:
    """Compare verbs on an empty pool with those beside 2,000 volumes and 10,000 snapshots, on two daemons in turn."""
    kinds: dict[str, dict[str, list[float]]] = {"empty": {}, "full": {}}
    with scratch() as empty_base, scratch() as full_base, running(empty_base) as empty, running(full_base) as full:
        _fill(full)
        for number in range(rounds + 1):
            for kind, daemon in (("empty", empty), ("full", full)):
                for verb, times in _verbs(daemon, f"r{number}").items():
                    if number > 0:  # in the first one the disk still writes what was filled in
                        kinds[kind].setdefault(verb, []).append(median(times))
    rows = []
    for verb, full_times in kinds["full"].items():
        slow, quick = median(full_times), median(kinds["empty"][verb])
        rows.append(
            (
                f"{verb} beside 10,000 snapshots / empty",
                f"{slow / quick:.2f}  ({slow:.2f} ms / {quick:.2f} ms)",
                "≤ 1.5",
            )
        )
    return rows


def _fill(daemon: Daemon) -> None:
    _create_all(daemon, "full", 2_000 // CLIENTS)
    with Client(daemon.api) as api:
        listed: list[str] = []
        marker = ""
        while len(listed) < 2_000:
            page = api.post(f"/v1/volumes?limit=1000{marker}", method="GET")["data"]
            listed += [volume["id"] for volume in page]
            marker = f"&marker=m{len(listed)}"
    _in_parallel(daemon, listed)


def _in_parallel(daemon: Daemon, ids: list[str]) -> None:
    def work(mine: list[str]) -> None:
        with Client(daemon.api) as api:
            for volume_id in mine:
                for _ in range(5):
                    api.post(f"/v1/volumes/{volume_id}/?action=snapshot", {})

    threads = [threading.Thread(target=work, args=(ids[number::CLIENTS],)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _verbs(daemon: Daemon, prefix: str) -> dict[str, list[float]]:
    names = [f"{prefix}-{each}" for each in range(20)]
    with Client(daemon.plugin) as plugin, Client(daemon.api) as api:
        creates = [plugin.timed(request("/VolumeDriver.Create", {"Name": name})) for name in names]
        for name in names:
            plugin.post("/VolumeDriver.Mount", {"Name": name, "ID": "warm"})
            plugin.post("/VolumeDriver.Unmount", {"Name": name, "ID": "warm"})
        mounts = [plugin.timed(request("/VolumeDriver.Mount", {"Name": name, "ID": "a"})) for name in names]
        for name in names:
            plugin.post("/VolumeDriver.Unmount", {"Name": name, "ID": "a"})
        ids = [api.post(f"/v1/volumes?name={name}", method="GET")["data"][0]["id"] for name in names]
        snapshots = [api.timed(request(f"/v1/volumes/{each}/?action=snapshot", {})) for each in ids]
    return {"Create": creates, "Mount": mounts, "snapshot": snapshots}
