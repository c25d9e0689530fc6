"""A real Cinder with our driver, a host's agent and a small Nova: processes and threads of this machine."""

import fcntl
import json
import os
import sqlite3
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from between import Between
from cinderclient import api_versions
from cinderclient.contrib.noauth import CinderNoAuthPlugin
from cinderclient.v3.client import Client
from glancesite import Glance
from keystoneauth1.session import Session
from servicesite import AGENT_TOKEN, PROJECT, SOON_S, Running, free_port, secret_file

from voldrivers.guests.device import DeviceGuest
from voldrivers.host.local import LocalHost, LocalOptions
from voldrivers.integrations.translation import EXTEND_KEY, our_type
from voldrivers.model import Attachment, ConnectionInfo, Volume
from voldrivers.process import holds_within, run, wait_until
from voldrivers.sizes import GiB, MiB

CHECKOUT = Path(__file__).parents[1]
#: Cinder's environment, made once; programs in it.
ENVIRONMENT = CHECKOUT / "build" / "cinder"
_ALL_IN_ONE = Path(__file__).parent / "inside" / "cinderinone.py"
CONF = """
[DEFAULT]
state_path = {directory}/cinder
log_file = {directory}/cinder.log
transport_url = fake://
auth_strategy = noauth
host = storage
enabled_backends = {backends}
osapi_volume_listen = {listen}
osapi_volume_listen_port = {port}
osapi_volume_workers = 1
api_paste_config = {environment}/etc/cinder/api-paste.ini
resource_query_filters_file = {environment}/etc/cinder/resource_filters.json
periodic_interval = 1
report_interval = 1
# Of all services in one process only the last one's heart is heard: Service.service_id is the class's.
service_down_time = 86400
backend_stats_polling_interval = 3
scheduler_driver_init_wait_time = 1
[oslo_concurrency]
lock_path = {directory}/cinder/locks
[coordination]
backend_url = file://{directory}/cinder/coordination
[database]
connection = sqlite:///{directory}/cinder/cinder.sqlite?timeout=60
[nova]
auth_type = none
endpoint = http://127.0.0.1:{nova}/v2.1
token_auth_url = http://127.0.0.1:{nova}/v3
"""
#: What Cinder would have done by root is done by whoever runs the tests: all files are theirs.
_IMAGES = """
[DEFAULT]
glance_api_servers = http://127.0.0.1:{glance}
glance_num_retries = 0
rootwrap_config = {directory}/rootwrap.conf
[cinder_sys_admin]
helper_command = {environment}/bin/privsep-helper --config-file {directory}/cinder.conf
capabilities =
[privsep_osbrick]
helper_command = {environment}/bin/privsep-helper --config-file {directory}/cinder.conf
capabilities =
"""
_SUDO = '#!/bin/sh\nexec "$@"\n'
_ROOTWRAP = """
[DEFAULT]
filters_path = {environment}/etc/cinder/rootwrap.d
exec_dirs = /sbin,/usr/sbin,/bin,/usr/bin
"""
SECTION = """
[{name}]
volume_driver = voldrivers.integrations.cinder.CinderDriver
volume_backend_name = {name}
voldrivers_config = {directory}/{name}.toml
"""
_MARK, _MARKED = b"written before", (0, 700 * MiB, GiB - 512)


def environment() -> Path:
    """Make Cinder's environment if it is not there; one process does."""
    ENVIRONMENT.parent.mkdir(exist_ok=True)
    with (ENVIRONMENT.parent / "cinder.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run([str(CHECKOUT / "tools" / "cinder"), str(ENVIRONMENT)], timeout_s=900)
    return ENVIRONMENT


class Nova(ThreadingHTTPServer):
    """What Cinder asks Nova: takes server events and keeps them, knows of no attachment.

    It is the Keystone, too, that says where it answers: Cinder asks it by its caller's token.
    """

    daemon_threads = True

    def __init__(self) -> None:
        self.events: list[dict[str, str]] = []
        #: Status of the answer to events; 404 is a compute service that is too old for them.
        self.answers = 200
        super().__init__(("127.0.0.1", 0), _Asked)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _Asked(BaseHTTPRequestHandler):
    server: Nova

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v3/auth/tokens":
            return self._answer(201, {"token": self._token()})
        events = body["events"]
        if self.server.answers == 200:
            self.server.events += events
        answered = {"events": [{**each, "code": 200, "status": "completed"} for each in events]}
        return self._answer(self.server.answers, answered)

    def _token(self) -> object:
        url = f"http://127.0.0.1:{self.server.port}/v2.1"
        endpoint = {"id": "1", "interface": "public", "region": "r", "region_id": "r", "url": url}
        catalog = [{"id": "1", "type": "compute", "name": "nova", "endpoints": [endpoint]}]
        times = {"issued_at": "2026-01-01T00:00:00.000000Z", "expires_at": "2099-01-01T00:00:00.000000Z"}
        return {"methods": ["token"], "user": {"id": "1", "name": "admin"}, "catalog": catalog, **times}

    def do_GET(self) -> None:
        self._answer(404, {"itemNotFound": {"code": 404, "message": "there is none"}})

    def _answer(self, status: int, body: object) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Subject-Token", "token")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class Backend:
    """One backend: its driver and keys of its policy in the TOML file, keys of its section in cinder.conf."""

    driver: str = "nfs"
    policy: str = "deadline_s = 20.0"
    section: str = ""
    starts: bool = True


@dataclass
class CinderSite:
    """A storage machine with Cinder, a compute machine with an agent: processes on this one."""

    directory: Path
    #: Each with a share of its own, and a volume type that is called as it is.
    backends: Mapping[str, Backend] = field(default_factory=lambda: {"files": Backend()})
    native_threads: bool = False
    #: Stands before the agent, if something is to be done to what it is asked.
    between: Between | None = None

    def __post_init__(self) -> None:
        self.environment, self.nova = environment(), Nova()
        self.glance = Glance(self.directory / "images")
        secret_file(self.directory / "agent.token", AGENT_TOKEN)
        self.agent = Running(
            self.directory / "compute",
            "agent",
            '[agent]\nlisten = "127.0.0.1:PORT"\ntoken_file = "../agent.token"\n'
            '[host.compute]\nkind = "local"\nqmp_dir = ".."\nmonitor_timeout_s = 3.0\n',
        )
        agent_at = self.agent.url
        if self.between is not None:
            self.between.target, agent_at = self.agent.url, self.between.url
        self.port, self._clients = free_port(), dict[str, Any]()  # Any: as in `client`
        facts = {"directory": self.directory, "port": self.port, "nova": self.nova.port}
        names = ",".join(self.backends)
        conf = CONF.format(**facts, backends=names, listen="127.0.0.1", environment=self.environment)
        for name, backend in self.backends.items():
            self.share(name).mkdir()
            table = f'[backend.{name}]\ndriver = "{backend.driver}"\nshare = "share-{name}"\n'
            (self.directory / f"{name}.toml").write_text(
                f'state_dir = "state"\n{table}[policy]\n{backend.policy}\n[host.compute]\nkind = "agent"\n'
                f'known_as = "compute.example.org"\nurl = "{agent_at}"\ntoken_file = "agent.token"\n'
            )
            conf += SECTION.format(name=name, **facts) + backend.section.format(**facts)
        conf += _IMAGES.format(**facts, glance=self.glance.port, environment=self.environment)
        (self.directory / "cinder.conf").write_text(conf)
        (self.directory / "cinder").mkdir()
        (self.directory / "rootwrap.conf").write_text(_ROOTWRAP.format(environment=self.environment))
        self.programs = self.directory / "bin"
        self.programs.mkdir()
        (self.programs / "sudo").write_text(_SUDO)
        (self.programs / "sudo").chmod(0o755)
        self._program("bin/cinder-manage", "db", "sync")
        self.start()
        for name in self.backends:
            made = self.client().volume_types.create(name)
            made.set_keys({"volume_backend_name": name})

    def _program(self, name: str, *words: str) -> None:
        conf = ["--config-file", str(self.directory / "cinder.conf")]
        run([str(self.environment / name), *conf, *words], timeout_s=120)

    def start(self) -> None:
        """Start Cinder; give back when its scheduler knows every pool."""
        words = [str(self.environment / "bin" / "python"), str(_ALL_IN_ONE)]
        path = f"{self.programs}:{self.environment}/bin:{os.environ['PATH']}"
        threads = {"OS_CINDER_DISABLE_EVENTLET_PATCHING": str(int(self.native_threads))}
        with (self.directory / "cinder.out").open("wb") as log:
            self.cinder = subprocess.Popen(
                [*words, "--config-file", str(self.directory / "cinder.conf")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **threads, "PATH": path, "PYTHONPATH": str(self.directory)},
            )
        wait_until(self._knows_the_pool, 60, f"Cinder to start: {self.log[-3000:]}")

    def kill(self) -> None:
        """Kill Cinder as a machine that loses its power does."""
        self.cinder.kill()
        self.cinder.wait(SOON_S)

    def end(self) -> None:
        self.kill()
        self.agent.end()
        for server in (self.nova, self.glance):
            server.shutdown()
            server.server_close()

    @property
    def log(self) -> str:
        path = self.directory / "cinder.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def client(self, version: str = "3.71") -> Any:  # Any: cinderclient has no types
        """One for each version: each keeps its connection, and Cinder has a hundred at most."""
        if version not in self._clients:
            auth = CinderNoAuthPlugin("admin", PROJECT, endpoint=f"http://127.0.0.1:{self.port}/v3")
            api_version = api_versions.APIVersion(version)
            self._clients[version] = Client(session=Session(auth=auth), api_version=api_version)
        return self._clients[version]

    def _knows_the_pool(self) -> bool:
        assert self.cinder.poll() is None, self.log[-3000:]
        try:
            starting = sum(backend.starts for backend in self.backends.values())
            return len(self.client().pools.list(detailed=False)) == starting
        except OSError:
            return False
        except Exception as error:  # keystoneauth's ConnectFailure has no base of its own that is public
            if "ConnectFailure" in type(error).__name__:
                return False
            raise

    # --- what tests begin with

    def wait(self, volume_id: str, status: str, timeout_s: float = SOON_S) -> Any:  # Any: as above
        """Wait for a status; another steady one is a failure at once."""

        def is_there() -> bool:
            seen.append(self.client().volumes.get(volume_id))
            passing = {status, "creating", "extending", "attaching", "reserved", "reverting", "managing"}
            passing |= {"downloading", "uploading"}
            assert seen[-1].status in passing, f"{seen[-1].to_dict()} {self.log[-3000:]}"
            return bool(seen[-1].status == status)

        seen: list[Any] = []  # Any: as above
        wait_until(is_there, timeout_s, f"volume {volume_id} to be {status}")
        return seen[-1]

    def create(self, size_gib: int = 1, backend: str | None = None, **more: object) -> str:
        chosen = next(iter(self.backends)) if backend is None else backend
        made = self.client().volumes.create(size_gib, volume_type=chosen, **more)
        self.wait(made.id, "available")
        return str(made.id)

    def delete(self, volume_id: str) -> None:
        cinder = self.client()
        cinder.volumes.delete(volume_id)
        gone = lambda: volume_id not in [each.id for each in cinder.volumes.list()]  # noqa: E731
        wait_until(gone, SOON_S, "the volume to go")

    def extend(self, volume_id: str, size_gib: int) -> None:
        self.client().volumes.extend(volume_id, size_gib)

    def share(self, backend: str = "files") -> Path:
        return self.directory / f"share-{backend}"

    def file_bytes(self, volume_id: str) -> int:
        """What the file has, by a look past Cinder."""
        (path,) = self.directory.glob(f"share-*/volume-{volume_id}*")
        return path.stat().st_size

    def record(self, volume_id: str) -> str:
        """What stands in Cinder's database of an extend that is under way; "" for none."""
        query = "SELECT value FROM volume_admin_metadata WHERE volume_id = ? AND deleted = 0 AND key = ?"
        with self._database() as database:
            rows = database.execute(query, (volume_id, EXTEND_KEY)).fetchall()
        return str(rows[0][0]) if rows else ""

    @contextmanager
    def losing_records(self) -> Iterator[None]:
        """Have the database not take what becomes of an extend that has begun."""
        refuse = "BEGIN SELECT RAISE(ABORT, 'the database is away'); END"
        when = f"BEFORE UPDATE ON volume_admin_metadata WHEN NEW.key = '{EXTEND_KEY}'"
        with self._database() as database:
            database.execute(f"CREATE TRIGGER away {when} {refuse}")
            database.commit()
        try:
            yield
        finally:
            with self._database() as database:
                database.execute("DROP TRIGGER away")
                database.commit()

    def _database(self) -> closing[sqlite3.Connection]:
        return closing(sqlite3.connect(self.directory / "cinder" / "cinder.sqlite", timeout=SOON_S))

    def usage(self) -> int:
        """What the project uses of its quota, in GiB, by Cinder's own books."""
        return int(self.client().quotas.get(PROJECT, usage=True).gigabytes["in_use"])

    @contextmanager
    def attached(self, volume_id: str, guest: DeviceGuest) -> Iterator[None]:
        """Do as Nova does: let the host in, connect, plug the volume into the guest, complete."""
        cinder = self.client()
        connector = {"host": "compute.example.org", "ip": "127.0.0.1", "multipath": False}
        made = cinder.attachments.create(volume_id, connector, guest.name)
        info = made["connection_info"]
        host = LocalHost("compute", LocalOptions(qmp_dir=self.directory), run)
        volume = Volume(volume_id, f"volume-{volume_id}", "files", 0)
        wanted = Attachment(made["id"], volume_id, "compute", guest.name)
        connection = ConnectionInfo(our_type(info["driver_volume_type"]), info["voldrivers:properties"])
        path = host.connect(volume, wanted, connection)
        there = host.find_instance(wanted)
        there = Attachment(**{**vars(there), "device_path": path, "connection_info": connection})
        host.plug(volume, there)
        cinder.attachments.complete(made["id"])
        self.wait(volume_id, "in-use")
        yield
        unplugging = threading.Thread(target=lambda: host.unplug(volume, there))
        unplugging.start()
        guest.eject(SOON_S)
        unplugging.join(SOON_S)
        cinder.attachments.delete(made["id"])

    def becomes(self, condition: Callable[[], bool], timeout_s: float = SOON_S) -> bool:
        return holds_within(condition, timeout_s)


def new_guest(directory: Path) -> DeviceGuest:
    """Start a guest that is called as Nova calls its own: by a UUID."""
    return DeviceGuest(directory, str(uuid.uuid4()))


def install(directory: Path, name: str, kind: str, code: str) -> None:
    """Let a site in `directory` know a driver of that name: class `kind` of a module with that code."""
    (directory / f"{name}.py").write_text(code)
    installed = directory / f"{name}-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(f"[voldrivers.drivers]\n{name} = {name}:{kind}\n")


def mark(path: Path) -> None:
    """Write where nobody else does, as a guest might have."""
    with path.open("r+b") as file:
        for at in _MARKED:
            os.pwrite(file.fileno(), _MARK, at)


def is_marked(path: Path) -> bool:
    """Tell whether that is there."""
    with path.open("rb") as file:
        return all(os.pread(file.fileno(), len(_MARK), at) == _MARK for at in _MARKED)
