"""Merging layers of a volume in a running QEMU: a stream job, kept from what QEMU 7.2 does wrong.

It changes the header first and writes its tables when it likes: killed in between, it would leave a layer
that says it needs no other and holds nothing of it. So the job waits for us (auto-finalize), what it
copied is flushed, looked for in the file, and only then the job may change the header.

While it runs, the guest's reads beyond the end of a smaller layer below succeed and leave the guest's memory
as it was (block/copy-on-read.c: it stops where bdrv_is_allocated_above gives no length). So an empty layer of
the full size is put in between.

Between its end and its dismissal query-named-block-nodes is QEMU's death. So it dismisses itself, and stops
at an error, which it could not tell us otherwise.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voldrivers import process
from voldrivers.abilities import Merge
from voldrivers.errors import BackendError, InvalidState, NoSpace, VolDriverError
from voldrivers.host import blocknode
from voldrivers.host.blocknode import BlockNode
from voldrivers.host.layers import Layer, chain, top_of
from voldrivers.host.media import Medium
from voldrivers.host.qmp import Monitor
from voldrivers.model import Volume

#: A merge that takes no longer is waited for at once.
_SHORT_S = 0.2
_MAP_S = 60.0


@dataclass(frozen=True)
class _Merging:
    """One merge in one QEMU; the paths of its files here, and the name of its job."""

    monitor: Monitor
    medium: Medium
    top: BlockNode
    job: str
    layer: Path
    merged: Path
    base: Path | None
    base_name: str | None
    spacer: Path | None

    def state(self) -> Any:  # Any: the job, as QEMU tells of it; None where there is none
        return next((each for each in self.monitor.execute("query-jobs") if each["id"] == self.job), None)

    def is_over(self) -> bool:
        """Tell whether the job has no more to copy."""
        found = self.state()
        return found is None or found["status"] == "pending"

    def stopped(self) -> str:
        """Say why the job has stopped; "" for one that has not. QEMU tells no more."""
        jobs = {each["device"]: each["io-status"] for each in self.monitor.execute("query-block-jobs")}
        status: str = jobs.get(self.job, "ok")
        return "" if status == "ok" else status

    def around(self) -> tuple[Layer, Layer | None, Layer | None]:
        """Give the layer and the two below it, but for the spacer. Raises InvalidState when it is absent."""
        layers = chain(self.monitor, self.top)
        found = [each for each in layers if self.spacer is None or not _is_in(each, self.spacer)]
        padded: list[Layer | None] = [*found, None, None]
        for at, each in enumerate(found):
            if _is_in(each, self.layer):
                return each, padded[at + 1], padded[at + 2]
        raise InvalidState(f"file {self.layer}", "not in the chain that QEMU has open", "one of its layers")


def merge(monitor: Monitor, volume: Volume, medium: Medium, merge: Merge) -> int:
    """Have a layer take in the one below it, or look how far that is; give what is left, 0 when it is done.

    Raises InvalidState, NoSpace, BackendError, OutcomeUnknown.
    """
    directory = medium.path.parent
    layer = directory / merge.layer
    job = f"{blocknode.node_name(volume.id, layer)}-merge"
    base = None if merge.base is None else directory / merge.base
    top = top_of(monitor, volume, medium.path)
    spacer = None if merge.spacer is None else directory / merge.spacer
    merging = _Merging(monitor, medium, top, job, layer, directory / merge.merged, base, merge.base, spacer)
    left_bytes = _look(merging)
    if left_bytes is None:
        blocknode.check_resizable(monitor, top)
        _put_between(merging, volume)
        _start(merging)
        process.holds_within(merging.is_over, _SHORT_S)
        left_bytes = _look(merging)
    if left_bytes == 0:
        with _typed_errors(layer):
            _sync(layer)
        blocknode.close(monitor, volume.id)  # what was merged stays open as long as it has a name
    return 1 if left_bytes is None else left_bytes


def _look(merging: _Merging) -> int | None:
    """Give what is left of a merge, 0 when it is done, None before it began; end one that has copied all."""
    found = merging.state()
    is_ended = found is not None and found["status"] == "pending"
    if is_ended:
        _end(merging)
        process.holds_within(lambda: merging.state() is None, _SHORT_S)
        found = merging.state()
    if found is not None:
        left_bytes: int = found["total-progress"] - found["current-progress"]
        if reason := merging.stopped():
            _give_up(merging)
            raise _ended_with(reason, merging.layer, left_bytes)
        return max(1, left_bytes)
    if _is_done(merging):
        return 0
    if is_ended:
        raise BackendError(f"merging into {merging.layer}", "QEMU gave it up in the end")
    return None


def _is_done(merging: _Merging) -> bool:
    """Tell by the chain that QEMU has. Raises InvalidState for another one than wanted."""
    above, below, base = merging.around()
    if _is_in(below, merging.base):
        return True
    if not _is_in(below, merging.merged) or not _is_in(base, merging.base):
        found = " over ".join(each.file for each in (above, below, base) if each)
        needed = f"{merging.layer} over {merging.merged} over {merging.base or 'nothing'}"
        raise InvalidState(f"the chain that QEMU has open at {merging.monitor.path}", found, needed)
    return False


def _put_between(merging: _Merging, volume: Volume) -> None:
    """Put the spacer below the layer, if there is one and it is not there yet; no header is changed."""
    if merging.spacer is None:
        return
    above, below = merging.around()[:2]
    found = [each.name for each in chain(merging.monitor, merging.top) if _is_in(each, merging.spacer)]
    if found or below is None:
        return
    if not blocknode.is_ours(above.file_node, volume.id):
        opened = f"opened by who started QEMU, where a smaller {merging.merged.name} cannot be merged into it"
        raise InvalidState(f"file {merging.layer}", opened, "detached and attached again")
    name = blocknode.node_name(volume.id, merging.spacer)
    file = {"driver": "file", "filename": str(merging.spacer)}
    spacer = {"node-name": name, "driver": "qcow2", "read-only": True, "file": file, "backing": below.name}
    blocknode.close_node(merging.monitor, name)  # of one that was killed right here
    merging.monitor.execute("blockdev-add", spacer)
    layer = {"node-name": above.name, "driver": above.driver, "read-only": above.read_only}
    try:
        reopened = {**layer, "file": above.file_node, "backing": name}
        merging.monitor.execute("blockdev-reopen", {"options": [reopened]})
    except BackendError:
        blocknode.close_node(merging.monitor, name)
        raise


def _start(merging: _Merging) -> None:
    """Begin to copy into a layer what the one below it has, so that it lies on the base then."""
    above, _, base = merging.around()
    options = {"job-id": merging.job, "device": above.name, "auto-finalize": False, "on-error": "stop"}
    if base is not None:
        options |= {"base-node": base.name, "backing-file": merging.base_name}
    merging.monitor.execute("block-stream", options)


def _end(merging: _Merging) -> None:
    """Let a job change the header once all that it copied is on disk; else end it with nothing changed."""
    node = merging.around()[0].name
    try:
        with _typed_errors(merging.layer), _kept_open(merging.layer) as fd:
            # No other command writes QEMU's tables; blockdev-reopen does, and QEMU 7.2 dies of it here.
            flush = {"command-line": f"qemu-io {node} flush"}
            said = merging.monitor.execute("human-monitor-command", flush)
            os.fsync(fd)  # open since before, it is told of what has failed meanwhile, QEMU says nothing
        if said:
            raise BackendError(f"block node {node}", f"cannot be flushed: {said.strip()}")
        _check_copied(merging)
    except VolDriverError:
        _give_up(merging)
        raise
    merging.monitor.execute("job-finalize", {"id": merging.job})


def _give_up(merging: _Merging) -> None:
    """End a job with nothing changed but what it has copied."""
    merging.monitor.execute("job-cancel", {"id": merging.job})
    process.holds_within(lambda: merging.state() is None, _SHORT_S)


def _check_copied(merging: _Merging) -> None:
    """Look in the file for all that was to be copied. Raises BackendError."""
    found = merging.around()[1]
    merged: dict[str, object] = {"driver": "qcow2", "backing": None}
    if found is None or found.driver == "raw":
        merged = {"driver": "raw"}
    layers = {
        "driver": "qcow2",
        "file": {"driver": "file", "filename": str(merging.layer)},
        "backing": {**merged, "file": {"driver": "file", "filename": str(merging.merged)}},
    }
    argv = ["qemu-img", "map", "--force-share", "--output=json", f"json:{json.dumps(layers)}"]
    ranges = json.loads(merging.medium.run(argv, timeout_s=_MAP_S).stdout)
    if any(each["depth"] and each["data"] and not each["zero"] for each in ranges):
        raise BackendError(
            f"file {merging.layer}", f"does not hold all of {merging.merged}, though QEMU said so"
        )


def _is_in(layer: Layer | None, path: Path | None) -> bool:
    if layer is None or path is None:
        return layer is None and path is None
    return blocknode.is_same_file(layer.file, path)


def _ended_with(reason: str, layer: Path, left_bytes: int) -> VolDriverError:
    if reason == "nospace" or "No space left" in reason:
        return NoSpace(f"file {layer}", max(1, left_bytes))
    return BackendError(f"merging into {layer}", f"QEMU gave it up: {reason}")


@contextmanager
def _typed_errors(layer: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _ended_with(error.strerror or str(error), layer, 0) from error


@contextmanager
def _kept_open(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _sync(path: Path) -> None:
    with _kept_open(path) as fd:
        os.fsync(fd)
