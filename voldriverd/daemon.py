"""Puts the parts together, starts them in order and stops them in the reverse one.

Start: the lock of the root, the database, the pools, recovery; then the sockets, the plugin's last.
Sockets that a service manager holds for us are served, and left to it.
Stop: the sockets, the verbs that run, the catalogue copies, the database. Mounts stay: containers
go on, and the next start finds them. This is the only importer of `drivers`.
"""

import asyncio
import faulthandler
import functools
import logging
import os
import resource
import shutil
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Final

from aiohttp import web

import drivers
from drivers import archive
from voldriverd import config as configuration
from voldriverd import embedded, greeting, health, model, service, sockets, store, supervisor, worker
from voldriverd.api import auth, docker, middleware, rancher, tcp, tls
from voldriverd.api.auth import audit
from voldriverd.driver import Driver, StreamFormat
from voldriverd.engine import markers, mounts, pools, recovery, targets
from voldriverd.engine import rebuild as rebuilding
from voldriverd.engine.context import Engine, Limits, utc_now
from voldriverd.errors import Error, Exists, InUse, Unusable
from voldriverd.kernel import fs, memory, qgroup

_log = logging.getLogger(__name__)

STOP_S: Final = 4.0
"""How long verbs that run may take to end after SIGTERM; what is left is ended by recovery."""
KEEPALIVE_S: Final = 86_400.0
"""dockerd keeps idle connections for ever; closing one at the instant it writes would cost it a retry."""
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
DESCRIPTORS_SHARE: Final = 4
"""A unix socket may have this part of our descriptors: half is left for verbs, whoever connects."""
_BARE_POOLS: Final = "pools"
"""Below a root on btrfs, where the embedded pools need no image."""
_UNPACKING: Final = {StreamFormat.BTRFS: "btrfs", StreamFormat.BLOCKS: "loop", StreamFormat.TAR: "directory"}
"""Whose stream it is."""


def serve(config: configuration.Config) -> None:
    """Serve until SIGTERM or SIGINT. Raises the errors of configuration, certificate, database and sockets."""
    manager = supervisor.Supervisor.found({"plugin": config.docker_socket, "api": config.api_socket})
    memory.share_arenas()
    faulthandler.enable()  # a watchdog's SIGABRT shows in the log where each thread stood
    os.umask(0o022)  # modes of trees are what they are made with, whoever started us
    logging.getLogger(audit.LOGGER).setLevel(logging.INFO)  # whatever the level of the rest
    _, descriptors_max = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors_max, descriptors_max))  # dockerd keeps one a volume
    certificate = tls.context(config.tls_cert, config.tls_key) if config.tls_cert and config.tls_key else None
    with ExitStack() as stack:
        stack.enter_context(_lock(config.root))
        for name, path in (("api", config.api_socket), ("plugin", config.docker_socket)):
            if not manager.holds(name):
                sockets.ensure_free(path)  # before an image is made that nobody wanted
        manager.tell("STATUS=Opening the pools")
        engine = build(config)
        stack.callback(engine.store.close)
        recovery.recover(engine)
        targets.configure(engine)
        if not asyncio.run(manager.run(_serve(config, engine, certificate, manager))):
            _log.warning("verb=stop result=verbs still ran; recovery ends them at the next start")
            logging.shutdown()
            os._exit(0)  # threads in the kernel would be waited for without end


def build(config: configuration.Config) -> Engine:
    """Open the database and name the pools; nothing is mounted yet. Raises Unusable."""
    # A container's root makes setuid files: no user of the host may come near them (CVE-2021-41091 in dockerd).
    for directory, mode in ((config.root, 0o711), (config.root / "mounts", 0o700), (config.root / "by-name", 0o711)):
        directory.mkdir(mode, parents=True, exist_ok=True)
        directory.chmod(mode)
    database = store.Store(config.root)
    if database.put_aside is not None:
        _log.warning("verb=upgrade database=%s result=ok copy=%s", config.root / store.FILE_NAME, database.put_aside)
    boot_id = BOOT_ID.read_text().strip()
    limits = Limits(config.trash_retention_s, config.reserve)
    specs = _configured(config) if config.pools else _embedded(config, is_known=bool(database.pools()))
    opened = pools.Pools(database, specs, default_driver=config.default_driver, root=config.root.resolve())
    places = targets.Targets(map(_target, config.targets), default_name=config.default_target)
    return Engine(
        config.root,
        database,
        opened,
        boot_id,
        limits,
        targets=places,
        make_scratch=make_scratch,
        archive=archive.stream,
    )


@contextmanager
def make_scratch(wanted: StreamFormat, directory: Path, what: str) -> Iterator[Driver]:
    """Make a pool for a moment, with a driver that takes a format; a btrfs in an image if the directory is on none.

    Raises Unsupported and Unusable, beginning with `what`: this host lacks what it takes.
    """
    maker = drivers.DRIVERS[_UNPACKING[wanted]]
    with ExitStack() as stack:
        base = directory
        if wanted is StreamFormat.BTRFS and fs.magic(directory) != fs.BTRFS_MAGIC:
            base = stack.enter_context(embedded.temporary(directory, what))
        pool, mount_points = base / "pool", directory / "mounts"
        pool.mkdir(0o700)
        mount_points.mkdir(0o700)
        driver = maker(pool, mounts=mount_points)
        driver.open()
        yield driver


def release(config: configuration.Config) -> list[str]:
    """Unmount what nobody uses, the embedded image last; return what had to stay mounted, and why.

    Where no daemon has ever served nothing is made. The daemon must not be running. Raises InUse if it is.
    """
    stayed: list[str] = []
    if not config.root.exists():
        return stayed
    with _lock(config.root), ExitStack() as stack:
        if not (config.root / store.FILE_NAME).exists():  # with it, an image and pools would be made
            return [] if config.pools else list(_release_image(config.root))
        engine = build(config)
        stack.callback(engine.store.close)
        recovery.recover(engine)
        used = mounts.used_keys(engine)
        for volume in engine.store.volumes():
            if volume.key not in mounts.attached_keys(engine):
                continue
            held = engine.store.mounts(volume.id)
            if volume.key in used or not mounts.detach(engine, volume.pool_id, volume.tree):
                stayed.append(f"volume {volume.name}: it is in use")
            elif held:
                _forget(engine, held)
        if not config.pools and not stayed:
            stayed.extend(_release_image(config.root))
    return stayed


def rebuild(config: configuration.Config, is_agreed: Callable[[list[str]], bool]) -> Path | None:
    """Make a lost or damaged database anew from the pools, if who is shown the plan agrees; return where it is.

    It is made aside and takes its place at the end, in one step; what there was of a damaged or lost one is kept beside
    it under another name.
    The daemon must not be running. Raises InUse (it is, or the database is sound) and Unusable (a pool is not there,
    or no room for it).
    """
    path = config.root / store.FILE_NAME
    with _lock(config.root), ExitStack() as stack:
        damage = store.fault(path) if path.exists() else None
        if path.exists() and damage is None:
            raise InUse(f"cannot rebuild: the database {path} is sound; move it away first if it is not to be used")
        place = config.root / "rebuild"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(0o700)
        stack.callback(shutil.rmtree, place)
        (config.root / "mounts").mkdir(0o700, exist_ok=True)
        database = store.Store(place)
        stack.callback(database.close)
        plan = rebuilding.plan(_look(config, database), utc_now())
        if not is_agreed(plan.lines):
            return None
        rebuilding.write(database, plan)
        database.close()
        if (place / f"{store.FILE_NAME}-wal").exists():  # SQLite leaves it, and says nothing, if it cannot play it in
            raise Unusable(f"cannot rebuild: {config.root} does not take the whole database; is its disk full?")
        _put_aside(path)
        fs.rename_durably(place / store.FILE_NAME, path)
    return path


def _look(config: configuration.Config, database: store.Store) -> list[rebuilding.Found]:
    image = embedded.Embedded(config.root)
    if not config.pools and not image.exists() and not (config.root / _BARE_POOLS).exists():
        cause = f"no pools are configured, and there is no image {image.path} that has any"
        raise Unusable(f"cannot rebuild: {cause}; is the disk of the root mounted, and is it the right configuration?")
    specs = _configured(config) if config.pools else _embedded(config, is_known=True)
    found: list[rebuilding.Found] = []
    opened = pools.Pools(
        database, specs, default_driver=config.default_driver, root=config.root.resolve(), is_rebuilding=True
    )
    opened.open_all(lambda pool, driver: found.append(rebuilding.look(pool, driver)))
    absent = [f"pool {pool.row.name}: {pool.reason}" for pool in opened if pool.driver is None]
    if absent:
        raise Unusable(f"cannot rebuild: {'; '.join(absent)}; bring it there, or take it out of the configuration")
    return found


def _put_aside(path: Path) -> None:
    """Keep a damaged database, with its journal; one that is left of a lost database would be played into the new."""
    mark = f"damaged-{utc_now():%Y%m%dT%H%M%SZ}"
    for suffix in ("", "-wal"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            fs.rename_durably(part, path.with_name(f"{path.name}.{mark}{suffix}"))


def _forget(engine: Engine, held: tuple[model.Mount, ...]) -> None:
    engine.store.commit(lambda write: write.drop_mounts(held), is_vital=True)


def _release_image(root: Path) -> Iterator[str]:
    try:
        embedded.Embedded(root).release()
    except (Error, OSError) as err:
        yield f"the embedded image: {err}"


async def _serve(
    config: configuration.Config,
    engine: Engine,
    certificate: ssl.SSLContext | None,
    manager: supervisor.Supervisor,
) -> bool:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    verbs = service.Service(engine)
    upkeep = worker.Worker(verbs, reconcile_interval_s=config.reconcile_interval_s)
    watcher = health.Watcher(engine)
    api = rancher.Api(verbs)
    sites = (
        ("api", config.api_socket, "voldriver", auth.Door(api, auth.by_peer)),
        ("plugin", config.docker_socket, "docker", audit.Audited(docker.Plugin(verbs), is_change=docker.is_change)),
    )
    stops: list[Callable[[], Awaitable[None]]] = []
    bound: list[Path] = []
    try:
        if config.api_listen is not None:
            stops.append(await _open_gate(config.api_listen, verbs, api, certificate))
        for name, path, group, site in sites:
            held = manager.take(name)
            stops.append((await _listen(held or sockets.bind(path, group=group), site)).cleanup)
            bound += [] if held else [path]
        upkeep.start()
        watcher.start()
        await verbs.resume()
        await verbs.runner.in_thread(_say_ready, config, engine)
        manager.tell("READY=1", f"STATUS=Serving {config.docker_socket} and {config.api_socket}")
        await ended.wait()
        manager.tell("STOPPING=1", "STATUS=Ending the verbs that run")
    finally:
        _withdraw(bound)
        api.close()
        await asyncio.gather(*(stop() for stop in stops))
        await upkeep.stop()
        await verbs.runner.in_thread(watcher.stop)
        has_ended = await verbs.stop(within_s=STOP_S)
        upkeep.save()
    return has_ended


async def _open_gate(
    listen: configuration.Listen, verbs: service.Service, api: rancher.Api, certificate: ssl.SSLContext | None
) -> Callable[[], Awaitable[None]]:
    """Serve the API on TCP; returns what ends that."""
    connections = tcp.Connections()
    basic = auth.Basic(verbs, trust=connections.trust)
    door = auth.Door(api, basic.identify, is_loopback=listen.is_loopback)
    listeners = sockets.bind_tcp(listen.host, listen.port)

    def is_live(public: str) -> bool:
        return verbs.store.api_key_of(public) is not None

    gate = tcp.Gate(door, listeners, connections, tls=certificate, is_live=is_live, stop_s=STOP_S)
    await gate.start()

    async def stop() -> None:
        basic.close()
        await gate.stop()

    return stop


async def _listen(listener: socket.socket, site: middleware.Site) -> web.ServerRunner:
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    server = middleware.Server(
        site,
        connections_max=min(middleware.CONNECTIONS_MAX, descriptors // DESCRIPTORS_SHARE),
        keepalive_timeout=KEEPALIVE_S,
        access_log=None,
        max_line_size=middleware.LINE_MAX,
    )
    runner = web.ServerRunner(server, shutdown_timeout=STOP_S)
    await runner.setup()
    await web.SockSite(runner, listener, backlog=sockets.BACKLOG).start()  # or it would listen again, for fewer
    return runner


def _withdraw(bound: list[Path]) -> None:
    """Remove our sockets: a dead one costs every docker command 15 s."""
    for path in reversed(bound):
        path.unlink(missing_ok=True)


def _say_ready(config: configuration.Config, engine: Engine) -> None:
    live = [volume for volume in engine.store.volumes() if volume.is_live]
    for pool in engine.pools:
        state = f"unavailable: {pool.reason}" if pool.driver is None else "available"
        _log.info("pool=%s driver=%s path=%s state=%s", pool.row.name, pool.row.driver, pool.row.path, state)
    places = config.docker_socket, config.api_socket, config.api_listen or "off"
    _log.info("verb=start volumes=%d plugin=%s api=%s listen=%s result=ok", len(live), *places)
    greeting.show(config)


@contextmanager
def _lock(root: Path) -> Iterator[None]:
    """Hold the root for one daemon. Raises InUse."""
    root.mkdir(0o711, parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(fs.locked(root / markers.LOCK))
        except BlockingIOError as err:
            raise InUse(f"cannot use root {root}: another voldriverd does") from err
        yield


def _configured(config: configuration.Config) -> list[pools.Spec]:
    return [
        pools.Spec(each.name, each.driver, each.path, _maker(config.root, each), allow_live_copy=each.allow_live_copy)
        for each in config.pools
    ]


def _target(target: configuration.TargetConfig) -> targets.Spec:
    return targets.Spec(**{each.name: getattr(target, each.name) for each in fields(targets.Spec)})


def _embedded(config: configuration.Config, *, is_known: bool) -> list[pools.Spec]:
    """Return the pools of a host where nothing is configured: in an image, or in the root if that is on btrfs (D9)."""
    image = embedded.Embedded(config.root)
    if not image.exists() and fs.magic(config.root) == fs.BTRFS_MAGIC:
        base, prepare, grow, make = config.root / _BARE_POOLS, None, None, _make
    else:
        base, grow, make = image.mount_point, image.grow, _make_in_image
        prepare = functools.partial(_prepare_image, image, config.embedded_size_bytes, is_known=is_known)
    return [
        pools.Spec(
            name,
            name,
            base / name,
            functools.partial(make, config.root, configuration.PoolConfig(name, name, base / name)),
            is_embedded=True,
            prepare=prepare,
            grow=grow,
        )
        for name in drivers.DRIVERS
    ]


def _prepare_image(image: embedded.Embedded, size_bytes: int | None, *, is_known: bool) -> None:
    if not image.exists():
        if is_known:
            question = "is its disk mounted, and are [pools] missing in the configuration?"
            raise Exists(f"the embedded image {image.path} is missing, and the database is not new: {question}")
        image.make(size_bytes)
    image.mount()


def _make(root: Path, pool: configuration.PoolConfig, path: Path) -> Driver:
    return _maker(root, pool)(path)


def _make_in_image(root: Path, pool: configuration.PoolConfig, path: Path) -> Driver:
    """Make the driver of a pool in the image, which is mounted; with quotas where the kernel has simple ones (D9)."""
    if pool.driver == "btrfs" and not qgroup.has_simple():
        _log.warning("verb=open pool=%s result=no simple quotas before Linux 6.7: sizes are refused", pool.name)
    elif pool.driver == "btrfs":
        pool = replace(pool, quota="simple")
    return _make(root, pool, path)


def _maker(root: Path, pool: configuration.PoolConfig) -> Callable[[Path], Driver]:
    mount_points = root / "mounts"
    make = drivers.DRIVERS[pool.driver]
    if pool.driver == "btrfs":
        return functools.partial(make, mounts=mount_points, quota=pool.quota)
    if pool.driver == "loop":
        return functools.partial(make, mounts=mount_points, default_size_bytes=pool.default_size_bytes)
    return functools.partial(make, mounts=mount_points)
