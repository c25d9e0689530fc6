"""The commands for snapshots, copies and managing, over files in a directory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from voldrivers.cli import main

pytestmark = pytest.mark.needs("qemu-img")

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def share(tmp_path: Path) -> Path:
    share = tmp_path / "share"
    share.mkdir()
    return share


@pytest.fixture
def command(
    tmp_path: Path, share: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    config = tmp_path / "voldrivers.toml"
    config.write_text('state_dir = "state"\n[backend.files]\ndriver = "nfs"\nshare = "share"\n')
    monkeypatch.setenv("VOLDRIVERS_CONFIG", str(config))

    def run(*argv: str) -> tuple[int, str, str]:
        code = main(argv)
        seen = capsys.readouterr()
        return code, seen.out, seen.err

    return run


def document(command: Command, *argv: str) -> Any:  # Any: as JSON has it
    code, out, err = command(*argv, "--json")
    assert code == 0, err
    return json.loads(out)


def test_a_snapshot_from_taking_to_deleting(command: Command) -> None:
    assert command("volume", "create", "v", "1M")[0] == 0
    taken = document(command, "snapshot", "create", "v", "monday")
    assert set(taken) == {"id", "name", "volume", "size_bytes", "status"}
    assert (taken["name"], taken["volume"], taken["size_bytes"], taken["status"]) == (
        *("monday", "v", 2**20, "available"),
    )
    assert document(command, "snapshot", "list") == [taken] == document(command, "snapshot", "list", "v")
    assert document(command, "volume", "show", "v")["snapshots"] == [taken]
    assert "monday, 1 MiB, available" in command("volume", "show", "v")[1]
    assert command("extend", "v", "2M")[:2] == (0, "volume v: extended from 1 MiB to 2 MiB\n")
    assert command("snapshot", "revert", "monday")[:2] == (0, "volume v: again as snapshot monday, 1 MiB\n")
    code, _, err = command("volume", "delete", "v")
    assert (code, "with the snapshots monday" in err) == (5, True)
    assert command("snapshot", "delete", "monday")[:2] == (0, "snapshot monday: deleted\n")
    assert command("snapshot", "list")[1] == "no snapshots\n"
    code, _, err = command("snapshot", "delete", "monday")
    assert (code, "see: voldrivers snapshot list" in err) == (4, True)


def test_copies(command: Command) -> None:
    assert command("volume", "create", "v", "1M")[0] == 0
    assert command("snapshot", "create", "v", "s")[0] == 0
    assert (
        command("volume", "create", "one", "--from-snapshot", "s")[1]
        == "volume one: 1 MiB on backend files\n"
    )
    assert command("volume", "create", "two", "3M", "--from-volume", "v")[1].startswith("volume two: 3 MiB")
    assert command("volume", "create", "behind", "--from-volume", "v", "2M")[1].startswith("volume behind: 2")
    assert command("volume", "create", "v2", "1M", "2M")[0] == 2
    code, _, err = command("volume", "create", "three", "512k", "--from-volume", "v")
    assert (code, "at least as large as volume v, 1 MiB" in err) == (3, True)
    code, _, err = command("volume", "create", "three", "--from-snapshot", "t")
    assert (code, "snapshot t does not exist" in err) == (4, True)


def test_managing_and_giving_up(command: Command, share: Path) -> None:
    content = bytes(range(256)) * 4096
    (share / "old.img").write_bytes(content)
    assert command("volume", "manage", "v", "old.img")[:2] == (0, "volume v: 1 MiB on backend files\n")
    assert not (share / "old.img").exists()
    given_up = document(command, "volume", "unmanage", "v")
    assert set(given_up) == {"volume", "backend", "reference"}
    assert (share / given_up["reference"]).read_bytes() == content
    assert command("volume", "list")[1] == "no volumes\n"
    code, _, err = command("volume", "manage", "v", "../voldrivers.toml")
    assert code == 3, err
