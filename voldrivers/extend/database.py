"""The state file itself: where it may lie, its schema's version, transactions, errors with its path."""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from voldrivers.errors import BackendError, InvalidInput
from voldrivers.extend.schema import MIGRATIONS
from voldrivers.mounts import place_of
from voldrivers.process import holds_within

_BUSY_S = 10.0
#: File systems of other machines: SQLite's WAL needs memory shared by all its users, and locks.
_NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "lustre", "glusterfs", "gfs2", "ocfs2", "afs", "9p"}
    | {"fuse.ceph", "fuse.glusterfs", "fuse.sshfs"}
)


class Database:
    """One SQLite file in WAL mode; what is committed survives a power cut (synchronous=FULL)."""

    def __init__(self, path: Path) -> None:
        """Open or make the file at `path`, and bring an older schema up to date.

        Raises BackendError for a corrupt file or one of a newer version, InvalidInput for a network
        file system (sqlite.org/wal.html). A file that is refused is not written to.
        """
        self.path = path
        if (kind := place_of(path.absolute()).mount.file_system) in _NETWORK_FILE_SYSTEMS:
            raise InvalidInput(f"state directory {path.parent}", f"is on {kind}; it must be on a local disk")
        with self.explained():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists():
                path.touch(mode=0o600)
            self._check_version()
            self._connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
            self._connection.row_factory = sqlite3.Row
            self._migrate()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def one(self, query: str, *values: object) -> sqlite3.Row | None:
        """Give the first row, or None."""
        with self.explained():
            row: sqlite3.Row | None = self._connection.execute(query, values).fetchone()
        return row

    def all(self, query: str, *values: object) -> list[sqlite3.Row]:
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
        """Name the file in every error of SQLite."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise BackendError(f"state file {self.path}", str(error)) from error

    def _check_version(self) -> None:
        """Look without write access: closing a writable connection would write a log that is left back."""
        address = f"file:{quote(str(self.path.absolute()))}?mode=ro"
        with closing(sqlite3.connect(address, uri=True, timeout=_BUSY_S)) as connection:
            version = _version(connection)
        if version > len(MIGRATIONS):
            newer = f"has schema {version}, this voldrivers knows {len(MIGRATIONS)}: use the newer one"
            raise BackendError(f"state file {self.path}", newer)

    def _migrate(self) -> None:
        if not holds_within(self._is_in_wal_mode, _BUSY_S):
            raise BackendError(f"state file {self.path}", "is locked by another process")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA foreign_keys = ON")
        if _version(self._connection) < len(MIGRATIONS):
            with self.transaction():
                for statements in MIGRATIONS[_version(self._connection) :]:
                    for statement in statements:
                        self._connection.execute(statement)
                self._connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def _is_in_wal_mode(self) -> bool:
        """Switch a new file to WAL; SQLite does not wait there for another process that does so too."""
        try:
            mode: str = self._connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            return False
        return mode == "wal"


def _version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version
