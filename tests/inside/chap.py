"""CHAP secrets that other hands change on the target; called by test_chap_lab.py in the storage machine."""

import time
from pathlib import Path

from voldrivers import process, registry
from voldrivers.errors import VolDriverError
from voldrivers.extend import Engine, Site
from voldrivers.extend.store import Store
from voldrivers.lvm.driver import LVMDriver
from voldrivers.model import ConnectionInfo, Connector, Volume

CONFIG = Path("/etc/voldrivers/voldrivers.toml")
_ISCSI = Path("/sys/kernel/config/target/iscsi")


class Meddled(LVMDriver):
    """Whoever was let in has another secret on the target before it can log in."""

    told = ""

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        info = super().initialize_connection(volume, connector)
        self.told = info.properties["auth_password"]
        change_secret(volume.id)
        return info


def change_secret(volume_id: str) -> None:
    """Give all initiators of a volume another secret; sessions that are there stay."""
    passwords = list(_ISCSI.glob(f"*volume-{volume_id}/tpgt_1/acls/*/auth/password"))
    assert passwords, "nobody is let in"
    for password in passwords:
        password.write_text("of-other-hands\n")


def drop_sessions(volume_id: str) -> None:
    """End all sessions of a volume; who has the secret may log in again."""
    for enable in _ISCSI.glob(f"*volume-{volume_id}/tpgt_1/enable"):
        enable.write_text("0")
        enable.write_text("1")


def attach(name: str, host: str) -> tuple[str, list[str], str, float]:
    """Attach with a secret that the target does not take.

    Give the kind of the error, what it says with its notes, the secret that the host was told, and seconds.
    """
    config = registry.load(CONFIG)
    plain = registry.make_driver(config.backends["lvm"], process.run)
    driver = Meddled(plain.name, plain.options, process.run)
    hosts = {host: registry.make_host(config.hosts[host], process.run)}
    store = Store(config.state_dir / "voldrivers.db")
    with Engine(Site(store, {driver.name: driver}, hosts, config.state_dir / "locks")) as engine:
        began = time.monotonic()
        try:
            engine.attach(name, host)
        except VolDriverError as error:
            said = [str(error), *getattr(error, "__notes__", ())]
            return type(error).__name__, said, driver.told, time.monotonic() - began
    raise AssertionError("it was attached")
