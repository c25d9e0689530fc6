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
_RECEIVED_BYTES = 1 << 16


class Bus:
    """A connection to a qtest socket, open until `close`.

    Every call raises BackendError when QEMU refuses or is gone, OutcomeUnknown without an answer in time. One
    that is interrupted, or gets no answer in time, spoils none after it: that passes over what is late.
    """

    def __init__(self, path: Path, answer_s: float | None) -> None:
        """Connect to a socket that is there; None waits for answers as long as it takes."""
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(answer_s)
        self._socket.connect(str(path))
        self._received = b""
        #: False while an answer is awaited, and from then on when that was interrupted.
        self._in_step = True
        self._given_up = 0

    def close(self) -> None:
        """Close it. May be called again."""
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
            if not self._in_step:
                self._catch_up()
            self._in_step = False
            self._socket.sendall(request.encode() + b"\n")
            answer = self._line()
            self._in_step = True
        except TimeoutError as error:
            limit_s = self._socket.gettimeout()
            raise OutcomeUnknown(subject, f"no answer within {limit_s:g} seconds") from error
        except OSError as error:
            raise BackendError(subject, f"QEMU is gone: {error.strerror}") from error
        word, _, value = answer.partition(" ")
        if word != "OK":
            raise BackendError(subject, answer or "QEMU closed the connection")
        return value

    def _catch_up(self) -> None:
        """Pass over answers to what was given up on: nobody knows how many there are, nor which were read.

        QEMU answers in order, so all of them come before the answer to a request that is like no other one. A
        line that was sent in part is ended first, by a space: of a line without a word QEMU would die.
        """
        self._given_up += 1
        mark = f"caught-up-{self._given_up}"
        self._socket.sendall(f" \n{mark}\n".encode())
        while mark not in (line := self._line()):
            if not line:
                return  # QEMU is gone; whoever asks is told so

    def _line(self) -> str:
        """Give the next line that QEMU sends; "" when it has closed the connection."""
        while b"\n" not in self._received:
            some = self._socket.recv(_RECEIVED_BYTES)
            if not some:
                return ""
            self._received += some
        line, _, self._received = self._received.partition(b"\n")
        return line.decode().strip()
