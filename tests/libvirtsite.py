"""A libvirtd of our own, with its own configuration and state, and domains driven from here."""

import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import libvirt

from voldrivers import process
from voldrivers.guests.device import DeviceGuest
from voldrivers.guests.image import AGENT_PORT, READY, SHELL_PORT, prepare
from voldrivers.guests.linux import Shell
from voldrivers.guests.machine import QEMU, write_rom
from voldrivers.guests.qtest import Bus
from voldrivers.sizes import KiB, MiB

#: What a libvirtd that runs as root has at fixed places; ours has others there, in a mount namespace.
_POINTS = {
    "etc": "/etc/libvirt",
    "lib": "/var/lib/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
    "run": "/run/libvirt",
}
_QEMU_CONF = """
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
stdio_handler = "file"
"""
_START_S = 60.0
_COMMAND_LINE = "console=ttyS0 quiet panic=1 mitigations=off"

# It prints what it raises as well.
libvirt.registerErrorHandler(lambda _context, _error: None, None)


class Libvirtd:
    """A daemon in a directory; it may be killed and started again, its domains live on."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.as_root = os.geteuid() == 0
        for name in _POINTS:
            (directory / name).mkdir()
        (directory / "libvirtd.conf").write_text(
            f'unix_sock_dir = "{directory}"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n'
            f'log_outputs = "3:file:{directory}/libvirtd.log"\n'
        )
        configuration = _QEMU_CONF if self.as_root else 'security_driver = "none"\nstdio_handler = "file"\n'
        for place in (directory / "etc", directory / "etc" / "libvirt"):
            place.mkdir(exist_ok=True)
            (place / "qemu.conf").write_text(configuration)
        self.start()

    @property
    def uri(self) -> str:
        kind = "system" if self.as_root else "session"
        return f"qemu+unix:///{kind}?socket={self.directory}/libvirt-sock"

    def start(self) -> None:
        libvirtd = ["/usr/sbin/libvirtd", "--config", str(self.directory / "libvirtd.conf")]
        libvirtd += ["--pid-file", str(self.directory / "libvirtd.pid")]
        argv = [*self._around(), "setpriv", "--pdeathsig", "KILL", "--", *libvirtd]
        self.process = process.start(argv, output=self.directory / "output")
        self.wait_until_it_answers()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)

    @contextmanager
    def open(self) -> Iterator[Any]:  # Any: libvirt has no types
        connection = libvirt.open(self.uri)
        try:
            yield connection
        finally:
            connection.close()

    def wait_until_it_answers(self) -> None:
        def answers() -> bool:
            assert self.process.poll() is None, self.said()
            try:
                with self.open():
                    return True
            except libvirt.libvirtError:
                return False

        process.wait_until(answers, _START_S, "libvirtd")

    def said(self) -> str:
        logs = [self.directory / "output", self.directory / "libvirtd.log"]
        return "".join(log.read_text() for log in logs if log.exists())

    def _around(self) -> list[str]:
        """Give what puts our directories to the fixed places, for this daemon and its QEMUs alone."""
        if not self.as_root:
            places = {"CONFIG": "etc", "CACHE": "cache"}
            homes = [f"XDG_{name}_HOME={self.directory / place}" for name, place in places.items()]
            return ["env", *homes, f"XDG_RUNTIME_DIR={self.directory}/run"]
        binds = [f"mkdir -p {at}; mount --bind {self.directory / name} {at}" for name, at in _POINTS.items()]
        # The user that Debian's libvirtd wants to know, and then, by our qemu.conf, does not use.
        for name, line in (
            ("passwd", "libvirt-qemu:x:64055:64055::/:/bin/false"),
            ("group", "libvirt-qemu:x:64055:"),
        ):
            copy = self.directory / name
            copy.write_text(f"{Path('/etc', name).read_text()}{line}\n")
            binds.append(f"mount --bind {copy} /etc/{name}")
        return ["unshare", "--mount", "sh", "-ec", "; ".join([*binds, 'exec "$@"']), "sh"]


class Domain(DeviceGuest):
    """A domain without a guest CPU; its disks are driven from here, past libvirt, who starts it."""

    def __init__(self, daemon: Libvirtd, *, kept: bool = False, devices: str = "") -> None:
        self.uuid = str(uuid.uuid4())
        name = f"guest-{self.uuid[:8]}"
        self.daemon, self.directory, self.name = daemon, daemon.directory, name
        self.connections = ExitStack()
        qtest, rom = self.directory / f"{name}.qtest", self.directory / f"{name}.rom"
        write_rom(rom)
        arguments = ["-qtest", f"unix:{qtest},server=on,wait=off", "-qtest-log", "/dev/null"]
        system = f"<loader type='rom'>{rom}</loader>"
        self.start(domain_xml(name, self.uuid, 16, system, devices, arguments), kept=kept)
        self._bus, self._answer_s = Bus(qtest, 20.0), 20.0
        self.connections.callback(self._bus.close)

    def start(self, xml: str, *, kept: bool) -> None:
        """Start it; one that is not kept vanishes with its QEMU."""
        with self.daemon.open() as connection:
            if kept:
                connection.defineXML(xml).create()
            else:
                connection.createXML(xml)
        pid = pid_of(self.uuid)
        assert pid is not None
        self.qemu_pid = pid
        self.identity = process.identity(pid)

    @contextmanager
    def handle(self) -> Iterator[Any]:  # Any: as above
        """Give libvirt's own handle, on a connection of its own."""
        with self.daemon.open() as connection:
            yield connection.lookupByUUIDString(self.uuid)

    def fill_memory(self) -> None:
        """Have 4 MiB in it that cannot be told in a few bytes: more than fits between QEMU and a file."""
        for at in range(4 * MiB, 8 * MiB, 64 * KiB):
            self._bus.set_memory(at, os.urandom(64 * KiB))

    @property
    def is_running(self) -> bool:
        return not process.is_gone(self.identity)

    def destroy(self) -> None:
        """End it as its owner does; libvirt keeps its description."""
        with self.handle() as handle:
            handle.destroy()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        os.kill(self.qemu_pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.qemu_pid, signal.SIGCONT)

    def kill(self) -> None:
        """End its QEMU; libvirt forgets it when it sees that, which may take two seconds."""
        self.connections.close()
        with suppress(libvirt.libvirtError), self.handle() as handle:
            handle.undefine()
        if self.is_running:
            os.kill(self.qemu_pid, signal.SIGKILL)


class LinuxDomain(Domain):
    """A domain with a real kernel and a real guest agent."""

    def __init__(self, daemon: Libvirtd, cache_dir: Path) -> None:
        self.daemon, self.directory, self.name = daemon, daemon.directory, "linux"
        self.uuid = str(uuid.uuid4())
        self.connections = ExitStack()
        self._console, image = self.directory / "linux.console", prepare(cache_dir)
        self._shell = Shell(self.directory / "linux.shell", "guest linux")
        system = f"<kernel>{image.kernel}</kernel><initrd>{image.initramfs}</initrd>"
        system += f"<cmdline>{_COMMAND_LINE}</cmdline>"
        devices = (
            f"<serial type='file'><source path='{self._console}'/><target port='0'/></serial>"
            f"<channel type='unix'><target type='virtio' name='{AGENT_PORT}'/></channel>"
            f"<channel type='unix'><source mode='bind' path='{self._shell.path}'/>"
            f"<target type='virtio' name='{SHELL_PORT}'/></channel>"
        )
        self.start(domain_xml(self.name, self.uuid, 128, system, devices, []), kept=False)
        self.connections.callback(self._shell.close)
        process.wait_until(lambda: READY in self.console_text(), 120.0, "the guest to boot")

    def console_text(self) -> str:
        return self._console.read_text(errors="replace") if self._console.exists() else ""

    def shell(self, command: str) -> str:
        return self._shell.run(command)


def domain_xml(
    name: str, domain_uuid: str, memory_mib: int, system: str, devices: str, arguments: Sequence[str]
) -> str:
    words = "".join(f"<qemu:arg value='{word}'/>" for word in arguments)
    return f"""
    <domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
      <name>{name}</name><uuid>{domain_uuid}</uuid><memory unit='MiB'>{memory_mib}</memory>
      <os><type arch='x86_64' machine='pc'>hvm</type>{system}</os>
      <features><acpi/></features>
      <devices><emulator>{shutil.which(QEMU)}</emulator>
        <controller type='usb' model='none'/><memballoon model='none'/>{devices}
      </devices>
      <qemu:commandline>{words}</qemu:commandline>
    </domain>"""


def pid_of(domain_uuid: str) -> int | None:
    """Find the QEMU that was started with a UUID."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                words = Path("/proc", entry, "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if domain_uuid.encode() in words:
                return int(entry)
    return None


@contextmanager
def running_libvirtd() -> Iterator[Libvirtd]:
    """Start one in a directory with a short name and on a disk: a tmpfs has no O_DIRECT before Linux 6.6."""
    with tempfile.TemporaryDirectory(prefix="vold-", dir="/var/tmp") as name:
        daemon = Libvirtd(Path(name))
        try:
            yield daemon
        finally:
            daemon.kill()
