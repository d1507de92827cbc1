"""What users may type: examples, round trips, and that no text brings any other exception than Invalid."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

import drivers
from voldriverd import names
from voldriverd.errors import Invalid
from voldriverd.names import BackupSource, Source, VolumeOptions

GOOD_NAMES = st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,60}", fullmatch=True)
LABEL_KEYS = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=20)
LABEL_VALUES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
SIZES = st.integers(0, names.SIZE_MAX_BYTES)
OPTIONS = st.builds(
    VolumeOptions,
    driver=st.none() | st.sampled_from(names.DRIVERS),
    pool=st.none() | GOOD_NAMES,
    size_bytes=st.none() | SIZES,
    thick=st.none() | st.booleans(),
    fs=st.none() | st.sampled_from(names.FILE_SYSTEMS),
    source=st.none() | st.builds(Source, GOOD_NAMES, st.none() | GOOD_NAMES) | st.builds(BackupSource, GOOD_NAMES),
    uid=st.none() | st.integers(0, names.ID_MAX),
    gid=st.none() | st.integers(0, names.ID_MAX),
    mode=st.none() | st.integers(0, names.MODE_MAX),
    nocow=st.none() | st.booleans(),
    compression=st.none() | st.sampled_from(names.COMPRESSIONS),
    protected=st.none() | st.booleans(),
    labels=st.dictionaries(LABEL_KEYS, LABEL_VALUES, max_size=5),
)
PARSERS: list[Callable[[str], object]] = [
    names.volume_name,
    names.snapshot_name,
    names.size,
    names.duration,
    names.percent,
    names.origin,
    names.target_url,
    names.endpoint,
    names.region,
    names.mount_options,
    lambda text: names.path(text, field="path"),
    lambda text: names.nfs_url(text, text, field="nfsConfig"),
    lambda text: names.nfs_url("nas", text, field="nfsConfig"),
]


def refusal(parse: Callable[..., object], *arguments: object) -> Invalid:
    with pytest.raises(Invalid) as caught:
        parse(*arguments)
    return caught.value


def said(parse: Callable[..., object], argument: object) -> str:
    """Return the text of a refusal, or what it should begin with if there was none."""
    try:
        parse(argument)
    except Invalid as error:
        return str(error) if str(error).isprintable() and error.field is not None else f"not one line: {error}"
    return "cannot use "


@pytest.mark.parametrize("text", ["a", "7", "web.data_1-x", "A" * 255, "0" * 64, "a..", "1v5"])
def test_a_good_name_is_itself(text: str) -> None:
    assert names.volume_name(text) == names.snapshot_name(text) == text


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "is empty"),
        (".", "starts with '.'"),
        ("..", "starts with '.'"),
        ("../x", "starts with '.'"),
        ("/abs", "starts with '/'"),
        ("-x", "starts with '-'"),
        ("a/b", "contains '/'"),
        ("sp ace", "contains ' '"),
        ("line\nfeed", r"contains '\n'"),
        ("end\n", r"contains '\n'"),
        ("null\0", r"contains '\x00'"),
        ("é", "starts with 'é'"),
        ("a٣", "contains '٣'"),
        ("v@s", "contains '@'"),
        ("a" * 256, "has 256 characters"),
    ],
)
def test_a_bad_name_is_refused_with_what_is_wrong_and_what_is_right(text: str, cause: str) -> None:
    error = refusal(names.volume_name, text)
    assert error.field == "name"
    assert f"the volume name {cause}; a name is 1 to 255 letters" in str(error)


def test_the_refusal_of_a_snapshot_name_says_snapshot() -> None:
    assert "the snapshot name starts with '.'" in str(refusal(names.snapshot_name, ".x"))


def test_a_long_name_is_cut_in_the_refusal() -> None:
    assert len(str(refusal(names.volume_name, "a" * 100_000))) < 250


@pytest.mark.parametrize(
    ("text", "is_anonymous"), [("0a" * 32, True), ("0A" * 32, False), ("0a" * 31, False), ("0a" * 32 + "\n", False)]
)
def test_64_hexadecimal_digits_are_an_anonymous_name(text: str, *, is_anonymous: bool) -> None:
    assert names.is_anonymous(text) is is_anonymous


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096b", 4096),
        ("1k", 1 << 10),
        ("512MiB", 512 << 20),
        ("512mib", 512 << 20),
        ("10G", 10 << 30),
        ("10GB", 10 << 30),
        ("1 GiB", 1 << 30),
        ("1t", 1 << 40),
        ("2P", 2 << 50),
        ("1.5G", 3 << 29),
        ("0.0001k", 0),
        ("8388607t", 8388607 << 40),
        (str(2**63 - 1), 2**63 - 1),
    ],
)
def test_a_size_is_read_in_powers_of_1024(text: str, size_bytes: int) -> None:
    assert names.size(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "banana",
        "-1",
        "+1",
        "1e9",
        "1.G",
        ".5G",
        "1,5G",
        "10Gi",
        "10 G ",
        " 1",
        "1x",
        "1\n",
        "٣G",
        "1\u212a",
        "1" * 21,
    ],
)
def test_what_is_no_size_is_refused_with_the_form_of_one(text: str) -> None:
    error = refusal(names.size, text)
    assert error.field == "size"
    assert "a size is a number with k, m, g, t or p" in str(error)


@pytest.mark.parametrize("text", [str(2**63), "8388608t", "99999999999999999999p", "8192p"])
def test_a_size_past_63_bits_is_refused(text: str) -> None:
    assert "the largest size is 9223372036854775807 bytes" in str(refusal(names.size, text))


@pytest.mark.parametrize("text", ["1.5", "0.5b"])
def test_part_of_a_byte_is_refused(text: str) -> None:
    assert "there is no part of a byte" in str(refusal(names.size, text))


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536 << 20, "1.5 GiB"),
        ((1 << 20) - 1, "1 MiB"),
        (10 << 30, "10 GiB"),
        (2**63 - 1, "8192 PiB"),
    ],
)
def test_a_size_is_written_for_people(size_bytes: int, text: str) -> None:
    assert names.format_size(size_bytes) == text


@given(st.integers(0, 8191 << 50))
def test_a_size_for_people_is_read_back_to_a_tenth_of_its_unit(size_bytes: int) -> None:
    assert abs(names.size(names.format_size(size_bytes)) - size_bytes) <= size_bytes * 0.051 + 1


@given(SIZES)
def test_an_exact_size_is_read_back(size_bytes: int) -> None:
    assert names.size(names.exact_size(size_bytes)) == size_bytes


@given(st.integers(0, 1023), st.integers(0, 4))
def test_an_exact_size_has_the_largest_unit_that_divides_it(count: int, power: int) -> None:
    assert names.exact_size(count * 1024**power) == (f"{count}{' KMGT'[power].strip()}" if count else "0")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("60s", 60),
        ("90m", 5_400),
        ("12h", 43_200),
        ("7d", 604_800),
        ("2w", 1_209_600),
        ("1d12h", 129_600),
        ("1W2D3H4M5S", 788_645),
        ("36525d", 3_155_760_000),
    ],
)
def test_a_duration_is_read_in_seconds(text: str, seconds: int) -> None:
    assert names.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "60", "d", "12h1d", "1d1d", "1.5h", "-1d", "1 d", "1d\n", "٣d", "7days", "\n"])
def test_what_is_no_duration_is_refused_with_the_form_of_one(text: str) -> None:
    error = refusal(names.duration, text)
    assert error.field == "duration"
    assert "as in 7d, 90m or 1d12h" in str(error)


@pytest.mark.parametrize("text", ["36526d", "999999999999w"])
def test_a_duration_over_a_hundred_years_is_refused(text: str) -> None:
    assert "the longest duration is 36525d" in str(refusal(names.duration, text))


@given(st.integers(0, names.DURATION_MAX_S))
def test_a_duration_is_read_back(seconds: int) -> None:
    assert names.duration(names.format_duration(seconds)) == seconds


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (129_600, "1d12h"), (864_000, "10d"), (61, "1m1s")])
def test_a_duration_is_written_for_people(seconds: int, text: str) -> None:
    assert names.format_duration(seconds) == text


@pytest.mark.parametrize(("text", "fraction"), [("5%", 0.05), ("0%", 0.0), ("100%", 1.0), ("2.5 %", 0.025)])
def test_a_percentage_is_read_as_a_fraction(text: str, fraction: float) -> None:
    assert names.percent(text) == fraction


@pytest.mark.parametrize("text", ["", "5", "%", "-1%", "101%", "100.1%", "1e1%", "5%%", "nan%"])
def test_what_is_no_percentage_is_refused(text: str) -> None:
    error = refusal(names.percent, text)
    assert error.field == "percent"
    assert "0% to 100%" in str(error)


@given(st.integers(0, 1_000_000))
def test_a_percentage_is_read_back(parts: int) -> None:
    text = names.format_percent(parts / 1_000_000)
    assert names.format_percent(names.percent(text)) == text


@pytest.mark.parametrize("parse", PARSERS)
@given(text=st.text() | st.from_regex(r"\A[0-9.kmgtpibwdhs% ]*\Z") | GOOD_NAMES)
def test_no_text_brings_another_exception_than_invalid(parse: Callable[[str], object], text: str) -> None:
    assert said(parse, text).startswith("cannot use ")


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("web", Source("web")),
        ("web@monday", Source("web", "monday")),
        ("1v5@1s7", Source("1v5", "1s7")),
        ("backup", Source("backup")),
        ("backup:1b5", BackupSource("1b5")),
    ],
)
def test_a_source_is_a_volume_a_snapshot_or_a_backup(text: str, source: object) -> None:
    assert names.origin(text) == source
    assert str(source) == text


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "the volume name is empty"),
        ("@s", "the volume name is empty"),
        ("v@", "the snapshot name is empty"),
        ("v@s@t", "the snapshot name contains '@'"),
        ("a:b", "the volume name contains ':'"),
        ("backup:", "the backup name is empty"),
        ("backup:../x", "the backup name starts with '.'"),
    ],
)
def test_a_bad_source_is_refused_whole_with_the_part_that_is_wrong(text: str, cause: str) -> None:
    error = refusal(names.origin, text)
    assert error.field == "from"
    assert f"cannot use from {text!r}: {cause}" in str(error)


def test_every_option_of_the_design_is_parsed() -> None:
    given_options = {
        "driver": "loop",
        "pool": "images",
        "size": "10G",
        "thick": "yes",
        "fs": "xfs",
        "from": "web@monday",
        "uid": "1000",
        "gid": "0",
        "mode": "0750",
        "nocow": "no",
        "compression": "zstd",
        "protected": "true",
        "label.team": "blue",
    }
    assert names.parse_options(given_options) == VolumeOptions(
        driver="loop",
        pool="images",
        size_bytes=10 << 30,
        thick=True,
        fs="xfs",
        source=Source("web", "monday"),
        uid=1000,
        gid=0,
        mode=0o750,
        nocow=False,
        compression="zstd",
        protected=True,
        labels={"team": "blue"},
    )


def test_the_drivers_that_a_user_may_name_are_those_that_exist() -> None:
    assert set(names.DRIVERS) == set(drivers.DRIVERS)


def test_an_option_that_is_not_given_is_none() -> None:
    assert names.parse_options({}) == VolumeOptions()
    assert names.parse_options({}).thick is None


@given(OPTIONS)
def test_options_are_read_back(options: VolumeOptions) -> None:
    assert names.parse_options(names.format_options(options)) == options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sise": "1"}, ["'sise'", "'1'", "did you mean size?", "driver, pool, size, thick"]),
        ({"nosuch": "1"}, ["'nosuch'", "'1'", "valid are driver, pool, size"]),
        ({"Size": "1"}, ["'Size'", "did you mean size?"]),
        ({"label": "1"}, ["'label'", "did you mean label.<key>?"]),
        ({"driver": "brtfs"}, ["driver 'brtfs'", "did you mean btrfs?", "btrfs, directory, loop"]),
        ({"pool": "a/b"}, ["pool 'a/b'", "contains '/'"]),
        ({"size": "banana"}, ["size 'banana'", "10G"]),
        ({"thick": "maybe"}, ["thick 'maybe'", "yes and no"]),
        ({"fs": "ext3"}, ["fs 'ext3'", "did you mean ext4?", "ext4, xfs"]),
        ({"from": "a@"}, ["from 'a@'", "the snapshot name is empty"]),
        ({"uid": "root"}, ["uid 'root'", "0 to 4294967294"]),
        ({"gid": "4294967295"}, ["gid '4294967295'", "0 to 4294967294"]),
        ({"mode": "0o755"}, ["mode '0o755'", "octal"]),
        ({"mode": "10000"}, ["mode '10000'", "0 to 7777"]),
        ({"nocow": ""}, ["nocow ''", "yes and no"]),
        ({"compression": "zstd:3"}, ["compression 'zstd:3'", "did you mean zstd?", "zstd, zlib, lzo"]),
        ({"protected": "2"}, ["protected '2'", "yes and no"]),
        ({"label.": "1"}, ["label. '1'", "a label's key"]),
        ({"label.a\nb": "1"}, [r"'label.a\nb' '1'", "printable"]),
        ({"label.x": "\ud800"}, ["label.x", "a label's value is text"]),
        ({"label.x": "a\0"}, ["label.x", "a label's value is text"]),
        ({"label.x": "a" * 4_097}, ["label.x", "at most 4096"]),
        ({"size": None}, ["size", "null"]),
        ({"size": 1.5}, ["size", "a fraction"]),
        ({"size": [1]}, ["size", "a list"]),
        ({"size": {}}, ["size", "an object"]),
        ({"size": 10**5000}, ["size", "too large a number"]),
    ],
)
def test_a_bad_option_is_refused_with_its_key_its_value_and_what_is_valid(
    options: dict[str, object], words: list[str]
) -> None:
    error = refusal(names.parse_options, options)
    assert error.field == next(iter(options))
    assert "\n" not in str(error)
    assert [word for word in words if word not in str(error)] == []


def test_labels_up_to_their_limits_are_taken() -> None:
    labels = {f"label.{number}": "x" * 4_096 for number in range(100)}
    assert len(names.parse_options(labels).labels) == 100


def test_more_labels_than_the_limit_are_refused() -> None:
    error = refusal(names.parse_options, {f"label.{number}": "x" for number in range(101)})
    assert "at most 100" in str(error)


@pytest.mark.parametrize(
    ("given_value", "key", "value"),
    [(5, "uid", 5), (755, "mode", 0o755), (1024, "size_bytes", 1024), (True, "thick", True)],
)
def test_numbers_and_booleans_of_json_are_taken_as_text(given_value: object, key: str, value: object) -> None:
    options = names.parse_options({key.removesuffix("_bytes"): given_value})
    assert getattr(options, key) == value


@pytest.mark.parametrize("text", ["yes", "TRUE", "1", "On"])
def test_booleans_may_be_said_in_many_ways(text: str) -> None:
    assert names.parse_options({"thick": text, "nocow": "oFF"}) == VolumeOptions(thick=True, nocow=False)


@given(st.dictionaries(st.sampled_from(names.OPTIONS) | st.text(), st.text() | st.none() | st.floats() | st.integers()))
def test_no_options_bring_another_exception_than_invalid(options: dict[str, object]) -> None:
    assert said(names.parse_options, options).startswith("cannot use ")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://my.bucket-1/a/b_c/", "s3://my.bucket-1/a/b_c"),
        ("s3://bucket/..a/.b", "s3://bucket/..a/.b"),
        ("file:///mnt/backups", "file:///mnt/backups"),
        ("file:////mnt//backups/", "file:///mnt/backups"),
        ("nfs://nas/exports/backups", "nfs://nas/exports/backups"),
        ("nfs://[fd00::1]/a b/", "nfs://[fd00::1]/a b"),
        ("nfs://nas/", "nfs://nas/"),
    ],
)
def test_a_target_has_one_form_of_its_url(text: str, url: str) -> None:
    assert names.target_url(text) == url
    assert names.target_url(url) == url


@pytest.mark.parametrize(
    "text",
    [
        *("", "bucket", "s3://", "s3://ab", "s3://Bucket", "s3://bucket//a", "s3://bucket/../a", "s3://bucket/."),
        *("s3://bucket/a?b", f"s3://bucket/{'a' * 513}", "s3://key:secret@bucket", "s3://bucket\n", "http://x"),
        *("file://", "file:///", "file://mnt", "file:///a/../b", "file:///a\nb"),
        *("nfs://", "nfs:///a", "nfs://nas", "nfs://-nas/a", "nfs://fd00::1/a", "nfs://nas/a/../b", "nfs://nas/a\tb"),
    ],
)
def test_what_is_no_target_is_refused(text: str) -> None:
    assert refusal(names.target_url, text).field == "url"


def test_the_url_of_a_share_is_its_server_and_its_path() -> None:
    assert names.nfs_url("nas", "/exports//", field="nfsConfig") == "nfs://nas/exports"
    assert names.nfs_share("nfs://nas/exports") == ("nas", "/exports")
    assert names.nfs_share(names.nfs_url("[::1]", "/", field="nfsConfig")) == ("[::1]", "/")
    assert names.nfs_share("file:///a") is None


@pytest.mark.parametrize("text", ["vers=4.2,soft", "ro", "addr=[::1]", ",", "a,,b", "a b", "", "a" * 1_025, "a\n"])
def test_mount_options_are_words_with_commas_between(text: str) -> None:
    is_right = text in {"vers=4.2,soft", "ro"}
    assert said(names.mount_options, text).startswith("cannot use ")
    assert is_right == (said(names.mount_options, text) == "cannot use ")


@pytest.mark.parametrize(("text", "fraction"), [("10%", 0.1), ("0.1", 0.1), ("1", 1.0), ("1.0", 1.0), ("0.0001", 1e-4)])
def test_a_share_is_a_percentage_or_the_fraction_itself(text: str, fraction: float) -> None:
    assert names.share(text, field="sample") == pytest.approx(fraction)


@pytest.mark.parametrize("text", ["", "10", "1.1", "101%", "-0.1", "1e-3", ".5", "0.00001", "half"])
def test_what_is_no_share_is_refused(text: str) -> None:
    assert refusal(lambda: names.share(text, field="sample")).field == "sample"
