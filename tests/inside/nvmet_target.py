"""Exports by a real nvmet; run by test_nvme_lab.py in the storage machine, as its own pytest."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from inside import lio_target
from inside.lio_target import in_child, killed_at_each_change, shell
from voldrivers import locks, process
from voldrivers.errors import BackendError, InvalidInput, InvalidState, NotFound, NotSupported
from voldrivers.lvm.nvmeexport import NVMeExports
from voldrivers.model import Attachment, AttachmentState, ConnectionInfo, Connector, Volume
from voldrivers.sizes import MiB

CONFIGFS = Path("/sys/kernel/config/nvmet")
NQN = "nqn.2010-10.org.openstack:volume-id-1"
ONE, TWO = (Connector(name, nqn=f"nqn.2014-08.org.example:{name}") for name in ("one", "two"))
#: A subsystem of somebody else, at an address that is ours too.
FOREIGN = f"""
lvcreate --quiet --yes --size 16m --name foreign vg0
cd {CONFIGFS}
mkdir -p subsystems/foreign/namespaces/1 ports/1 hosts/nqn.x
echo /dev/vg0/foreign >subsystems/foreign/namespaces/1/device_path
echo 1 >subsystems/foreign/namespaces/1/enable
cd ports/1
echo tcp >addr_trtype; echo ipv4 >addr_adrfam; echo 10.77.1.1 >addr_traddr; echo 4420 >addr_trsvcid
ln -s {CONFIGFS}/subsystems/foreign subsystems/
"""
CLEAR = f"""
cd {CONFIGFS}
find ports/*/subsystems subsystems/*/allowed_hosts -type l -delete
rmdir subsystems/*/namespaces/* subsystems/* ports/* hosts/*
"""


@dataclass(frozen=True)
class Options:
    target_prefix: str = "iqn.2010-10.org.openstack:"
    portals: tuple[str, ...] = ("10.77.1.1", "10.77.2.1:4421")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave neither subsystems nor volumes."""
    monkeypatch.setattr(lio_target, "CONFIGFS", CONFIGFS)  # whose changes are counted
    shell("modprobe --all nvmet nvmet-tcp; lvcreate --quiet --yes --size 64m --name volume-id-1 vg0")
    yield
    shell(f"( {CLEAR} ) 2>/dev/null || true")
    shell("lvremove --quiet --yes --force vg0")


@pytest.fixture
def device() -> Path:
    return Path("/dev/vg0/volume-id-1")


@pytest.fixture
def exports() -> NVMeExports:
    return NVMeExports(Options(), process.run)


def tree() -> dict[str, str]:
    """All that is in configfs, with values, and where links lead."""
    found = {}
    for path in CONFIGFS.rglob("*"):
        found[str(path)] = os.readlink(path) if path.is_symlink() else ""
        if path.is_file() and path.name not in ("revalidate_size", "attr_cntlid_max", "device_nguid"):
            found[str(path)] = path.read_text()
    return found


def volume(info: ConnectionInfo) -> Volume:
    """Give a volume that ONE has, and that TWO is being forced off."""
    stays = Attachment("a", "id-1", "one", None, None, AttachmentState.ATTACHED, ONE, info)
    leaves = Attachment("b", "id-1", "two", None, None, AttachmentState.FORGETTING, TWO, info)
    return Volume("id-1", "v", "lvm", 64 * MiB, attachments=(stays, leaves))


def test_a_volume_is_exported_and_not_any_more(exports: NVMeExports, device: Path) -> None:
    shell(FOREIGN)
    before = tree()
    for _ in range(2):
        info = exports.open("id-1", device, ONE, [])
        assert exports.open("id-1", device, TWO, [info]) == info
    assert info.properties["portals"] == "10.77.1.1:4420,10.77.2.1:4421"
    subsystem = CONFIGFS / "subsystems" / NQN
    assert (subsystem / "namespaces/1/device_uuid").read_text().strip() == info.properties["vol_uuid"]
    assert (subsystem / "attr_allow_any_host").read_text() == "0\n"
    assert (CONFIGFS / "ports/1/subsystems" / NQN).is_symlink(), "a port of others is at this address"
    assert len(list(CONFIGFS.glob("ports/*"))) == 2
    assert exports.shown_bytes("id-1") == 64 * MiB
    shell("lvextend --quiet --size 96m vg0/volume-id-1")
    assert exports.shown_bytes("id-1") == 96 * MiB
    for _ in range(2):
        exports.close_to("id-1", TWO)
    assert [path.name for path in (subsystem / "allowed_hosts").iterdir()] == [ONE.nqn]
    with pytest.raises(InvalidState, match=r"open to nqn\.2014-08.org.example:one, must be open to nobody"):
        exports.remove("id-1")
    exports.close_to("id-1", ONE)
    for _ in range(2):
        exports.remove("id-1")
    assert tree() == before
    os.close(os.open(device, os.O_RDONLY | os.O_EXCL))  # nobody has it
    with pytest.raises(NotFound):
        exports.shown_bytes("id-1")


def test_what_is_wrong_is_refused(exports: NVMeExports, device: Path) -> None:
    with pytest.raises(NotSupported, match="nvme-cli"):
        exports.open("id-1", device, Connector("three"), [])
    with pytest.raises(InvalidInput, match="NVMe name"):
        exports.open("id-1", device, Connector("three", nqn="nqn.2014-08.org/../x"), [])
    with pytest.raises(InvalidInput, match="cannot be in the name"):
        exports.open("../id-1", device, ONE, [])
    assert list(CONFIGFS.glob("*/*")) == []
    shell("mkfs.ext4 -q /dev/vg0/volume-id-1; mount /dev/vg0/volume-id-1 /mnt")
    with pytest.raises(InvalidState, match="mounted"):
        exports.open("id-1", device, ONE, [])
    shell("umount /mnt; lvcreate --quiet --yes --size 16m --name other vg0")
    exports.open("id-1", device, ONE, [])
    with pytest.raises(InvalidState, match="is on device /dev/vg0/volume-id-1"):
        exports.open("id-1", Path("/dev/vg0/other"), ONE, [])
    nowhere = NVMeExports(Options(portals=("192.0.2.1",)), process.run)
    with pytest.raises(BackendError, match="Cannot assign requested address"):
        nowhere.open("id-2", Path("/dev/vg0/other"), ONE, [])


def test_what_was_lost_comes_back(
    exports: NVMeExports, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attached = volume(exports.open("id-1", device, ONE, []))
    whole = tree()
    hosts, space = f"subsystems/{NQN}/allowed_hosts", f"subsystems/{NQN}/namespaces/1"
    for lose in (CLEAR, f"cd {CONFIGFS}; rm {hosts}/*", f"cd {CONFIGFS}; echo 0 >{space}/enable"):
        exports.check_open(attached)
        shell(lose)
        with pytest.raises(InvalidState, match="as its hosts know it"):
            exports.check_open(attached)
        exports.restore(attached, device)
        assert tree() == whole, f"not given back after {lose}"
    monkeypatch.setattr("voldrivers.lvm.turn._LOCK_S", 0.1)
    with locks.exclusive(Path("/run/voldrivers"), "lio", "a test"):  # who changes anything waits in vain
        exports.restore(attached, device)


def test_killed_anywhere_it_is_made_whole_or_removed(exports: NVMeExports, device: Path) -> None:
    def make() -> None:
        exports.open("id-1", device, ONE, [])

    def end() -> None:
        exports.close_to("id-1", ONE)
        exports.remove("id-1")

    before = tree()
    make()
    whole = tree()
    end()
    killed = []
    for act, begin in ((make, end), (end, make)):
        for at in killed_at_each_change(act):
            make()
            assert tree() == whole, f"not made whole after a kill before change {at}"
            begin()
            os.waitpid(in_child(act, at), 0)
            end()
            assert tree() == before, f"residue after a kill before change {at}"
            begin()
            killed.append(at)
        end()
    print("killed before changes", killed)
    assert len(killed) > 4
