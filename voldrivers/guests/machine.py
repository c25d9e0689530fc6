"""The QEMU process under every test guest, and the choice between KVM and TCG."""

import shlex
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from voldrivers import process
from voldrivers.errors import (
    BackendError,
    CommandFailed,
    InvalidInput,
    InvalidState,
    NotSupported,
    OutcomeUnknown,
)
from voldrivers.host.qmp import Monitor

QEMU = "qemu-system-x86_64"

_START_S, _MOVE_S = 30.0, 60.0
_LONGEST_SOCKET_PATH = 107  # bytes, unix(7)
_ROM_BYTES, _RESET_VECTOR_BYTES, _HLT = 64 * 1024, 16, b"\xf4"
_PROBE_S = 3.0
# mov ecx, 0x10000000; again: dec ecx; jnz again; mov al, 42; out 0xf4, al - in 16-bit mode.
_PROBE = bytes.fromhex("66b900000010 6649 75fc b02a e6f4")
_PROBE_EXIT = 42 << 1 | 1  # isa-debug-exit ends QEMU with (value << 1) | 1


@dataclass(frozen=True)
class Accelerator:
    """What runs the guest's CPU, `kvm` or `tcg`, and why it was chosen."""

    name: str
    reason: str


@cache
def accelerator() -> Accelerator:
    """Choose KVM where a guest really ran under it, TCG everywhere else; asked once per process.

    The presence of /dev/kvm proves nothing: in a nested machine it may emulate instruction by
    instruction, so that firmware runs and a kernel never boots. The probe is a firmware of one loop
    of 2^28 turns: 1 s under TCG, not done after 5 s under such a KVM (Linux 6.18 with PVM).
    """
    if not Path("/dev/kvm").exists():
        return Accelerator("tcg", "there is no /dev/kvm")
    with tempfile.TemporaryDirectory(prefix="voldrivers-") as directory:
        rom = Path(directory, "probe.rom")
        write_rom(rom, _PROBE)
        argv = [*_command("probe", "kvm"), "-bios", str(rom), "-device", "isa-debug-exit,iobase=0xf4"]
        try:
            process.run(argv, timeout_s=_PROBE_S)
        except OutcomeUnknown:
            return Accelerator("tcg", f"a probe guest did not end within {_PROBE_S:g} seconds under KVM")
        except CommandFailed as error:
            if error.exit_code == _PROBE_EXIT:
                return Accelerator("kvm", "a probe guest ran to its end under it")
            last_line = error.reason.rpartition("\n")[2]
            return Accelerator("tcg", f"a probe guest failed under KVM: {last_line}")
    return Accelerator("tcg", "a probe guest ended without its answer under KVM")


def write_rom(path: Path, code: bytes = b"") -> None:
    """Write a firmware that runs `code` (at most 16 bytes, 16-bit mode) at the reset vector, then halts."""
    path.write_bytes(_HLT * (_ROM_BYTES - _RESET_VECTOR_BYTES) + code.ljust(_RESET_VECTOR_BYTES, _HLT))


class Machine:
    """One QEMU of machine type `pc`, running from construction to the end of its `with` block.

    `qmp_socket` is left free for the product: QEMU serves one client of a socket at a time, so the
    guest's own calls go through a second socket (`execute`). QEMU dies with the thread that started
    it, whatever ends that (PR_SET_PDEATHSIG, prctl(2)): start it from a thread that lives long enough.
    """

    def __init__(self, directory: Path, name: str, arguments: Sequence[str], *, accel: str = "tcg") -> None:
        """Start QEMU with `arguments` after the fixed ones and wait until its monitor answers.

        All files are `name.*` in `directory`, which exists; those of an earlier guest are replaced.
        Raises NotSupported without QEMU, InvalidInput when a socket's path is too long, BackendError
        with what QEMU printed.
        """
        self.directory, self.name = directory, name
        self.connections = ExitStack()  # what a guest closes when QEMU is gone
        self.qmp_socket, self.log = directory / f"{name}.qmp", directory / f"{name}.log"
        self._control_socket = directory / f"{name}.control"
        monitors = (*_monitor("qmp", self.qmp_socket), *_monitor("control", self._control_socket))
        self._argv = [*_command(name, accel), *monitors, *arguments]
        self._begin()

    def __enter__(self) -> Self:
        """Give the running guest."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill it, whatever happened."""
        self.kill()

    @property
    def pid(self) -> int:
        """The process id of QEMU itself."""
        return self.process.pid

    @property
    def is_running(self) -> bool:
        """Tell whether QEMU has not ended."""
        return self.process.poll() is None

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None
    ) -> Any:  # Any: each command has its own reply
        """Run a QMP command over the guest's own socket, so that `qmp_socket` stays free.

        Raises what `Monitor` raises.
        """
        with Monitor(self._control_socket) as control:
            return control.execute(command, arguments)

    def save(self, state: Path) -> None:
        """Write its memory and devices to a file and stay stopped; QEMU lets go of the disks.

        Raises BackendError when QEMU cannot write it, OutcomeUnknown when it takes too long.
        """
        self.execute("stop")
        self.execute("migrate", {"uri": f"exec:cat > {shlex.quote(str(state))}"})
        self._wait_until_moved()

    def resume(self) -> None:
        """Go on from the state that `incoming` named. Raises as `save`, for a state that does not fit too."""
        self._wait_until_moved()
        self.execute("cont")

    def kill(self) -> None:
        """End QEMU by SIGKILL, as a crash would, and wait until it is gone. May be called again."""
        self.process.kill()
        self.process.wait()
        self.connections.close()

    def start_again(self) -> None:
        """Start QEMU anew, after `kill`, without what was plugged in. Raises as the construction does."""
        self._begin()

    def wait(self, timeout_s: float) -> int:
        """Wait until QEMU ends by itself and give its exit code. Raises OutcomeUnknown when it does not."""
        process.wait_until(lambda: not self.is_running, timeout_s, f"the end of guest {self.name}")
        return self.process.wait()

    def wait_until(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Wait for something that this guest does.

        Raises BackendError, with the last that QEMU printed, when QEMU ends before; OutcomeUnknown
        when time is up.
        """
        process.wait_until(
            lambda: condition() or not self.is_running, timeout_s, f"{what} of guest {self.name}"
        )
        if not self.is_running:
            printed = self.log.read_text(errors="replace").strip()[-500:] or "it printed nothing"
            reason = f"QEMU ended with exit code {self.process.wait()}: {printed}"
            raise BackendError(f"guest {self.name}", reason)

    def _begin(self) -> None:
        for left_over in (self.qmp_socket, self._control_socket, self.log):
            left_over.unlink(missing_ok=True)
        self.process = process.start(self._argv, output=self.log)
        try:
            self.wait_until(self._answers, _START_S, "the monitor")
        except BaseException:
            self.kill()
            raise

    def _wait_until_moved(self) -> None:
        def moved() -> bool:
            try:
                reply = self.execute("query-migrate")
            except InvalidState:  # QEMU ends because it cannot read the state: `wait_until` says so
                return False
            if reply.get("status") == "failed":
                raise BackendError(f"guest {self.name}", f"its state: {reply.get('error-desc', 'failed')}")
            return bool(reply.get("status") == "completed")

        self.wait_until(moved, _MOVE_S, "the move of its state")

    def _answers(self) -> bool:
        try:
            return self._control_socket.exists() and bool(self.execute("query-status"))
        except InvalidState:  # the socket is there before QEMU knows whether it can start
            return False


def incoming(state: Path) -> list[str]:
    """Give the arguments of a QEMU that begins with a state that one with the same others was saved to."""
    return ["-incoming", f"exec:cat {shlex.quote(str(state))}"]


def qemu_version() -> str:
    """Give QEMU's own words for its version, as one line. Raises BackendError without QEMU."""
    return process.run([QEMU, "--version"], timeout_s=_START_S).stdout.partition("\n")[0]


def server(chardev: str, path: Path) -> str:
    """Give the QEMU chardev that listens on a unix socket, not waiting for a client. Raises InvalidInput."""
    check_socket(path)
    return f"socket,id={chardev},path={path},server=on,wait=off"


def check_socket(path: Path) -> None:
    """Refuse a path that QEMU or the kernel cannot take for a unix socket. Raises InvalidInput."""
    if len(bytes(path)) > _LONGEST_SOCKET_PATH or "," in str(path):
        needed = f"a socket's path has at most {_LONGEST_SOCKET_PATH} bytes and no comma"
        raise InvalidInput(f"guest socket {path}", needed)


def _monitor(chardev: str, path: Path) -> tuple[str, ...]:
    return ("-chardev", server(chardev, path), "-mon", f"chardev={chardev},mode=control")


def _command(name: str, accel: str) -> list[str]:
    """Give the beginning of every command line: setpriv (util-linux) asks the kernel for the death signal."""
    for program, package in ((QEMU, "qemu-system-x86"), ("setpriv", "util-linux")):
        if shutil.which(program) is None:
            raise NotSupported(f"guest {name}", f"{program} is not installed (Debian package {package})")
    owned = ["setpriv", "--pdeathsig", "KILL", "--", QEMU, "-name", name]
    return [
        *owned,
        "-machine",
        f"pc,usb=off,accel={accel}",
        "-no-user-config",
        "-nodefaults",
        "-display",
        "none",
    ]
