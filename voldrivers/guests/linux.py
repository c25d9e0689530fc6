"""A guest with a real Linux: its own kernel says what it sees, and a real guest agent answers.

`python -m voldrivers.guests.linux CACHE_DIR` makes what it boots from, once; see `image`. With DIRECTORY and
NAME after it, it keeps a guest there until SIGTERM, from its `saved_state`; it prints `ready`.
"""

import hashlib
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from voldrivers.errors import BackendError, CommandFailed, InvalidInput, OutcomeUnknown, VolDriverError
from voldrivers.guests.image import AGENT_PORT, END_OF_ANSWER, READY, SHELL_PORT, GuestImage, prepare
from voldrivers.guests.machine import Accelerator, Machine, accelerator, incoming, qemu_version, server

_BOOT_S = 120.0
_MEMORY_MIB = 128
# A page that is free is zero, and takes no room in a saved state: 60 MB instead of 90.
_COMMAND_LINE = "console=ttyS0 quiet panic=1 mitigations=off init_on_free=1"
_END = re.compile(re.escape(END_OF_ANSWER) + rb"(\d+)\n\Z")


class LinuxGuest(Machine):
    """A QEMU that runs Debian's kernel, busybox and the QEMU guest agent; ready once constructed.

    It boots in 2 to 5 seconds under TCG. Disks are hot-plugged by whoever is tested
    (`blockdev-add`, then `device_add` of virtio-blk-pci), and the kernel lets go of one on
    `device_del`. The agent listens on `agent_socket`, beside `qmp_socket`; both are left free.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        cache_dir: Path,
        *,
        arguments: Sequence[str] = (),
        accelerated_by: Accelerator | None = None,
        state: Path | None = None,
    ) -> None:
        """Boot in `directory` from what `prepare(cache_dir)` gives; without `accelerated_by`, choose.

        With a `state`, it goes on from there instead (see `saved_state`), without `arguments` of its own.
        Raises as `Machine` and `prepare` do, OutcomeUnknown when it is not ready in two minutes.
        """
        self.agent_socket = directory / f"{name}.qga"
        self._console = directory / f"{name}.console"
        self._console.unlink(missing_ok=True)
        self._shell = Shell(directory / f"{name}.shell", f"guest {name}")
        self.accelerator = accelerated_by or accelerator()
        boot, ports = self._boot(prepare(cache_dir)), self._ports()
        begin = incoming(state) if state else []
        super().__init__(directory, name, [*boot, *ports, *arguments, *begin], accel=self.accelerator.name)
        self.connections.callback(self._shell.close)
        try:
            if state:
                self.resume()
            else:
                self.wait_for_line(READY, _BOOT_S)
        except BaseException as error:
            error.add_note(self.console_text()[-2000:])
            self.kill()
            raise

    def console_text(self) -> str:
        """Give what the guest's kernel wrote to its serial console until now."""
        return self._console.read_text(errors="replace") if self._console.exists() else ""

    def wait_for_line(self, pattern: str, timeout_s: float) -> str:
        """Wait until a line on the console matches a regular expression, and give that line.

        Raises OutcomeUnknown when none comes, BackendError when QEMU ends before.
        """
        line = re.compile(f"^.*(?:{pattern}).*$", re.MULTILINE)
        self.wait_until(lambda: bool(line.search(self.console_text())), timeout_s, f"a line {pattern!r}")
        return next(line.finditer(self.console_text())).group().strip()

    def shell(self, command: str, timeout_s: float = 30.0) -> str:
        """Run one line of shell in the guest: `Shell.run`."""
        return self._shell.run(command, timeout_s)

    def _boot(self, image: GuestImage) -> list[str]:
        kernel = ["-kernel", str(image.kernel), "-initrd", str(image.initramfs), "-append", _COMMAND_LINE]
        return [*kernel, "-m", str(_MEMORY_MIB), "-no-reboot", "-serial", f"file:{self._console}"]

    def _ports(self) -> list[str]:
        """Give the two virtio-serial ports: one for the agent, one for the shell."""
        ports = ["-device", "virtio-serial-pci"]
        for chardev, path, port in (
            ("agent", self.agent_socket, AGENT_PORT),
            ("shell", self._shell.path, SHELL_PORT),
        ):
            device = f"virtserialport,chardev={chardev},name={port}"
            ports += ["-chardev", server(chardev, path), "-device", device]
        return ports


class Shell:
    """The shell of a guest, for its owner or, while that does not use it, for any other process."""

    def __init__(self, path: Path, subject: str) -> None:
        """Take the socket's path; it is there when the first command is run."""
        self.path, self._subject = path, subject
        self._socket: socket.socket | None = None

    def run(self, command: str, timeout_s: float = 30.0) -> str:
        """Run one line of shell as root in the guest and give what it printed.

        Raises CommandFailed with the exit code; OutcomeUnknown without an answer in time, and after
        that the shell is not to be used again; BackendError when QEMU is gone.
        """
        if "\n" in command:
            raise InvalidInput(self._subject, "a shell command is one line")
        try:
            printed, code = self._answer(command, timeout_s)
        except TimeoutError as error:
            what = f"{command} in {self._subject}"
            raise OutcomeUnknown(what, f"no answer in {timeout_s:g} seconds") from error
        except OSError as error:
            raise BackendError(self._subject, f"its shell is gone: {error}") from error
        if code:
            raise CommandFailed(self._subject, printed.strip(), argv=("sh", "-c", command), exit_code=code)
        return printed

    def close(self) -> None:
        """Let go of it. May be called again."""
        if self._socket:
            self._socket.close()

    def _answer(self, command: str, timeout_s: float) -> tuple[str, int]:
        shell = self._socket or self._open()
        shell.settimeout(timeout_s)
        shell.sendall(command.encode() + b"\n")
        answer = b""
        while not (end := _END.search(answer)):
            received = shell.recv(1 << 16)
            if not received:
                raise ConnectionResetError("QEMU closed the connection")
            answer += received
        return answer[: end.start()].decode(errors="replace"), int(end[1])

    def _open(self) -> socket.socket:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(self.path))
        return self._socket


def saved_state(cache_dir: Path, accelerated_by: Accelerator) -> Path:
    """Give the state of a guest that has just booted; boot one and save it if it is not there.

    It fits only this very QEMU, and lies beside what `prepare` makes. May be called by several processes at
    once. Raises as `LinuxGuest`.
    """
    directory = prepare(cache_dir).kernel.parent
    made_with = f"{qemu_version()} {accelerated_by.name} {Path(__file__).read_text()}"
    state = directory / f"state-{hashlib.sha256(made_with.encode()).hexdigest()[:16]}"
    if not state.exists():
        with tempfile.TemporaryDirectory(prefix="voldrivers-") as name:
            with LinuxGuest(Path(name), "linux", cache_dir, accelerated_by=accelerated_by) as guest:
                guest.save(Path(name, "state"))
            making = state.with_suffix(f".{os.getpid()}")
            shutil.copyfile(Path(name, "state"), making)
            making.rename(state)
            for older in set(directory.glob("state-*")) - {state}:
                older.unlink(missing_ok=True)
    return state


def main(arguments: Sequence[str]) -> int:
    """Prepare the guest in the first argument's directory, for `make setup`; keep one in the second's."""
    if len(arguments) not in (1, 3):
        print("usage: python -m voldrivers.guests.linux CACHE_DIR [DIRECTORY NAME]", file=sys.stderr)
        return 2
    cache_dir = Path(arguments[0])
    try:
        if arguments[1:]:
            _keep(cache_dir, Path(arguments[1]), arguments[2])
        else:
            prepare(cache_dir)
    except VolDriverError as error:
        print(f"guest: {error}", file=sys.stderr)
        return 1
    return 0


def _keep(cache_dir: Path, directory: Path, name: str) -> None:
    chosen = accelerator()
    state = saved_state(cache_dir, chosen)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    with LinuxGuest(directory, name, cache_dir, accelerated_by=chosen, state=state):
        print("ready", flush=True)
        signal.sigwait({signal.SIGTERM})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
