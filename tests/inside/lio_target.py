"""The iSCSI target on a real LIO; run by test_target_lab.py in the storage machine, as its own pytest."""

import json
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from voldrivers import locks, process
from voldrivers.errors import BackendError, InvalidInput, InvalidState, NotFound, NotSupported
from voldrivers.lvm import saveconfig
from voldrivers.lvm.iscsiexport import ISCSIExports
from voldrivers.lvm.target import Chap, Export, Target
from voldrivers.model import Attachment, AttachmentState, Connector, Volume
from voldrivers.sizes import MiB

CONFIGFS = Path("/sys/kernel/config/target")
SAVED = Path("/etc/rtslib-fb-target/saveconfig.json")
PREFIX = "iqn.2010-10.org.openstack:"
IQN = f"{PREFIX}volume-id-1"
CHAP = Chap("somebody", "very-secret-word")
ONE, TWO = "iqn.1993-08.org.debian:01:compute", "iqn.1993-08.org.debian:01:other"
PORTALS = ("10.77.1.1:3260", "10.77.2.1:3260")
#: A target of somebody else, made as an operator does.
FOREIGN = """
lvcreate --quiet --yes --size 16m --name foreign vg0
cd /sys/kernel/config/target
store=core/iblock_7/foreign group=iscsi/iqn.2024-01.org.example:foreign/tpgt_1
mkdir -p $store $group/lun/lun_0
echo udev_path=/dev/vg0/foreign >$store/control
echo 1 >$store/enable
ln -s $PWD/$store $group/lun/lun_0/port
targetctl save
"""


@dataclass(frozen=True)
class Options:
    target_prefix: str = PREFIX
    portals: tuple[str, ...] = ("10.77.1.1", "10.77.2.1:3260")


def shell(command: str) -> str:
    return process.run(["bash", "-euo", "pipefail", "-c", command], timeout_s=60).stdout.strip()


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Leave neither targets nor volumes."""
    (CONFIGFS / "iscsi").mkdir(exist_ok=True)  # it stays once anybody has had a target
    yield
    shell("targetctl clear; lvremove --quiet --yes --force vg0; rm -f /etc/rtslib-fb-target/saveconfig.json")


@pytest.fixture
def device() -> Path:
    shell("lvcreate --quiet --yes --size 64m --name volume-id-1 vg0")
    return Path("/dev/vg0/volume-id-1")


@pytest.fixture
def target() -> Target:
    return Target(Options())


def tree() -> set[str]:
    """All that is in configfs, with where links lead; without the values."""
    found = (Path(place, name) for place, *names in os.walk(CONFIGFS) for group in names for name in group)
    return {f"{path} {os.readlink(path) if path.is_symlink() else ''}" for path in found}


def residue(before: set[str]) -> set[str]:
    """What is in configfs more than before; but for empty places, which the next backstore takes."""
    empty = {
        place for place in (CONFIGFS / "core").glob("iblock_*") if not any(map(Path.is_dir, place.iterdir()))
    }
    return {
        found
        for found in tree() - before
        if not {Path(found.split()[0]), Path(found.split()[0]).parent} & empty
    }


def saved() -> dict[str, Any]:  # Any: JSON
    return dict(json.loads(SAVED.read_text()))


def values() -> dict[str, str]:
    """What is in configfs but for what LIO names by chance, counts or is no value."""
    settings = {}
    for path in CONFIGFS.rglob("*"):
        kind = path.parent.name
        if path.is_file() and (kind in {"attrib", "auth", "param", "wwn"} or path.name == "enable"):
            try:
                settings[str(path)] = path.read_text()
            except OSError:
                continue
    return settings


def links() -> set[str]:
    return {f"{p.parent} {os.path.realpath(p)}" for p in CONFIGFS.rglob("*") if p.is_symlink()}


def test_a_volume_is_exported_and_not_any_more(target: Target, device: Path) -> None:
    shell(FOREIGN)
    before, foreign = tree(), saved()
    assert target.exported() == []
    for _ in range(2):
        assert target.ensure("id-1", device, CHAP) == Export(IQN, 0, PORTALS, CHAP)
        target.allow("id-1", ONE)
        target.allow("id-1", TWO)
    assert target.export("id-1") == Export(IQN, 0, PORTALS, CHAP)
    assert target.exported() == ["id-1"]
    group = CONFIGFS / "iscsi" / IQN / "tpgt_1"
    for name, value in {"authentication": 1, "generate_node_acls": 0, "demo_mode_write_protect": 1}.items():
        assert (group / "attrib" / name).read_text() == f"{value}\n"
    assert [(group / "acls" / who / "auth/password").read_text() for who in (ONE, TWO)] == [
        f"{CHAP.password}\n"
    ] * 2
    for _ in range(2):
        target.disallow("id-1", TWO)
    assert [path.name for path in (group / "acls").iterdir()] == [ONE]
    assert [acl["node_wwn"] for acl in saved()["targets"][-1]["tpgs"][0]["node_acls"]] == [ONE]
    for _ in range(2):
        target.remove("id-1")
    assert tree() == before
    assert saved() == foreign
    target.disallow("id-1", ONE)
    with device.open("rb") as opened:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL))  # nobody has it
        assert opened.read(1) == b"\0"
    assert target.exported() == []
    for call in (target.lun_bytes, target.export, lambda v: target.allow(v, ONE)):
        with pytest.raises(NotFound):
            call("id-1")


def test_another_secret_is_everybodys(target: Target, device: Path) -> None:
    target.ensure("id-1", device, CHAP)
    target.allow("id-1", ONE)
    other = Chap("somebody", "another-word")
    assert target.ensure("id-1", device, other) == target.export("id-1")
    secrets = [path.read_text() for path in CONFIGFS.rglob("auth/password") if IQN in str(path)]
    assert secrets == ["another-word\n"] * 2
    assert CHAP.password not in SAVED.read_text()


def test_the_lun_has_the_size_of_the_volume_at_once(target: Target, device: Path) -> None:
    target.ensure("id-1", device, CHAP)
    assert target.lun_bytes("id-1") == 64 * MiB
    shell("lvextend --quiet --size 96m vg0/volume-id-1")
    assert target.lun_bytes("id-1") == 96 * MiB


def test_the_wwn_follows_from_the_volume(target: Target, device: Path) -> None:
    serials = set()
    for _ in range(2):
        target.ensure("id-1", device, CHAP)
        serials |= {path.read_text() for path in CONFIGFS.rglob("vpd_unit_serial")}
        target.remove("id-1")
    assert len(serials) == 1
    target.ensure("id-2", device, CHAP)
    assert {path.read_text() for path in CONFIGFS.rglob("vpd_unit_serial")} != serials


def test_what_is_wrong_is_refused_and_nothing_is_left(target: Target, device: Path) -> None:
    shell("lvcreate --quiet --yes --size 16m --name other vg0; mkfs.ext4 -q /dev/vg0/other")
    other, before = Path("/dev/vg0/other"), tree()
    with pytest.raises(NotFound, match="device /dev/vg0/nope"):
        target.ensure("id-1", Path("/dev/vg0/nope"), CHAP)
    with pytest.raises(InvalidInput, match="block device"):
        target.ensure("id-1", SAVED.parent, CHAP)
    for volume_id in ("", "../id-1", "a/b", "a_b", "A", "x" * 200):
        with pytest.raises(InvalidInput, match="cannot be in the name"):
            target.ensure(volume_id, device, CHAP)
    shell("mount /dev/vg0/other /mnt")
    with pytest.raises(InvalidState, match="mounted"):
        target.ensure("id-1", other, CHAP)
    shell("umount /mnt")
    assert tree() == before
    target.ensure("id-1", device, CHAP)
    here = tree()
    with pytest.raises(InvalidState, match=r"is on device /dev/vg0/volume-id-1, must be on /dev/vg0/other"):
        target.ensure("id-1", other, CHAP)
    with pytest.raises(InvalidState, match="exported otherwise"):
        target.ensure("id-2", device, CHAP)
    with pytest.raises(InvalidInput, match="iSCSI name"):
        target.allow("id-1", "iqn.1993-08.org.debian:01/../x")
    assert tree() == here
    with (
        socket.create_server(("10.77.1.1", 3333)),
        pytest.raises(BackendError, match=":3333: Could not create"),
    ):
        Target(Options(portals=("10.77.1.1:3333",))).ensure("id-1", device, CHAP)
    for portal in ("", "name", "10.0.0.1:0", "10.0.0.1:70000", "fd00::1", "[10.0.0.1]"):
        with pytest.raises(InvalidInput, match="portal"):
            Target(Options(portals=(portal,)))
    for prefix in ("", "iqn.2010-10", "a b", "iqn.2010-10.org/x:"):
        with pytest.raises(InvalidInput, match="prefix"):
            Target(Options(target_prefix=prefix))


def test_a_backstore_that_others_have_is_left_alone(target: Target, device: Path) -> None:
    target.ensure("id-1", device, CHAP)
    (store,) = (CONFIGFS / "core").glob("iblock_*/volume-id-1")
    lun = CONFIGFS / "iscsi/iqn.2024-01.org.example:foreign/tpgt_1/lun/lun_0"
    shell(f"mkdir -p {lun}; ln -s {store} {lun}/port")
    here, text = tree(), SAVED.read_text()
    with pytest.raises(InvalidState, match=r"exported by iqn\.2024-01\.org\.example:foreign"):
        target.remove("id-1")
    assert (tree(), SAVED.read_text()) == (here, text)


def test_what_others_saved_meanwhile_survives(target: Target, device: Path) -> None:
    others = {"fabric_modules": [], "storage_objects": [{"name": "x"}], "targets": [{"wwn": "y"}], "z": 1}
    SAVED.write_text(json.dumps(others))
    SAVED.chmod(0o644)
    target.ensure("id-1", device, CHAP)
    assert stat.S_IMODE(SAVED.stat().st_mode) == 0o600
    assert saved()["storage_objects"][0] == {"name": "x"}
    assert [one["wwn"] for one in saved()["targets"]] == ["y", IQN]
    target.remove("id-1")
    assert saved() == others


def test_a_damaged_file_is_named_and_its_passwords_are_not(target: Target, device: Path) -> None:
    for text in (f'{{"a": "{CHAP.password}"', "[]", '{"targets": [1]}'):
        SAVED.write_text(text)
        with pytest.raises(BackendError, match=r"saved targets .*: it is not what rtslib writes") as caught:
            target.ensure("id-1", device, CHAP)
        assert (caught.value.__cause__, caught.value.__context__) == (None, None)
        assert SAVED.read_text() == text
    SAVED.write_text("")  # what a power cut leaves of rtslib's own writing
    target.ensure("id-1", device, CHAP)
    assert len(saved()["targets"]) == 1


def test_no_byte_is_ever_in_a_file_for_everybody(
    target: Target, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []
    fsync, old_umask = os.fsync, os.umask(0)

    def look(descriptor: int) -> None:
        modes.extend(stat.S_IMODE(path.stat().st_mode) for path in SAVED.parent.iterdir())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    try:
        target.ensure("id-1", device, CHAP)
    finally:
        os.umask(old_umask)
    assert set(modes) == {0o600}
    assert [path.name for path in SAVED.parent.iterdir()] == [SAVED.name]


def test_nothing_shows_the_secret(
    target: Target, device: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    export = target.ensure("id-1", device, CHAP)
    target.allow("id-1", ONE)
    shown = f"{CHAP} {CHAP!r} {export} {export!r} {caplog.text} {shell('dmesg')}"
    (in_the_way := SAVED.with_name("directory")).mkdir()
    monkeypatch.setattr(saveconfig, "_NEW", in_the_way.name)
    with pytest.raises(BackendError) as caught:
        target.allow("id-1", TWO)
    in_the_way.rmdir()
    shown += f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"
    for text in ("with space", "", "x" * 256, "NULL", "line\n"):
        with pytest.raises(ValueError, match="CHAP password") as refused:
            Chap("somebody", text)
        assert not text or text not in str(refused.value)
    assert "somebody" in shown
    assert CHAP.password not in shown


def test_changes_wait_for_each_other_and_give_up(
    target: Target, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voldrivers.lvm.turn._LOCK_S", 0.2)
    with (
        locks.exclusive(Path("/run/voldrivers"), "lio", "a test"),
        pytest.raises(InvalidState, match="another process"),
    ):
        target.ensure("id-1", device, CHAP)
    target.ensure("id-1", device, CHAP)


def test_processes_at_once_do_not_lose_each_others_changes(target: Target) -> None:
    names = [f"id-{number}" for number in range(4)]
    for name in names:
        shell(f"lvcreate --quiet --yes --size 4m --name volume-{name} vg0")
    children = [
        in_child(lambda name=name: target.ensure(name, Path(f"/dev/vg0/volume-{name}"), CHAP))  # type: ignore[misc]  # a lambda with a default
        for name in names
    ]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert target.exported() == names
    assert sorted(one["wwn"] for one in saved()["targets"]) == [f"{PREFIX}volume-{name}" for name in names]


LOSSES = {
    "everything": "targetctl clear",
    "an initiator": f"cd iscsi/{IQN}/tpgt_1/acls; find {ONE}/lun_0 -type l -delete; rmdir {ONE}/lun_0 {ONE}",
    "a portal": f"rmdir iscsi/{IQN}/tpgt_1/np/10.77.2.1:3260",
    "its being enabled": f"echo 0 >iscsi/{IQN}/tpgt_1/enable",
    "the secret": f"echo another-secret >iscsi/{IQN}/tpgt_1/auth/password",
    "the secret, by one that is none": f"echo 'with blanks' >iscsi/{IQN}/tpgt_1/acls/{ONE}/auth/password",
}


def test_what_was_lost_comes_back_as_its_hosts_know_it(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exports, one, two = ISCSIExports(Options()), Connector("1", initiator=ONE), Connector("2", initiator=TWO)
    connection = exports.open("id-1", device, one, [])
    stays = Attachment("a", "id-1", "1", None, None, AttachmentState.ATTACHED, one, connection)
    leaves = Attachment("b", "id-1", "2", None, None, AttachmentState.FORGETTING, two, connection)
    volume = Volume("id-1", "v", "lvm", 64 * MiB, attachments=(stays, leaves))
    whole = (values(), links())
    for what, command in LOSSES.items():
        exports.check_open(volume)
        shell(f"cd {CONFIGFS}; {command}")
        with pytest.raises((InvalidState, NotFound)) as caught:
            exports.check_open(volume)
        print(f"{what}: {caught.value}")
        exports.restore(volume, device)
        assert (values(), links()) == whole, f"{what} was not given back"
    monkeypatch.setattr("voldrivers.lvm.turn._LOCK_S", 0.1)
    SAVED.unlink()
    with locks.exclusive(Path("/run/voldrivers"), "lio", "a test"):  # who changes anything waits in vain
        exports.restore(volume, device)
    assert not SAVED.exists()
    shell("targetctl clear")
    assert exports.open("id-1", device, two, [connection]) == connection
    shell("targetctl clear")
    assert exports.open("id-1", device, two, []) != connection


def test_without_the_library_it_is_not_supported(monkeypatch: pytest.MonkeyPatch, target: Target) -> None:
    monkeypatch.setitem(sys.modules, "rtslib_fb", None)
    with pytest.raises(NotSupported, match="python3-rtslib-fb"):
        target.exported()


def in_child(act: Callable[[], object], kill_at: int = 0) -> int:
    """Do it in a process of its own, killed right before its `kill_at`th change of files; give its pid."""
    pid = os.fork()
    if pid:
        return pid
    counted = 0

    def hook(event: str, arguments: Sequence[Any]) -> None:  # Any: sys.addaudithook
        nonlocal counted
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_ACCMODE
        if writes or event in ("os.mkdir", "os.symlink", "os.rename", "os.rmdir", "os.remove"):
            counted += str(CONFIGFS) in str(arguments) or str(SAVED.parent) in str(arguments)
        if kill_at and counted == kill_at:
            counted = 0  # os.kill is an event too
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    code = 1
    try:
        act()
        code = 0
    finally:
        os._exit(code)


def killed_at_each_change(act: Callable[[], object]) -> Iterator[int]:
    """Do it again and again, killed at a later change each time, until it comes to its end."""
    at = 1
    while (code := os.waitstatus_to_exitcode(os.waitpid(in_child(act, at), 0)[1])) == -signal.SIGKILL:
        yield at
        at += 1
    assert code == 0


def test_a_place_is_free_by_what_is_there_and_not_by_what_was(target: Target, device: Path) -> None:
    """Another process makes and removes backstores while this one lives; and one was killed between two."""
    shell("lvcreate --quiet --yes --size 16m --name volume-id-2 vg0")
    target.ensure("id-1", device, CHAP)
    target.remove("id-1")  # rtslib remembers places from now on
    pid = in_child(lambda: Target(Options()).ensure("id-2", Path("/dev/vg0/volume-id-2"), CHAP))
    assert os.waitpid(pid, 0)[1] == 0
    target.ensure("id-1", device, CHAP)
    assert sorted(target.exported()) == ["id-1", "id-2"]
    target.remove("id-1")
    (CONFIGFS / "core/iblock_1").mkdir(exist_ok=True)
    target.ensure("id-1", device, CHAP)
    assert sorted(target.exported()) == ["id-1", "id-2"]


def test_killed_anywhere_it_is_made_whole_or_removed(target: Target, device: Path) -> None:
    def make() -> None:
        target.ensure("id-1", device, CHAP)
        target.allow("id-1", ONE)

    shell(FOREIGN)
    before, foreign = tree(), saved()
    make()
    whole = (values(), links())
    killed = []
    target.remove("id-1")
    for at in killed_at_each_change(make):
        target.disallow("id-1", TWO)
        target.remove("id-1")
        assert (residue(before), saved()) == (set(), foreign), f"residue after a kill before change {at}"
        os.waitpid(in_child(make, at), 0)
        make()
        assert (values(), links()) == whole, f"not made whole after a kill before change {at}"
        assert [one["wwn"] for one in saved()["targets"]][-1] == IQN
        target.remove("id-1")
        assert (tree() - before, saved()) == (set(), foreign), f"residue after a kill before change {at}"
        killed.append(at)
    print("making: killed before changes", killed)
    assert len(killed) > 2
    make()
    removals = []
    for at in killed_at_each_change(lambda: target.remove("id-1")):
        if at % 2:
            make()
            assert (values(), links()) == whole, f"not made whole after a removal killed before change {at}"
        target.remove("id-1")
        assert (residue(before), saved()) == (set(), foreign), f"residue of a removal killed before {at}"
        make()
        removals.append(at)
    print("removing: killed before changes", removals)
    assert removals
    assert subprocess.run(["pgrep", "targetctl"], check=False).returncode == 1
