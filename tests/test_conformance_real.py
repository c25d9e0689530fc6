"""The suite on a real driver: files in a directory, this machine's QEMU, and a look past both."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random

import pytest
from realsite import mounted

from voldrivers.base import Driver, Run
from voldrivers.conformance import Subject, Verdict, catalogue, naming
from voldrivers.conformance.aids.mounting import mounted as filesystem_on
from voldrivers.conformance.catalogue import Check
from voldrivers.conformance.elsewhere import in_another_process
from voldrivers.conformance.places import GuestPlace
from voldrivers.conformance.runner import run_check
from voldrivers.guests.device import DeviceGuest
from voldrivers.host.local import LocalHost, LocalOptions
from voldrivers.nfs.driver import NFSDriver
from voldrivers.nfs.options import NFSOptions
from voldrivers.nfs.oracle import ShareOracle
from voldrivers.process import run
from voldrivers.sizes import GiB, MiB

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("qemu-system-x86_64", "qemu-img", "mkfs.ext4"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a file system of one's own needs root"),
]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    directory = tmp_path_factory.mktemp("conformance")
    share, aside, disk = directory / "share", directory / "aside", directory / "disk"
    share.mkdir()
    aside.mkdir()
    with disk.open("wb") as file:
        file.truncate(GiB)
    run(["mkfs.ext4", "-q", "-F", str(disk)], timeout_s=20)

    options = NFSOptions(str(share), must_be_mounted=True)

    def make(kind: type[Driver], run: Run) -> Driver:
        return kind("files", options, run)

    @contextmanager
    def outage() -> Iterator[None]:
        """Have the share be mounted elsewhere; who has a file of it open keeps that."""
        run(["mount", "--move", str(share), str(aside)], timeout_s=20)
        try:
            yield
        finally:
            run(["mount", "--move", str(aside), str(share)], timeout_s=20)

    with (
        _private(directory),
        mounted("ext4", "-o", "loop", str(disk), point=share),
        DeviceGuest(directory) as guest,
    ):
        host = LocalHost("here", LocalOptions(qmp_dir=directory), run)
        yield Subject(
            NFSDriver,
            make,
            [GuestPlace(host, guest)],
            ShareOracle(options),
            volume_options={"format": "raw"},
            deadline_s=20.0,
            outage=outage,
            elsewhere=in_another_process(partial(NFSDriver, "files", options, run)),
        )


@contextmanager
def _private(directory: Path) -> Iterator[None]:
    """Have mounts in a directory be movable: those below a shared one are not (mount(8), --move)."""
    run(["mount", "--bind", str(directory), str(directory)], timeout_s=20)
    try:
        run(["mount", "--make-private", str(directory)], timeout_s=20)
        yield
    finally:
        run(["umount", "--lazy", str(directory)], timeout_s=20)


SMOKE = [pytest.param(check) for check in catalogue() if check.smoke]
REST = [pytest.param(check, marks=pytest.mark.full) for check in catalogue() if not check.smoke]


@pytest.mark.parametrize("check", SMOKE + REST, ids=lambda check: check.id)
def test_files_in_a_directory(subject: Subject, check: Check) -> None:
    result = run_check(check, subject)
    assert result.verdict in (Verdict.PASSED, Verdict.NOT_APPLICABLE, Verdict.NOT_RUN), result


@pytest.mark.parametrize("kind", naming._KINDS)
def test_no_name_that_is_drawn_is_one_of_the_drivers_own(
    subject: Subject, kind: Callable[[Random], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of this driver are called as Cinder calls volumes; what does not exist is none of them."""
    monkeypatch.setattr(naming, "_KINDS", (kind,))
    check = next(each for each in catalogue() if each.id == "BAD-006")
    result = run_check(check, subject)
    assert result.verdict is Verdict.PASSED, result


@pytest.mark.needs("e2fsck", "resize2fs", "losetup")
def test_a_file_system_grows_however_slow_the_driver_is(tmp_path: Path) -> None:
    """Mounted a second after it was made or checked, resize2fs refuses it as not checked since."""
    medium = tmp_path / "medium"
    with medium.open("wb") as file:
        file.truncate(16 * MiB)
    with filesystem_on(run, medium, fresh=True) as made:
        made.write("before", MiB)
    os.truncate(medium, 48 * MiB)
    time.sleep(1.1)
    with filesystem_on(run, medium, fresh=False) as grown:
        grown.grow(online=False)
        grown.check("before")
        assert grown.size_bytes() > 40 * MiB
