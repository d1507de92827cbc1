"""One client: each verb beside the least that it can cost, in turn.

The least is a request to the bare handler, a full-sync commit, the raw kernel calls with what makes them durable, and
a second commit, one after the other as a verb needs them. `Create` is measured beside raw calls that are not synced as
well, as its own are not: recovery makes an empty tree again that power loss took.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median

from bench import raw
from bench.client import Client, apart, request
from bench.daemon import Daemon, bare, running, scratch

BATCH = 40
"""Of each kind in each round: enough for a steady median, few enough that all kinds see the same noise."""
ANSWERS = 500
"""Of the bare handler, Get and Path in each round."""
TURN = 25
"""How many of them come one after the other."""
GET = request("/VolumeDriver.Get", {"Name": "subject"})


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


@dataclass(frozen=True, slots=True)
class Bench:
    """What a round needs."""

    times: Times
    daemon: Daemon
    plain: Client
    plugin: Client
    api: Client
    commit: Callable[[], None]

    def least(self, work: Callable[[], object]) -> float:
        """Return how long the least takes that any such verb can cost."""

        def all_of_it() -> None:
            self.plain.raw(GET)
            self.commit()
            work()
            self.commit()

        return raw.timed(all_of_it)

    def pair(self, kind: str, pairs: list[tuple[Callable[[], object], Callable[[], float]]]) -> None:
        """Time raw work and our verb in turn, as many times as there are pairs."""
        least, ours = [], []
        for work, verb in pairs:
            least.append(self.least(work))
            ours.append(verb())
        self.times.add(f"least {kind}", least)
        self.times.add(kind, ours)


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
        (daemon.pool / "raw").mkdir()
        bench = Bench(times, daemon, plain, plugin, api, commit)
        for number in range(rounds):
            _answers(bench)
            _creates(bench, [f"c{number}-{each}" for each in range(BATCH)])
            _first_mounts(bench, [f"f{number}-{each}" for each in range(BATCH)])
            _mounts(bench, [f"f{number}-{each}" for each in range(BATCH)])
            _snapshots(bench)
    return _figures(times)


def _answers(bench: Bench) -> None:
    path = request("/VolumeDriver.Path", {"Name": "subject"})
    asked = {"bare": (bench.plain, GET), "Get": (bench.plugin, GET), "Path": (bench.plugin, path)}
    times: dict[str, list[float]] = {kind: [] for kind in asked}
    with apart(bench.plain, bench.plugin):
        for _ in range(ANSWERS // TURN):
            for kind, (client, message) in asked.items():
                times[kind] += [client.timed(message) for _ in range(TURN)]
    for kind, taken in times.items():
        bench.times.add(kind, taken)


def _creates(bench: Bench, names: list[str]) -> None:
    directory = bench.daemon.pool / "raw"
    verbs = [partial(bench.plugin.timed, request("/VolumeDriver.Create", {"Name": name})) for name in names]
    bench.pair("Create", [(partial(raw.create, directory), verb) for verb in verbs])
    bench.times.add("least durable Create", [bench.least(partial(raw.create_durably, directory)) for _ in names])


def _first_mounts(bench: Bench, names: list[str]) -> None:
    """Mount what was made just before, on either side: neither may profit from the other's commit."""
    directory = bench.daemon.pool / "raw"
    least, ours = [], []
    for name in names:
        point = bench.daemon.root / f"point-{name}"
        least.append(bench.least(partial(raw.attach, raw.create(directory), point)))
        raw.detach(point)
        bench.plugin.post("/VolumeDriver.Create", {"Name": name})
        ours.append(bench.plugin.timed(request("/VolumeDriver.Mount", {"Name": name, "ID": "a"})))
        bench.plugin.post("/VolumeDriver.Unmount", {"Name": name, "ID": "a"})
    bench.times.add("least first Mount", least)
    bench.times.add("first Mount", ours)


def _mounts(bench: Bench, names: list[str]) -> None:
    tree = bench.daemon.pool / "raw" / "again"
    tree.mkdir(exist_ok=True)
    least, ours = [], []
    for name in names:
        point = bench.daemon.root / f"point-{name}"
        least.append(bench.least(partial(raw.bind, tree, point)))
        raw.detach(point)
        ours.append(bench.plugin.timed(request("/VolumeDriver.Mount", {"Name": name, "ID": "a"})))
        bench.plugin.post("/VolumeDriver.Unmount", {"Name": name, "ID": "a"})
    bench.times.add("least Mount", least)
    bench.times.add("Mount", ours)


def _snapshots(bench: Bench) -> None:
    directory = bench.daemon.pool / "raw"
    source = raw.create(directory)
    volume = bench.api.post("/v1/volumes?name=subject", method="GET")["data"][0]["id"]
    message = request(f"/v1/volumes/{volume}/?action=snapshot", {})
    pairs: list[tuple[Callable[[], object], Callable[[], float]]] = [
        (partial(raw.snapshot, source, directory), partial(bench.api.timed, message)) for _ in range(BATCH // 2)
    ]
    bench.pair("snapshot", pairs)


def _figures(times: Times) -> list[tuple[str, str, str]]:
    plain = times.ms("bare")
    rows = [(f"{method} / bare handler", _ratio(times.ms(method), plain), "≤ 1.3") for method in ("Get", "Path")]
    figures = (
        ("Create / (bare + raw calls + 2 commits)", "Create", "least durable Create", "≤ 1.3"),
        ("the same, raw calls not synced", "Create", "least Create", ""),
        *(
            (f"{kind} / (bare + raw calls + 2 commits)", kind, f"least {kind}", "≤ 1.3")
            for kind in ("first Mount", "Mount", "snapshot")
        ),
    )
    return rows + [(title, _ratio(times.ms(kind), times.ms(least)), target) for title, kind, least, target in figures]


def _ratio(ours: float, least: float) -> str:
    return f"{ours / least:.2f}  ({ours:.3f} ms / {least:.3f} ms)"
