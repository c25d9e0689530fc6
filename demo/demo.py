"""The main job, seen from outside: a volume grows while a real guest uses it.

`make demo` runs it. It uses the `voldrivers` command and the project's own test guest, works in a
directory of its own, needs no root, and ends with an error as soon as something is not as it must be.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from voldrivers.errors import VolDriverError
from voldrivers.guests.linux import LinuxGuest

BEGAN = time.monotonic()
CACHE = Path(__file__).resolve().parents[1] / "build" / "guest"
VOLDRIVERS = Path(sys.executable).with_name("voldrivers")
MiB = 1 << 20
#: The words in which virtio_blk reports that its disk has grown (drivers/block/virtio_blk.c of Linux).
NEW_SIZE = "new size:"

CONFIGURATION = """\
state_dir = "state"

[backend.files]
driver = "nfs"
share = "{here}/share"    # a directory plays the NFS share; or "server:/export"
"""


def main() -> None:
    """Create, attach, be refused, extend, look."""
    with tempfile.TemporaryDirectory(prefix="demo-") as directory:
        os.chdir(directory)
        os.environ["VOLDRIVERS_CONFIG"] = "voldrivers.toml"
        Path("share").mkdir()
        configuration = CONFIGURATION.format(here=directory)
        Path("voldrivers.toml").write_text(configuration)
        tell("A backend in voldrivers.toml")
        print(indented(configuration))
        tell("A volume of 64 MiB")
        voldrivers("volume", "create", "data", "64M")
        tell("A guest: Debian's kernel in a QEMU")
        with LinuxGuest(Path(), "guest", CACHE) as guest:
            print(indented(f"runs under {guest.accelerator.name}: {guest.accelerator.reason}"))
            extend_in_use(guest)
        os.chdir("/")
    print(f"\nDone in {time.monotonic() - BEGAN:.0f} seconds; everything was as it must be.")


def extend_in_use(guest: LinuxGuest) -> None:
    """Attach the volume to the running guest, extend it there, and see every layer agree."""
    tell("The volume is plugged into the running guest, which finds it and writes to it")
    voldrivers("attach", "data", "--qmp", str(guest.qmp_socket))
    print(indented(guest.wait_for_line(r"\[vda\] \d+ 512-byte logical blocks", 60)))
    in_guest(guest, "echo written before | dd of=/dev/vda bs=512 conv=sync 2>/dev/null")

    tell("Nobody else can resize the file: QEMU holds its lock")
    refused = run("qemu-img", "resize", "-f", "raw", volume_file(), "128M", succeeds=False)
    must('Failed to get "write" lock' in refused, "qemu-img is refused by the lock")

    tell("The size ledger before")
    ledger_must_show(64)
    must(NEW_SIZE not in guest.console_text(), "the guest's kernel has reported no new size")

    tell("Extended in use")
    voldrivers("extend", "data", "128M")

    tell("The size ledger after")
    ledger_must_show(128)

    tell("What the guest's own kernel says, on its serial console")
    print(indented(guest.wait_for_line(NEW_SIZE, 60)))
    in_guest(guest, "echo written after | dd of=/dev/vda bs=512 conv=sync seek=262143 2>/dev/null")
    must(in_guest(guest, "head -c 14 /dev/vda") == "written before", "what was written before is there")
    last = in_guest(guest, "tail -c 512 /dev/vda | head -c 13")
    must(last == "written after", "the last of the new sectors can be written and read")


def ledger_must_show(size_mib: int) -> None:
    """Print the ledger for people and check the one for programs: file, QEMU node and guest agree."""
    voldrivers("doctor", "data")
    rows = json.loads(run(str(VOLDRIVERS), "doctor", "data", "--json", shown=False))["rows"]
    shown = {row["layer"]: row["observed_bytes"] for row in rows}
    agree = len(shown) == 3 and set(shown.values()) == {size_mib * MiB}
    must(agree, f"{', '.join(shown)} show {size_mib} MiB")


def volume_file() -> str:
    """Ask where the attached volume is."""
    answer = json.loads(run(str(VOLDRIVERS), "volume", "show", "data", "--json", shown=False))
    return str(answer["attachments"][0]["device_path"])


def voldrivers(*words: str) -> None:
    """Run the command line as an operator does."""
    run(str(VOLDRIVERS), *words)


def in_guest(guest: LinuxGuest, line: str) -> str:
    """Run a line of shell in the guest."""
    print(indented(f"guest# {line}"))
    return guest.shell(line)


def run(*argv: str, shown: bool = True, succeeds: bool = True) -> str:
    """Run a program, show it and what it printed, and check that it ended as it must."""
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603 - ours
    printed = (ended.stdout + ended.stderr).strip()
    as_expected = (ended.returncode == 0) is succeeds
    if shown or not as_expected:
        line = shlex.join([Path(argv[0]).name, *argv[1:]])
        print(indented(f"$ {line}\n{printed}"), flush=True)
    if not as_expected:
        sys.exit(f"demo: exit code {ended.returncode}")
    return printed


def tell(title: str) -> None:
    """Print a step and the time it began."""
    print(f"\n[{time.monotonic() - BEGAN:5.1f} s] {title}", flush=True)


def must(holds: bool, what: str) -> None:
    """Say what was checked; end here when it does not hold."""
    if not holds:
        sys.exit(f"demo: not so: {what}")
    print(f"    ok: {what}", flush=True)


def indented(text: str) -> str:
    """Set what others print apart."""
    return "\n".join(f"    {line}" for line in text.strip().splitlines())


if __name__ == "__main__":
    try:
        main()
    except VolDriverError as error:
        sys.exit(f"demo: {error}")
