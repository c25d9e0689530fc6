"""Attachments that clients connect by themselves, as Nova and Glance do, beside an extend."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from crashing import World

from voldrivers.errors import InvalidState
from voldrivers.extend import Engine, clients
from voldrivers.model import Attachment, Connector, Phase, VolumeStatus
from voldrivers.sizes import MiB

SMALL, LARGE = 8 * MiB, 16 * MiB


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def engine(world: World, ram_path: Path) -> Iterator[Engine]:
    """Give an engine with a volume that an instance has, and others may have too."""
    with world.engine(ram_path) as engine:
        engine.create_volume("v", SMALL, multi_attach=True)
        engine.attach("v", "a", "vm")
        yield engine


def reserve(engine: Engine) -> Attachment:
    return clients.reserve(engine.site, engine.volume("v").id, None)


def test_nothing_grows_while_another_host_is_being_connected(world: World, engine: Engine) -> None:
    """Who connects then would get the old size, and hear of no new one."""
    wanted = reserve(engine)
    for state in (VolumeStatus.RESERVED, VolumeStatus.ATTACHING):
        with pytest.raises(InvalidState, match=f"volume v is {state}, must be available or in-use"):
            engine.extend("v", LARGE)
        assert list(world.array.sizes.values()) == [SMALL]
        clients.give(engine.site, wanted.id, Connector("b"))
    clients.complete(engine.site, wanted.id)
    assert engine.extend("v", LARGE).phase is Phase.COMPLETED
    assert list(world.machines["b"].devices.values()) == [LARGE]


def test_a_client_lets_go_of_no_volume_that_is_extending(world: World, engine: Engine) -> None:
    attached = reserve(engine)
    clients.give(engine.site, attached.id, Connector("b"))
    clients.complete(engine.site, attached.id)
    engine.extend("v", LARGE, wait=False)
    for act in (
        lambda: clients.release(engine.site, attached.id),
        lambda: reserve(engine),
    ):
        with pytest.raises(InvalidState, match="volume v is extending"):
            act()
    assert (engine.volume("v").status, len(engine.volume("v").attachments)) == (VolumeStatus.EXTENDING, 2)
    assert engine.resume()[0].error is None
    assert engine.volume("v").status is VolumeStatus.IN_USE
    clients.release(engine.site, attached.id)
    assert engine.volume("v").status is VolumeStatus.IN_USE
    assert {host for _, host in world.array.exports} == {"a"}
