"""What a platform's worker does, called as the platform's process calls it, without a platform."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from voldrivers.errors import CommandFailed, InvalidState, NotFound
from voldrivers.integrations import translation
from voldrivers.integrations.duties import Duties
from voldrivers.model import ConnectionInfo, Snapshot, Volume
from voldrivers.registry import load
from voldrivers.sizes import GiB

pytestmark = pytest.mark.needs("qemu-img")
ONE = Volume("1", "volume-1", "files", GiB)


@pytest.fixture
def duties(ram_path: Path) -> Duties:
    (ram_path / "share").mkdir()
    config = ram_path / "voldrivers.toml"
    config.write_text('state_dir = "state"\n[backend.files]\ndriver = "nfs"\nshare = "share"\n')
    return Duties(load(config), "files")


def test_a_volume_that_has_grown_since_is_no_snapshot_of_the_recorded_size(
    duties: Duties, ram_path: Path
) -> None:
    """It was extended while the request for the snapshot was on its way."""
    volume = replace(ONE, provider_data=duties.create_volume(ONE, {}))
    os.truncate(ram_path / "share" / "volume-1", 2 * GiB)
    snapshot = Snapshot("s", "snapshot-s", "1", GiB)
    with pytest.raises(InvalidState, match="is 2 GiB large, must be 1 GiB, as recorded for snapshot"):
        duties.create_snapshot(replace(volume, snapshots=(snapshot,)), snapshot)
    assert os.listdir(ram_path / "share") == ["volume-1"]
    larger = replace(snapshot, size_bytes=2 * GiB)
    assert duties.create_snapshot(replace(volume, snapshots=(larger,)), larger).of_snapshot


def test_a_volume_is_let_go_of_with_all_that_was_written(duties: Duties, ram_path: Path) -> None:
    path = ram_path / "share" / "volume-1"
    info = ConnectionInfo("file", {"path": str(path), "format": "raw"})
    with pytest.raises(NotFound):
        duties.connect_here(ONE, info)
    duties.create_volume(ONE, {})
    assert duties.connect_here(ONE, info) == str(path)
    duties.disconnect_here(ONE, info, str(path))
    duties.disconnect_here(ONE, info, str(path.with_name("gone")))
    with pytest.raises(CommandFailed, match="error syncing"):  # one that cannot be flushed, whatever it says
        duties.disconnect_here(ONE, info, "/dev/full")


@pytest.mark.parametrize(
    ("written", "read"),
    [("true", True), ("<is> True", True), ("False", False), ("qcow2", "qcow2"), ("8", 8)],
)
def test_an_extra_spec_is_a_text_for_a_value(written: str, read: object) -> None:
    specs = {"voldrivers:what": written, "volume_backend_name": "files", "capabilities:x": "<is> True"}
    assert translation.options(specs) == {"what": read}


def test_a_host_that_cannot_be_asked_is_told_when_the_platform_begins(ram_path: Path) -> None:
    """And the backend is used all the same: other hosts are well."""
    (ram_path / "share").mkdir()
    config = ram_path / "voldrivers.toml"
    host = '[host.compute]\nkind = "agent"\nurl = "https://compute:1"\ntoken_file = "missing"\n'
    config.write_text(f'state_dir = "state"\n[backend.files]\ndriver = "nfs"\nshare = "share"\n{host}')
    (trouble,) = Duties(load(config), "files").describe().troubles
    assert trouble.startswith("host compute: ")
    assert "missing" in trouble
