"""The configuration file: every key and default, every refusal, and that what is printed is read back."""

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voldriverd import config, names
from voldriverd.config import Config, Listen, PoolConfig, TargetConfig
from voldriverd.errors import Invalid

EVERYTHING = """
root = "/data/voldriver"
run_dir = "/run/other"
default_driver = "loop"
default_target = "nightly"
trash_retention = "1d12h"
reconcile_interval = "30s"
reserve = "2.5%"

[docker]
socket = "/run/other/plugin.sock"

[api]
socket = "/run/other/http.sock"
listen = "[::]:9580"
tls_cert = "/etc/ssl/cert.pem"
tls_key = "/etc/ssl/key.pem"

[pools.fast]
driver = "btrfs"
path = "/srv/fast"
quota = "simple"

[pools.images]
driver = "loop"
path = "/srv/images"
default_size = "4G"

[pools.plain]
driver = "directory"
path = "//srv/plain/"
allow_live_copy = true

[targets.nightly]
url = "s3://bucket/prefix"
endpoint = "http://127.0.0.1:8333"
region = "us-east-1"
access_key_file = "/etc/voldriver/access"
secret_key_file = "/etc/voldriver/secret"
passphrase_file = "/etc/voldriver/passphrase"

[targets.disk]
url = "file:///mnt/backups"

[targets.share]
url = "nfs://nas//exports/backups/"
mount_options = "vers=4.2,soft"
"""

NAMES = st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,20}", fullmatch=True)
PARTS = st.text(st.characters(categories=("L", "N", "P", "S"), exclude_characters="/"), min_size=1, max_size=8)
PATHS = PARTS.filter(lambda part: part not in {".", ".."}).map(lambda part: f"/nowhere/{part}")


def written(directory: Path, text: str) -> Path:
    file = directory / "voldriver.toml"
    file.write_text(text)
    return file


def refusal(text: str) -> Invalid:
    with pytest.raises(Invalid) as caught:
        config.parse(tomllib.loads(text))
    assert str(caught.value).startswith("cannot use ")
    assert str(caught.value).isprintable()
    return caught.value


def test_every_key_is_read() -> None:
    assert config.parse(tomllib.loads(EVERYTHING)) == Config(
        root=Path("/data/voldriver"),
        run_dir=Path("/run/other"),
        default_driver="loop",
        default_target="nightly",
        trash_retention_s=129_600,
        reconcile_interval_s=30,
        reserve=0.025,
        embedded_size_bytes=None,
        docker_socket=Path("/run/other/plugin.sock"),
        api_socket=Path("/run/other/http.sock"),
        api_listen=Listen("::", 9580),
        tls_cert=Path("/etc/ssl/cert.pem"),
        tls_key=Path("/etc/ssl/key.pem"),
        plain_http=False,
        pools=(
            PoolConfig("fast", "btrfs", Path("/srv/fast"), quota="simple"),
            PoolConfig("images", "loop", Path("/srv/images"), default_size_bytes=4 << 30),
            PoolConfig("plain", "directory", Path("/srv/plain"), allow_live_copy=True),
        ),
        targets=(
            TargetConfig(
                name="nightly",
                url="s3://bucket/prefix",
                endpoint="http://127.0.0.1:8333",
                region="us-east-1",
                access_key_file=Path("/etc/voldriver/access"),
                secret_key_file=Path("/etc/voldriver/secret"),
                passphrase_file=Path("/etc/voldriver/passphrase"),
            ),
            TargetConfig("disk", "file:///mnt/backups"),
            TargetConfig("share", "nfs://nas/exports/backups", mount_options="vers=4.2,soft"),
        ),
    )


def test_an_empty_file_gives_the_defaults_of_the_design(tmp_path: Path) -> None:
    assert config.load(written(tmp_path, "")) == Config(
        root=Path("/var/lib/voldriver"),
        run_dir=Path("/run/voldriver"),
        default_driver="btrfs",
        default_target=None,
        trash_retention_s=7 * 86_400,
        reconcile_interval_s=60,
        reserve=0.05,
        embedded_size_bytes=None,
        docker_socket=Path("/run/docker/plugins/voldriver.sock"),
        api_socket=Path("/run/voldriver/api.sock"),
        api_listen=None,
        tls_cert=None,
        tls_key=None,
        plain_http=False,
        pools=(),
        targets=(),
    )


def test_the_size_of_the_embedded_image_is_read() -> None:
    assert config.parse({"embedded": {"size": "20G"}}).embedded_size_bytes == 20 << 30


def test_sizes_may_be_numbers_and_zero_needs_no_unit() -> None:
    assert config.parse({"embedded": {"size": 1 << 30}}).embedded_size_bytes == 1 << 30
    assert config.parse({"trash_retention": 0}).trash_retention_s == 0


def test_a_loop_volume_has_10_gib_if_nothing_else_is_said() -> None:
    pool = {"driver": "loop", "path": "/srv/images"}
    assert config.parse({"pools": {"images": pool}}).pools[0].default_size_bytes == 10 << 30


@pytest.mark.parametrize(("text", "interval_s"), [("1s", 1), ("1d", 86_400)])
def test_the_interval_may_be_a_second_or_a_day(text: str, interval_s: int) -> None:
    assert config.parse({"reconcile_interval": text}).reconcile_interval_s == interval_s


def test_half_of_a_pool_may_be_kept_free_and_none() -> None:
    assert config.parse({"reserve": "50%"}).reserve == 0.5
    assert config.parse({"reserve": "0%"}).reserve == 0.0


def test_without_a_path_and_without_the_default_file_all_is_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "none.toml")
    assert config.load(None) == Config()


def test_without_a_path_the_default_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "DEFAULT_FILE", written(tmp_path, 'reserve = "1%"'))
    assert config.load(None).reserve == 0.01


def test_the_command_line_goes_before_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, 'root = "/a"\nrun_dir = "/b"\nreserve = "1%"')
    loaded = config.load(file, root=Path("/c"), run_dir=Path("/d"))
    assert (loaded.root, loaded.run_dir, loaded.reserve) == (Path("/c"), Path("/d"), 0.01)


def test_another_run_dir_moves_both_sockets(tmp_path: Path) -> None:
    loaded = config.load(written(tmp_path, ""), run_dir=Path("/run/second"))
    assert loaded.docker_socket == Path("/run/second/voldriver.sock")
    assert loaded.api_socket == Path("/run/second/api.sock")


def test_the_default_driver_is_that_of_the_pools_there_are() -> None:
    images = {"driver": "loop", "path": "/srv/images"}
    fast = {"driver": "btrfs", "path": "/srv/fast"}
    assert config.parse({"pools": {"images": images}}).default_driver == "loop"
    assert config.parse({"pools": {"images": images, "fast": fast}}).default_driver == "btrfs"


def test_the_default_target_is_the_only_one() -> None:
    one, two = {"url": "file:///mnt/one"}, {"url": "file:///mnt/two"}
    assert config.parse({"targets": {"one": one}}).default_target == "one"
    assert config.parse({"targets": {"one": one, "two": two}}).default_target is None


@pytest.mark.parametrize("listen", ["127.0.0.1:9580", "127.8.8.8:1", "localhost:9580", "[::1]:65535"])
def test_a_loopback_address_needs_no_tls(listen: str) -> None:
    assert str(config.parse({"api": {"listen": listen}}).api_listen) == listen


def test_plain_http_allows_an_address_that_is_not_loopback() -> None:
    loaded = config.parse({"api": {"listen": "0.0.0.0:9580", "plain_http": True}})
    assert loaded.api_listen == Listen("0.0.0.0", 9580)  # noqa: S104 - what is configured


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ('rot = "/a"', "rot", ["key 'rot'", "did you mean root?", "valid are root, run_dir"]),
        ("x = 1", "x", ["key 'x'", "valid are root, run_dir"]),
        ('[docker]\nsock = "/a"', "docker.sock", ["[docker] key 'sock'", "did you mean socket?"]),
        ('[api]\nlissten = "x"', "api.lissten", ["did you mean listen?"]),
        ('[embedded]\nsice = "x"', "embedded.sice", ["did you mean size?"]),
        ('[pools.a]\nqota = "x"', "pools.a.qota", ["[pools.a] key 'qota'", "did you mean quota?"]),
        (
            '[targets.a]\nurl = "file:///b"\naccess_key = "x"',
            "targets.a.access_key",
            ["did you mean access_key_file?"],
        ),
        ("root = []", "root", ["root", "a list"]),
        ("root = 1.5", "root", ["root", "a fraction"]),
        ("root = 1979-05-27", "root", ["root", "date"]),
        ("root = 5", "root", ["'5'", "absolute"]),
        ('root = "data"', "root", ["'data'", "absolute"]),
        ('root = "/"', "root", ["'/'", "not /"]),
        ('root = ""', "root", ["''", "absolute"]),
        ('root = "/a/../b"', "root", ['".."']),
        ('root = "/a\\nb"', "root", ["unprintable"]),
        ('run_dir = "run"', "run_dir", ["'run'", "absolute"]),
        ("docker = 1", "docker", ["a table, as in [docker]"]),
        ("pools = 1", "pools", ["[pools.NAME]"]),
        ("[pools]\na = 1", "pools.a", ["a table, as in [pools.a]"]),
        ('default_driver = "zfs"', "default_driver", ["'zfs'", "btrfs, directory, loop"]),
        ('trash_retention = "7"', "trash_retention", ["'7'", "7d"]),
        ("trash_retention = true", "trash_retention", ["'true'", "7d"]),
        ('reconcile_interval = "0"', "reconcile_interval", ["'0'", "1s to 1d"]),
        ('reconcile_interval = "86401s"', "reconcile_interval", ["'86401s'", "1s to 1d"]),
        ("reserve = 5", "reserve", ["'5'", "5%"]),
        ('reserve = "51%"', "reserve", ["'51%'", "0% to 50%"]),
        ('[embedded]\nsize = "255M"', "embedded.size", ["'255M'", "at least 256M"]),
        ('[embedded]\nsize = "big"', "embedded.size", ["'big'", "10G"]),
        ('[pools.a]\npath = "/a"', "pools.a.driver", ["[pools.a]", "no driver"]),
        ('[pools.a]\ndriver = "loop"', "pools.a.path", ["[pools.a]", "no path"]),
        ('[pools.a]\ndriver = "lop"\npath = "/a"', "pools.a.driver", ["'lop'", "did you mean loop?"]),
        ('[pools.a]\ndriver = "loop"\npath = "a"', "pools.a.path", ["'a'", "absolute"]),
        ('[pools."a/b"]\ndriver = "loop"\npath = "/a"', "pools", ["the pool name contains '/'"]),
        ('[pools.a]\ndriver = "btrfs"\npath = "/a"\nquota = "on"', "pools.a.quota", ["'on'", "off, simple, full"]),
        ('[pools.a]\ndriver = "loop"\npath = "/a"\nquota = "off"', "pools.a.quota", ["btrfs pools", "loop pool"]),
        (
            '[pools.a]\ndriver = "btrfs"\npath = "/a"\ndefault_size = "1G"',
            "pools.a.default_size",
            ["loop pools", "btrfs pool"],
        ),
        (
            '[pools.a]\ndriver = "loop"\npath = "/a"\nallow_live_copy = true',
            "pools.a.allow_live_copy",
            ["directory pools", "loop pool"],
        ),
        (
            '[pools.a]\ndriver = "directory"\npath = "/a"\nallow_live_copy = "maybe"',
            "pools.a.allow_live_copy",
            ["'maybe'", "yes and no"],
        ),
        ('[pools.a]\ndriver = "loop"\npath = "/a"\ndefault_size = 10', "pools.a.default_size", ["'10'", "least 16M"]),
        ('[docker]\nsocket = "/run/docker/plugins/fast"', "docker.socket", ["plugins/fast'", "end in .sock"]),
        (
            'default_driver = "btrfs"\n[pools.a]\ndriver = "loop"\npath = "/a"',
            "default_driver",
            ["'btrfs'", "no pool has it, there is loop"],
        ),
        (
            '[embedded]\nsize = "1G"\n[pools.a]\ndriver = "loop"\npath = "/a"',
            "embedded",
            ["no image is made where there are [pools.*]"],
        ),
        ('default_target = "none"', "default_target", ["'none'", "there is no [targets.none]"]),
        ('default_target = "a b"', "default_target", ["the target name contains ' '"]),
        ('[targets.a]\nregion = "x"', "targets.a.url", ["[targets.a]", "no url"]),
        (
            '[targets.a]\nurl = "http://x"',
            "targets.a.url",
            ["'http://x'", "s3://bucket/prefix, file:///directory or nfs://"],
        ),
        ('[targets.a]\nurl = "s3://key:secret@bucket"', "targets.a.url", ["s3://bucket/prefix"]),
        ('[targets.a]\nurl = "s3://Bucket/a"', "targets.a.url", ["'s3://Bucket/a'", "3 to 63 lower case letters"]),
        ('[targets.a]\nurl = "file://a"', "targets.a.url", ["absolute"]),
        ('[targets.a]\nurl = "file:///a"\nregion = "x"', "targets.a.region", ["s3 targets", "file:///a"]),
        (
            '[targets.a]\nurl = "file:///a"\nmount_options = "x"',
            "targets.a.mount_options",
            ["nfs targets", "file:///a"],
        ),
        ('[targets.a]\nurl = "nfs://h/a"\nendpoint = "http://x"', "targets.a.endpoint", ["s3 targets", "nfs://h/a"]),
        ('[targets.a]\nurl = "nfs://h/a"\nmount_options = "a b"', "targets.a.mount_options", ["'a b'", "soft"]),
        ('[targets.a]\nurl = "s3://bucket"\nregion = "X"', "targets.a.region", ["'X'", "us-east-1"]),
        ('[targets.a]\nurl = "s3://bucket"\nendpoint = "host"', "targets.a.endpoint", ["'host'", "http://"]),
        (
            '[targets.a]\nurl = "s3://bucket"\naccess_key_file = "/a"',
            "targets.a.secret_key_file",
            ["access_key_file without secret_key_file"],
        ),
        (
            '[targets.a]\nurl = "s3://bucket"\nsecret_key_file = "/a"',
            "targets.a.access_key_file",
            ["secret_key_file without access_key_file"],
        ),
        ('[api]\nlisten = "9580"', "api.listen", ["'9580'", "127.0.0.1:9580"]),
        ('[api]\nlisten = "127.0.0.1:0"', "api.listen", ["127.0.0.1:9580"]),
        ('[api]\nlisten = "127.0.0.1:65536"', "api.listen", ["127.0.0.1:9580"]),
        ('[api]\nlisten = "127.0.0.999:80"', "api.listen", ["127.0.0.1:9580"]),
        ('[api]\nlisten = "host.example:80"', "api.listen", ["127.0.0.1:9580"]),
        ('[api]\nlisten = "::1:80"', "api.listen", ["[::1]:9580"]),
        ('[api]\nlisten = "0.0.0.0:9580"', "api.listen", ["tls_cert and tls_key, or plain_http = true"]),
        ('[api]\nlisten = "[::]:9580"', "api.listen", ["not a loopback address"]),
        ('[api]\nlisten = "127.0.0.1:80"\ntls_cert = "/a"', "api.tls_key", ["api.tls_cert without tls_key"]),
        ('[api]\nlisten = "127.0.0.1:80"\ntls_key = "/a"', "api.tls_cert", ["api.tls_key without tls_cert"]),
        ('[api]\ntls_cert = "/a"\ntls_key = "/b"', "api.tls_cert", ["without listen"]),
        ("[api]\nplain_http = true", "api.plain_http", ["without listen"]),
        ('[api]\nsocket = "/a"\n[docker]\nsocket = "//a"', "api.socket", ["docker.socket"]),
        (f'[api]\nsocket = "/{"a" * 107}"', "api.socket", ["at most 107 bytes"]),
        (f'run_dir = "/{"a" * 100}"', "docker.socket", ["at most 107 bytes"]),
        ('root = "/run/voldriver/state"', "root", ["empty after a reboot"]),
        ('root = "/run/voldriver"', "root", ["empty after a reboot"]),
    ],
)
def test_what_is_wrong_is_refused_with_its_key_and_what_is_right(text: str, field: str, words: list[str]) -> None:
    error = refusal(text)
    assert error.field == field
    assert [word for word in words if word not in str(error)] == []


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("/srv/a", "/srv/a"),
        ("/srv/a", "/srv/a/b"),
        ("/srv/a/b", "/srv/a"),
        ("/srv/a", "/srv/./a/"),
    ],
)
def test_two_pools_in_one_place_are_refused(one: str, two: str) -> None:
    error = refusal(f'[pools.x]\ndriver = "loop"\npath = "{one}"\n[pools.y]\ndriver = "directory"\npath = "{two}"')
    assert error.field == "pools.y.path"
    assert f"the path of pool x ({one})" in str(error)


def test_two_pools_in_one_place_through_a_link_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    pools = {
        "x": {"driver": "loop", "path": str(tmp_path / "a")},
        "y": {"driver": "loop", "path": str(tmp_path / "link" / "a")},
    }
    with pytest.raises(Invalid, match="the path of pool x"):
        config.parse({"pools": pools})


def test_a_loop_of_links_is_no_accident_of_ours(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "link")
    pool = {"driver": "loop", "path": str(tmp_path / "link" / "a")}
    assert config.parse({"pools": {"x": pool}}).pools[0].path == tmp_path / "link" / "a"


@pytest.mark.parametrize("path", ["/var/lib/voldriver", "/var/lib/voldriver/pool", "/run/voldriver/x", "/var", "/run"])
def test_a_pool_in_or_around_the_daemons_own_places_is_refused(path: str) -> None:
    error = refusal(f'[pools.x]\ndriver = "loop"\npath = "{path}"')
    assert error.field == "pools.x.path"
    assert re.search(r"it is, lies in or contains (root|run_dir) \(/", str(error))


def test_a_pool_beside_another_with_a_longer_name_is_allowed() -> None:
    pools = {"x": {"driver": "loop", "path": "/srv/a"}, "y": {"driver": "loop", "path": "/srv/ab"}}
    assert len(config.parse({"pools": pools}).pools) == 2


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("root = ", "it is not TOML: Invalid value (at end of document)"),
        ('a = "\xff"', "it is not TOML"),
        (f"a = {'[' * 100_000}", "it is not TOML"),
        ("#" * (1 << 20) + "\n", "it has more than 1048576 bytes"),
    ],
    ids=["broken", "not utf-8", "deep", "large"],
)
def test_a_file_that_is_no_toml_is_refused_with_its_name(tmp_path: Path, text: str, cause: str) -> None:
    file = tmp_path / "voldriver.toml"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(Invalid) as caught:
        config.load(file)
    assert str(caught.value).startswith(f"cannot load {file}: {cause}")


def test_a_file_that_is_not_there_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(Invalid) as caught:
        config.load(tmp_path / "none.toml")
    assert str(caught.value) == f"cannot load {tmp_path}/none.toml: No such file or directory"


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="Is a directory"):
        config.load(tmp_path)


def test_a_refusal_names_the_file_the_key_the_value_and_what_is_right(tmp_path: Path) -> None:
    file = written(tmp_path, 'reserve = "much"')
    with pytest.raises(Invalid) as caught:
        config.load(file)
    assert str(caught.value) == f"cannot load {file}: reserve 'much': a share is 0% to 100%, as in 5% or 2.5%"
    assert caught.value.field == "reserve"


def test_a_relative_root_of_the_command_line_is_refused() -> None:
    with pytest.raises(Invalid, match="root 'data': a path is absolute"):
        config.parse({"root": "data"})


def test_a_target_is_read_from_the_file(tmp_path: Path) -> None:
    loaded = config.load(written(tmp_path, '[targets.disk]\nurl = "file:///mnt"'))
    assert loaded.targets == (TargetConfig("disk", "file:///mnt"),)


@pytest.mark.parametrize("path", ["/var/lib/voldriver/backups", "/run/voldriver", "/var", "/srv/a", "/srv/a/b", "/srv"])
def test_a_target_in_or_around_what_is_backed_up_is_refused(path: str) -> None:
    error = refusal(f'[pools.x]\ndriver = "loop"\npath = "/srv/a"\n[targets.t]\nurl = "file://{path}"')
    assert error.field == "targets.t.url"
    assert re.search(r"it is, lies in or contains (root|run_dir|the path of pool x) \(/", str(error))


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("file:///mnt/a", "file:///mnt//a/"),
        ("s3://bucket/a", "s3://bucket/a/"),
        ("nfs://nas/a", "nfs://nas//a"),
    ],
)
def test_two_targets_in_one_place_are_refused(one: str, two: str) -> None:
    error = refusal(f'[targets.x]\nurl = "{one}"\n[targets.y]\nurl = "{two}"')
    assert error.field == "targets.y.url"
    assert "it is the place of target x too" in str(error)


def test_one_bucket_of_two_services_is_two_places() -> None:
    one, two = ({"url": "s3://bucket", "endpoint": f"http://{name}"} for name in ("a", "b"))
    assert len(config.parse({"targets": {"x": one, "y": two}}).targets) == 2


def test_the_effective_configuration_names_every_default() -> None:
    assert config.effective(Config()) == (
        'root = "/var/lib/voldriver"\n'
        'run_dir = "/run/voldriver"\n'
        'default_driver = "btrfs"\n'
        "# default_target: none\n"
        'trash_retention = "7d"\n'
        'reconcile_interval = "1m"\n'
        'reserve = "5%"\n'
        "\n"
        "[embedded]\n"
        "# size: 20G, or half of what is free if that is less\n"
        "\n"
        "[docker]\n"
        'socket = "/run/docker/plugins/voldriver.sock"\n'
        "\n"
        "[api]\n"
        'socket = "/run/voldriver/api.sock"\n'
        "# listen: off\n"
        "# tls_cert: none\n"
        "# tls_key: none\n"
        "plain_http = false\n"
    )


def test_the_effective_configuration_of_everything_is_read_back() -> None:
    whole = config.parse(tomllib.loads(EVERYTHING))
    assert config.parse(tomllib.loads(config.effective(whole))) == whole


@given(
    root=PATHS,
    pools=st.dictionaries(NAMES, st.tuples(st.sampled_from(names.DRIVERS), PARTS), max_size=4),
    retention_s=st.integers(0, names.DURATION_MAX_S),
    size=st.integers(config.EMBEDDED_MIN_BYTES, names.SIZE_MAX_BYTES),
)
def test_an_effective_configuration_is_read_back(
    root: str, pools: dict[str, tuple[str, str]], retention_s: int, size: int
) -> None:
    tables = {
        name: {"driver": driver, "path": f"/elsewhere/{number}/{part.strip('.')}"}
        for number, (name, (driver, part)) in enumerate(pools.items())
    }
    document = {"root": root, "trash_retention": names.format_duration(retention_s)}
    whole = config.parse(document | ({"pools": tables} if pools else {"embedded": {"size": size}}))
    assert config.parse(tomllib.loads(config.effective(whole))) == whole


VALUES = st.recursive(
    st.text() | st.integers() | st.booleans() | st.floats(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@given(
    st.dictionaries(
        st.sampled_from(config._KEYS) | st.text(max_size=5),
        VALUES | st.dictionaries(st.sampled_from(["socket", "listen", "size", "x"]), VALUES),
        max_size=3,
    )
)
def test_no_document_brings_another_exception_than_invalid(document: dict[str, object]) -> None:
    try:
        config.parse(document)
    except Invalid as error:
        refused = str(error)
    else:
        refused = "cannot use "
    assert refused.startswith("cannot use ")
    assert refused.isprintable()
