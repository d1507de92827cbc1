"""The configuration: a TOML file, its defaults and the two directories of the command line, as one frozen Config.

Every key is optional. Sizes are written as in `-o size=` (`10G`, or bytes as a number), durations as `7d` or
`60s`, shares as `5%`; paths are absolute. Anything that would be ignored is refused: an unknown key, and a key that
does not go with another.
"""

import ipaddress
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from voldriverd import names, toml
from voldriverd.errors import Invalid

DEFAULT_FILE: Final = Path("/etc/voldriver/voldriver.toml")
DEFAULT_ROOT: Final = Path("/var/lib/voldriver")
DEFAULT_RUN_DIR: Final = Path("/run/voldriver")
PLUGIN_SOCKET: Final = Path("/run/docker/plugins/voldriver.sock")
"""Where dockerd and podman look for a plugin named `voldriver`."""

QUOTAS: Final = ("off", "simple", "full")
SOCKET_PATH_MAX: Final = 107
"""sun_path of sockaddr_un without its NUL (unix(7))."""
RECONCILE_MIN_S: Final = 1
RECONCILE_MAX_S: Final = 86_400
RESERVE_MAX: Final = 0.5
"""A pool that is short as soon as it is half full is a slip of the pen."""
EMBEDDED_MIN_BYTES: Final = 256 << 20
"""mkfs.btrfs takes 109 MiB; less than this leaves no room for anything but metadata."""

PORT_MAX: Final = 65_535
LOCALHOST: Final = "localhost"
LOOP_SIZE_BYTES: Final = 10 << 30
LOOP_SIZE_MIN_BYTES: Final = 16 << 20
"""Of the smallest volume, with ext4: a smaller default would refuse every volume that gives no size."""

_ADDRESS: Final = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.]{2,45})\]|(?P<four>[a-z0-9.]{1,15})):(?P<port>[0-9]{1,5})")
_ADDRESS_RULE: Final = "an address is an IP address or localhost and a port, as in 127.0.0.1:9580 or [::1]:9580"

_interval: Final = toml.within(names.duration, RECONCILE_MIN_S, RECONCILE_MAX_S, "it is 1s to 1d")
_reserve: Final = toml.within(names.percent, 0.0, RESERVE_MAX, "it is 0% to 50%")
_embedded_size: Final = toml.within(names.size, EMBEDDED_MIN_BYTES, names.SIZE_MAX_BYTES, "it is at least 256M")
_loop_size: Final = toml.within(names.size, LOOP_SIZE_MIN_BYTES, names.SIZE_MAX_BYTES, "it is at least 16M")


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """One `[pools.NAME]`."""

    name: str
    driver: str
    path: Path
    quota: str = "off"
    """btrfs: `off`, `simple` (kernel 6.7; sets an incompatible flag on the file system) or `full`."""
    default_size_bytes: int = LOOP_SIZE_BYTES
    """loop: the size of a volume that asks for none, in bytes."""
    allow_live_copy: bool = False
    """directory: copy a mounted volume file by file for a snapshot, although the copy is of no one instant."""


@dataclass(frozen=True, slots=True)
class TargetConfig:
    """One `[targets.NAME]`; secrets are names of files, never values."""

    name: str
    url: str
    """`s3://bucket/prefix`, `file:///directory` or `nfs://server/share`, in the one form of it."""
    endpoint: str | None = None
    """s3: the URL of the service; None for that of the region."""
    region: str | None = None
    access_key_file: Path | None = None
    """s3: with secret_key_file; None for the AWS environment."""
    secret_key_file: Path | None = None
    passphrase_file: Path | None = None
    """What is backed up is encrypted before it leaves the host; None: it is not."""
    mount_options: str | None = None
    """nfs: as mount(8) takes them after `-o`."""


@dataclass(frozen=True, slots=True)
class Listen:
    """A TCP address to serve the API on."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this host can reach it."""
        return self.host == LOCALHOST or ipaddress.ip_address(self.host).is_loopback

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Config:
    """All that the daemon is told from outside."""

    root: Path = DEFAULT_ROOT
    """The database, the links by name, the mount points and the embedded image."""
    run_dir: Path = DEFAULT_RUN_DIR
    """The sockets."""
    default_driver: str = "btrfs"
    """Of a volume that asks for none. Not given: btrfs if there is such a pool, else the driver of the first one."""
    default_target: str | None = None
    """Of a backup that asks for none. Not given: the only target; None if there is none or more than one."""
    trash_retention_s: int = 604_800
    """Seconds in the trash; 0: what is removed is destroyed."""
    reconcile_interval_s: int = 60
    """Seconds between two comparisons of the mounts with the kernel's."""
    reserve: float = 0.05
    """The share of a pool, 0 to 0.5, that is kept free by purging the trash."""
    embedded_size_bytes: int | None = None
    """Of the image that is made when there are no pools; None: 20 GiB, or half of what is free if that is less."""
    docker_socket: Path = PLUGIN_SOCKET
    """Not given: here, or `voldriver.sock` in a run_dir that is not the default one."""
    api_socket: Path = DEFAULT_RUN_DIR / "api.sock"
    """Not given: `api.sock` in run_dir."""
    api_listen: Listen | None = None
    """None: no TCP."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    """Both or neither; neither: no TLS."""
    plain_http: bool = False
    """Allow a listen address that is not loopback without TLS."""
    pools: tuple[PoolConfig, ...] = ()
    """Empty: one embedded image with three pools."""
    targets: tuple[TargetConfig, ...] = ()


_DEFAULTS: Final = Config()
_KEYS: Final = (
    *("root", "run_dir", "default_driver", "default_target", "trash_retention", "reconcile_interval", "reserve"),
    *("embedded", "docker", "api", "pools", "targets"),
)
_API_KEYS: Final = ("socket", "listen", "tls_cert", "tls_key", "plain_http")
_POOL_KEYS: Final = ("driver", "path", "quota", "default_size", "allow_live_copy")
_TARGET_KEYS: Final = (
    *("url", "endpoint", "region", "access_key_file", "secret_key_file", "passphrase_file", "mount_options"),
)
_ONLY_FOR: Final = {"quota": "btrfs", "default_size": "loop", "allow_live_copy": "directory"}
_ONLY_AT: Final = {
    **dict.fromkeys(("endpoint", "region", "access_key_file", "secret_key_file"), "s3"),
    "mount_options": "nfs",
}


def load(path: Path | None, *, root: Path | None = None, run_dir: Path | None = None) -> Config:
    """Read a configuration file; `root` and `run_dir` go before what it says. Raises Invalid.

    None for the path: the default file if there is one, else all defaults.
    """
    file = path or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    places = {"root": root, "run_dir": run_dir}
    try:
        document = toml.read(file) if file else {}
        return parse({**document, **{key: str(place) for key, place in places.items() if place}})
    except Invalid as err:
        raise Invalid(f"cannot load {file or 'the configuration'}: {_cause(err)}", field=err.field) from err


def parse(document: Mapping[str, object]) -> Config:
    """Check a parsed file as a whole and fill in the defaults. Raises Invalid."""
    top = toml.Section(document, "", _KEYS)
    docker = top.section("docker", ("socket",))
    api = top.section("api", _API_KEYS)
    pools = tuple(_pool(name, section) for name, section in top.sections("pools", _POOL_KEYS))
    targets = tuple(_target(name, section) for name, section in top.sections("targets", _TARGET_KEYS))
    run_dir = top.get("run_dir", names.path, _DEFAULTS.run_dir)
    config = Config(
        root=top.get("root", names.path, _DEFAULTS.root),
        run_dir=run_dir,
        default_driver=top.get("default_driver", names.choice_of(names.DRIVERS), _usual_driver(pools)),
        default_target=top.get("default_target", _target_name, targets[0].name if len(targets) == 1 else None),
        trash_retention_s=top.get("trash_retention", names.duration, _DEFAULTS.trash_retention_s),
        reconcile_interval_s=top.get("reconcile_interval", _interval, _DEFAULTS.reconcile_interval_s),
        reserve=top.get("reserve", _reserve, _DEFAULTS.reserve),
        embedded_size_bytes=top.section("embedded", ("size",)).get("size", _embedded_size, None),
        docker_socket=docker.get("socket", names.path, plugin_socket(run_dir)),
        api_socket=api.get("socket", names.path, run_dir / "api.sock"),
        api_listen=api.get("listen", _listen, None),
        tls_cert=api.get("tls_cert", names.path, None),
        tls_key=api.get("tls_key", names.path, None),
        plain_http=api.get("plain_http", names.boolean, _DEFAULTS.plain_http),
        pools=pools,
        targets=targets,
    )
    _check_references(config, is_embedded_given="embedded" in document)
    _check_places(config)
    _check_api(config)
    return config


def plugin_socket(run_dir: Path) -> Path:
    """Return where the plugin is served: where dockerd looks, if run_dir is the default one, else in run_dir."""
    return PLUGIN_SOCKET if run_dir == DEFAULT_RUN_DIR else run_dir / PLUGIN_SOCKET.name


def effective(config: Config) -> str:
    """Write a configuration as a file with every key, each default spelled out; `load` reads the same back."""
    lines = [
        toml.line("root", config.root),
        toml.line("run_dir", config.run_dir),
        toml.line("default_driver", config.default_driver),
        toml.line("default_target", config.default_target, absent="none"),
        toml.line("trash_retention", names.format_duration(config.trash_retention_s)),
        toml.line("reconcile_interval", names.format_duration(config.reconcile_interval_s)),
        toml.line("reserve", names.format_percent(config.reserve)),
    ]
    if not config.pools:
        size = None if config.embedded_size_bytes is None else names.exact_size(config.embedded_size_bytes)
        lines += ["", "[embedded]", toml.line("size", size, absent="20G, or half of what is free if that is less")]
    lines += [
        *("", "[docker]"),
        toml.line("socket", config.docker_socket),
        *("", "[api]"),
        toml.line("socket", config.api_socket),
        toml.line("listen", config.api_listen, absent="off"),
        toml.line("tls_cert", config.tls_cert, absent="none"),
        toml.line("tls_key", config.tls_key, absent="none"),
        f"plain_http = {'true' if config.plain_http else 'false'}",
    ]
    for pool in config.pools:
        lines += ["", f"[pools.{toml.quoted(pool.name)}]", *_pool_lines(pool)]
    for target in config.targets:
        lines += ["", f"[targets.{toml.quoted(target.name)}]"]
        lines += [toml.line(key, getattr(target, key), absent="none") for key in _TARGET_KEYS]
    return "\n".join(lines) + "\n"


def _cause(err: Exception) -> str:
    return str(err).removeprefix("cannot use it: ").removeprefix("cannot use ")


def _pool(name: str, section: toml.Section) -> PoolConfig:
    driver = section.need("driver", names.choice_of(names.DRIVERS))
    for key, only in _ONLY_FOR.items():
        if key in section.values and driver != only:
            field = f"{section.prefix}{key}"
            raise Invalid(f"cannot use {field}: it is for {only} pools, and this is a {driver} pool", field=field)
    return PoolConfig(
        name=name,
        driver=driver,
        path=section.need("path", names.path),
        quota=section.get("quota", names.choice_of(QUOTAS), "off"),
        default_size_bytes=section.get("default_size", _loop_size, LOOP_SIZE_BYTES),
        allow_live_copy=section.get("allow_live_copy", names.boolean, default=False),
    )


def _target(name: str, section: toml.Section) -> TargetConfig:
    url = section.need("url", names.target_url)
    for key, only in _ONLY_AT.items():
        if key in section.values and not url.startswith(f"{only}:"):
            field = f"{section.prefix}{key}"
            raise Invalid(f"cannot use {field}: it is for {only} targets, and this one's url is {url}", field=field)
    target = TargetConfig(
        name=name,
        url=url,
        endpoint=section.get("endpoint", names.endpoint, None),
        region=section.get("region", names.region, None),
        access_key_file=section.get("access_key_file", names.path, None),
        secret_key_file=section.get("secret_key_file", names.path, None),
        passphrase_file=section.get("passphrase_file", names.path, None),
        mount_options=section.get("mount_options", names.mount_options, None),
    )
    if (target.access_key_file is None) != (target.secret_key_file is None):
        there, missing = ("access", "secret") if target.access_key_file else ("secret", "access")
        field = f"{section.prefix}{missing}_key_file"
        raise Invalid(f"cannot use {section.prefix}{there}_key_file without {missing}_key_file", field=field)
    return target


def _usual_driver(pools: tuple[PoolConfig, ...]) -> str:
    drivers = [pool.driver for pool in pools]
    return drivers[0] if drivers and _DEFAULTS.default_driver not in drivers else _DEFAULTS.default_driver


def _target_name(text: str, *, field: str) -> str:
    return names.name(text, thing="target", field=field)


def _listen(text: str, *, field: str) -> Listen:
    found = _ADDRESS.fullmatch(text)
    host = (found["six"] or found["four"]) if found else ""
    if found is None or not 0 < int(found["port"]) <= PORT_MAX or not _is_host(host):
        names.refuse(field, text, _ADDRESS_RULE)
    return Listen(host, int(found["port"]))


def _is_host(host: str) -> bool:
    try:
        return host == LOCALHOST or bool(ipaddress.ip_address(host))
    except ValueError:
        return False


def _check_references(config: Config, *, is_embedded_given: bool) -> None:
    """Check that what is named is there."""
    if config.pools and is_embedded_given:
        raise Invalid("cannot use [embedded]: no image is made where there are [pools.*]", field="embedded")
    drivers = {pool.driver for pool in config.pools}
    if drivers and config.default_driver not in drivers:
        names.refuse("default_driver", config.default_driver, f"no pool has it, there is {', '.join(sorted(drivers))}")
    targets = [target.name for target in config.targets]
    if config.default_target and config.default_target not in targets:
        names.refuse("default_target", config.default_target, f"there is no [targets.{config.default_target}]")


def _check_places(config: Config) -> None:
    """Check that no two things share a place, through symbolic links too."""
    root, run_dir = _real(config.root), _real(config.run_dir)
    if root.is_relative_to(run_dir):
        names.refuse("root", str(config.root), f"it lies in run_dir ({config.run_dir}), which is empty after a reboot")
    taken = {root: f"root ({config.root})", run_dir: f"run_dir ({config.run_dir})"}
    for pool in config.pools:
        place = _real(pool.path)
        for other, what in taken.items():
            if place.is_relative_to(other) or other.is_relative_to(place):
                names.refuse(f"pools.{pool.name}.path", str(pool.path), f"it is, lies in or contains {what}")
        taken[place] = f"the path of pool {pool.name} ({pool.path})"
    _check_targets(config, taken)
    for field, path in (("docker.socket", config.docker_socket), ("api.socket", config.api_socket)):
        if len(str(path).encode()) > SOCKET_PATH_MAX:
            names.refuse(field, str(path), f"a socket's path has at most {SOCKET_PATH_MAX} bytes")
    if config.docker_socket.parent == PLUGIN_SOCKET.parent and config.docker_socket.suffix != PLUGIN_SOCKET.suffix:
        names.refuse("docker.socket", str(config.docker_socket), "docker looks there for names that end in .sock")
    if _real(config.docker_socket) == _real(config.api_socket):
        names.refuse("api.socket", str(config.api_socket), "it is docker.socket too")


def _check_targets(config: Config, taken: Mapping[Path, str]) -> None:
    """Check that no target is in a place that is taken, and that no two are one."""
    known: dict[tuple[str, str | None], str] = {}
    for target in config.targets:
        field, where = f"targets.{target.name}.url", (target.url, target.endpoint)
        if target.url.startswith("file://"):
            place = _real(Path(target.url.removeprefix("file://")))
            where = (str(place), None)
            for other, what in taken.items():
                if place.is_relative_to(other) or other.is_relative_to(place):
                    names.refuse(field, target.url, f"it is, lies in or contains {what}")
        if where in known:
            names.refuse(field, target.url, f"it is the place of target {known[where]} too")
        known[where] = target.name


def _real(path: Path) -> Path:
    """Follow symbolic links as far as they go; Path.resolve of Python 3.11 raises on a loop of them."""
    return Path(os.path.realpath(path))


def _check_api(config: Config) -> None:
    """Check what D13 demands of TCP."""
    if (config.tls_cert is None) != (config.tls_key is None):
        there, missing = ("tls_cert", "tls_key") if config.tls_cert else ("tls_key", "tls_cert")
        raise Invalid(f"cannot use api.{there} without {missing}", field=f"api.{missing}")
    if config.api_listen is None and (config.tls_cert or config.plain_http):
        key = "tls_cert" if config.tls_cert else "plain_http"
        raise Invalid(f"cannot use api.{key} without listen", field=f"api.{key}")
    if config.api_listen is None or config.tls_cert or config.plain_http:
        return
    if not config.api_listen.is_loopback:
        cause = "it is not a loopback address; give tls_cert and tls_key, or plain_http = true"
        names.refuse("api.listen", str(config.api_listen), cause)


def _pool_lines(pool: PoolConfig) -> Iterator[str]:
    yield toml.line("driver", pool.driver)
    yield toml.line("path", pool.path)
    if pool.driver == _ONLY_FOR["quota"]:
        yield toml.line("quota", pool.quota)
    if pool.driver == _ONLY_FOR["default_size"]:
        yield toml.line("default_size", names.exact_size(pool.default_size_bytes))
    if pool.driver == _ONLY_FOR["allow_live_copy"]:
        yield f"allow_live_copy = {'true' if pool.allow_live_copy else 'false'}"
