"""One client: each verb beside the bare handler, the raw kernel calls and two full-sync commits, interleaved."""

from dataclasses import dataclass, field
from functools import partial
from statistics import median

from bench import raw
from bench.client import Client, request
from bench.daemon import Daemon, bare, running, scratch

BATCH = 40
"""Of each kind in each round: enough for a steady median, few enough that all kinds see the same noise."""


@dataclass
class Times:
    """Milliseconds by kind, one median for each round."""

    rounds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, kind: str, times: list[float]) -> None:
        """Note the median of one round."""
        self.rounds.setdefault(kind, []).append(median(times))

    def ms(self, kind: str) -> float:
        """Return the median over the rounds."""
        return median(self.rounds[kind])


def run(rounds: int) -> list[tuple[str, str, str]]:
    """Measure all verbs."""
    times = Times()
    with (
        scratch() as base,
        bare(base) as bare_socket,
        running(base) as daemon,
        raw.database(base / "raw.db") as commit,
        Client(bare_socket) as plain,
        Client(daemon.plugin) as plugin,
        Client(daemon.api) as api,
    ):
        plugin.post("/VolumeDriver.Create", {"Name": "subject"})
        directory = daemon.pool / "raw"
        directory.mkdir()
        for number in range(rounds):
            times.add("bare", [plain.timed(request("/VolumeDriver.Get", {"Name": "subject"})) for _ in range(500)])
            for method in ("Get", "Path"):
                message = request(f"/VolumeDriver.{method}", {"Name": "subject"})
                times.add(method, [plugin.timed(message) for _ in range(500)])
            times.add("commit", [raw.timed(commit) for _ in range(BATCH)])
            _round(times, number, daemon, plugin, api)
    return _figures(times)


def _round(times: Times, number: int, daemon: Daemon, plugin: Client, api: Client) -> None:
    directory = daemon.pool / "raw"
    names = [f"r{number}-{each}" for each in range(BATCH)]
    made, ours = [], []
    for name in names:
        made.append(raw.timed(partial(raw.create, directory)))
        ours.append(plugin.timed(request("/VolumeDriver.Create", {"Name": name})))
    times.add("raw create", made)
    times.add("Create", ours)
    _mounts(times, daemon, plugin, names)
    _snapshots(times, daemon, api)


def _mounts(times: Times, daemon: Daemon, plugin: Client, names: list[str]) -> None:
    directory = daemon.pool / "raw"
    raws, firsts, agains, plains = [], [], [], []
    for name in names:
        tree, point = raw.create(directory), daemon.root / f"point-{name}"
        raws.append(raw.timed(partial(raw.attach, tree, point)))
        raw.detach(point)
        firsts.append(plugin.timed(request("/VolumeDriver.Mount", {"Name": name, "ID": "a"})))
        plugin.post("/VolumeDriver.Unmount", {"Name": name, "ID": "a"})
    for name in names:
        tree, point = directory / "again", daemon.root / f"point-{name}"
        tree.mkdir(exist_ok=True)
        plains.append(raw.timed(partial(raw.bind, tree, point)))
        raw.detach(point)
        agains.append(plugin.timed(request("/VolumeDriver.Mount", {"Name": name, "ID": "a"})))
        plugin.post("/VolumeDriver.Unmount", {"Name": name, "ID": "a"})
    times.add("raw first mount", raws)
    times.add("first Mount", firsts)
    times.add("raw mount", plains)
    times.add("Mount", agains)


def _snapshots(times: Times, daemon: Daemon, api: Client) -> None:
    directory = daemon.pool / "raw"
    source = raw.create(directory)
    volume = api.post("/v1/volumes?name=subject", method="GET")["data"][0]["id"]
    raws, ours = [], []
    for _ in range(BATCH // 2):
        raws.append(raw.timed(partial(raw.snapshot, source, directory)))
        ours.append(api.timed(request(f"/v1/volumes/{volume}/?action=snapshot", {})))
    times.add("raw snapshot", raws)
    times.add("snapshot", ours)


def _figures(times: Times) -> list[tuple[str, str, str]]:
    plain = times.ms("bare")
    rows = [(f"{method} / bare handler", _ratio(times.ms(method), plain), "≤ 1.3") for method in ("Get", "Path")]
    kinds = (
        ("Create", "raw create"),
        ("first Mount", "raw first mount"),
        ("Mount", "raw mount"),
        ("snapshot", "raw snapshot"),
    )
    for kind, part in kinds:
        least = plain + times.ms(part) + 2 * times.ms("commit")
        rows.append((f"{kind} / (bare + {part} + 2 commits)", _ratio(times.ms(kind), least), "≤ 1.3"))
    parts = ("bare", "commit", "raw create", "raw first mount", "raw mount", "raw snapshot")
    return rows + [(f"  part: {part}", f"{times.ms(part):.3f} ms", "") for part in parts]


def _ratio(ours: float, least: float) -> str:
    return f"{ours / least:.2f}  ({ours:.3f} ms / {least:.3f} ms)"
