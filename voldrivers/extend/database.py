"""The state file itself: where it may lie, its schema's version, transactions, errors with its path."""

import errno
import os
import sqlite3
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from voldrivers.errors import BackendError, InvalidInput
from voldrivers.extend.schema import APPLICATION_ID, MIGRATIONS
from voldrivers.mounts import place_of
from voldrivers.process import holds_within

_BUSY_S = 10.0
#: What SQLite needs beside the file to open it: the index of the log (32 KiB) and some pages of log.
_ROOM_BYTES = 65536
#: File systems of other machines: SQLite's WAL needs memory shared by all its users, and locks.
_NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "lustre", "glusterfs", "gfs2", "ocfs2", "afs", "9p"}
    | {"fuse.ceph", "fuse.glusterfs", "fuse.sshfs"}
)


def check_directory(directory: Path) -> None:
    """Refuse a state directory that could not be used; changes nothing, a missing one is made later.

    Raises InvalidInput: on a network file system (sqlite.org/wal.html), not writable, no directory.
    """
    subject = f"state directory {directory}"
    place = place_of(directory.absolute())
    if (kind := place.mount.file_system) in _NETWORK_FILE_SYSTEMS:
        raise InvalidInput(subject, f"is on {kind}; it must be on a local disk")
    nearest = next(path for path in (place.path, *place.path.parents) if os.path.lexists(path))
    if not os.path.isdir(nearest):
        raise InvalidInput(subject, f"{nearest} is not a directory")
    if not os.access(nearest, os.W_OK | os.X_OK, effective_ids=True):
        raise InvalidInput(subject, f"{nearest} is not writable")


class Row(sqlite3.Row):
    """A row that knows its file, so that a value in it that makes no sense is told with the path."""

    path: Path


class Database:
    """One SQLite file in WAL mode; what is committed survives a power cut (synchronous=FULL)."""

    def __init__(self, path: Path) -> None:
        """Open or make the file at `path`, and bring an older schema up to date.

        Raises InvalidInput for a directory that cannot be used, BackendError for a file that is damaged,
        not ours or of a newer version. A file that is refused is not written to.
        """
        self.path = path
        with self.explained():
            check_directory(path.parent)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.path.lexists(path):
                self._make()
            self._check_file()
            self._check_application()
            self._check_version()
            self._connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
            self._connection.row_factory = self._row
            try:
                self._migrate()
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def one(self, query: str, *values: object) -> Row | None:
        """Give the first row, or None."""
        with self.explained():
            row: Row | None = self._connection.execute(query, values).fetchone()
        return row

    def all(self, query: str, *values: object) -> list[Row]:
        """Give every row."""
        with self.explained():
            return self._connection.execute(query, values).fetchall()

    def change(self, statement: str, values: Mapping[str, object] | tuple[object, ...]) -> sqlite3.Cursor:
        """Change rows, inside a transaction."""
        return self._connection.execute(statement, values)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all that is changed inside, or nothing."""
        with self.explained():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Name the file in every error of SQLite and of the system."""
        try:
            yield
        except sqlite3.Error as error:
            full = "its disk is full: " if self._is_starved(error) else ""
            raise self._refusal(f"{full}{error}") from error
        except OSError as error:
            raise self._refusal(error.strerror or str(error)) from error
        except UnicodeDecodeError as error:  # of Python's sqlite3, also for a message of SQLite
            raise self._refusal("holds text that is not UTF-8") from error
        except UnicodeEncodeError as error:
            raise InvalidInput(f"text {error.object!a}", "cannot be written as UTF-8") from error

    def _refusal(self, reason: str) -> BackendError:
        return BackendError(f"state file {self.path}", reason)

    def _is_starved(self, error: sqlite3.Error) -> bool:
        """Tell whether SQLite says "disk I/O error" only because it finds no room for log and index."""
        kind = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if kind not in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
            return False
        seen = os.statvfs(self.path.parent)
        return seen.f_bavail * seen.f_frsize < _ROOM_BYTES

    def _make(self) -> None:
        """Make the file whole or not at all, so that one without content was emptied by somebody.

        Another process may be faster: then there is its file. A log without its file is refused,
        because SQLite would play it into the new one.
        """
        log = self.path.with_name(f"{self.path.name}-wal")
        if os.path.lexists(log) and not os.path.lexists(self.path):
            raise self._refusal(
                f"is gone, but its log is there: restore it, or remove {log.name} to begin anew"
            )
        with tempfile.NamedTemporaryFile(dir=self.path.parent, prefix=f".{self.path.name}.") as file:
            file.write(_new_content())
            file.flush()
            os.fsync(file.fileno())
            with suppress(FileExistsError):
                os.link(file.name, self.path)
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _check_file(self) -> None:
        """Look without opening: a pipe would block, and closing would drop SQLite's locks (fcntl(2))."""
        status = self.path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise self._refusal("is not a regular file")
        if not os.access(self.path, os.R_OK, effective_ids=True):
            raise self._refusal(os.strerror(errno.EACCES))
        if not status.st_size:
            lost = "is empty, so its records are lost: restore a copy, or remove it to begin anew"
            raise self._refusal(lost)

    def _check_application(self) -> None:
        """Refuse a database of another program; `immutable` leaves even its log and locks alone."""
        with closing(self._look("immutable=1")) as connection:
            application_id: int = connection.execute("PRAGMA application_id").fetchone()[0]
        if application_id != APPLICATION_ID:
            raise self._refusal("is no state file of voldrivers, or a damaged one")

    def _check_version(self) -> None:
        """Look without write access: closing a writable connection would write a log that is left back."""
        with closing(self._look("mode=ro")) as connection:
            version = _version(connection)
        if version < 1:
            raise self._refusal(f"is damaged: it has schema {version}")
        if version > len(MIGRATIONS):
            known = f"this voldrivers knows {len(MIGRATIONS)}: use the newer one"
            raise self._refusal(f"has schema {version}, {known}")

    def _look(self, how: str) -> sqlite3.Connection:
        address = f"file:{quote(os.fsencode(self.path.absolute()))}?{how}"
        return sqlite3.connect(address, uri=True, timeout=_BUSY_S)

    def _row(self, cursor: sqlite3.Cursor, values: tuple[object, ...]) -> Row:
        row = Row(cursor, values)
        row.path = self.path
        return row

    def _migrate(self) -> None:
        if not holds_within(self._is_in_wal_mode, _BUSY_S):
            raise self._refusal("is locked by another process")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA foreign_keys = ON")
        if _version(self._connection) < len(MIGRATIONS):
            with self.transaction():
                _bring_up(self._connection)

    def _is_in_wal_mode(self) -> bool:
        """Switch a new file to WAL; SQLite does not wait there for another process that does so too."""
        try:
            mode: str = self._connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            return False
        return mode == "wal"


def _new_content() -> bytes:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        _bring_up(connection)
        return connection.serialize()


def _bring_up(connection: sqlite3.Connection) -> None:
    for statements in MIGRATIONS[_version(connection) :]:
        for statement in statements:
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version
