"""LIO in the kernel, by rtslib: the parts of one exported volume. The only home of rtslib_fb.

What is there is read from configfs each time, never remembered. rtslib has no time limits: where the
kernel takes something away, it waits for requests under way.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from voldrivers.errors import BackendError, InvalidState, NotSupported
from voldrivers.lvm import saveconfig
from voldrivers.lvm.portals import Portal

Node = Any  # Any: rtslib has no types

LUN = 0
#: Only initiators with an ACL get in, and with CHAP.
_ATTRIBUTES = {"authentication": "1", "generate_node_acls": "0", "demo_mode_write_protect": "1"}
#: What the kernel keeps of them (MAX_USER_LEN, MAX_PASS_LEN), and what configfs takes for "none".
_LONGEST, _NONE = 255, "NULL"


@dataclass(frozen=True)
class Chap:
    """A user and a password of CHAP, which is never shown. Raises ValueError for what LIO cannot keep."""

    user: str
    password: str = field(repr=False)

    def __post_init__(self) -> None:
        for name, text in (("user", self.user), ("password", self.password)):
            if not re.fullmatch(rf"[!-~]{{1,{_LONGEST}}}", text) or text == _NONE:
                raise ValueError(f"the CHAP {name} must be 1 to {_LONGEST} printable characters")


@dataclass(frozen=True)
class Dumped:
    """A volume's backstore and target as rtslib saves them; its form, so that it restores them."""

    store: saveconfig.Entry | None
    target: saveconfig.Entry | None


@contextmanager
def opened(iqn: str) -> Iterator[Node]:
    """Give rtslib, and raise what goes wrong in it or in configfs as BackendError."""
    rtslib = _rtslib()
    with _reason(f"iSCSI target {iqn}", rtslib):
        yield rtslib


def ensure_store(rtslib: Node, name: str, device: Path, number: tuple[int, int], serial: str) -> Node:
    """Give the backstore, made on the device if it is not there. Raises InvalidState, as `Target.ensure`."""
    store = find_store(rtslib, name)
    if store is not None and not store.is_configured():
        store.delete()  # of one who was killed
        store = None
    if store is None:
        if rtslib.utils.is_dev_in_use(str(device)):
            raise InvalidState(f"device {device}", "in use (mounted, or exported otherwise)", "free")
        place = _free_place(rtslib)
        store = rtslib.BlockStorageObject(name, dev=str(device), wwn=serial, index=place)
    if (store.major, store.minor) != number:
        raise InvalidState(f"backstore {name}", f"on device {store.udev_path}", f"on {device}")
    if store.wwn != serial:
        if store.status == "activated":  # initiators know it by that
            raise InvalidState(
                f"backstore {name}", f"exported with serial {store.wwn}", f"that with {serial}"
            )
        store.wwn = serial
    return store


def ensure_closed(group: Node, chap: Chap) -> None:
    """Let nobody in without an ACL and CHAP. The secret is kept at the group, where nobody else uses it."""
    for name, value in _ATTRIBUTES.items():
        if group.get_attribute(name) != value:
            group.set_attribute(name, value)
    for node in (group, *group.node_acls):
        give_chap(node, chap)


def give_chap(node: Node, chap: Chap) -> None:
    """Set the secret of a portal group or of an ACL."""
    if chap_of(node) == chap:
        return
    node.chap_userid, node.chap_password = chap.user, chap.password
    if chap_of(node) != chap:  # rtslib ignores what a portal group refuses
        raise BackendError(f"{node!r}", "it did not take the CHAP secret")


def chap_of(node: Node) -> Chap | None:
    """Read the secret of a portal group or of an ACL."""
    try:
        return Chap(node.chap_userid or "", node.chap_password or "")
    except ValueError:  # there is none, or one that is not ours
        return None


def ensure_lun(rtslib: Node, group: Node, store: Node) -> None:
    """Make the LUN of the backstore. Raises InvalidState when it is another one's."""
    lun = find_lun(rtslib, group)
    if lun is None:
        _remove_half(Path(group.path, "lun", f"lun_{LUN}"))
        rtslib.LUN(group, LUN, store)
    elif lun.storage_object.path != store.path:
        target = f"LUN {LUN} of {group.parent_target.wwn}"
        raise InvalidState(target, f"on {lun.storage_object.name}", f"on {store.name}")


def ensure_portal(rtslib: Node, group: Node, portal: Portal) -> None:
    """Let the target answer at an address."""
    with _reason(f"iSCSI portal {portal}", rtslib):
        rtslib.NetworkPortal(group, portal.address, portal.port)


def ensure_mapped(rtslib: Node, acl: Node, lun: Node) -> None:
    """Show the LUN to an initiator, to read and write."""
    if _link_in(_mapped(acl)) is None:
        _remove_half(_mapped(acl))
        rtslib.MappedLUN(acl, LUN, lun)
    mapped = rtslib.MappedLUN(acl, LUN)
    if mapped.write_protect:
        mapped.write_protect = False


def is_on(store: Node, number: tuple[int, int]) -> bool:
    """Tell whether the backstore has this device."""
    return store.is_configured() and (store.major, store.minor) == number


def obstacle(rtslib: Node, group: Node, chap: Chap, portals: Iterable[str], initiators: Sequence[str]) -> str:
    """Say what keeps initiators who know this secret and these portals from logging in; "" for nothing."""
    let_in = {acl.node_wwn.lower(): acl for acl in group.node_acls if _link_in(_mapped(acl))}
    if not group.enable:
        return "disabled"
    if find_lun(rtslib, group) is None:
        return f"without LUN {LUN}"
    if silent := set(portals) - {f"{each.ip_address}:{each.port}" for each in group.network_portals}:
        return f"not answering at {', '.join(sorted(silent))}"
    if strangers := [each for each in initiators if each.lower() not in let_in]:
        return f"closed to {', '.join(strangers)}"
    if any(chap_of(node) != chap for node in (group, *(let_in[each.lower()] for each in initiators))):
        return "refusing the CHAP secret that its hosts have"
    return ""


def check_ours(store: Node, iqn: str, serial: str) -> None:
    """Raise InvalidState for a backstore that is not ours, or that others export too."""
    if not store.is_configured():  # of one who was killed: it has no device, and no user
        return
    users = {lun.parent_tpg.parent_target.wwn for lun in store.attached_luns}
    if others := users - {iqn}:
        state = f"exported by {', '.join(sorted(others))}"
        raise InvalidState(f"backstore {store.name}", state, f"exported by {iqn} only")
    if not users and store.wwn not in ("", serial):
        raise InvalidState(f"backstore {store.name}", f"with serial {store.wwn}", f"ours, with {serial}")


def dump(rtslib: Node, name: str, iqn: str) -> Dumped:
    """Give what there is in the form that rtslib saves; of what is not complete nothing."""
    group, store = find_group(rtslib, iqn), find_store(rtslib, name)
    if group is None or store is None or find_lun(rtslib, group) is None:
        return Dumped(None, None)
    for acl in group.node_acls:
        if _link_in(_mapped(acl)) is None:
            _remove_half(_mapped(acl))
    dumped = store.dump()
    if dumped.get("exclusive"):  # new in 2.2.4: an older library, as at the next boot, would refuse all
        del dumped["exclusive"]
    return Dumped(dumped, group.parent_target.dump())


def find_store(rtslib: Node, name: str) -> Node | None:
    """Find it in configfs itself: by its name alone rtslib asks what it remembers of earlier."""
    for path in Path(rtslib.RTSRoot.configfs_dir, "core").glob(f"iblock_*/{name}"):
        return rtslib.BlockStorageObject(name, index=int(path.parent.name.removeprefix("iblock_")))
    return None


def find_target(rtslib: Node, iqn: str) -> Node | None:
    """Give the target; None without it."""
    fabric = rtslib.FabricModule("iscsi")
    return rtslib.Target(fabric, iqn, "lookup") if Path(fabric.path, iqn).is_dir() else None


def find_group(rtslib: Node, iqn: str) -> Node | None:
    """Give the target's portal group; None without it."""
    target = find_target(rtslib, iqn)
    return rtslib.TPG(target, 1, "lookup") if target and Path(target.path, "tpgt_1").is_dir() else None


def find_lun(rtslib: Node, group: Node) -> Node | None:
    """Give the LUN; None without it, or for one without a backstore."""
    return rtslib.LUN(group, LUN) if _link_in(Path(group.path, "lun", f"lun_{LUN}")) else None


def _free_place(rtslib: Node) -> int:
    """Give a number for a new backstore; an empty place of somebody who was killed is removed first.

    Left to itself rtslib chooses by what it remembers, though another process may have made one since, and
    takes every place that is there for a full one (2.2.4: the files hba_info and hba_mode count).
    """
    core = Path(rtslib.RTSRoot.configfs_dir, "core")
    full = {each.parent.name.rpartition("_")[2] for each in core.glob("*_*/*/")}
    number = next(number for number in itertools.count() if str(number) not in full)
    if (place := core / f"iblock_{number}").is_dir():
        place.rmdir()
    return number


def _mapped(acl: Node) -> Path:
    return Path(acl.path, f"lun_{LUN}")


def _link_in(directory: Path) -> Path | None:
    """Give what makes a LUN one: its link to a backstore, or to another LUN."""
    if not directory.is_dir():
        return None
    return next((path for path in directory.iterdir() if path.is_symlink()), None)


def _remove_half(directory: Path) -> None:
    """Remove a LUN without its link, of one who was killed."""
    if directory.is_dir():
        directory.rmdir()


@contextmanager
def _reason(subject: str, rtslib: Node) -> Iterator[None]:
    """Say why: rtslib drops what the kernel has said, Python keeps it as the context."""
    try:
        yield
    except OSError as error:
        raise BackendError(subject, f"{error.strerror}: {error.filename}") from error
    except rtslib.RTSLibError as error:
        cause = error.__context__
        why = f" ({cause.strerror})" if isinstance(cause, OSError) else ""
        raise BackendError(subject, f"{error}{why}") from error


def _rtslib() -> Node:
    """Import the library: 30 ms, and it is not everywhere."""
    try:
        import rtslib_fb
    except ImportError as error:
        reason = f"they need rtslib: apt install python3-rtslib-fb, or pip install rtslib-fb ({error})"
        raise NotSupported("iSCSI targets", reason) from error
    return rtslib_fb
