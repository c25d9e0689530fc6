"""A host behind its agent: what goes over the wire, the guard, and real agents, killed and deceived."""

import inspect
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import httpx
import pytest
from faultyqmp import FaultyMonitor
from hypothesis import given
from hypothesis import strategies as st
from realsite import (
    LARGE,
    NAME,
    QCOW2,
    RAW,
    SMALL,
    Child,
    Kind,
    RealSite,
    attached,
    check_grown,
    check_untouched,
    disk_of,
)

from voldrivers import process
from voldrivers.abilities import Layers, Merge
from voldrivers.api import server, wire
from voldrivers.api.agent import Agent
from voldrivers.api.agentapp import make_app
from voldrivers.api.remote import RemoteHost, RemoteOptions
from voldrivers.base import Host
from voldrivers.cli import main
from voldrivers.errors import (
    BackendError,
    CommandFailed,
    HostUnreachable,
    InvalidInput,
    InvalidState,
    NotFound,
    NotSupported,
    OutcomeUnknown,
    VolDriverError,
)
from voldrivers.guests.device import SECTOR_BYTES, DeviceGuest
from voldrivers.host.local import LocalHost, LocalOptions
from voldrivers.memory import MemoryArray, MemoryHost
from voldrivers.model import (
    Attachment,
    ConnectionInfo,
    Connector,
    Extend,
    InstanceState,
    Phase,
    Volume,
    VolumeStatus,
    utc_now,
)
from voldrivers.process import wait_until
from voldrivers.sizes import MiB

COMMAND = str(Path(sys.executable).with_name("voldrivers"))
TOKEN = "0123456789abcdef-of-a-token"
SECRET = "s3cret"
VOLUME = Volume("id-of-v", "v", "ram", 8 * MiB)
INFO = ConnectionInfo("iscsi", {"auth_username": "u", "auth_password": SECRET})
ATTACHMENT = Attachment("a1", VOLUME.id, "here", "vm", connection_info=INFO)
NEVER = datetime(2999, 1, 1, tzinfo=UTC)
EXTEND = Extend(7, VOLUME.id, 8 * MiB, 16 * MiB, 16 * MiB, Phase.RESIZING, NEVER)
#: Of each call of `Host`.
ARGUMENTS: dict[str, Any] = {  # Any: as the calls have them
    "merge": Merge("volume-1.2.qcow2", "volume-1", None, None),
    "volume": VOLUME,
    "attachment": ATTACHMENT,
    "connection_info": INFO,
    "expected_bytes": 8 * MiB,
    "extend": EXTEND,
}
CALLS = sorted({*wire.LOOKS, *wire.ACTS})


# --- the wire


def test_every_call_of_a_host_is_known_once() -> None:
    assert sorted([*wire.LOOKS, *wire.ACTS, "hold"]) == sorted(
        Host.__abstractmethods__ | Layers.__abstractmethods__
    )


ANY_TIME = st.datetimes(timezones=st.just(UTC))
ANY_EXTEND = st.builds(Extend, expires_at=ANY_TIME)


def anything(hint: Any) -> st.SearchStrategy[Any]:  # Any: an annotation and its values
    return ANY_EXTEND if hint is Extend else st.from_type(hint)


def over_json(value: object) -> Any:  # Any: what JSON holds
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("name", CALLS)
@given(draw=st.data())
def test_whatever_a_call_is_given_and_answers_survives(name: str, draw: st.DataObject) -> None:
    method, call = getattr(Host, name, None) or getattr(Layers, name), wire.call(name)
    hints = get_type_hints(method)
    names = [each for each in inspect.signature(method).parameters if each != "self"]
    given_ = {each: draw.draw(anything(hints[each]), each) for each in names}
    assert call.read(over_json(call.write(given_))) == given_
    answer = draw.draw(anything(hints["return"]), "answer")
    assert call.answer.validate_python(over_json(call.write_answer(answer))) == answer


@given(lease_s=st.floats(0, wire.LONGEST_LEASE_S, exclude_min=True))
def test_a_lease_survives(lease_s: float) -> None:
    given_ = {"attachment": ATTACHMENT, "lease_s": lease_s}
    assert wire.call("hold").read(over_json(wire.call("hold").write(given_))) == given_


@pytest.mark.parametrize("lease_s", [0, -1, wire.LONGEST_LEASE_S + 1, "nan", "long"])
def test_a_lease_ends(lease_s: object) -> None:
    written = wire.call("hold").write({"attachment": ATTACHMENT, "lease_s": 1.0})
    with pytest.raises(InvalidInput):
        wire.call("hold").read({**written, "lease_s": lease_s})


@pytest.mark.parametrize("name", ["connect", "assist_extend"])
@given(
    junk=st.recursive(
        st.none() | st.integers() | st.text(), lambda j: st.lists(j) | st.dictionaries(st.text(), j)
    )
)
def test_arguments_that_make_no_sense_are_refused_without_showing_them(name: str, junk: object) -> None:
    call = wire.call(name)
    written = over_json(call.write({each: ARGUMENTS[each] for each in call.arguments}))
    for each in written:
        missing = {key: value for key, value in written.items() if key != each}
        with pytest.raises(InvalidInput):
            call.read(missing)
        with suppress(InvalidInput):  # a text for a text is sense
            call.read({**written, each: junk})
    if "connection_info" in written:
        written["connection_info"]["driver_volume_type"] = 5
        with pytest.raises(InvalidInput) as caught:
            call.read(written)
        assert caught.value.__cause__ is None
        assert SECRET not in f"{caught.value} {caught.value!r}"


def test_a_secret_is_in_no_repr() -> None:
    assert SECRET not in repr([VOLUME, ATTACHMENT, INFO])


# --- the guard


class SlowHost(MemoryHost):
    """Its acts wait for a word, and are noted."""

    def __init__(self) -> None:
        super().__init__("here", MemoryArray(sizes={VOLUME.id: 16 * MiB}))
        self.begun, self.may_go_on = threading.Semaphore(0), threading.Semaphore(0)
        self.done: list[str] = []

    def slowly(self, what: str) -> None:
        self.begun.release()
        assert self.may_go_on.acquire(timeout=20)
        self.done.append(what)

    def assist_extend(self, volume: Volume, attachment: Attachment, extend: Extend) -> None:
        self.slowly(f"extend {extend.id}")

    def cancel(self, extend: Extend, attachment: Attachment) -> None:
        self.slowly(f"cancel {extend.id}")

    def rescan(self, volume: Volume, attachment: Attachment) -> None:
        self.slowly(process._marked_for.get())


@dataclass
class Asked:
    """An agent, and threads that ask it."""

    threads: ThreadPoolExecutor
    host: SlowHost = field(default_factory=SlowHost)
    at: datetime = field(default_factory=utc_now)

    def __post_init__(self) -> None:
        self.agent = Agent(self.host, lambda: self.at)

    def ask(self, name: str, within_s: float = 60, **arguments: object) -> object:
        call = wire.call(name)
        body = call.write({each: ARGUMENTS.get(each) for each in call.arguments} | arguments)
        return self.agent.answer(name, body, self.at + timedelta(seconds=within_s))

    def begin(self, name: str, **arguments: Any) -> Any:  # Any: of the call, and the future of its answer
        began = self.threads.submit(partial(self.ask, name, **arguments))
        assert self.host.begun.acquire(timeout=20)
        return began

    def extend(self, extend_id: int, **changes: Any) -> object:  # Any: of Extend
        self.host.may_go_on.release()
        return self.ask("assist_extend", extend=over_extend(extend_id, **changes))


def over_extend(extend_id: int, **changes: Any) -> object:  # Any: of Extend
    return wire.call("cancel").write(
        {"extend": replace(EXTEND, id=extend_id, **changes), "attachment": ATTACHMENT}
    )["extend"]


@pytest.fixture
def asked() -> Iterator[Asked]:
    with ThreadPoolExecutor() as threads:
        made = Asked(threads)
        yield made
        for _ in range(9):
            made.host.may_go_on.release()


def test_an_older_extend_is_refused_and_the_same_is_not(asked: Asked) -> None:
    asked.extend(7)
    asked.extend(7)
    with pytest.raises(InvalidState, match="extend 6 of volume id-of-v is older than extend 7"):
        asked.extend(6)
    asked.extend(8)
    assert asked.host.done == ["extend 7", "extend 7", "extend 8"]


def test_an_expired_extend_is_refused(asked: Asked) -> None:
    with pytest.raises(InvalidState, match="extend 7 of volume id-of-v is expired at host here"):
        asked.extend(7, expires_at=asked.at)
    assert asked.host.done == []


def test_a_cancelled_extend_is_refused_and_a_later_one_is_not(asked: Asked) -> None:
    asked.host.may_go_on.release()
    asked.ask("cancel")
    for extend_id in (6, 7):
        with pytest.raises(InvalidState, match="cancelled at host here"):
            asked.extend(extend_id)
    assert asked.host.done == ["cancel 7"]
    asked.extend(8)


@pytest.mark.parametrize("name", sorted({*wire.LOOKS, *wire.ACTS, "hold"}))
def test_a_request_that_comes_too_late_is_refused(asked: Asked, name: str) -> None:
    arguments: dict[str, Any] = {"lease_s": 5.0} if name == "hold" else {}  # Any: as the call has them
    with pytest.raises(
        InvalidState, match=f"request {name} to host here is expired since .*do the clocks agree"
    ):
        asked.ask(name, within_s=0, **arguments)
    assert asked.host.done == []
    assert not asked.host.machine.held


def test_a_late_cancel_cancels_nothing(asked: Asked) -> None:
    with pytest.raises(InvalidState, match="expired"):
        asked.ask("cancel", within_s=-1)
    asked.extend(7)


def test_a_cancel_waits_for_the_act_that_runs_and_stops_the_one_in_line(asked: Asked) -> None:
    first = asked.begin("assist_extend")
    second = asked.threads.submit(partial(asked.ask, "assist_extend"))
    cancel = asked.threads.submit(partial(asked.ask, "cancel"))
    wait_until(lambda: asked.agent._volumes[VOLUME.id].cancelled == 7, 20, "the cancel to be in line")
    assert not cancel.done()
    for _ in range(2):
        asked.host.may_go_on.release()
    first.result(20)
    cancel.result(20)
    error = second.exception(20)
    # In either order: the locks of Python are not fair.
    assert isinstance(error, InvalidState)
    assert asked.host.done == ["extend 7", "cancel 7"]


def test_whoever_waits_is_refused_when_its_time_is_over(asked: Asked) -> None:
    first = asked.begin("rescan")
    began = time.monotonic()
    with pytest.raises(InvalidState, match="request rescan to host here is expired"):
        asked.ask("rescan", within_s=0.2)
    assert time.monotonic() - began >= 0.2
    asked.host.may_go_on.release()
    first.result(20)
    assert asked.host.done == [VOLUME.id]


def test_whoever_gets_its_turn_too_late_is_refused(asked: Asked) -> None:
    first = asked.begin("rescan")
    second = asked.threads.submit(partial(asked.ask, "rescan", within_s=30))
    wait_until(second.running, 20, "the second to wait")
    asked.at += timedelta(seconds=31)
    asked.host.may_go_on.release()
    first.result(20)
    assert isinstance(second.exception(20), InvalidState)
    assert asked.host.done == [VOLUME.id]


def test_another_volume_does_not_wait(asked: Asked) -> None:
    asked.begin("rescan")
    other = over_json(wire.call("rescan").write(ARGUMENTS)["attachment"]) | {"volume_id": "other"}
    asked.begin("rescan", attachment=other)


def test_a_look_does_not_wait(asked: Asked) -> None:
    asked.begin("assist_extend")
    assert asked.ask("instance_state") == "running"


def test_only_one_acts_however_many_begin_at_once(asked: Asked) -> None:
    barrier, most, now = threading.Barrier(8), [0], [0]

    def slowly(what: str) -> None:
        now[0] += 1
        most[0] = max(most[0], now[0])
        time.sleep(0.01)
        now[0] -= 1

    asked.host.slowly = slowly  # type: ignore[method-assign]  # another host for this test

    def ask() -> None:
        barrier.wait(20)
        asked.ask("rescan")

    with ThreadPoolExecutor(8) as threads:
        for asking in [threads.submit(ask) for _ in range(8)]:
            asking.result(20)
    assert most == [1]


def test_a_hold_lapses(asked: Asked) -> None:
    lease = asked.ask("hold", lease_s=0.05)
    assert asked.host.machine.held == {ATTACHMENT.id}
    wait_until(lambda: not asked.host.machine.held, 20, "the hold to lapse")
    assert asked.ask("release", lease=lease) is False


def test_a_hold_is_released_once_and_leaves_no_thread(asked: Asked) -> None:
    before = threading.active_count()
    lease = asked.ask("hold", lease_s=3000.0)
    assert asked.ask("release", lease=lease, within_s=-60) is True
    assert not asked.host.machine.held
    assert asked.ask("release", lease=lease) is False
    wait_until(lambda: threading.active_count() <= before, 20, "the timer to end")


def test_a_hold_that_came_too_late_is_given_up(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    real = asked.host.hold

    @contextmanager
    def hold(attachment: Attachment) -> Iterator[None]:
        with real(attachment):
            asked.at += timedelta(seconds=61)
            yield

    monkeypatch.setattr(asked.host, "hold", hold)
    with pytest.raises(InvalidState, match="request hold to host here is expired"):
        asked.ask("hold", lease_s=3000.0)
    assert not asked.host.machine.held


def test_what_a_killed_agent_left_has_ended_before_the_first_act(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voldrivers.api.agent._ORPHAN_S", 0.1)
    orphan = subprocess.Popen(["sleep", "60"], env={**os.environ, process.MARK: VOLUME.id})
    environment = Path(f"/proc/{orphan.pid}/environ")  # empty for a moment after exec
    process.wait_until(lambda: VOLUME.id.encode() in environment.read_bytes(), 5, "the mark")
    try:
        ended: list[int | None] = []
        asked.host.slowly = lambda what: ended.append(orphan.poll())  # type: ignore[method-assign]  # for this test
        asked.ask("instance_state")
        assert orphan.poll() is None
        asked.ask("rescan")
        assert ended == [-signal.SIGKILL]
    finally:
        orphan.kill()
        orphan.wait()


def test_whose_time_ended_while_it_waited_for_orphans_is_refused(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(volume_id: str, *, timeout_s: float) -> None:
        asked.at += timedelta(seconds=61)

    monkeypatch.setattr("voldrivers.api.agent.end_orphans", end)
    with pytest.raises(InvalidState, match="expired"):
        asked.ask("rescan")
    assert asked.host.done == []


def test_an_unknown_call_is_not_supported(asked: Asked) -> None:
    with pytest.raises(NotSupported, match="host here: its agent does not know the call '_nodes'"):
        asked.agent.answer("_nodes", {}, NEVER)


# --- the application, over HTTP


class OddHost(SlowHost):
    """It fails, hangs and tells secrets by mistake."""

    def get_blockdev(self, volume: Volume, attachment: Attachment) -> int:
        raise KeyError(SECRET)

    def check_extend(self, volume: Volume, attachment: Attachment) -> None:
        time.sleep(600)

    def connect(self, volume: Volume, attachment: Attachment, connection_info: ConnectionInfo) -> str:
        raise CommandFailed("mount", os.fsdecode(b"no \xff"), argv=("mount", "x"), exit_code=32)

    def rescan(self, volume: Volume, attachment: Attachment) -> None:
        error = NotFound("device", "sda")
        error.add_note("look there")
        raise error


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    return secret_file(tmp_path / "token", TOKEN)


def secret_file(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def remote(
    url: str, token_file: Path, name: str = "here", **options: Any
) -> RemoteHost:  # Any: of RemoteOptions
    limits = {"look_timeout_s": 20.0, "act_timeout_s": 20.0, **options}
    return RemoteHost(name, RemoteOptions(url, token_file, **limits), process.run)


def call(host: Host, name: str) -> object:
    method = getattr(host, name)
    return method(**{each: ARGUMENTS[each] for each in inspect.signature(method).parameters})


@pytest.fixture
def odd_url(tmp_path: Path) -> Iterator[str]:
    """Serve an OddHost in a process of its own."""
    with server.listen("127.0.0.1", 0) as listening:

        def answer() -> None:
            with (tmp_path / "log").open("w") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                logging.getLogger("voldrivers").addHandler(logging.StreamHandler(log))
                server.serve(server.make_server(make_app(OddHost(), TOKEN), server.Identity()), listening)

        child = Child(answer)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        child.kill()
        child.answer()


def test_errors_come_over_as_they_are(odd_url: str, token_file: Path) -> None:
    host = remote(odd_url, token_file)
    with pytest.raises(NotFound) as missing:
        call(host, "rescan")
    assert str(missing.value) == "device sda does not exist"
    assert missing.value.__notes__ == ["look there"]
    with pytest.raises(CommandFailed) as failed:
        call(host, "connect")
    error = failed.value
    assert (error.argv, error.exit_code, error.reason) == (("mount", "x"), 32, "no \udcff")


def test_a_mistake_of_the_agent_is_told_without_secrets(
    odd_url: str, token_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        BackendError, match=r"host here: a mistake in voldrivers: KeyError at .*test_agent.py:\d+"
    ):
        call(remote(odd_url, token_file), "get_blockdev")
    log = (tmp_path / "log").read_text()
    assert "get_blockdev: a mistake in voldrivers: KeyError at" in log
    assert SECRET not in log
    assert TOKEN not in log


def test_acts_are_answered_however_many_looks_hang(odd_url: str, token_file: Path) -> None:
    hanging = remote(odd_url, token_file, look_timeout_s=3.0)
    with ThreadPoolExecutor(60) as threads:
        looks = [threads.submit(partial(call, hanging, "check_extend")) for _ in range(60)]
        time.sleep(1.0)
        with pytest.raises(NotFound):
            call(remote(odd_url, token_file), "rescan")
        assert {type(look.exception()) for look in looks} == {HostUnreachable}


def raw(odd_url: str, request: bytes, *, cut: bool) -> bytes:
    url = httpx.URL(odd_url)
    with socket.create_connection((url.host, url.port or 0), timeout=20) as connection:
        connection.sendall(request)
        if cut:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        while part := connection.recv(65536):
            received += part
    return received


AUTHORIZED = f"Authorization: Bearer {TOKEN}\r\nHost: x\r\nConnection: close\r\n".encode()
LATER = f"{wire.EXPIRES}: {NEVER.isoformat()}\r\n".encode()
POST = b"POST /v1/host/rescan HTTP/1.1\r\n"

REQUESTS = {
    "no token": (POST + b"Host: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}", b"401"),
    "another token": (POST + b"Host: x\r\nAuthorization: Bearer \xff\r\nConnection: close\r\n\r\n", b"401"),
    "no token, elsewhere": (b"GET /docs HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"401"),
    "without end": (
        POST + AUTHORIZED + LATER + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"400",
    ),
    "too long": (POST + AUTHORIZED + LATER + b"Content-Length: 99999999\r\n\r\n", b"413"),
    "cut": (POST + AUTHORIZED + LATER + b"Content-Length: 99\r\n\r\n{", b""),
    "no JSON": (POST + AUTHORIZED + LATER + b"Content-Length: 1\r\n\r\n{", b"400"),
    "no object": (POST + AUTHORIZED + LATER + b"Content-Length: 2\r\n\r\n[]", b"400"),
    "deep": (POST + AUTHORIZED + LATER + b"Content-Length: 100000\r\n\r\n" + b"[" * 100_000, b"400"),
    "no time": (POST + AUTHORIZED + b"Content-Length: 2\r\n\r\n{}", b"400"),
    "no zone": (POST + AUTHORIZED + b"Voldrivers-Expires: 2999-01-01\r\nContent-Length: 2\r\n\r\n{}", b"400"),
    "before time": (
        POST + AUTHORIZED + b"Voldrivers-Expires: 0001-01-01T00:00+14:00\r\nContent-Length: 2\r\n\r\n{}",
        b"400",
    ),
    "no arguments": (POST + AUTHORIZED + LATER + b"Content-Length: 2\r\n\r\n{}", b"400"),
    "unknown": (
        b"POST /v1/host/nothing HTTP/1.1\r\n" + AUTHORIZED + LATER + b"Content-Length: 2\r\n\r\n{}",
        b"501",
    ),
    "elsewhere": (b"GET /docs HTTP/1.1\r\n" + AUTHORIZED + b"\r\n", b"404"),
}


def test_what_is_no_request_is_refused(odd_url: str, tmp_path: Path) -> None:
    for title, (request, code) in REQUESTS.items():
        answer = raw(odd_url, request, cut=title == "cut")
        assert answer.startswith(b"HTTP/1.1 " + code) or (title == "cut" and not answer), (title, answer)
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log, log
    assert "a request from 127.0.0.1: the token is missing or wrong" in log
    assert TOKEN not in log


# --- others that answer


@contextmanager
def answering(*answers: bytes | None, hangs_up: bool = True) -> Iterator[str]:
    """Listen and give each connection the next answer, the last one for ever; None is silence.

    A second request on a connection is never answered.
    """
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor() as threads:
        open_: list[socket.socket] = []

        def serve() -> None:
            left = list(answers)
            with suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    open_.append(connection)
                    answer = left.pop(0) if len(left) > 1 else left[0]
                    if answer is not None:
                        received(connection)
                        connection.sendall(answer)
                        if hangs_up:
                            connection.shutdown(socket.SHUT_WR)

        threads.submit(serve)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            for connection in open_:
                connection.close()


def received(connection: socket.socket) -> None:
    """Read a request whole: a reset would throw our answer away."""
    seen = b""
    while b"\r\n\r\n" not in seen:
        seen += connection.recv(65536)
    head, _, body = seen.partition(b"\r\n\r\n")
    length = next(
        (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
    )
    while len(body) < length:
        body += connection.recv(65536)


def http(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


DESCRIBED = http(b'{"name": "here", "version": 1}')
HTML = b"<html>" * 1000
STRANGERS = {
    "html": http(HTML),
    "404": http(HTML, "404 Not Found"),
    "500": http(HTML, "500 Internal Server Error"),
    "redirect": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    "a list": http(b"[]"),
    "an empty object": http(b"{}"),
    "an error that is none": http(b'{"error": {"type": "NoSpace", "fields": {}, "notes": []}}', "500 x"),
    "facts of another type": http(
        b'{"error": {"type": "NoSpace", "fields": {"subject": 1, "needed_bytes": "x"}, "notes": []}}', "500 x"
    ),
    "deep": http(b"[" * 200_000),
    "not UTF-8": http(b'"\xff"'),
}


@pytest.mark.parametrize("stranger", STRANGERS.values(), ids=STRANGERS.keys())
def test_a_stranger_at_the_port_is_no_agent(stranger: bytes, token_file: Path) -> None:
    with answering(stranger) as url:
        host = remote(url, token_file)
        for name in ("plug", "connector"):
            with pytest.raises(BackendError, match="host here at http"):
                call(host, name)
        with pytest.raises(BackendError, match=r"asked who it is|neither name nor version"):
            _ = host.version


@pytest.mark.parametrize("stranger", STRANGERS.values(), ids=STRANGERS.keys())
def test_nonsense_for_an_act_leaves_its_outcome_unknown(stranger: bytes, token_file: Path) -> None:
    with answering(DESCRIBED, stranger) as url:
        host = remote(url, token_file)
        with pytest.raises(OutcomeUnknown, match="plug at host here"):
            call(host, "plug")
        with pytest.raises(BackendError, match="asked for get_blockdev, gave no answer of an agent"):
            call(host, "get_blockdev")


def test_an_error_of_a_newer_agent_is_a_failure(token_file: Path) -> None:
    newer = b'{"error": {"type": "Haunted", "fields": {"subject": "a", "reason": "b"}, "notes": []}}'
    with answering(DESCRIBED, http(newer, "500 x")) as url, pytest.raises(BackendError, match=r"^a: b$"):
        call(remote(url, token_file), "plug")


SILENCES = {
    "silent": None,
    "hangs up": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-",
    "half a body": b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{",
    "no HTTP": b"220 ESMTP\r\n" * 100,
    "too much": b"HTTP/1.1 200 OK\r\n\r\n" + bytes(5 * MiB),
}


@pytest.mark.parametrize("silence", SILENCES.values(), ids=SILENCES.keys())
def test_without_an_answer_a_look_failed_and_an_act_is_unknown(
    silence: bytes | None, token_file: Path
) -> None:
    with answering(DESCRIBED, silence) as url:
        host = remote(url, token_file, look_timeout_s=0.5, act_timeout_s=0.5)
        with pytest.raises(OutcomeUnknown, match=r"plug at host here at .*: no answer: "):
            call(host, "plug")
        with pytest.raises(InvalidState, match=r"host here at .* not answering"):
            call(host, "get_blockdev")
        assert call(host, "instance_state") is InstanceState.UNKNOWN
        with pytest.raises(InvalidState), host.hold(ATTACHMENT):
            pytest.fail("it is not held")


def test_an_answer_that_never_ends_is_left(token_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor() as threads:

        def drip() -> None:
            connection, _ = listening.accept()
            with connection, suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                while True:
                    connection.sendall(b" ")
                    time.sleep(0.05)

        threads.submit(drip)
        host = remote(f"http://127.0.0.1:{listening.getsockname()[1]}", token_file, look_timeout_s=0.5)
        began = time.monotonic()
        with pytest.raises(InvalidState, match="does not end in time"):
            _ = host.version
        assert time.monotonic() - began >= 0.5


def test_no_connection_is_used_twice(token_file: Path) -> None:
    """One that an agent has left, when it was restarted say, would make the outcome of an act unknown."""
    with answering(DESCRIBED, http(b'{"answer": null}'), hangs_up=False) as url:
        host = remote(url, token_file, act_timeout_s=3.0)
        for _ in range(3):
            call(host, "plug")


@pytest.mark.parametrize("name", ["plug", "get_blockdev"])
def test_what_could_not_be_sent_was_not_done(name: str, token_file: Path) -> None:
    with answering(DESCRIBED) as url:
        host = remote(url, token_file)
        assert host.version == 1
    with pytest.raises(InvalidState, match=r"host here at http.* is unreachable \(.*refused\), must be up"):
        call(host, name)


@pytest.mark.parametrize(
    "url",
    ["here:1", "ftp://here", "http://", "http://here/path", "http://[::1", "http://x:99999", "http://u:p@x"],
)
def test_an_address_that_is_none_is_refused(url: str, token_file: Path) -> None:
    with pytest.raises(ValueError, match="url "):
        RemoteOptions(url, token_file)


def test_no_proxy_gets_the_token(token_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    with answering(DESCRIBED) as url:
        assert remote(url, token_file).version == 1


# --- real agents


@dataclass
class RunningAgent:
    """`voldrivers agent` as a process, on the same port whenever it is started again."""

    directory: Path
    table: str = ""
    arguments: tuple[str, ...] = ()
    port: int = 0

    def __post_init__(self) -> None:
        secret_file(self.directory / "token", TOKEN)
        self.start()

    def start(self) -> None:
        listen = "" if "listen" in self.table else f'listen = "127.0.0.1:{self.port}"\n'
        file = write_agent(self.directory, f"{listen}{self.table}")
        with (self.directory / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                [COMMAND, "agent", "--config", str(file), *self.arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout
        self.said = self.process.stdout.readline().strip()
        assert self.said.startswith("host here answers at "), self.log
        self.port = int(self.said.rpartition(":")[2])

    def end(self, number: int = signal.SIGKILL) -> int:
        assert self.process.stdout
        self.process.send_signal(number)
        self.process.stdout.close()
        return self.process.wait(20)

    @property
    def url(self) -> str:
        return self.said.rpartition(" ")[2]

    @property
    def log(self) -> str:
        return (self.directory / "agent.log").read_text()

    def host(self, **options: Any) -> RemoteHost:  # Any: of RemoteOptions
        return remote(self.url, self.directory / "token", **options)


def write_agent(directory: Path, table: str, rest: str = "") -> Path:
    file = directory / "agent.toml"
    named = "" if "token_file" in table else 'token_file = "token"\n'
    limits = "monitor_timeout_s = 3.0\nresize_timeout_s = 3.0\n"
    file.write_text(f'[agent]\n{named}{table}\n[host.here]\nkind = "local"\n{limits}{rest}')
    return file


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[RunningAgent]:
    running = RunningAgent(tmp_path)
    yield running
    running.end()


@pytest.fixture
def far(site: RealSite, agent: RunningAgent) -> RealSite:
    """The site, whose host is behind an agent."""
    site.make_host = lambda _run: agent.host()
    return site


IN_USE, EXTENDING = VolumeStatus.IN_USE, VolumeStatus.EXTENDING
REAL = pytest.mark.needs("qemu-system-x86_64", "qemu-img")


@REAL
@pytest.mark.parametrize("kind", [RAW, QCOW2], ids=lambda kind: kind.name)
def test_attach_extend_in_use_detach(
    far: RealSite, guest: DeviceGuest, agent: RunningAgent, kind: Kind
) -> None:
    attached(far, guest, kind)
    (attachment,) = far.volume.attachments
    assert (attachment.connector or Connector("")).host == "here"
    assert far.extend().phase is Phase.COMPLETED
    check_grown(far, guest)
    with ThreadPoolExecutor() as threads, far.engine() as engine:
        released = threads.submit(guest.eject)
        engine.detach(NAME)
        released.result()
        assert engine.volume(NAME).status is VolumeStatus.AVAILABLE
    assert agent.log == ""


@REAL
def test_snapshots_are_taken_and_merged_through_the_agent(
    far: RealSite, guest: DeviceGuest, agent: RunningAgent
) -> None:
    attached(far, guest, RAW)
    disk = disk_of(far, guest)
    with far.engine() as engine:
        engine.create_snapshot(NAME, "s")
        disk.write(0, b"later".ljust(SECTOR_BYTES))
        engine.extend(NAME, LARGE)
        engine.create_snapshot(NAME, "t")
        engine.delete_snapshot("s")
        (kept,) = engine.volume(NAME).snapshots
    assert (kept.name, kept.size_bytes) == ("t", LARGE)
    assert disk.read(0).rstrip() == b"later"
    assert disk.read(LARGE // SECTOR_BYTES - 1) == bytes(SECTOR_BYTES)
    far.check_steady(IN_USE, LARGE)
    agent.end()
    with pytest.raises(InvalidState, match="nobody knows whether it runs"), far.engine() as engine:
        engine.create_snapshot(NAME, "u")
    assert [snapshot.name for snapshot in far.volume.snapshots] == ["t"]
    assert agent.log == ""


@REAL
def test_an_instance_that_ended_is_known_and_its_file_grows_while_it_is_held(
    far: RealSite, ram_path: Path
) -> None:
    with DeviceGuest(ram_path) as guest:
        attached(far, guest, RAW)
    assert far.extend().phase is Phase.COMPLETED
    far.check_steady(IN_USE, LARGE)


@REAL
def test_nothing_is_admitted_while_the_agent_is_down(
    far: RealSite, guest: DeviceGuest, agent: RunningAgent
) -> None:
    attached(far, guest, RAW)
    agent.end()
    with pytest.raises(InvalidState, match=r"host here at .* is unreachable"):
        far.extend()
    assert far.volume.status is IN_USE
    assert next(row.note for row in far.ledger if row.observed_bytes is None).startswith("host here at ")
    agent.start()
    check_untouched(far, guest)
    far.extend()
    check_grown(far, guest)


@REAL
@pytest.mark.parametrize("moment", ["block_resize", "query-"], ids=["done all the same", "not done"])
def test_an_agent_killed_during_an_extend_leaves_it_to_resume(
    far: RealSite, guest: DeviceGuest, agent: RunningAgent, moment: str
) -> None:
    attached(far, guest, RAW)
    host, asked, killed = agent.host(), list[str](), list[int]()
    assist_extend = host.assist_extend

    def note(volume: Volume, attachment: Attachment, extend: Extend) -> None:
        asked.append("assist_extend")
        assist_extend(volume, attachment, extend)

    def kill(command: str) -> None:
        if asked and not killed and command.startswith(moment):
            killed.append(agent.end())

    host.assist_extend = note  # type: ignore[method-assign]  # to know when it is asked
    far.make_host = lambda _run: host
    with between(guest, kill):
        with pytest.raises(OutcomeUnknown, match="assist_extend at host here"):
            far.extend()
        if moment == "block_resize":
            wait_until(lambda: far.file_bytes == LARGE, 20, "QEMU to do what it was asked")
    assert killed == [-signal.SIGKILL]
    assert far.volume.status is EXTENDING
    if moment != "block_resize":  # nobody can say yet that it never will be done
        assert far.file_bytes == SMALL
        assert isinstance(far.resume(), OutcomeUnknown)
        assert far.volume.status is EXTENDING
    agent.start()
    assert far.resume() is None
    check_grown(far, guest)


@contextmanager
def between(guest: DeviceGuest, before: Callable[[str], None]) -> Iterator[None]:
    """Stand between the agent and QEMU, and see each command before QEMU does."""
    real = guest.qmp_socket.with_suffix(".real")
    guest.qmp_socket.rename(real)
    try:
        with FaultyMonitor(guest.qmp_socket, real, {}) as monitor:
            monitor.before = before
            yield
    finally:
        guest.qmp_socket.unlink()
        real.rename(guest.qmp_socket)


@REAL
def test_an_agent_that_is_frozen_leaves_it_to_resume(
    far: RealSite, guest: DeviceGuest, agent: RunningAgent
) -> None:
    attached(far, guest, RAW)
    host = agent.host(act_timeout_s=0.5, look_timeout_s=0.5)
    far.make_host = lambda _run: host
    real = host.assist_extend

    def freeze(volume: Volume, attachment: Attachment, extend: Extend) -> None:
        agent.process.send_signal(signal.SIGSTOP)
        real(volume, attachment, extend)

    host.assist_extend = freeze  # type: ignore[method-assign]  # the moment of the fault
    with pytest.raises(OutcomeUnknown, match="assist_extend at host here"):
        far.extend()
    agent.process.send_signal(signal.SIGCONT)
    # What it finds in its queue now is too late and is refused.
    wait_until(lambda: "request assist_extend to host here is expired" in agent.log, 20, "the late request")
    far.make_host = lambda _run: agent.host()
    check = far.ledger
    assert all(row.observed_bytes != LARGE for row in check)
    assert far.resume() is None
    check_grown(far, guest)


def test_a_wrong_token_is_refused(agent: RunningAgent, tmp_path: Path) -> None:
    other = secret_file(tmp_path / "other", "f" * 32)
    host = remote(agent.url, other)
    for name in ("plug", "get_blockdev"):
        with pytest.raises(InvalidInput, match=f"it refuses the token in {other}"):
            call(host, name)
    assert "f" * 32 not in agent.log
    assert "the token is missing or wrong" in agent.log
    other.write_text(TOKEN)  # it was copied again
    assert host.connector().host == "here"


def test_the_agent_of_another_host_is_refused(agent: RunningAgent) -> None:
    with pytest.raises(InvalidInput, match=r"host there at .*: the agent there is that of host here"):
        call(agent.host(name="there"), "plug")


def test_a_hold_keeps_others_away_and_lapses(agent: RunningAgent, tmp_path: Path) -> None:
    monitor = replace(ATTACHMENT, monitor=str(tmp_path / "vm.qmp"))
    here = LocalHost("here", LocalOptions(monitor_timeout_s=0.1), process.run)
    with agent.host().hold(monitor), pytest.raises(InvalidState, match="held by another"), here.hold(monitor):
        pytest.fail("it is held")
    with here.hold(monitor):
        pass
    with pytest.raises(OutcomeUnknown, match="its host let go of it"), agent.host(hold_s=1).hold(monitor):
        wait_until(partial(free, here, monitor), 20, "the hold to lapse")
    with pytest.raises(KeyError, match="ours"), agent.host().hold(monitor):
        raise KeyError("ours")
    with here.hold(monitor):
        pass


def free(host: Host, attachment: Attachment) -> bool:
    try:
        with host.hold(attachment):
            return True
    except InvalidState:
        return False


def test_a_hold_ends_with_its_agent(agent: RunningAgent, tmp_path: Path) -> None:
    monitor = replace(ATTACHMENT, monitor=str(tmp_path / "vm.qmp"))
    here = LocalHost("here", LocalOptions(monitor_timeout_s=0.1), process.run)
    with pytest.raises(OutcomeUnknown, match="its host let go"), agent.host().hold(monitor):
        assert (free(here, monitor), agent.end(), free(here, monitor)) == (False, -signal.SIGKILL, True)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    file = tmp_path / "agent.pem"
    made = ["-out", str(file), "-keyout", str(tmp_path / "agent.key"), "-days", "1", "-nodes"]
    named = ["-subj", "/CN=agent", "-addext", "subjectAltName=IP:127.0.0.1"]
    process.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", *made, *named],
        timeout_s=60,
    )
    return file


@pytest.mark.needs("openssl")
def test_over_tls_only_a_certificate_that_is_vouched_for_is_believed(
    tmp_path: Path, certificate: Path
) -> None:
    agent = RunningAgent(tmp_path, 'certificate = "agent.pem"\nkey = "agent.key"')
    try:
        assert agent.url.startswith("https://")
        assert agent.host(ca_file=certificate).connector().host == "here"
        with pytest.raises(InvalidState, match=r"unreachable .*CERTIFICATE_VERIFY_FAILED"):
            agent.host().connector()
        with pytest.raises(InvalidInput, match=r"certificates .*: there is no such file"):
            agent.host(ca_file=tmp_path / "none").connector()
        with pytest.raises(InvalidInput, match=r"certificates .*: cannot be used"):
            agent.host(ca_file=tmp_path / "token").connector()
        plain = remote(agent.url.replace("https", "http"), tmp_path / "token")
        with pytest.raises(InvalidState, match="not answering"):
            plain.connector()
    finally:
        agent.end()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_end_what_is_under_way(agent: RunningAgent, tmp_path: Path, number: int) -> None:
    silent = replace(ATTACHMENT, monitor=str(tmp_path / "vm.qmp"))
    with socket.socket(socket.AF_UNIX) as listening, ThreadPoolExecutor() as threads:
        listening.bind(str(silent.monitor))
        listening.listen()
        asked = threads.submit(agent.host().find_instance, silent)
        with listening.accept()[0]:
            assert agent.end(number) == 0
        assert "silent for 3 seconds" in str(asked.exception())
    with pytest.raises(InvalidState, match="unreachable"):
        agent.host().connector()
    assert "Traceback" not in agent.log


def test_it_logs_what_it_did_and_no_secret(tmp_path: Path) -> None:
    agent = RunningAgent(tmp_path, arguments=("-vv",))
    try:
        with pytest.raises(VolDriverError) as caught:
            agent.host().connect(VOLUME, ATTACHMENT, INFO)
        assert SECRET not in f"{caught.value} {caught.value!r}"
        assert "connect of volume id-of-v at here/vm" in agent.log
        assert SECRET not in agent.log
        assert TOKEN not in agent.log
    finally:
        agent.end()


def test_an_encrypted_volume_is_not_connected(agent: RunningAgent) -> None:
    """Refused at the host, whatever the protocol, before a program runs."""
    for protocol in ("file", "nfs", "iscsi"):
        encrypted = ConnectionInfo(protocol, {**INFO.properties, "encrypted": "True"})
        with pytest.raises(NotSupported, match="host here: cannot connect an encrypted volume"):
            agent.host().connect(VOLUME, ATTACHMENT, encrypted)


# --- its command and its file


TROUBLES = {
    "token file missing": ("", "nowhere", "token file .*nowhere: cannot be read: No such file"),
    "token short": ("", "short", "token file .*short: must hold one word of at least 16 characters: umask"),
    "two words": ("", "words", "must hold one word"),
    "world-readable": ("", "open", "token file .*open: others may read it: chmod 600 "),
    "no token": ("", "binary", "cannot be read: it is not UTF-8"),
    "no port": (
        'listen = "127.0.0.1"',
        "token",
        r"\[agent\] listen: 127.0.0.1 must be ADDRESS:PORT, such as",
    ),
    "port too large": ('listen = "127.0.0.1:65536"', "token", "must be ADDRESS:PORT"),
    "no address": ('listen = ":9871"', "token", "must be ADDRESS:PORT"),
    "no brackets": ('listen = "::1:9871"', "token", "must be ADDRESS:PORT"),
    "reached by others": (
        'listen = "192.0.2.1:9871"',
        "token",
        "reached by others, so a certificate is needed",
    ),
    "reached by name": (
        'listen = "nowhere.invalid:1"',
        "token",
        "reached by others, so a certificate is needed",
    ),
    "certificate without us": (
        'listen = "127.0.0.1:0"\nclient_ca_file = "token"',
        "token",
        "client_ca_file .*token: needs a certificate of our own",
    ),
    "certificate missing": (
        'listen = "127.0.0.1:0"\ncertificate = "none"',
        "token",
        "certificate .*none: cannot be used",
    ),
    "certificate that is none": (
        'listen = "127.0.0.1:0"\ncertificate = "token"',
        "token",
        "certificate .*token: cannot be used",
    ),
}


@pytest.mark.parametrize(("table", "token", "said"), TROUBLES.values(), ids=TROUBLES.keys())
def test_what_is_wrong_is_told_at_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], table: str, token: str, said: str
) -> None:
    for name, text, mode in [
        ("token", TOKEN, 0o600),
        ("short", TOKEN[:15], 0o600),
        ("words", "twelve words are not one word", 0o600),
        ("open", TOKEN, 0o644),
    ]:
        secret_file(tmp_path / name, text, mode)
    secret_file(tmp_path / "binary", "").write_bytes(b"\xff" * 20)
    table = table or 'listen = "127.0.0.1:0"'
    file = write_agent(tmp_path, f'{table}\ntoken_file = "{token}"')
    assert main(["agent", "--config", str(file)]) == 3
    seen = capsys.readouterr()
    assert re.search(said, seen.err)
    assert TOKEN[:15] not in seen.err
    assert seen.err.count("\n") == 1
    assert main(["config", "check", "--config", str(file)]) == 3
    assert re.search(said, capsys.readouterr().err)


def test_a_token_that_others_may_read_is_found_by_config_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret_file(tmp_path / "open", TOKEN, 0o644)
    file = tmp_path / "voldrivers.toml"
    file.write_text(
        'state_dir = "state"\n[backend.files]\ndriver = "nfs"\nshare = "."\n'
        '[host.here]\nkind = "agent"\nurl = "http://127.0.0.1:1"\ntoken_file = "open"\n'
    )
    assert main(["config", "check", "--config", str(file)]) == 3
    assert re.search(r"\[host.here\].*open: others may read it: chmod 600", capsys.readouterr().err)


def test_a_port_that_is_taken_is_told(
    agent: RunningAgent, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_agent(tmp_path, f'listen = "127.0.0.1:{agent.port}"')
    assert main(["agent", "--config", str(file)]) == 3
    assert f"address 127.0.0.1, port {agent.port}: cannot be listened on: Address already in use" in (
        capsys.readouterr().err
    )


def test_it_listens_on_ipv6_too(tmp_path: Path, token_file: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    agent = RunningAgent(tmp_path, 'listen = "[::1]:0"')
    try:
        assert re.fullmatch(r"http://\[::1\]:\d+", agent.url)
        assert agent.host().version == 1
    finally:
        agent.end()
