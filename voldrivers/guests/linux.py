"""A guest with a real Linux: its own kernel says what it sees, and a real guest agent answers.

`python -m voldrivers.guests.linux CACHE_DIR` makes what it boots from, once; see `image`.
"""

import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from voldrivers.errors import BackendError, CommandFailed, InvalidInput, OutcomeUnknown, VolDriverError
from voldrivers.guests.image import AGENT_PORT, END_OF_ANSWER, READY, SHELL_PORT, GuestImage, prepare
from voldrivers.guests.machine import Accelerator, Machine, accelerator, server

_BOOT_S = 120.0
_MEMORY_MIB = 128
_COMMAND_LINE = "console=ttyS0 quiet panic=1 mitigations=off"
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
    ) -> None:
        """Boot in `directory` from what `prepare(cache_dir)` gives; without `accelerated_by`, choose.

        Raises as `Machine` and `prepare` do, OutcomeUnknown when it is not ready in two minutes.
        """
        self.agent_socket, self._shell_socket = directory / f"{name}.qga", directory / f"{name}.shell"
        self._console = directory / f"{name}.console"
        self._console.unlink(missing_ok=True)
        self._shell: socket.socket | None = None
        self.accelerator = accelerated_by or accelerator()
        boot, ports = self._boot(prepare(cache_dir)), self._ports()
        super().__init__(directory, name, [*boot, *ports, *arguments], accel=self.accelerator.name)
        try:
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
        """Run one line of shell as root in the guest and give what it printed.

        Raises CommandFailed with the exit code; OutcomeUnknown without an answer in time, and after
        that the shell is not to be used again; BackendError when QEMU is gone.
        """
        if "\n" in command:
            raise InvalidInput(f"guest {self.name}", "a shell command is one line")
        try:
            printed, code = self._answer(command, timeout_s)
        except TimeoutError as error:
            raise OutcomeUnknown(
                f"{command} in guest {self.name}", f"no answer in {timeout_s:g} seconds"
            ) from error
        except OSError as error:
            raise BackendError(f"guest {self.name}", f"its shell is gone: {error}") from error
        if code:
            raise CommandFailed(
                f"guest {self.name}", printed.strip(), argv=("sh", "-c", command), exit_code=code
            )
        return printed

    def _boot(self, image: GuestImage) -> list[str]:
        kernel = ["-kernel", str(image.kernel), "-initrd", str(image.initramfs), "-append", _COMMAND_LINE]
        return [*kernel, "-m", str(_MEMORY_MIB), "-no-reboot", "-serial", f"file:{self._console}"]

    def _ports(self) -> list[str]:
        """Give the two virtio-serial ports: one for the agent, one for the shell."""
        ports = ["-device", "virtio-serial-pci"]
        for chardev, path, port in (
            ("agent", self.agent_socket, AGENT_PORT),
            ("shell", self._shell_socket, SHELL_PORT),
        ):
            device = f"virtserialport,chardev={chardev},name={port}"
            ports += ["-chardev", server(chardev, path), "-device", device]
        return ports

    def _answer(self, command: str, timeout_s: float) -> tuple[str, int]:
        shell = self._shell or self._open_shell()
        shell.settimeout(timeout_s)
        shell.sendall(command.encode() + b"\n")
        answer = b""
        while not (end := _END.search(answer)):
            received = shell.recv(1 << 16)
            if not received:
                raise ConnectionResetError("QEMU closed the connection")
            answer += received
        return answer[: end.start()].decode(errors="replace"), int(end[1])

    def _open_shell(self) -> socket.socket:
        self._shell = self.connections.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        self._shell.connect(str(self._shell_socket))
        return self._shell


def main(arguments: Sequence[str]) -> int:
    """Prepare the guest in the directory named by the only argument; for `make setup`."""
    if len(arguments) != 1:
        print("usage: python -m voldrivers.guests.linux CACHE_DIR", file=sys.stderr)
        return 2
    try:
        prepare(Path(arguments[0]))
    except VolDriverError as error:
        print(f"guest: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
