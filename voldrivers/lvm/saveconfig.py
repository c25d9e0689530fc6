"""The saved configuration of LIO: what rtslib's service brings back when the machine boots.

It holds CHAP passwords, so no byte of it is ever in a file that others can read.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from voldrivers.errors import BackendError

Entry = Mapping[str, Any]  # Any: what JSON holds

#: Where the restoring service reads it: Debian's, then everybody else's. What the library says is no
#: guide: one from PyPI on Debian would write to where nobody reads at boot.
_PLACES = (Path("/etc/rtslib-fb-target"), Path("/etc/target"))
_NAME, _NEW = "saveconfig.json", ".saveconfig.json.voldrivers"
_EMPTY: Entry = {"storage_objects": [], "targets": [], "fabric_modules": []}


def default_file() -> Path:
    """Give the file that this machine restores at boot."""
    return next((place for place in _PLACES if place.is_dir()), _PLACES[-1]) / _NAME


def replace(file: Path, name: str, iqn: str, *, store: Entry | None, target: Entry | None) -> None:
    """Make one block backstore and one iSCSI target in the file what they are now; None: not there.

    All else in it stays as others have written it. When this returns no power cut takes it back, and who
    reads meanwhile sees all of the old file or all of the new one. May be repeated. The caller keeps
    other callers away; nobody can keep away targetcli, which takes no lock. Raises BackendError, with the
    file as it was.
    """
    with _typed(file):
        file = file.resolve()
        saved = {**_EMPTY, **_read(file)}
        stores = _replaced(saved["storage_objects"], {"plugin": "block", "name": name}, store)
        targets = _replaced(saved["targets"], {"fabric": "iscsi", "wwn": iqn}, target)
        new = {**saved, "storage_objects": stores, "targets": targets}
        if new != saved or (file.exists() and file.stat().st_mode & 0o177):
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(file, json.dumps(new, sort_keys=True, indent=2) + "\n")
        # Also when nothing is new: who wrote it was perhaps killed before this, or was rtslib 2.1.74,
        # which copies into the file and flushes only what it copies from.
        for path in filter(Path.exists, (file, file.parent)):
            _flush(path)


def _replaced(entries: list[Entry], key: Entry, new: Entry | None) -> list[Entry]:
    """Give the entries with the one of this key as it is now, in its place."""
    kept = [new if _has(entry, key) else entry for entry in entries]
    if new is not None and new not in kept:
        kept.append(new)
    return [entry for entry in kept if entry is not None]


def _has(entry: Entry, key: Entry) -> bool:
    return all(entry.get(name) == value for name, value in key.items())


def _read(file: Path) -> Entry:
    """Read the file; one that is missing or empty (a power cut while rtslib copied) holds nothing."""
    try:
        text = file.read_text()
    except FileNotFoundError:
        return {}
    saved = _parsed(text) if text.strip() else {}
    if saved is None:  # here, for the error of the parser has the whole text, and with it passwords
        reason = "it is not what rtslib writes; mend it, or move it away to have all saved anew"
        raise BackendError(f"saved targets {file}", reason)
    return saved


def _parsed(text: str) -> Entry | None:
    try:
        saved = json.loads(text)
    except ValueError:
        return None
    if not isinstance(saved, dict):
        return None
    lists = [saved.get(name, []) for name in _EMPTY]
    fits = all(isinstance(entries, list) and all(isinstance(e, dict) for e in entries) for entries in lists)
    return saved if fits else None


def _write(file: Path, text: str) -> None:
    new = file.with_name(_NEW)
    new.unlink(missing_ok=True)  # of one who was killed; whose mode it has, nobody knows
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(descriptor)
    new.replace(file)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _typed(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BackendError(f"saved targets {file}", error.strerror or repr(error)) from error
