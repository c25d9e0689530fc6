"""The volume service and the agent of a host, each a process of its own, over files and a real QEMU."""

import json
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from voldrivers.guests.device import DeviceGuest, Disk
from voldrivers.process import wait_until

COMMAND = str(Path(sys.executable).with_name("voldrivers"))
PROJECT = "a" * 32
AGENT_TOKEN = "0123456789abcdef-of-the-agent"
#: What an operation may take; nothing here takes nearly as long.
SOON_S = 30.0
NEWEST = "3.71"


def secret_file(path: Path, text: str, mode: int = 0o600) -> Path:
    path.touch(0o600)
    path.write_text(text + "\n")
    path.chmod(mode)
    return path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@dataclass
class Running:
    """A command of ours that serves, on the same port whenever it is started again."""

    directory: Path
    word: str
    config: str
    port: int = 0

    def __post_init__(self) -> None:
        self.directory.mkdir(exist_ok=True)
        self.start()

    def start(self) -> None:
        file = self.directory / f"{self.word}.toml"
        file.write_text(self.config.replace("PORT", str(self.port)))
        with (self.directory / f"{self.word}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [COMMAND, self.word, "--config", str(file), "-v"],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout
        self.said = self.process.stdout.readline().strip()
        assert " answers at " in self.said, self.log
        self.port = int(self.said.rpartition(":")[2])

    def end(self, number: int = signal.SIGKILL) -> int:
        assert self.process.stdout
        self.process.send_signal(number)
        self.process.stdout.close()
        return self.process.wait(SOON_S)

    @property
    def url(self) -> str:
        return self.said.rpartition(" ")[2]

    @property
    def log(self) -> str:
        return (self.directory / f"{self.word}.log").read_text()


@dataclass
class ServiceSite:
    """A storage machine with a service, and a compute machine with an agent, a guest in it.

    They are processes on this machine; in the lab they are machines.
    """

    directory: Path
    #: Keys of `[service]`, then tables.
    tables: str = ""
    host_keys: str = ""
    agent_keys: str = ""
    #: Whether extends go by the event `volume-extended` and its completion.
    by_events: bool = False
    #: Where events are sent and the agent asks, if not at agent and service themselves.
    events_at: str = ""
    volume_service_at: str = ""
    agent_at: str = ""
    driver: str = "nfs"
    deadline_s: float = 20.0
    headers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.directory / "share").mkdir()
        secret_file(self.directory / "agent.token", AGENT_TOKEN)
        port = free_port()
        at = self.events_at or f"http://127.0.0.1:{port}"
        events = f'events_url = "{at}/v2.1/{PROJECT}"\n' if self.by_events or self.events_at else ""
        self.service = Running(
            self.directory / "storage",
            "serve",
            f'state_dir = "state"\n[backend.files]\ndriver = "{self.driver}"\nshare = "../share"\n'
            f"[policy]\ndeadline_s = {self.deadline_s}\n"
            f'[host.compute]\nkind = "agent"\nurl = "{self.agent_at or f"http://127.0.0.1:{port}"}"\n'
            f'token_file = "../agent.token"\n{events}{self.host_keys}'
            f'[service]\nlisten = "127.0.0.1:PORT"\n{self.tables}',
        )
        self.agent = Running(
            self.directory / "compute",
            "agent",
            f'[agent]\nlisten = "127.0.0.1:PORT"\ntoken_file = "../agent.token"\n'
            f'[volume_service]\nurl = "{self.volume_service_at or self.service.url}/v3/{PROJECT}"\n'
            f'[host.compute]\nkind = "local"\nqmp_dir = ".."\nmonitor_timeout_s = 3.0\n{self.agent_keys}',
            port,
        )

    def end(self) -> None:
        for running in (self.service, self.agent):
            running.end()

    @property
    def endpoint(self) -> str:
        return f"{self.service.url}/v3/{PROJECT}"

    def ask(
        self, method: str, path: str, body: object = None, version: str = NEWEST, **headers: str
    ) -> httpx.Response:
        """Send one request, to a path below the project or, from a /, to the service."""
        url = f"{self.service.url}{path}" if path.startswith("/") else f"{self.endpoint}/{path}"
        sent = {"OpenStack-API-Version": f"volume {version}", **self.headers, **headers}
        return httpx.request(method, url, json=body, headers=sent, timeout=SOON_S)

    def done(self, method: str, path: str, body: object = None, **more: Any) -> Any:  # Any: what JSON holds
        """Send a request that must succeed."""
        answer = self.ask(method, path, body, **more)
        assert answer.is_success, f"{answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def compute(self, method: str, path: str, body: object = None, **headers: str) -> httpx.Response:
        """Ask the agent what Nova's specifications have it answer."""
        url = f"{self.agent.url}/v2/{PROJECT}/{path}"
        sent = {"Authorization": f"Bearer {AGENT_TOKEN}", **headers}
        return httpx.request(method, url, json=body, headers=sent, timeout=SOON_S)

    def refused(self, status: int, method: str, path: str, body: object = None, **more: Any) -> str:
        """Send a request that must be refused; give the reason."""
        answer = self.ask(method, path, body, **more)
        assert answer.status_code == status, f"{answer.status_code} {answer.text}"
        ((name, fault),) = answer.json().items()
        assert fault["code"] == status, name
        return str(fault["message"])

    # --- what tests begin with

    def create(self, size_gib: int = 1, **more: object) -> str:
        """Make a volume, and give its id."""
        made = self.done("POST", "volumes", {"volume": {"size": size_gib, **more}})
        self.wait(made["volume"]["id"], "available")
        return str(made["volume"]["id"])

    def attach(self, volume_id: str, guest: DeviceGuest) -> str:
        """Have the service plug a volume into a guest; give the id of the attachment."""
        wanted = {
            "volume_uuid": volume_id,
            "instance_uuid": guest.name,
            "connector": None,
            "voldrivers:host": "compute",
        }
        made = self.done("POST", "attachments", {"attachment": wanted})
        return str(made["attachment"]["id"])

    def detach(self, attachment_id: str, guest: DeviceGuest) -> None:
        """Have the service unplug a volume, which its guest lets go of."""
        with ThreadPoolExecutor(1) as beside:
            asked = beside.submit(self.done, "DELETE", f"attachments/{attachment_id}")
            guest.eject(SOON_S)
            asked.result()

    def extend(self, volume_id: str, size_gib: int) -> None:
        self.done("POST", f"volumes/{volume_id}/action", {"os-extend": {"new_size": size_gib}})

    def show(self, volume_id: str) -> Any:  # Any: what JSON holds
        return self.done("GET", f"volumes/{volume_id}")["volume"]

    def wait(self, volume_id: str, status: str) -> Any:  # Any: what JSON holds
        """Wait for a status; another steady one is a failure at once."""

        def is_there() -> bool:
            seen.append(self.show(volume_id))
            assert seen[-1]["status"] in (status, "creating", "extending", "attaching"), seen[-1]
            return bool(seen[-1]["status"] == status)

        seen: list[Any] = []  # Any: as above
        wait_until(is_there, SOON_S, f"volume {volume_id} to be {status}")
        return seen[-1]

    def disk(self, volume_id: str, guest: DeviceGuest) -> Disk:
        return guest.disk(volume_id)

    def file_bytes(self, volume_id: str) -> int:
        """What the file has, by a look past the service."""
        (path,) = (self.directory / "share").glob(f"*{volume_id}*")
        return path.stat().st_size

    def logged(self) -> list[Any]:  # Any: what JSON holds
        """Every line that service and agent have logged."""
        return [
            json.loads(line) for running in (self.service, self.agent) for line in running.log.splitlines()
        ]
