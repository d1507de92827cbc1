"""docs/operations.md: each trouble is made for real, then the page's commands are followed."""

from collections.abc import Callable
from typing import Final

import pytest

from tests import docs_host
from tests.docs import Page
from tests.docs_host import ROOT, SMALL, STOP, DocsHost

pytestmark = [pytest.mark.root, pytest.mark.docker]

one_host, host = docs_host.one_host, docs_host.host

PAGE = Page("docs/operations.md")
DATABASE: Final = ROOT / "voldriver.db"
TARGET: Final = "mkdir -p /mnt/backups; voldriver target create disk file:///mnt/backups"
ORDERS: Final = "docker run --rm -v db:/data busybox sh -c 'echo 42 orders >/data/orders'"
DISKS: Final = """reconcile_interval = "1s"
[pools.fast]
driver = "btrfs"
path = "/srv/fast/pool"
[pools.plain]
driver = "directory"
path = "/srv/plain"
"""


def a_volume(host: DocsHost, *, config: str = SMALL) -> None:
    """Have a volume with something in it, and a target."""
    host.begin(config)
    host.must(f"docker volume create -d voldriver db; {ORDERS}; {TARGET}")


def a_deleted_volume(host: DocsHost) -> None:
    a_volume(host)
    host.must("docker volume rm db")


def a_purged_volume(host: DocsHost) -> None:
    host.must(f"voldriver backup create db; {ORDERS.replace('42', '43')}; voldriver backup create db")
    host.must("docker volume rm db; voldriver volume purge --yes db")


def a_deleted_file(host: DocsHost) -> None:
    host.must(f"{ORDERS}; voldriver snapshot create db monday; docker run --rm -v db:/data busybox rm /data/orders")


def a_full_pool(host: DocsHost) -> None:
    host.begin('[embedded]\nsize = "300M"\n')
    host.must("docker volume create -d voldriver db; docker volume create -d voldriver old")
    write = "docker run --rm -v {}:/data busybox dd if=/dev/zero of=/data/{} bs=1M count={}"
    host.must(f"{write.format('old', 'file', 40)}; {write.format('db', 'import', 40)}")
    host.must("voldriver snapshot create db before-import")
    assert "No space left on device" in host.run(write.format("db", "more", 400))


def a_lost_disk(host: DocsHost) -> None:
    host.must(
        f"mkdir -p {ROOT} /srv/fast /srv/plain; truncate -s 300M {ROOT}/disk; mkfs.btrfs -q {ROOT}/disk\n"
        f"mount -o loop {ROOT}/disk /srv/fast; mkdir /srv/fast/pool"
    )
    a_volume(host, config=DISKS)
    host.must("voldriver volume create notes -d directory; voldriver backup create db")
    host.must(f"umount /srv/fast; rm {ROOT}/disk")
    host.must(
        f"mkdir /srv/new; truncate -s 300M {ROOT}/new; mkfs.btrfs -q {ROOT}/new; mount -o loop {ROOT}/new /srv/new"
    )
    host.must("until voldriver pool ls | grep -q unavailable; do sleep 0.1; done")


def a_dead_host(host: DocsHost) -> None:
    host.begin()
    host.must(
        f"mkdir -p /mnt/backups; echo secret words >/etc/voldriver/passphrase\n"
        f"voldriver target create disk file:///mnt/backups --passphrase-file /etc/voldriver/passphrase\n"
        f"docker volume create -d voldriver db; {ORDERS}; docker volume create -d voldriver web\n"
        "voldriver backup create db; voldriver backup create db; voldriver backup create web"
    )
    host.dockerd.clean()
    host.must(f"{STOP}; voldriverd --release; chattr -i {ROOT}/embedded; rm -r {ROOT}")
    host.begin()


def a_damaged_database(host: DocsHost) -> None:
    a_volume(host)
    host.must("voldriver volume create web -d loop -o size=64M; voldriver snapshot create web good")
    host.must("voldriver backup create web; voldriver volume create old; voldriver volume rm old")
    host.must(f"{STOP}; printf damage | dd of={DATABASE} conv=notrunc")
    assert "is damaged" in host.run("systemctl start voldriverd; tail -n 1 " + str(host.log_file))


def a_lost_database(host: DocsHost) -> None:
    host.must(f"{STOP}; rm {DATABASE}*; systemctl start voldriverd")


def a_wrong_configuration(host: DocsHost) -> None:
    host.configure('trash_retenton = "14d"\n[embedded]\nsize = "300M"\n')
    assert "trash_retention" in host.run("systemctl start voldriverd; tail -n 1 " + str(host.log_file))


def a_stuck_volume(host: DocsHost) -> None:
    host.must("voldriver volume mount db; unshare --mount --propagation private setsid sleep 600 >/dev/null 2>&1 &")
    host.must("until grep -qs /mounts/v /proc/$(pgrep -xf 'sleep 600')/mounts; do sleep 0.05; done")
    host.must("voldriver volume unmount db")


DAYS: Final[dict[str, dict[str, Callable[[DocsHost], None]]]] = {
    "accidents": {
        "A volume was deleted": a_deleted_volume,
        "It is not in the trash any more": a_purged_volume,
        "Only a file was deleted": a_deleted_file,
        "A volume is stuck": a_stuck_volume,
    },
    "no space": {"A pool is full": a_full_pool},
    "no disk": {"A disk is lost": a_lost_disk},
    "no host": {"The host is dead": a_dead_host},
    "no database": {"The database is damaged": a_damaged_database, "The database is lost": a_lost_database},
    "no start": {"The daemon does not start": a_wrong_configuration},
}
"""Troubles by their section; those of one day come one after the other on one host, since a start takes a second."""


def test_every_section_is_tried() -> None:
    assert sorted(PAGE.sections) == sorted(section for day in DAYS.values() for section in day)


@pytest.mark.parametrize("day", DAYS)
def test_a_bad_day_ends_as_the_page_says(host: DocsHost, day: str) -> None:
    for section, trouble in DAYS[day].items():
        trouble(host)
        host.follow(PAGE.steps(section))
