"""The monitor: every answer, refusal and silence of a QMP socket is a value or a typed error, in time."""

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faultyqmp import Fault, FaultyMonitor

from voldrivers.errors import BackendError, InvalidState, OutcomeUnknown
from voldrivers.guests.device import DeviceGuest
from voldrivers.host.qmp import Monitor, is_listening

pytestmark = pytest.mark.needs("qemu-system-x86_64")

RESIZE = ("block_resize", {"node-name": "none", "size": 512})


@pytest.fixture
def guest(ram_path: Path) -> Iterator[DeviceGuest]:
    with DeviceGuest(ram_path) as running:
        yield running


def ask(path: Path, timeout_s: float = 2.0) -> str:
    with Monitor(path, timeout_s) as monitor:
        return str(monitor.execute("query-status")["status"])


def test_answers_and_knows_who_listens(guest: DeviceGuest) -> None:
    with Monitor(guest.qmp_socket) as monitor:
        assert (monitor.execute("query-status")["status"], monitor.peer_pid) == ("running", guest.pid)


def test_is_usable_beside_a_running_event_loop_and_in_a_thread(guest: DeviceGuest) -> None:
    async def inside() -> str:
        return ask(guest.qmp_socket)

    with ThreadPoolExecutor() as threads:
        assert (asyncio.run(inside()), threads.submit(ask, guest.qmp_socket).result()) == ("running",) * 2


def test_a_refusal_carries_the_words_of_qemu(guest: DeviceGuest) -> None:
    with Monitor(guest.qmp_socket) as monitor, pytest.raises(BackendError) as caught:
        monitor.execute(*RESIZE)
    assert caught.value.reason == "Cannot find device='' nor node-name='none'"
    assert ask(guest.qmp_socket) == "running"


def test_a_missing_socket_is_refused_at_once(ram_path: Path) -> None:
    with pytest.raises(InvalidState, match=r"unreachable \(No such file or directory\)"):
        ask(ram_path / "none")
    assert not is_listening(ram_path / "none")


def test_a_dead_socket_is_refused_at_once(guest: DeviceGuest) -> None:
    assert is_listening(guest.qmp_socket)
    guest.kill()
    with pytest.raises(InvalidState, match=r"unreachable \(Connection refused\)"):
        ask(guest.qmp_socket)
    assert not is_listening(guest.qmp_socket)


def test_a_socket_held_by_somebody_else_is_refused_within_the_limit(guest: DeviceGuest) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(guest.qmp_socket))
        began = time.monotonic()
        with pytest.raises(InvalidState, match=r"silent for 0\.3 seconds: frozen, or held by another client"):
            ask(guest.qmp_socket, 0.3)
        assert time.monotonic() - began < 3
    assert ask(guest.qmp_socket) == "running"


def test_a_turn_that_does_not_come_is_refused_within_four_limits(guest: DeviceGuest) -> None:
    held = "held by another client of this process for 1.2 seconds"
    began = time.monotonic()
    with Monitor(guest.qmp_socket), pytest.raises(InvalidState, match=held):
        ask(guest.qmp_socket, 0.3)
    assert time.monotonic() - began < 3
    assert ask(guest.qmp_socket) == "running"


def test_threads_of_a_process_take_turns_however_many(guest: DeviceGuest) -> None:
    """The last one waits three limits long for the others."""

    def look(_number: int) -> str:
        with Monitor(guest.qmp_socket, 0.5) as monitor:
            time.sleep(0.15)
            return str(monitor.execute("query-status")["status"])

    with ThreadPoolExecutor(10) as threads:
        assert set(threads.map(look, range(10))) == {"running"}


def test_clients_that_gave_up_do_not_keep_the_next_one_out(guest: DeviceGuest) -> None:
    os.kill(guest.pid, signal.SIGSTOP)
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        for client in (first, second):
            client.connect(str(guest.qmp_socket))
        with ThreadPoolExecutor() as threads:
            asked = threads.submit(ask, guest.qmp_socket, 5.0)
            first.close()
            second.close()
            os.kill(guest.pid, signal.SIGCONT)
            assert asked.result() == "running"


def test_a_full_backlog_is_refused(ram_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(str(ram_path / "full"))
        listener.listen(0)
        waiting.connect(str(ram_path / "full"))
        with pytest.raises(InvalidState, match="held by another client"):
            ask(ram_path / "full", 0.3)
        assert is_listening(ram_path / "full")


def test_one_who_speaks_no_qmp_is_refused(ram_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor() as threads:
        listener.bind(str(ram_path / "other"))
        listener.listen()
        asked = threads.submit(ask, ram_path / "other")
        client, _ = listener.accept()
        with client:
            client.sendall(b"220 ready\r\n")
        with pytest.raises(InvalidState, match="not answering"):
            asked.result()


def test_silence_after_an_act_leaves_its_outcome_unknown(guest: DeviceGuest) -> None:
    with Monitor(guest.qmp_socket, 0.3) as monitor:
        os.kill(guest.pid, signal.SIGSTOP)
        with pytest.raises(OutcomeUnknown, match=r"no answer within 0\.3 seconds"):
            monitor.execute(*RESIZE)
        with pytest.raises(InvalidState, match="not answering query-status"):
            monitor.execute("query-status")
    with pytest.raises(InvalidState, match=r"silent for 0\.3 seconds"):
        ask(guest.qmp_socket, 0.3)
    os.kill(guest.pid, signal.SIGCONT)
    assert ask(guest.qmp_socket) == "running"


def test_a_death_after_an_act_leaves_its_outcome_unknown(guest: DeviceGuest) -> None:
    with Monitor(guest.qmp_socket) as monitor:
        guest.kill()
        with pytest.raises(OutcomeUnknown, match="the connection broke"):
            monitor.execute(*RESIZE)


@pytest.mark.parametrize(
    "fault",
    [Fault.SWALLOWED, Fault.ANSWER_LOST, Fault.HUNG_UP_BEFORE, Fault.HUNG_UP_AFTER, Fault.GARBAGE],
)
def test_no_spoilt_answer_is_taken_for_one(guest: DeviceGuest, fault: Fault) -> None:
    faulty = guest.directory / "faulty"
    with FaultyMonitor(faulty, guest.qmp_socket, {"block_resize": fault, "query-status": fault}):
        for command, expected in ((RESIZE, OutcomeUnknown), (("query-status", {}), InvalidState)):
            with Monitor(faulty, 0.3) as monitor, pytest.raises(expected):
                monitor.execute(*command)


@pytest.mark.parametrize(
    "fault", [Fault.HUNG_UP_BEFORE, Fault.HUNG_UP_AFTER, Fault.GARBAGE, Fault.ANSWERED_LAST]
)
def test_a_death_while_connecting_is_refused(guest: DeviceGuest, fault: Fault) -> None:
    faulty = guest.directory / "faulty"
    spoilt = FaultyMonitor(faulty, guest.qmp_socket, {"qmp_capabilities": fault})
    with spoilt, pytest.raises(InvalidState, match=r"gone while connecting|not answering"):
        ask(faulty)


def test_nothing_is_logged_that_is_raised(
    guest: DeviceGuest, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(InvalidState), Monitor(guest.qmp_socket), Monitor(guest.qmp_socket, 0.1):
        pass
    with Monitor(guest.qmp_socket) as monitor:
        guest.kill()
        with pytest.raises(OutcomeUnknown):
            monitor.execute(*RESIZE)
    assert [r for r in caplog.records if r.levelno > logging.DEBUG or r.name.startswith("qemu")] == []
    assert capfd.readouterr() == ("", "")
