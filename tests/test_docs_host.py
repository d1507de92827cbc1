"""The pages whose commands need a host: followed with a real dockerd, each on a root directory that is empty."""

import subprocess

import pytest

from tests import docs_host
from tests.docs import CHECKOUT, Page, Step, steps
from tests.docs_host import ROOT, SMALL, DocsHost

pytestmark = [pytest.mark.root, pytest.mark.docker]

one_host, host = docs_host.one_host, docs_host.host


def commands(page: Page, *, until: str | None = None, since: str | None = None) -> list[Step]:
    """Return the commands of a page, those before a section or from it on."""
    found = page.run()
    at = next(number for number, block in enumerate(found) if block.section == (until or since))
    return [step for block in (found[at:] if since else found[:at]) for step in steps(block)]


def test_the_tutorial_to_the_letter(host: DocsHost) -> None:
    page = Page("docs/tutorial.md")
    (start,) = [block for block in page.blocks if block.run_by]
    subprocess.run([CHECKOUT / "scripts" / "setup", "test"], check=True)  # here is no network to install from
    host.configure(SMALL)
    daemon = host.spawn("bash", "-ec", start.text)
    host.served(daemon)
    host.follow(commands(page, until="Leave no trace"))
    remove, *release = commands(page, since="Leave no trace")
    host.follow([remove])
    host.end(daemon)
    host.follow(release)
    assert host.run(f"ls -d {ROOT} /mnt/backups 2>/dev/null; ls /run/docker/plugins") == ""


def test_docker_does_what_the_page_says(host: DocsHost) -> None:
    host.begin()
    host.follow(Page("docs/docker.md").steps())


def test_the_small_examples_are_right(host: DocsHost) -> None:
    host.configure("")
    (check,) = [block for block in Page("docs/configuration.md").blocks if block.run_by]
    assert 'trash_retention = "7d"' in host.must(check.text)
    host.begin()
    host.follow(Page("docs/concepts.md").steps())  # of a new host, so it is first
    host.follow(Page("docs/options.md").steps())
    host.follow(Page("README.md").steps())
    host.follow(Page("docs/driver-btrfs.md").steps())
    host.follow(Page("docs/driver-loop.md").steps())
    host.follow(Page("docs/driver-directory.md").steps())
