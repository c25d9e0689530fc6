"""The records in their real file: refused, broken, full, old, shared, and who wins."""

import json
import multiprocessing
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path
from pwd import getpwuid

import pytest

from voldrivers.errors import BackendError, InvalidInput, InvalidState, NotFound
from voldrivers.extend import Store, database
from voldrivers.extend.database import Row
from voldrivers.extend.schema import MIGRATIONS
from voldrivers.locks import exclusive
from voldrivers.model import (
    NEXT,
    Attachment,
    AttachmentState,
    ConnectionInfo,
    Connector,
    Extend,
    Phase,
    Source,
    Volume,
    VolumeStatus,
)
from voldrivers.mounts import Mount, Place, place_of
from voldrivers.sizes import MiB

NOON = datetime(2999, 1, 1, 12, tzinfo=UTC)
VOLUME = Volume("id-of-v", "v", "ram", 8 * MiB)
ATTACHMENT = Attachment("a1", VOLUME.id, "a", "vm", "/run/vm.qmp", instance_process="boot 1 2")


def extend_of(volume: Volume, phase: Phase = Phase.GROWING) -> Extend:
    return Extend(0, volume.id, 8 * MiB, 16 * MiB, 16 * MiB, phase, NOON)


@pytest.fixture
def path(ram_path: Path) -> Path:
    return ram_path / "state" / "voldrivers.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    made = Store(path)
    made.add_volume(VOLUME, {})
    made.volume_created(VOLUME, "", 8 * MiB)
    yield made
    made.close()


def content(directory: Path) -> dict[str, bytes]:
    """Every byte there, but not the index of the log: it is shared memory and holds nothing of its own."""
    files = {p.name: p.read_bytes() for p in directory.iterdir() if not p.name.endswith("-shm")}
    return {name: held for name, held in files.items() if held or not name.endswith("-wal")}


# --- the file


def test_only_its_owner_reads_it(store: Store, path: Path) -> None:
    store.note(store.volume("v"), "so that there is a log")
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in path.parent.iterdir()}
    assert modes == {f"voldrivers.db{end}": 0o600 for end in ("", "-wal", "-shm")}


def test_what_is_committed_survives_a_power_cut(store: Store) -> None:
    settings = [store.database.all(f"PRAGMA {name}")[0][0] for name in ("journal_mode", "synchronous")]
    assert settings == ["wal", 2]


def cut(to_bytes: int) -> Callable[[bytes], bytes]:
    return lambda whole: whole[:to_bytes]


def scribble(whole: bytes) -> bytes:
    """Overwrite the page of the schema, its header excepted."""
    return whole[:100] + b"\x5a" * 3996 + whole[4096:]


@pytest.mark.parametrize(
    "damage",
    [lambda _: b"garbage, and not a little of it" * 1000, cut(8192), cut(4096), cut(1000), cut(50), scribble],
    ids=["garbage", "half", "one page", "less than a page", "less than a header", "a page"],
)
def test_a_corrupt_file_is_named_and_left_alone(
    store: Store, path: Path, damage: Callable[[bytes], bytes]
) -> None:
    store.close()
    path.write_bytes(damage(path.read_bytes()))
    before = content(path.parent)
    with pytest.raises(BackendError, match=f"state file {path}: ") as caught:
        Store(path).volumes()
    reasons = ("file is not a database", "malformed", "is no state file of voldrivers, or a damaged one")
    assert any(reason in str(caught.value) for reason in reasons)
    assert content(path.parent) == before


@pytest.mark.parametrize("left", [False, True], ids=["closed", "with the log of a killed process"])
def test_a_newer_schema_is_refused_and_not_touched(store: Store, path: Path, left: bool) -> None:
    with store.database.transaction():
        store.database.change(f"PRAGMA user_version = {len(MIGRATIONS) + 1}", ())
    if left:
        kept = path.parent.with_name("kept")
        shutil.copytree(path.parent, kept, ignore=shutil.ignore_patterns("*-shm"))
        path = kept / path.name
    store.close()
    before = content(path.parent)
    assert ("voldrivers.db-wal" in before) is left
    with pytest.raises(BackendError) as caught:
        Store(path)
    known = len(MIGRATIONS)
    assert str(caught.value) == (
        f"state file {path}: has schema {known + 1}, this voldrivers knows {known}: use the newer one"
    )
    assert content(path.parent) == before


@pytest.mark.parametrize("bytes_in_a_row", [1, 3, 30])
def test_whatever_a_damaged_file_holds_is_told_with_its_path(
    store: Store, path: Path, rng: random.Random, bytes_in_a_row: int
) -> None:
    """SQLite notices only what breaks its trees; a value that it gives out may be anything."""
    store.add_attachment(store.volume("v"), ATTACHMENT)
    store.update_attachment(replace(ATTACHMENT, state=AttachmentState.ATTACHED))
    store.admit(store.volume("v"), extend_of(VOLUME))
    store.note(VOLUME, "hello")
    store.close()
    whole = path.read_bytes()
    told: set[str] = set()
    for _ in range(200):
        start = rng.randrange(len(whole) - bytes_in_a_row)
        flipped = bytes(byte ^ rng.randrange(1, 256) for byte in whole[start : start + bytes_in_a_row])
        path.write_bytes(whole[:start] + flipped + whole[start + bytes_in_a_row :])
        # A name that was flipped is no longer there to be found.
        with suppress(NotFound):
            told |= troubles(path)
        for end in ("-wal", "-shm"):
            path.with_name(f"{path.name}{end}").unlink(missing_ok=True)
    assert not [reason for reason in told if reason.startswith("not named")]
    assert told, "nothing was ever noticed"


def troubles(path: Path) -> set[str]:
    """Read everything; give the reason for which that was not possible."""
    try:
        read_everything(path)
    except BackendError as error:
        return {str(error)} if error.subject == f"state file {path}" else {f"not named: {error}"}
    return set()


def read_everything(path: Path) -> None:
    with closing(Store(path)) as store:
        for volume in store.volumes():
            store.volume(volume.id)
            store.last_extend(volume)
            store.messages(volume)
            store.creation_options(volume)


CONNECTOR = Connector("a", None, "iqn.2026-01.org.example:a", True)
CONNECTED = replace(ATTACHMENT, connector=CONNECTOR, connection_info=ConnectionInfo("file", {"path": "/x"}))
NONSENSE = {
    "no status": ("UPDATE volumes SET status = 'availablf'", "a volume", "'availablf' is not a valid"),
    "no size": ("UPDATE volumes SET size_bytes = -1", "a volume", "size_bytes is -1"),
    "no name": ("UPDATE volumes SET name = 'v' || char(0)", "a volume", r"name is 'v\\x00'"),
    "no UTF-8": ("UPDATE volumes SET backend = CAST(x'ff' AS TEXT)", "", "Could not decode to UTF-8"),
    "no options": ("UPDATE volumes SET options = '[]'", "the options of a volume", r"options is \[\]"),
    "no JSON": ("UPDATE volumes SET options = '{'", "the options of a volume", "Expecting property"),
    "no state": ("UPDATE attachments SET state = ''", "an attachment", "'' is not a valid"),
    "no mapping": ("UPDATE attachments SET properties = '3'", "an attachment", "properties hold"),
    "no text": ("UPDATE attachments SET properties = '{\"a\": 1}'", "an attachment", "properties hold"),
    "no connector": ("UPDATE attachments SET connector = '[]'", "an attachment", r"connector is \[\]"),
    "half a connector": ("UPDATE attachments SET connector = '{}'", "an attachment", r"connector is \{\}"),
    "nobody's connector": (
        "UPDATE attachments SET connector = json_set(connector, '$.host', NULL)",
        "an attachment",
        "connector is {'host': None",
    ),
    "a connector's address": (
        "UPDATE attachments SET connector = json_set(connector, '$.ip', 5)",
        "an attachment",
        "'ip': 5",
    ),
    "no phase": ("UPDATE extends SET phase = 'x'", "an extend", "'x' is not a valid Phase"),
    "no date": ("UPDATE extends SET expires_at = 'x'", "an extend", "Invalid isoformat"),
    "no zone": ("UPDATE extends SET expires_at = '2999-01-01'", "an extend", "expires_at has no zone"),
    "no time": ("UPDATE messages SET at = '13:00'", "a message", "Invalid isoformat"),
}


@pytest.mark.parametrize(("statement", "what", "reason"), NONSENSE.values(), ids=NONSENSE.keys())
def test_a_value_that_makes_no_sense_is_told_with_its_path(
    store: Store, path: Path, statement: str, what: str, reason: str
) -> None:
    store.add_attachment(store.volume("v"), ATTACHMENT)
    store.update_attachment(CONNECTED)
    store.update_attachment(replace(CONNECTED, state=AttachmentState.ATTACHED))
    store.admit(store.volume("v"), extend_of(VOLUME))
    store.note(VOLUME, "hello")
    read_everything(path)
    with store.database.transaction():
        store.database.change(statement, ())
    said = f"state file {path}: " + (f"holds {what} that makes no sense: " if what else "")
    with pytest.raises(BackendError, match=f"{said}.*{reason}"):
        read_everything(path)


def test_text_that_is_not_utf_8_is_wrong_input(store: Store) -> None:
    with pytest.raises(InvalidInput, match="cannot be written as UTF-8"):
        store.volume("\udcff")


def foreign(path: Path, *statements: str) -> None:
    path.parent.mkdir(exist_ok=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.mark.parametrize(
    "statements",
    [
        ("CREATE TABLE cookies (name TEXT)",),
        ("CREATE TABLE volumes (id TEXT)", "PRAGMA user_version = 1"),
        ("PRAGMA application_id = 252006674", "CREATE TABLE geometry (x REAL)"),
        ("PRAGMA journal_mode = WAL", "CREATE TABLE cookies (name TEXT)"),
        ("VACUUM",),
    ],
    ids=["tables", "our version", "its own id", "with a log", "empty"],
)
def test_a_database_of_another_program_is_refused_and_not_touched(
    path: Path, statements: tuple[str, ...]
) -> None:
    foreign(path, *statements)
    before = {p.name: p.read_bytes() for p in path.parent.iterdir()}
    with pytest.raises(BackendError, match=f"state file {path}: is no state file of voldrivers"):
        Store(path)
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == before


@pytest.mark.parametrize("at_work", [False, True], ids=["closed", "at work"])
def test_the_log_of_another_program_is_not_touched(path: Path, at_work: bool) -> None:
    foreign(path, "PRAGMA journal_mode = WAL", "CREATE TABLE cookies (name TEXT)")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("INSERT INTO cookies VALUES ('x')")
        if not at_work:
            kept = path.parent.with_name("kept")
            shutil.copytree(path.parent, kept, ignore=shutil.ignore_patterns("*-shm"))
            path = kept / path.name
        before = {p.name: p.read_bytes() for p in path.parent.iterdir()}
        with pytest.raises(BackendError, match="is no state file of voldrivers"):
            Store(path)
        assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == before


def test_a_file_that_was_emptied_is_not_taken_for_a_new_one(store: Store, path: Path) -> None:
    store.close()
    path.write_bytes(b"")
    with pytest.raises(BackendError, match=f"state file {path}: is empty, so its records are lost"):
        Store(path)
    assert path.read_bytes() == b""


def test_a_new_file_is_never_seen_empty(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    real = os.link

    def link(source: str, target: Path) -> None:
        seen.append(Path(source).read_bytes())
        real(source, target)

    monkeypatch.setattr(os, "link", link)
    Store(path).close()
    assert path.read_bytes()[:18] == seen[0][:18] == b"SQLite format 3\0\x10\0"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_log_without_its_file_is_not_played_into_a_new_one(store: Store, path: Path) -> None:
    kept = path.parent.with_name("kept")
    shutil.copytree(path.parent, kept, ignore=shutil.ignore_patterns("*-shm"))
    (kept / path.name).unlink()
    before = content(kept)
    assert list(before) == [f"{path.name}-wal"]
    with pytest.raises(BackendError, match=r"is gone, but its log is there: restore it, or remove \S+-wal"):
        Store(kept / path.name)
    assert content(kept) == before


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "is not a regular file"),
        (os.mkdir, "is not a regular file"),
        (partial(os.symlink, "/dev/zero"), "is not a regular file"),
        (partial(os.symlink, "nothing"), "No such file or directory"),
    ],
    ids=["pipe", "directory", "link to a device", "link to nothing"],
)
def test_what_is_no_file_is_refused_at_once(path: Path, make: Callable[[Path], object], reason: str) -> None:
    path.parent.mkdir()
    make(path)
    with pytest.raises(BackendError, match=f"state file {path}: {reason}"):
        Store(path)


def test_a_path_may_hold_any_character(ram_path: Path) -> None:
    path = ram_path / os.fsdecode(b"a?b#c%25 \xff") / "voldrivers.db"
    Store(path).close()
    assert Store(path).volumes() == ()
    assert path.stat().st_size


def test_an_older_schema_is_brought_up_with_its_rows(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.close()
    more = ("ALTER TABLE volumes ADD COLUMN note TEXT NOT NULL DEFAULT 'new'",)
    monkeypatch.setattr(database, "MIGRATIONS", (*MIGRATIONS, more))
    newer = Store(path)
    assert newer.volume("v").size_bytes == 8 * MiB
    assert [tuple(row) for row in newer.database.all("SELECT name, note FROM volumes")] == [("v", "new")]
    newer.close()


def test_attachments_of_the_first_schema_are_kept(ram_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ram_path / "old" / "voldrivers.db"
    with monkeypatch.context() as old:
        old.setattr(database, "MIGRATIONS", MIGRATIONS[:1])
        with closing(Store(path)) as first:
            volume = (
                "INSERT INTO volumes (id, name, backend, size_bytes, status, options)"
                " VALUES ('id-of-v', 'v', 'ram', 8388608, 'in-use', '{}')"
            )
            attachment = (
                "INSERT INTO attachments"
                " (id, volume_id, host, instance, monitor, state, protocol, properties) VALUES"
                " ('a1', 'id-of-v', 'a', 'vm', '/run/vm.qmp', 'attached', 'file', '{\"path\": \"/x\"}')"
            )
            with first.database.transaction():
                first.database.change(volume, ())
                first.database.change(attachment, ())
    with closing(Store(path)) as newer:
        (kept,) = newer.volume("v").attachments
        assert (kept.connector, kept.connection_info) == (None, CONNECTED.connection_info)
        known = replace(kept, connector=CONNECTOR)
        newer.update_attachment(known)
        assert newer.volume("v").attachments == (known,)
        assert (newer.volume("v").snapshots, newer.source(newer.volume("v"))) == ((), Source())


def test_a_migration_that_fails_changes_nothing(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.close()
    before = content(path.parent)
    more = ("CREATE TABLE more (id TEXT) STRICT", "CREATE TABLE volumes (id TEXT) STRICT")
    monkeypatch.setattr(database, "MIGRATIONS", (*MIGRATIONS, more))
    with pytest.raises(BackendError, match="table volumes already exists"):
        Store(path)
    monkeypatch.undo()
    again = Store(path)
    assert again.volume("v").size_bytes == 8 * MiB
    assert again.database.one("SELECT 1 FROM sqlite_master WHERE name = 'more'") is None
    again.close()
    assert content(path.parent) == before


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "ceph", "fuse.sshfs", "9p"])
def test_a_network_file_system_is_refused(path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        database, "place_of", lambda asked: Place(asked, Mount(Path("/"), kind, "server:/x", frozenset()))
    )
    with pytest.raises(
        InvalidInput, match=f"state directory {path.parent}: is on {kind}; it must be on a local"
    ):
        Store(path)
    assert not path.parent.exists()


def test_a_directory_that_cannot_be_used_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        InvalidInput, match=f"state directory {tmp_path}/file/a/b: .*/file is not a directory"
    ):
        Store(tmp_path / "file" / "a" / "b" / "voldrivers.db")


def become_nobody() -> None:
    """Leave root behind: to root nothing is closed."""
    if os.geteuid() == 0:
        os.setuid(65534)


def check_closed(_start: Barrier, _number: int, closed: Path) -> None:
    become_nobody()
    for directory in (closed, closed / "a" / "b"):
        with pytest.raises(InvalidInput, match=f"state directory {directory}: {closed} is not writable"):
            Store(directory / "voldrivers.db")


def test_a_directory_that_is_closed_to_us_is_refused(ram_path: Path) -> None:
    closed = ram_path / "closed"
    closed.mkdir()
    ram_path.chmod(0o755)
    closed.chmod(0o555)
    in_processes(1, check_closed, closed)
    assert not list(closed.iterdir())


@pytest.mark.needs("findmnt")
@pytest.mark.parametrize("directory", ["/dev/shm", "/proc", "/sys", "/"])
def test_its_file_system_is_the_one_that_is_mounted_there(directory: str) -> None:
    argv = ["findmnt", "--json", "--output", "FSTYPE", "--target", directory]
    found = json.loads(subprocess.run(argv, check=True, capture_output=True, timeout=10).stdout)
    place = place_of(Path(directory) / "not" / "there")
    assert place.mount.file_system == found["filesystems"][-1]["fstype"]


_ON_A_FULL_DISK = """
import os, subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
disk = Path(sys.argv[2])
argv = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", disk]
mounted = subprocess.run(argv, capture_output=True, text=True)
if mounted.returncode:
    sys.exit(f"cannot mount: {mounted.stderr}")
from crashing import World
from voldrivers.errors import BackendError
from voldrivers.extend import Store
world = World()
path = disk / "voldrivers.db"
with world.engine(disk) as engine:
    engine.create_volume("v", 8 << 20)
    engine.attach("v", "a", "vm")
    with (disk / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            pass
    said = []
    for n in range(100):
        try:
            engine.extend("v", (n + 3) << 22)
        except BackendError as error:
            said.append(str(error))
    assert said, "the disk was not full"
    assert set(said) == {f"state file {disk}/voldrivers.db: database or disk is full"}, said
    assert [volume.name for volume in engine.volumes()] == ["v"], "nobody can look"
    (disk / "filler").unlink()
    engine.resume()
    size = engine.volume("v").size_bytes
    assert set(world.array.sizes.values()) == {size}, (world.array, size)
    assert engine.extend("v", size + (4 << 20)).phase == "completed"
    assert [row["integrity_check"] for row in engine.store.database.all("PRAGMA integrity_check")] == ["ok"]
content = path.read_bytes()
with (disk / "filler").open("wb", buffering=0) as filler:
    try:
        while True:
            filler.write(bytes(4096))
    except OSError:
        pass
for where in (path, disk / "new" / path.name, disk / "new.db"):
    try:
        Store(where)
    except BackendError as error:
        said = str(error)
    assert said.startswith(f"state file {where}: "), said
    assert "disk is full" in said or "No space left on device" in said, said
assert path.read_bytes() == content
assert not list(disk.glob("new*/*")) and not list(disk.glob("new.db*")), "a torso is left"
(disk / "filler").unlink()
assert [volume.name for volume in Store(path).volumes()] == ["v"]
print("survived")
"""


@pytest.mark.needs("unshare", "mount")
def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path: Path) -> None:
    argv = ["unshare", "--map-root-user", "--mount", sys.executable, "-c", _ON_A_FULL_DISK]
    argv += [str(Path(__file__).parent), str(tmp_path)]
    ended = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
    if "unshare: unshare failed" in ended.stderr or "cannot mount" in ended.stderr:
        pytest.skip(f"no small disk can be mounted here: {ended.stderr.strip()}")
    assert (ended.stdout, ended.stderr) == ("survived\n", "")


def test_a_lock_that_is_kept_is_an_error_that_names_the_file(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_BUSY_S", 0.05)
    other = Store(path)
    with store.database.transaction(), pytest.raises(BackendError, match=f"{path}: database is locked"):
        other.note(VOLUME, "hello")
    other.note(VOLUME, "hello")
    other.close()


# --- transactions and moves


def test_a_transaction_is_all_or_nothing(store: Store) -> None:
    def rename(error: type[BaseException]) -> None:
        with store.database.transaction():
            store.database.change("UPDATE volumes SET name = 'w'", ())
            raise error

    with pytest.raises(BackendError):
        rename(sqlite3.OperationalError)
    with pytest.raises(KeyboardInterrupt):
        rename(KeyboardInterrupt)
    assert [volume.name for volume in store.volumes()] == ["v"]


@pytest.mark.parametrize("old", list(Phase))
@pytest.mark.parametrize("new", list(Phase))
def test_only_legal_moves_are_made(store: Store, old: Phase, new: Phase) -> None:
    extend = store.admit(store.volume("v"), extend_of(VOLUME, old))
    before = store.volume("v")
    if new in NEXT[old]:
        store.move(extend, replace(extend, phase=new))
        assert store.last_extend(VOLUME) == replace(extend, phase=new)
        assert (store.volume("v").status is VolumeStatus.EXTENDING) is new.under_way
    else:
        with pytest.raises(
            InvalidState, match=f"extend {extend.id} is {old}, must be in a phase before {new}"
        ):
            store.move(extend, replace(extend, phase=new))
        assert store.last_extend(VOLUME) == extend
        assert store.volume("v") == before


def test_a_move_compares_the_phase_it_comes_from(store: Store, path: Path) -> None:
    mine = store.admit(store.volume("v"), extend_of(VOLUME))
    other = Store(path)
    theirs = other.last_extend(VOLUME)
    assert theirs == mine
    store.move(mine, replace(mine, phase=Phase.RESCANNING))
    for phase in (Phase.RESCANNING, Phase.ROLLED_BACK):
        with pytest.raises(InvalidState, match="extend 1 is moved by another process, must be growing"):
            other.move(mine, replace(mine, phase=phase, to_bytes=7))
    assert store.last_extend(VOLUME) == replace(mine, phase=Phase.RESCANNING)
    assert store.volume("v").status is VolumeStatus.EXTENDING
    other.close()


def test_there_is_one_extend_of_a_volume_whatever_the_code_does(store: Store) -> None:
    volume = store.volume("v")
    extend = store.admit(volume, extend_of(VOLUME))
    with pytest.raises(InvalidState, match="volume v is extending, must be available"):
        store.admit(volume, extend_of(VOLUME))
    extending = store.volume("v")
    with pytest.raises(BackendError, match="UNIQUE constraint failed"):
        store.admit(extending, extend_of(VOLUME))
    store.move(extend, replace(extend, phase=Phase.ROLLED_BACK))
    assert store.admit(store.volume("v"), extend_of(VOLUME)).id == 2


def test_an_id_is_never_given_twice(store: Store) -> None:
    extend = store.admit(store.volume("v"), extend_of(VOLUME))
    store.remove_volume(VOLUME)
    store.add_volume(VOLUME, {})
    assert store.admit(store.volume("v"), extend_of(VOLUME)).id > extend.id


@pytest.mark.parametrize(
    ("phase", "status", "size_bytes", "messages"),
    [
        (Phase.COMPLETED, VolumeStatus.IN_USE, 16 * MiB, []),
        (Phase.FAILED, VolumeStatus.ERROR_EXTENDING, 8 * MiB, ["why"]),
        (Phase.ROLLED_BACK, VolumeStatus.IN_USE, 8 * MiB, ["why"]),
    ],
)
def test_an_end_publishes_what_follows_from_it(
    store: Store, phase: Phase, status: VolumeStatus, size_bytes: int, messages: list[str]
) -> None:
    attachment = Attachment("a1", VOLUME.id, "a", state=AttachmentState.ATTACHED)
    store.add_attachment(store.volume("v"), attachment)
    extend = store.admit(store.volume("v"), extend_of(VOLUME))
    settling = replace(extend, phase=Phase.SETTLING, deferred=True)
    store.move(extend, settling)
    assert store.volume("v").extend_new_size_bytes == 16 * MiB
    ended = replace(settling, phase=phase, reason="why" if messages else "")
    store.move(settling, ended, backend_bytes=12 * MiB)
    volume = store.volume("v")
    assert (volume.status, volume.size_bytes, volume.backend_bytes) == (status, size_bytes, 12 * MiB)
    assert volume.extend_new_size_bytes is None
    assert [message.text for message in store.messages(volume)] == messages


def test_a_completion_is_kept_for_its_extend_only(store: Store) -> None:
    extend = store.admit(store.volume("v"), extend_of(VOLUME))
    store.add_hint(VOLUME, extend.id, "cancel")
    assert store.hints(extend, "cancel") == 1
    assert store.hints(extend, "completion") == 0
    assert store.hints(replace(extend, id=extend.id + 1), "cancel") == 0


def test_a_removed_volume_takes_everything_along(store: Store) -> None:
    extend = store.admit(store.volume("v"), extend_of(VOLUME))
    store.add_hint(VOLUME, extend.id, "cancel")
    store.note(VOLUME, "hello")
    store.remove_volume(VOLUME)
    for table in ("volumes", "extends", "hints", "messages"):
        assert store.database.all(f"SELECT * FROM {table}") == []
    with pytest.raises(NotFound, match="volume v does not exist"):
        store.volume("v")


def test_a_listing_takes_three_queries_however_many_there_are(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(50):
        volume = Volume(f"id-{number}", f"w{number}", "ram", MiB)
        store.add_volume(volume, {})
        store.volume_created(volume, "", MiB)
        store.add_attachment(replace(volume, attachments=()), Attachment(f"a-{number}", volume.id, "a"))
    queries: list[str] = []
    real = store.database.all

    def counted(query: str, *values: object) -> list[Row]:
        queries.append(query)
        return real(query, *values)

    monkeypatch.setattr(store.database, "all", counted)
    assert sum(len(volume.attachments) for volume in store.volumes()) == 50
    assert len(queries) == 3


# --- several processes


def in_processes(count: int, work: Callable[..., None], *arguments: object) -> None:
    """Let real processes start at one moment; each must end well."""
    context = multiprocessing.get_context("fork")
    start = context.Barrier(count)
    processes = [context.Process(target=work, args=(start, n, *arguments)) for n in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * count


def open_it(start: Barrier, _number: int, path: Path) -> None:
    start.wait()
    with closing(Store(path)) as store:
        assert store.volumes() == ()


def test_processes_that_open_a_new_file_at_once_all_get_it(ram_path: Path) -> None:
    for number in range(10):
        in_processes(4, open_it, ram_path / str(number) / "voldrivers.db")


def write_notes(start: Barrier, number: int, path: Path) -> None:
    with closing(Store(path)) as store:
        start.wait()
        for note in range(50):
            store.note(VOLUME, f"{number} {note}")


def test_processes_that_write_at_once_lose_nothing(store: Store, path: Path) -> None:
    in_processes(3, write_notes, path)
    texts = [message.text for message in store.messages(VOLUME)]
    assert sorted(texts) == sorted(f"{number} {note}" for number in range(3) for note in range(50))
    for number in range(3):
        mine = [text for text in texts if text.startswith(f"{number} ")]
        assert mine == [f"{number} {note}" for note in range(50)]


def admit_it(start: Barrier, number: int, path: Path, won: Path) -> None:
    with closing(Store(path)) as store:
        volume = store.volume("v")
        start.wait()
        try:
            store.admit(volume, extend_of(VOLUME))
        except InvalidState:
            return
        (won / str(number)).touch()


def test_one_of_the_processes_that_admit_at_once_wins(store: Store, path: Path, tmp_path: Path) -> None:
    for number in range(5):
        won = tmp_path / str(number)
        won.mkdir()
        in_processes(3, admit_it, path, won)
        assert len(list(won.iterdir())) == 1
        extend = store.last_extend(VOLUME)
        assert extend is not None
        assert extend.id == number + 1
        store.move(extend, replace(extend, phase=Phase.ROLLED_BACK))


# --- lock files


def hold_closed(_start: Barrier, _number: int, directory: Path) -> None:
    become_nobody()
    with pytest.raises(BackendError) as caught, exclusive(directory, "volume-1", "volume v"):
        pass
    file, us = directory / "volume-1", getpwuid(os.geteuid()).pw_name
    owner = getpwuid(file.stat().st_uid).pw_name
    mend = f"chmod u+rw {file}" if owner == us else f"run it as {owner}, or: chown {us} {file}"
    whose = f"{file} belongs to {owner}, this runs as {us}"
    assert str(caught.value) == f"lock file {file}: Permission denied: {whose}; {mend}"


def test_a_lock_file_of_somebody_else_is_named_with_its_owner(ram_path: Path) -> None:
    with exclusive(ram_path, "volume-1", "volume v"):
        pass
    ram_path.chmod(0o755)
    (ram_path / "volume-1").chmod(0o400)
    in_processes(1, hold_closed, ram_path)


def test_a_lock_directory_that_is_none_is_named(ram_path: Path) -> None:
    (ram_path / "locks").touch()
    with (
        pytest.raises(BackendError, match=f"lock file {ram_path}/locks: File exists"),
        exclusive(ram_path / "locks", "volume-1", "volume v"),
    ):
        pass
