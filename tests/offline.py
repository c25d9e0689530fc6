"""A vendor's driver that declares nothing: its volumes are extended while they are detached."""

from pathlib import Path

from voldrivers.capabilities import Capabilities
from voldrivers.nfs.driver import NFSDriver


class OfflineDriver(NFSDriver):
    """Files on a share, as those of `nfs`."""

    capabilities = Capabilities()


def install(directory: Path) -> None:
    """Write the distribution into a directory of sys.path, as pip would."""
    described = directory / "offline-1.0.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: offline\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text("[voldrivers.drivers]\noffline = offline:OfflineDriver\n")
