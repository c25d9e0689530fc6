"""Places on other machines: real agents, what they refuse to show, and agents that are started over ssh."""

import base64
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from realsite import mounted
from servicesite import AGENT_TOKEN, SOON_S, Running, secret_file

from voldrivers.api import placewire, sshagent, wire
from voldrivers.api.placeagent import PlaceAgent
from voldrivers.api.placebook import Book
from voldrivers.api.places import AgentPlace, HostTable, open_place
from voldrivers.base import Completed, Driver, Run
from voldrivers.conformance import Subject, Verdict, catalogue
from voldrivers.conformance.aids import mounting
from voldrivers.conformance.catalogue import Check
from voldrivers.conformance.places import GuestPlace, LocalPlace
from voldrivers.conformance.runner import run_check
from voldrivers.conformance.subject import Place
from voldrivers.conformance.verdicts import NotApplicable, NotRun
from voldrivers.conformance.walks.machine import run_machine
from voldrivers.errors import (
    HostUnreachable,
    InvalidInput,
    InvalidState,
    NotFound,
    NotSupported,
    OutcomeUnknown,
)
from voldrivers.guests.device import SECTOR_BYTES
from voldrivers.host.local import LocalHost, LocalOptions
from voldrivers.model import Attachment, ConnectionInfo, Volume
from voldrivers.nfs.driver import NFSDriver
from voldrivers.nfs.options import NFSOptions
from voldrivers.nfs.oracle import ShareOracle
from voldrivers.options import read_options
from voldrivers.process import run, wait_until
from voldrivers.sizes import GiB, KiB, MiB

QEMU = pytest.mark.needs("qemu-system-x86_64")
VOLUME = Volume("0badcafe-1234-4321-8888-000000000001", "v", "files", MiB)
OTHER = Volume("0badcafe-1234-4321-8888-000000000002", "w", "files", MiB)


def agent_at(directory: Path, keys: str = 'conformance = "guest"\n') -> Running:
    """Start an agent of the host `far`, its sockets in a directory of their own."""
    directory.mkdir(exist_ok=True)
    secret_file(directory / "agent.token", AGENT_TOKEN)
    config = f'[agent]\nlisten = "127.0.0.1:PORT"\ntoken_file = "agent.token"\n{keys}'
    return Running(directory, "agent", f'{config}[host.far]\nkind = "local"\nqmp_dir = "."\n')


def table(agent: Running, **more: Any) -> HostTable:  # Any: of the options
    return HostTable("far", agent.url, token_file=agent.directory / "agent.token", **more)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = agent_at(tmp_path_factory.mktemp("agent"))
    yield running
    running.end()


@pytest.fixture
def place(agent: Running, tmp_path: Path) -> Iterator[AgentPlace]:
    with open_place(table(agent, guest=False), tmp_path) as opened:
        assert isinstance(opened, AgentPlace)
        yield opened


def connected(place: Place, file: Path, volume: Volume = VOLUME, number: int = 1) -> Attachment:
    """Have the host of a place connect a volume that is a raw file."""
    info = ConnectionInfo("file", {"path": str(file), "format": "raw"})
    made = Attachment(f"at-{number}", volume.id, place.host.name)
    return replace(made, connection_info=info, device_path=place.host.connect(volume, made, info))


def volume_file(directory: Path, volume: Volume = VOLUME, name: str = "volume-{}") -> Path:
    file = directory / name.format(volume.id)
    file.write_bytes(b"\1" * MiB)
    return file


# --- what the suite does there


@contextmanager
def a_file_system(directory: Path) -> Iterator[Path]:
    share, disk = directory / "share", directory / "disk"
    share.mkdir()
    with disk.open("wb") as file:
        file.truncate(GiB)
    run(["mkfs.ext4", "-q", "-F", str(disk)], timeout_s=20)
    with mounted("ext4", "-o", "loop", str(disk), point=share):
        yield share


def subject_at(share: Path, *places: Place, image_format: str = "raw") -> Subject:
    def make(kind: type[Driver], run: Run) -> Driver:
        return kind("files", NFSOptions(str(share)), run)

    options = {"format": image_format}
    return Subject(
        NFSDriver, make, places, ShareOracle(NFSOptions(str(share))), volume_options=options, deadline_s=20.0
    )


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    directory = tmp_path_factory.mktemp("far")
    agent = agent_at(directory / "a")
    try:
        with a_file_system(directory) as share, open_place(table(agent), directory) as place:
            yield subject_at(share, place)
        assert not list(agent.directory.glob("conformance-*"))
    finally:
        agent.end()


ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="a file system of one's own needs root")
RUNS = pytest.mark.needs("qemu-system-x86_64", "qemu-img", "mkfs.ext4")
#: What only a place that can do all of it lets run.
ABLE = ("EXI-008", "EXO-007", "DAT-004", "LEK-004")
SMOKE = [each for each in catalogue() if each.smoke or each.id in ABLE]
REST = [pytest.param(each, marks=pytest.mark.full) for each in catalogue() if each not in SMOKE]


@ROOT
@RUNS
@pytest.mark.slow
@pytest.mark.parametrize("check", [*SMOKE, *REST], ids=lambda check: check.id)
def test_checks_run_through_an_agent(far: Subject, check: Check) -> None:
    result = run_check(check, far)
    assert result.verdict in (Verdict.PASSED, Verdict.NOT_APPLICABLE, Verdict.NOT_RUN), result
    assert result.verdict is Verdict.PASSED or check.id not in ABLE


@ROOT
@RUNS
@pytest.mark.slow
def test_walks_go_through_an_agent(far: Subject) -> None:
    outcome = run_machine(far, seed=1, examples=2, steps=10)
    assert (outcome.failures, outcome.trouble) == ((), ())
    assert outcome.steps > 5


@ROOT
@RUNS
@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_a_guest_on_this_machine_is_stopped_and_has_its_disks_again(
    tmp_path: Path, image_format: str
) -> None:
    (check,) = (each for each in catalogue() if each.id == "EXI-008")
    with a_file_system(tmp_path) as share, open_place(HostTable("here"), tmp_path) as place:
        assert isinstance(place, GuestPlace)
        result = run_check(check, subject_at(share, place, image_format=image_format))
        assert result.verdict is Verdict.PASSED, result
    assert not [each for each in tmp_path.iterdir() if each.name.startswith("voldrivers-")]


@QEMU
def test_a_guest_lets_go_while_it_is_asked(agent: Running, tmp_path: Path) -> None:
    file = volume_file(tmp_path)
    with open_place(table(agent), tmp_path) as place:
        attachment = replace(connected(place, file), instance=place.instance)
        attachment = place.host.find_instance(attachment)
        again = replace(attachment, device_path=None)
        info = attachment.connection_info
        assert info is not None
        place.host.connect(VOLUME, again, info)
        place.host.plug(VOLUME, attachment)
        assert place.guest_bytes(VOLUME, attachment) == MiB
        place.write(VOLUME, attachment, SECTOR_BYTES, b"w" * SECTOR_BYTES)
        assert place.read(VOLUME, attachment, 0, 3 * SECTOR_BYTES) == b"\1" * 512 + b"w" * 512 + b"\1" * 512
        assert f"disk {VOLUME.id[:20]}" in place.residue()
        with pytest.raises(OSError, match="status 1"):
            place.write(VOLUME, attachment, MiB, b"x" * SECTOR_BYTES)
        with pytest.raises(OSError, match="status 1"):
            place.read(VOLUME, attachment, MiB, SECTOR_BYTES)
        with place.letting_go():
            place.host.unplug(VOLUME, attachment)
        assert f"disk {VOLUME.id[:20]}" not in place.residue()
    assert file.read_bytes()[512:1024] == b"w" * 512


def test_bytes_of_any_length_are_read_and_written(place: AgentPlace, tmp_path: Path) -> None:
    file = volume_file(tmp_path)
    attachment = connected(place, file)
    content = os.urandom(600 * KiB)
    place.write(VOLUME, attachment, 1000, content)
    assert file.read_bytes() == b"\1" * 1000 + content + b"\1" * (MiB - 1000 - len(content))
    assert place.read(VOLUME, attachment, 1000, len(content)) == content
    assert place.read(VOLUME, attachment, MiB - 10, 100) == b"\1" * 10
    assert place.device_bytes(VOLUME, attachment) == MiB
    assert place.guest_bytes(VOLUME, attachment) is None


def test_nothing_is_written_of_what_goes_beyond_the_end(place: AgentPlace, tmp_path: Path) -> None:
    file = volume_file(tmp_path)
    with pytest.raises(OSError, match="beyond the end"):
        place.write(VOLUME, connected(place, file), MiB - 500 * KiB, bytes(600 * KiB))
    assert file.read_bytes() == b"\1" * MiB


def test_a_file_has_no_path_that_could_be_lost(place: AgentPlace, tmp_path: Path) -> None:
    attachment = connected(place, volume_file(tmp_path))
    with pytest.raises(NotRun, match="no multipath map here"):
        place.paths(VOLUME, attachment)
    words = {"lease": place._lease, "volume_id": VOLUME.id, "attachment_id": attachment.id}
    for path in ("vda", "../vda"):
        with pytest.raises(NotSupported, match="no multipath map here"):
            place.host.ask_place("lose", **words, path=path)


def test_a_file_has_no_sectors(place: AgentPlace, tmp_path: Path) -> None:
    with pytest.raises(NotApplicable, match="a file has no sectors"):
        place.sector_bytes(VOLUME, connected(place, volume_file(tmp_path)))


@ROOT
def test_a_file_system_is_used_while_it_is_mounted(agent: Running, place: AgentPlace, tmp_path: Path) -> None:
    file = volume_file(tmp_path)
    os.truncate(file, 16 * MiB)
    attachment = connected(place, file)
    with place.filesystem(VOLUME, attachment, fresh=True) as filesystem:
        filesystem.write("before", MiB)
        small = filesystem.size_bytes()
        os.truncate(file, 32 * MiB)
        filesystem.grow(online=False)
        assert small < filesystem.size_bytes() <= 32 * MiB
        filesystem.check("before")
        with pytest.raises(OSError, match="No space left"):
            filesystem.write("large", 64 * MiB)
        with pytest.raises(OSError, match="No such file"):
            filesystem.check("after")
        second = place.filesystem(VOLUME, attachment, fresh=False)
        with pytest.raises(InvalidState, match="begun already"), second:
            pytest.fail("one is mounted")
    with pytest.raises(InvalidState, match="not mounted"):
        filesystem.size_bytes()
    no_longer = pytest.raises(InvalidState, match="no longer open")
    with no_longer, place.filesystem(VOLUME, attachment, fresh=False) as again:
        again.check("before")
        place.close()
    wait_until(lambda: str(file) not in loops(), SOON_S, "its loop device to be gone")


def loops() -> str:
    return run(["losetup", "--list", "--json"], timeout_s=20).stdout


@ROOT
def test_no_other_file_is_mounted(tmp_path: Path) -> None:
    file, other = volume_file(tmp_path), tmp_path / "other"
    os.truncate(file, 16 * MiB)
    other.write_bytes(b"\1" * 16 * MiB)

    def swapping(argv: Sequence[str], *, timeout_s: float) -> Completed:
        if "--find" in argv:
            argv = [*argv[:-1], str(other)]  # as if the name had come to lead there
        return run(argv, timeout_s=timeout_s)

    with pytest.raises(NotRun, match="shows another file"), mounting.mounted(swapping, file, fresh=True):
        pytest.fail("it is another one")
    assert other.read_bytes() == b"\1" * 16 * MiB
    assert str(other) not in loops()


def test_a_place_without_an_instance_stops_none(place: AgentPlace) -> None:
    with pytest.raises(NotRun, match="cannot stop its instance"), place.stopped():
        pytest.fail("there is none")
    with place.letting_go():
        assert place.instance is None


# --- what it does not show


def asked(agent: Running, name: str, **arguments: object) -> httpx.Response:
    headers = {"Authorization": f"Bearer {AGENT_TOKEN}", wire.EXPIRES: "2999-01-01T00:00:00+00:00"}
    return httpx.post(
        f"{agent.url}{wire.PATH}/{placewire.PREFIX}/{name}", json=arguments, headers=headers, timeout=SOON_S
    )


CALLS = ["open", *placewire._CALLS]


@pytest.mark.parametrize("keys", ["", 'conformance = "off"\n'])
def test_it_is_off_unless_the_operator_says_so(tmp_path: Path, keys: str) -> None:
    agent = agent_at(tmp_path / "a", keys)
    try:
        for name in CALLS:
            answer = asked(agent, name, lease="", guest=None)
            assert answer.status_code == 404, name
            assert "has no key `conformance`" in answer.text
        said = r"place of host far does not exist: .*no key `conformance`"
        with pytest.raises(NotFound, match=said), open_place(table(agent), tmp_path):
            pytest.fail("it is off")
    finally:
        agent.end()


def test_strangers_are_not_answered(agent: Running) -> None:
    for name in CALLS:
        answer = httpx.post(f"{agent.url}{wire.PATH}/{placewire.PREFIX}/{name}", json={})
        assert answer.status_code == 401


def test_only_the_run_that_opened_it_uses_a_place(agent: Running, place: AgentPlace, tmp_path: Path) -> None:
    with pytest.raises(InvalidState, match="used by another run"), open_place(table(agent), tmp_path):
        pytest.fail("there is one")
    for name in placewire._CALLS:
        body: dict[str, Any] = {
            "lease": "0" * 32,
            "volume_id": "a",
            "attachment_id": "b",
            "offset_bytes": 0,
        }  # Any: JSON
        more = {"content": "", "what": "stopped", "path": "sda", "fresh": True, "file": "a", "online": True}
        answer = asked(agent, name, **body, size_bytes=1, **more)
        assert (answer.status_code, "no longer open" in answer.text) == (409, True), name
    place.close()
    with open_place(table(agent, guest=False), tmp_path) as again:
        assert again.residue()


BOUNDS: dict[str, tuple[str, dict[str, object]]] = {
    "too much": ("read", {"offset_bytes": 0, "size_bytes": placewire.MOST_BYTES + 1}),
    "nothing": ("read", {"offset_bytes": 0, "size_bytes": 0}),
    "before": ("read", {"offset_bytes": -1, "size_bytes": 1}),
    "far away": ("read", {"offset_bytes": 2**63, "size_bytes": 1}),
    "no size": ("read", {"offset_bytes": 0}),
    "too long": ("write", {"offset_bytes": 0, "content": "A" * (placewire.MOST_BYTES * 4 // 3 + 100)}),
    "no base64": ("write", {"offset_bytes": 0, "content": "?"}),
    "no context": ("begin", {"what": "close"}),
    "no file of ours": ("write_file", {"file": "../etc", "size_bytes": 1}),
    "no word": ("check_file", {"file": "lost+found"}),
    "nothing is discarded": ("discard", {"offset_bytes": 0, "size_bytes": 0}),
    "no path of a volume": ("begin", {"what": "lost"}),
    "a path": ("read", {"offset_bytes": 0, "size_bytes": 1, "volume_id": "/etc/shadow" * 6}),
}


@pytest.mark.parametrize(("name", "arguments"), BOUNDS.values(), ids=BOUNDS.keys())
def test_what_makes_no_sense_is_refused(
    agent: Running, place: AgentPlace, tmp_path: Path, name: str, arguments: dict[str, object]
) -> None:
    attachment = connected(place, volume_file(tmp_path))
    body = {"lease": place._lease, "volume_id": VOLUME.id, "attachment_id": attachment.id, **arguments}
    answer = asked(agent, name, **body)
    assert answer.status_code == 400, answer.text
    assert json.loads(answer.text)["error"]["type"] == "InvalidInput"


def test_a_call_that_there_is_not_is_not_supported(agent: Running, place: AgentPlace) -> None:
    assert asked(agent, "_open", lease=place._lease).status_code == 501
    body = b"x" * (2**20 + 1)
    assert httpx.post(f"{agent.url}{wire.PATH}/place/write", content=body).status_code in (401, 413)


def test_what_is_asked_too_late_is_not_done(agent: Running, place: AgentPlace, tmp_path: Path) -> None:
    file = volume_file(tmp_path)
    attachment = connected(place, file)
    headers = {"Authorization": f"Bearer {AGENT_TOKEN}", wire.EXPIRES: "2001-01-01T00:00:00+00:00"}
    body: dict[str, object] = {"lease": place._lease, "volume_id": VOLUME.id, "attachment_id": attachment.id}
    body |= {"offset_bytes": 0, "content": base64.b64encode(b"late").decode()}
    answer = httpx.post(f"{agent.url}{wire.PATH}/place/write", json=body, headers=headers)
    assert answer.status_code == 409
    assert file.read_bytes()[:4] == b"\1" * 4


def test_only_what_the_agent_has_connected_is_shown(place: AgentPlace, tmp_path: Path) -> None:
    attachment = connected(place, volume_file(tmp_path))
    theirs = volume_file(tmp_path, OTHER)
    elsewhere = replace(attachment, device_path=str(theirs))
    assert place.read(VOLUME, elsewhere, 0, 1) == b"\1"  # of its own: a path is never taken
    place.write(VOLUME, elsewhere, 0, b"x")
    assert theirs.read_bytes()[:1] == b"\1"
    for volume, wrong in (
        (OTHER, attachment),
        (OTHER, replace(attachment, volume_id=OTHER.id, device_path=str(theirs))),
        (VOLUME, replace(attachment, id="at-2")),
    ):
        with pytest.raises(InvalidState, match="not connected by this agent"):
            place.read(volume, wrong, 0, 1)
    place.host.disconnect(VOLUME, attachment)
    with pytest.raises(InvalidState, match="not connected by this agent"):
        place.read(VOLUME, attachment, 0, 1)


def secret_named(directory: Path) -> Path:
    return secret_file(directory / "shadow", "s3cret" * 100)


def linked(directory: Path) -> Path:
    file = directory / f"volume-{VOLUME.id}"
    file.symlink_to(secret_named(directory))
    return file


@pytest.mark.parametrize("made", [secret_named, linked], ids=["another name", "a link"])
def test_no_other_file_is_shown_though_it_was_connected(
    place: AgentPlace, tmp_path: Path, made: Callable[[Path], Path]
) -> None:
    file = made(tmp_path)
    attachment = connected(place, file)
    for look in (
        lambda: place.read(VOLUME, attachment, 0, 6),
        lambda: place.write(VOLUME, attachment, 0, b"x"),
        lambda: place.device_bytes(VOLUME, attachment),
    ):
        with pytest.raises(InvalidInput, match="its bytes are not shown"):
            look()
    assert file.read_bytes().startswith(b"s3cret")


@pytest.mark.parametrize("volume_id", ["s", "shadow", "0", "volume-0"])
def test_an_id_that_is_any_word_opens_no_file_that_bears_it(
    place: AgentPlace, tmp_path: Path, volume_id: str
) -> None:
    volume = replace(VOLUME, id=volume_id)
    file = volume_file(tmp_path, volume, "shadow-volume-0-{}")
    with pytest.raises(InvalidInput, match="its bytes are not shown"):
        place.read(volume, connected(place, file, volume), 0, 6)


def test_a_file_that_takes_the_place_of_another_one_is_not_shown(place: AgentPlace, tmp_path: Path) -> None:
    file = volume_file(tmp_path)
    attachment = connected(place, file)
    file.unlink()
    linked(tmp_path)
    with pytest.raises(InvalidInput, match="its bytes are not shown"):
        place.read(VOLUME, attachment, 0, 6)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(InvalidInput, match="its bytes are not shown"):
        place.read(VOLUME, attachment, 0, 6)
    file.unlink()
    with pytest.raises(InvalidState, match=r"gone \(No such file"):
        place.read(VOLUME, attachment, 0, 6)


@QEMU
def test_no_other_file_is_shown_through_the_guest(agent: Running, tmp_path: Path) -> None:
    """Who has the token may plug what he likes, under the id of a volume that is connected."""
    secret = tmp_path / "shadow"
    secret.write_bytes(b"s3cret".ljust(MiB))
    with open_place(table(agent), tmp_path) as place:
        found = place.host.find_instance(
            Attachment("at-1", VOLUME.id, place.host.name, instance=place.instance)
        )
        info = ConnectionInfo("file", {"path": str(volume_file(tmp_path)), "format": "raw"})
        attachment = replace(found, connection_info=info, device_path=place.host.connect(VOLUME, found, info))
        place.host.plug(VOLUME, replace(attachment, device_path=str(secret)))
        for look in (
            lambda: place.read(VOLUME, attachment, 0, SECTOR_BYTES),
            lambda: place.write(VOLUME, attachment, 0, bytes(SECTOR_BYTES)),
            lambda: place.guest_bytes(VOLUME, attachment),
        ):
            with pytest.raises(InvalidState, match="shadow, which is no volume that was attached"):
                look()
    assert secret.read_bytes().startswith(b"s3cret")


@QEMU
def test_no_other_instance_is_looked_at(agent: Running, tmp_path: Path) -> None:
    with open_place(table(agent), tmp_path) as place:
        attachment = Attachment("at-1", VOLUME.id, place.host.name, instance="vm-of-a-customer")
        info = ConnectionInfo("file", {"path": str(volume_file(tmp_path)), "format": "raw"})
        place.host.connect(VOLUME, attachment, info)
        with pytest.raises(InvalidState, match="in another instance"):
            place.read(VOLUME, attachment, 0, SECTOR_BYTES)


# --- how it ends


@QEMU
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_guest_ends_with_the_agent(tmp_path: Path, number: int) -> None:
    agent = agent_at(tmp_path / "a")
    with open_place(table(agent), tmp_path) as place:
        assert processes(str(place.instance))
        agent.end(number)
        wait_until(lambda: not processes(str(place.instance)), SOON_S, "the guest to end")
    assert number == signal.SIGKILL or not list(agent.directory.glob("conformance-*"))


@QEMU
def test_the_guest_ends_when_nobody_asks_any_more(tmp_path: Path) -> None:
    host, at = LocalHost("far", LocalOptions(qmp_dir=tmp_path), run), [0.0]
    served = PlaceAgent(host, Book(host), tmp_path, lambda: at[0])
    opened: Any = served.answer("open", {"guest": None})  # Any: what JSON holds
    at[0] += placewire.LEASE_S - 1
    served.answer("residue", {"lease": opened["lease"]})
    at[0] += placewire.LEASE_S - 1
    assert not served.end_if_forgotten()
    at[0] += 1
    assert served.end_if_forgotten()
    assert not processes(opened["instance"])
    assert not list(tmp_path.iterdir())
    with pytest.raises(InvalidState, match="no longer open"):
        served.answer("residue", {"lease": opened["lease"]})


def test_who_waits_too_long_is_told_and_what_waits_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voldrivers.api.placeagent._ANSWER_S", 0.2)
    host = LocalHost("far", LocalOptions(), run)
    served, file = PlaceAgent(host, Book(host), None), volume_file(tmp_path)
    opened: Any = served.answer("open", {"guest": None})  # Any: what JSON holds
    info = ConnectionInfo("file", {"path": str(file), "format": "raw"})
    attachment = Attachment("at-1", VOLUME.id, "far")
    served.book.note("connect", {"attachment": attachment, "connection_info": info}, str(file))
    body = {"lease": opened["lease"], "volume_id": VOLUME.id, "attachment_id": "at-1", "offset_bytes": 0}
    gate, place = threading.Event(), served._place
    assert place
    place.threads.submit(gate.wait, 20)
    with pytest.raises(OutcomeUnknown, match=r"write of a place .* did not end within 0\.2 seconds"):
        served.answer("write", {**body, "content": "bGF0ZQ=="})
    gate.set()
    read: Any = served.answer("read", {**body, "size_bytes": 4})  # Any: what JSON holds
    assert base64.b64decode(read["content"]) == b"\1" * 4
    served.close()


def processes(word: str) -> list[int]:
    """Give every process that has a word in its command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if word.encode() in line:
                found.append(int(entry.name))
    return found


def test_what_was_sent_without_an_answer_has_an_unknown_outcome(
    agent: Running, place: AgentPlace, tmp_path: Path
) -> None:
    attachment = connected(place, volume_file(tmp_path))
    place.host.options = replace(place.host.options, act_timeout_s=0.5)
    agent.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(HostUnreachable):
            place.read(VOLUME, attachment, 0, 1)
        with pytest.raises(OutcomeUnknown, match="write at host far"):
            place.write(VOLUME, attachment, 0, b"x")
    finally:
        agent.process.send_signal(signal.SIGCONT)
    place.host.options = replace(place.host.options, act_timeout_s=SOON_S)


def test_a_place_of_an_agent_that_has_gone_ends_quietly(tmp_path: Path) -> None:
    agent = agent_at(tmp_path / "a")
    with open_place(table(agent, guest=False), tmp_path) as place:
        agent.end()
        with pytest.raises(HostUnreachable, match="host far at http"):
            place.residue()


# --- tables

WRONG = {
    "name": ({"name": "a b"}, "name 'a b' must be letters"),
    "no token": ({"name": "a", "address": "https://a:1"}, "token_file must be given"),
    "no use": ({"name": "a", "token_file": "t"}, "token_file is for a host that has an agent"),
    "scheme": ({"name": "a", "address": "telnet://a"}, "address telnet://a must be local"),
    "path": ({"name": "a", "address": "https://a/b", "token_file": "t"}, "url https://a/b must be"),
    "ssh path": ({"name": "a", "address": "ssh://a/b"}, "must be ssh://USER@NAME:PORT"),
    "ssh option": ({"name": "a", "address": "ssh://-oProxyCommand=x"}, "must be ssh://"),
    "ssh user": ({"name": "a", "address": "ssh://-l@b"}, "must be ssh://"),
    "ssh password": ({"name": "a", "address": "ssh://a:b@c"}, "must be ssh://"),
    "ssh port 0": ({"name": "a", "address": "ssh://a:0"}, "must be ssh://"),
    "ssh port": ({"name": "a", "address": "ssh://a:port"}, "must be ssh://"),
    "unknown": ({"name": "a", "adress": "local"}, "adress: there is no such option"),
}


@pytest.mark.parametrize(
    ("address", "login"),
    [
        ("ssh://Alias", sshagent.Login("Alias")),
        ("ssh://root@192.0.2.1:2222/", sshagent.Login("192.0.2.1", "root", 2222)),
        ("ssh://me@[fe80::1%eth0]:22", sshagent.Login("fe80::1%eth0", "me", 22)),
    ],
)
def test_addresses_of_ssh(address: str, login: sshagent.Login) -> None:
    assert sshagent.Login.of(address) == login
    assert login.command()[-2:] == ["--", login.machine]


@pytest.mark.parametrize(("given", "said"), WRONG.values(), ids=WRONG.keys())
def test_a_table_that_is_wrong_is_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        read_options(HostTable, given, "[host]")


def test_a_table_says_whether_there_is_a_guest(tmp_path: Path) -> None:
    given = {"name": "here", "guest": False}
    with open_place(read_options(HostTable, given, "[host]", tmp_path), tmp_path) as place:
        assert type(place) is LocalPlace
        assert place.host.name == "here"


def test_a_guest_that_is_wanted_must_be_there(
    agent: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host_only = agent_at(tmp_path / "b", 'conformance = "host"\n')
    try:
        with open_place(table(host_only), tmp_path) as place:
            assert place.instance is None
        wanted, said = table(host_only, guest=True), 'no conformance = "guest"'
        with pytest.raises(NotSupported, match=said), open_place(wanted, tmp_path):
            pytest.fail("there is none")
        with open_place(table(host_only), tmp_path) as place:  # the refusal has left nothing open
            assert place.instance is None
    finally:
        host_only.end()
    monkeypatch.setenv("PATH", str(tmp_path))
    with open_place(HostTable("here"), tmp_path) as place:
        assert place.instance is None
    with pytest.raises(NotSupported, match="qemu"), open_place(HostTable("here", guest=True), tmp_path):
        pytest.fail("there is none")
