"""Runs commands in a lab machine for its host, over a virtio-serial port. Standard library only.

One JSON object on each line, both ways. From the host:
  {"ping": N}                         answered by {"pong": N}
  {"id": N, "start": {"argv": [...], "cwd": "...", "env": {...}, "terminal": [rows, columns] or null,
                      "input": true or false}}
  {"id": N, "input": BASE64 or null}  more of its input, or the end of it
  {"id": N, "taken": BYTES}           so much of what it printed has been dealt with
  {"id": N, "signal": 15}             to its process group
  {"id": N, "terminal": [rows, columns]}
  {"id": N, "forget": true}           nobody waits for it: what it prints is dropped
  {"id": N, "unpack": {"into": "...", "tar": BASE64, "remove": [...]}}
  {"id": N, "renew": {"time_s": ..., "entropy": HEX}}
To the host:
  {"hello": BOOT_ID}                  it was started: what ran before is gone
  {"id": N, "output": BASE64, "stream": 1 or 2}
  {"id": N, "taken": BYTES}           so much of its input has reached it
  {"id": N, "exit": CODE}             negative for a signal, as in Python's subprocess
  {"id": N, "error": "..."}
A command that prints more than WINDOW_BYTES ahead of `taken` waits, and no other with it; the host keeps
to the same limit with input. A daemon that a command leaves behind may keep its output open: the command
has ended when its process has.
"""

import base64
import fcntl
import glob
import io
import json
import os
import pty
import selectors
import signal
import struct
import subprocess
import tarfile
import termios
import time
import tty
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

PORT = "lab.agent"
WINDOW_BYTES = 1 << 20
#: linux/random.h: add entropy and count it; let the generator take it at once.
RNDADDENTROPY, RNDRESEEDCRNG = 0x40085203, 0x5207

_READ_BYTES = 1 << 16  # what a pipe holds (pipe(7))
_LAST_READS = 16  # of a command that has ended: a daemon of its may print without end

Frame = Mapping[str, Any]  # Any: what JSON holds; the host is trusted


class Command:
    """One program that runs, what is read from it, and what it has yet to be given."""

    def __init__(self, start: Frame) -> None:
        """Start it. Raises OSError or ValueError."""
        self.terminal: int | None = None
        self.input: int | None = None
        self.unsent, self.input_ends = b"", False
        self.ahead_bytes, self.forgotten = 0, False
        if start.get("terminal"):
            self._start_on_terminal(start)
        else:
            self._start(start)
        for end in (*self.outputs, self.input):
            if end is not None:
                os.set_blocking(end, False)

    def resize(self, size: tuple[int, int]) -> None:
        """Set rows and columns (ioctl_tty(2)); its foreground processes get SIGWINCH."""
        if self.terminal is not None:
            fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))

    def close_input(self) -> None:
        """Let it read the end of its input."""
        if self.input is not None:
            os.close(self.input)
            self.input, self.unsent = None, b""

    def _start(self, start: Frame) -> None:
        stdin, self.input = os.pipe() if start.get("input") else (os.open(os.devnull, os.O_RDONLY), None)
        (stdout, print_out), (stderr, print_err) = os.pipe(), os.pipe()
        self.outputs = {stdout: 1, stderr: 2}
        self._execute(start, (stdin, print_out, print_err))

    def _start_on_terminal(self, start: Frame) -> None:
        self.terminal, slave = pty.openpty()
        self.resize(start["terminal"])
        self.outputs, self.input = {self.terminal: 1}, os.dup(self.terminal)
        self._execute(start, (slave, slave, slave), _take_terminal)

    def _execute(
        self, start: Frame, streams: tuple[int, int, int], prepare: Callable[[], None] | None = None
    ) -> None:
        try:
            self.process = subprocess.Popen(  # noqa: S603 - to run what the host asks is what we are for
                start["argv"],
                stdin=streams[0],
                stdout=streams[1],
                stderr=streams[2],
                cwd=start.get("cwd", "/"),
                env={**os.environ, **start.get("env", {})},
                start_new_session=True,
                preexec_fn=prepare,  # noqa: PLW1509 - there is one thread
            )
        except BaseException:
            self.close_input()
            for output in self.outputs:
                os.close(output)
            raise
        finally:
            for stream in set(streams):
                os.close(stream)


class Agent:
    """The loop over the port and over all that runs."""

    def __init__(self) -> None:
        """Open the port."""
        self.port = os.open(find_port(), os.O_RDWR | os.O_NOCTTY)
        with suppress(termios.error):  # a port is no terminal; a console is
            tty.setraw(self.port)
        self.running: dict[int, Command] = {}
        self.orphaned: dict[int, Command] = {}
        self.partial: list[bytes] = []
        self.selector = selectors.DefaultSelector()
        self.ended, waker = os.pipe()
        for end in (self.ended, waker):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for ignored in (signal.SIGINT, signal.SIGQUIT):  # by the shell that started us; commands inherit it
            signal.signal(ignored, signal.SIG_DFL)
        self.watch(self.ended, self.reap)
        self.watch(self.port, self.read)

    def serve(self) -> None:
        """Do what the host asks, without end."""
        with open("/proc/sys/kernel/random/boot_id") as file:
            os.write(self.port, b"\n")  # ends a line that a reset cut off
            self.send({"hello": file.read().strip()})
        while True:
            for key, _ in self.selector.select():
                if self.selector.get_map().get(key.fd) is key:  # not taken away meanwhile
                    key.data(key.fd)

    def watch(self, end: int, call: Callable[[int], object], events: int = selectors.EVENT_READ) -> None:
        """Call when a file is ready; may be called again."""
        if end not in self.selector.get_map():
            self.selector.register(end, events, call)

    def unwatch(self, end: int) -> None:
        """Call no more; may be called again."""
        if end in self.selector.get_map():
            self.selector.unregister(end)

    def send(self, frame: Frame) -> None:
        """Tell the host; waits until it listens."""
        view = memoryview(json.dumps(frame).encode() + b"\n")
        while view:
            view = view[os.write(self.port, view) :]

    def read(self, port: int) -> None:
        """Take what the host sent; half a line waits for its end."""
        received = os.read(port, _READ_BYTES)
        if not received:  # nobody is at the other end
            time.sleep(0.02)
            return
        *lines, rest = received.split(b"\n")
        for line in lines:
            whole, self.partial = b"".join(self.partial) + line, []
            with suppress(ValueError):  # the half of a line, from before the host changed
                self.handle(json.loads(whole))
        if rest:
            self.partial.append(rest)

    def handle(self, frame: Frame) -> None:
        """Do one thing, or say why not."""
        if "ping" in frame:
            return self.send({"pong": frame["ping"]})
        try:
            self.act(frame["id"], frame)
        except (OSError, ValueError, subprocess.SubprocessError, tarfile.TarError) as error:
            self.send({"id": frame["id"], "error": str(error)})
        return None

    def act(self, number: int, frame: Frame) -> None:
        """Do one thing. Raises OSError, ValueError, TarError."""
        if "start" in frame:
            self.start(number, frame["start"])
        elif "unpack" in frame:
            unpack(**frame["unpack"])
            self.send({"id": number, "exit": 0})
        elif "renew" in frame:
            for earlier in list(self.running.values()):  # another host asked for them
                self.forget(earlier)
            renew(**frame["renew"])
            self.send({"id": number, "exit": 0})
        elif number in self.running:
            self.tell(self.running[number], number, frame)

    def start(self, number: int, start: Frame) -> None:
        """Start a command, and forward what it prints."""
        command = self.running[number] = Command(start)
        self.watch_outputs(number, command)

    def tell(self, command: Command, number: int, frame: Frame) -> None:
        """Do what concerns a command that runs."""
        if "input" in frame and command.input is not None:
            command.unsent += base64.b64decode(frame["input"] or "")
            command.input_ends |= frame["input"] is None and command.terminal is None
            self.watch(command.input, lambda _: self.give(number, command), selectors.EVENT_WRITE)
        elif "taken" in frame:
            command.ahead_bytes -= frame["taken"]
            self.watch_outputs(number, command)
        elif "signal" in frame:
            with suppress(ProcessLookupError):  # it has just ended
                os.killpg(command.process.pid, frame["signal"])
        elif "terminal" in frame:
            command.resize(frame["terminal"])
        elif "forget" in frame:
            self.forget(command)
            self.watch_outputs(number, command)

    def give(self, number: int, command: Command) -> None:
        """Give a command as much input as it takes now."""
        assert command.input is not None
        taken = 0
        try:
            if command.unsent:
                taken = os.write(command.input, command.unsent)
        except BlockingIOError:
            return
        except OSError:  # it reads no more
            command.unsent, command.input_ends = b"", True
        command.unsent = command.unsent[taken:]
        if taken and not command.forgotten:
            self.send({"id": number, "taken": taken})
        if not command.unsent:
            self.unwatch(command.input)
            if command.input_ends:
                command.close_input()

    def watch_outputs(self, number: int, command: Command) -> None:
        """Read what a command prints, unless it is too far ahead."""
        if command.forgotten or command.ahead_bytes < WINDOW_BYTES:
            for output in command.outputs:
                self.watch(output, lambda end: self.forward(number, command, end))

    def forward(self, number: int, command: Command, output: int) -> bool:
        """Pass on what a command printed, or drop it; tell whether there may be more now."""
        try:
            content = os.read(output, _READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:  # a terminal whose last process ended
            content = b""
        if not content:
            self.close_output(number, command, output)
        elif not command.forgotten:
            encoded = base64.b64encode(content).decode()
            self.send({"id": number, "output": encoded, "stream": command.outputs[output]})
            command.ahead_bytes += len(content)
            if command.ahead_bytes >= WINDOW_BYTES:
                for paused in command.outputs:
                    self.unwatch(paused)
        return bool(content)

    def close_output(self, number: int, command: Command, output: int) -> None:
        """Close an output that has ended; with the last one a command that has ended is done."""
        self.unwatch(output)
        os.close(output)
        del command.outputs[output]
        if not command.outputs:
            self.orphaned.pop(number, None)

    def forget(self, command: Command) -> None:
        """Drop what a command prints from now on."""
        command.forgotten = True

    def reap(self, ended: int) -> None:
        """Tell which commands have ended, after the last that they printed."""
        with suppress(BlockingIOError):
            os.read(ended, 1 << 10)
        for number, command in list(self.running.items()):
            if command.process.poll() is None:
                continue
            for output in list(command.outputs):
                for _ in range(_LAST_READS):
                    if not self.forward(number, command, output):
                        break
            del self.running[number]
            self.leave(number, command)
            self.send({"id": number, "exit": command.process.returncode})

    def leave(self, number: int, command: Command) -> None:
        """Let go of a command that has ended; children of it that still print must not have to wait."""
        if command.input is not None:
            self.unwatch(command.input)
            command.close_input()
        self.forget(command)
        if command.outputs:
            self.orphaned[number] = command
            self.watch_outputs(number, command)


def find_port() -> str:
    """Give the device of our port."""
    for name in glob.glob("/sys/class/virtio-ports/*/name"):
        with open(name) as file:
            if file.read().strip() == PORT:
                return "/dev/" + name.split("/")[-2]
    raise SystemExit("no port")


def unpack(into: str, tar: str, remove: list[str]) -> None:
    """Remove files and unpack others; what is replaced is a new file, not written through a link."""
    for name in remove:
        with suppress(OSError):
            os.unlink(os.path.join(into, name))
    os.makedirs(into, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(tar))) as archive:
        for name in archive.getnames():
            with suppress(OSError):
                os.unlink(os.path.join(into, name))
        archive.extractall(into)  # noqa: S202 - our own host made it


def renew(time_s: float, entropy: str) -> None:
    """Give a restored machine, which has those of the moment when it was saved, clock and randomness."""
    time.clock_settime(time.CLOCK_REALTIME, time_s)
    seed = bytes.fromhex(entropy)
    with open("/dev/urandom", "wb", buffering=0) as device:
        fcntl.ioctl(device, RNDADDENTROPY, struct.pack(f"ii{len(seed)}s", 8 * len(seed), len(seed), seed))
        fcntl.ioctl(device, RNDRESEEDCRNG)


def _take_terminal() -> None:
    """Make standard input the terminal of the new session (ioctl_tty(2)), so that Ctrl-C reaches it."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


if __name__ == "__main__":
    Agent().serve()
