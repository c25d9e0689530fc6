"""The bus of a guest whose CPU is halted: I/O ports, memory and PCI registers over QEMU's qtest socket.

Source: QEMU's softmmu/qtest.c ("Line based protocol, request/response based").
"""

import base64
import socket
from pathlib import Path

from voldrivers.errors import BackendError, OutcomeUnknown

# PCI configuration mechanism 1: address port, value port.
_PCI_ADDRESS, _PCI_VALUE, _PCI_ENABLE = 0xCF8, 0xCFC, 1 << 31
#: The port instructions by the bytes they move.
_WIDTHS = {1: "b", 2: "w", 4: "l"}


class Bus:
    """A connection to a qtest socket, open until `close`.

    Every call raises BackendError when QEMU refuses or is gone, OutcomeUnknown without an answer in time.
    """

    def __init__(self, path: Path, answer_s: float | None) -> None:
        """Connect to a socket that is there; None waits for answers as long as it takes."""
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(answer_s)
        self._socket.connect(str(path))
        self._answers = self._socket.makefile("rb")

    def close(self) -> None:
        """Close it. May be called again."""
        self._answers.close()
        self._socket.close()

    def port(self, port: int, width: int) -> int:
        """Read `width` bytes (1, 2 or 4) from an I/O port."""
        return int(self._ask(f"in{_WIDTHS[width]} {port:#x}"), 16)

    def set_port(self, port: int, width: int, value: int) -> None:
        """Write `width` bytes to an I/O port."""
        self._ask(f"out{_WIDTHS[width]} {port:#x} {value:#x}")

    def pci(self, slot: int, register: int) -> int:
        """Read a 32-bit register of function 0 in a slot of the first PCI bus; all ones where nothing is."""
        self.set_port(_PCI_ADDRESS, 4, _PCI_ENABLE | slot << 11 | register)
        return self.port(_PCI_VALUE, 4)

    def set_pci(self, slot: int, register: int, value: int) -> None:
        """Write a 32-bit PCI register."""
        self.set_port(_PCI_ADDRESS, 4, _PCI_ENABLE | slot << 11 | register)
        self.set_port(_PCI_VALUE, 4, value)

    def memory(self, address: int, size_bytes: int) -> bytes:
        """Read the guest's memory."""
        return base64.b64decode(self._ask(f"b64read {address:#x} {size_bytes:#x}"))

    def set_memory(self, address: int, content: bytes) -> None:
        """Write the guest's memory."""
        encoded = base64.b64encode(content).decode()
        self._ask(f"b64write {address:#x} {len(content):#x} {encoded}")

    def _ask(self, request: str) -> str:
        subject = f"{request[:40]} at {self._path}"
        try:
            self._socket.sendall(request.encode() + b"\n")
            answer = self._answers.readline().decode()
        except TimeoutError as error:
            limit_s = self._socket.gettimeout()
            raise OutcomeUnknown(subject, f"no answer within {limit_s:g} seconds") from error
        except OSError as error:
            raise BackendError(subject, f"QEMU is gone: {error.strerror}") from error
        word, _, value = answer.strip().partition(" ")
        if word != "OK":
            raise BackendError(subject, answer.strip() or "QEMU closed the connection")
        return value
