"""One Docker host for all tests here; each leaves it without containers, volumes and mounts."""

import itertools
from collections.abc import Iterator

import pytest

from tests.docker_host import Dockerd, Host, Voldriverd
from tests.world import World

_numbers = itertools.count(1)


@pytest.fixture(scope="package")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    base = tmp_path_factory.mktemp("host")
    world = World()
    vd, dockerd = Voldriverd(world, base / "vd"), Dockerd(world, base)
    try:
        vd.start()
        dockerd.start()
        dockerd.make_images()
        yield Host(world, vd, dockerd)
        assert "Traceback" not in vd.log
    finally:
        world.close()
        vd.clean()
        dockerd.leave_no_cgroup()


@pytest.fixture(autouse=True)
def mended(host: Host) -> Iterator[None]:
    yield
    host.mend()


@pytest.fixture
def vd(host: Host) -> Voldriverd:
    return host.vd


@pytest.fixture
def dockerd(host: Host) -> Dockerd:
    return host.dockerd


@pytest.fixture
def name() -> str:
    """Give a name that no other test uses."""
    return f"vol-{next(_numbers)}"


@pytest.fixture(params=["btrfs", "loop", "directory"])
def driver(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found
