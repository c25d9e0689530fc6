"""Lies about several that work at once."""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import replace
from typing import Any

from liars.liar import lying_driver, lying_engine
from voldrivers.abilities import Taken
from voldrivers.base import Run
from voldrivers.extend import lifecycle
from voldrivers.extend.engine import Engine
from voldrivers.memory import MemoryArray, MemoryDriver
from voldrivers.model import (
    AttachmentState,
    ConnectionInfo,
    Connector,
    Extend,
    ExtendReply,
    Phase,
    Snapshot,
    Volume,
)

#: So long one who looks and then acts is open to others.
_GAP_S = 0.05


class RewritesTheTable(MemoryDriver):
    """Reads the table of volumes, adds one, and writes the whole table back."""

    def create_volume(self, volume: Volume, options: object) -> str:
        table = dict(self.array.sizes)
        table[volume.id] = volume.size_bytes
        time.sleep(_GAP_S)
        for name in self.array.sizes.keys() - table.keys():
            self.array.remove(name)
        self.array.sizes.update(table)
        return super().create_volume(volume, options)


class MakesItFirst(Engine):
    """Has the backend make a volume, and looks afterwards whether its name was free."""

    def create_volume(
        self,
        name: str,
        size_bytes: int,
        backend: str | None = None,
        options: Mapping[str, object] | None = None,
        *,
        multi_attach: bool = False,
    ) -> Volume:
        driver = self.site.backend(backend)
        size_bytes = driver.size_rule.round_up(size_bytes)
        volume = Volume(self.site.new_id(), name, driver.name, size_bytes, multi_attach=multi_attach)
        driver.create_volume(volume, options)
        with self.site.exclusively(volume):
            self.store.add_volume(volume, options or {})
            self.store.volume_created(volume, "", size_bytes)
        return self.volume(volume.id)


class _Unlocked(Engine):
    def grow(self, name: str, more_bytes: int | None, size_bytes: int) -> Extend:
        """Grow a volume and publish the size, without holding the volume."""
        volume = self.volume(name)
        driver = self.site.driver(volume)
        if more_bytes is not None:
            time.sleep(_GAP_S)
            size_bytes = driver.volume_size(volume) + more_bytes
        driver.extend_volume(volume, size_bytes)
        with self.store.database.transaction():
            publish = "UPDATE volumes SET size_bytes = ? WHERE id = ?"
            self.store.database.change(publish, (size_bytes, volume.id))
        return Extend(1, volume.id, 0, size_bytes, size_bytes, Phase.COMPLETED, self.site.now())


class TwoAtOnce(_Unlocked):
    """Extends a volume without holding it, so that the last one to end says how large it is."""

    def extend(self, name: str, size_bytes: int, *, wait: bool = True) -> Extend:
        if self.volume(name).attachments:
            return super().extend(name, size_bytes, wait=wait)
        return self.grow(name, None, size_bytes)


class AddsWhatEachLacks(_Unlocked):
    """Works out what a volume lacks before it is its turn, and adds that then."""

    def extend(self, name: str, size_bytes: int, *, wait: bool = True) -> Extend:
        if self.volume(name).attachments:
            return super().extend(name, size_bytes, wait=wait)
        return self.grow(name, size_bytes - self.volume(name).size_bytes, size_bytes)


class DeletesMeanwhile(Engine):
    """Deletes a volume that somebody else is working on."""

    def delete_volume(self, name: str) -> None:
        volume = self.volume(name)
        self.site.driver(volume).delete_volume(volume)
        self.store.remove_volume(volume)


class DetachesBesideAnExtend(Engine):
    """Takes a volume off its host while it is being extended by somebody else."""

    def detach(
        self, name: str, host: str | None = None, instance: str | None = None, *, force: bool = False
    ) -> None:
        volume = self.volume(name)
        attachment = lifecycle.choose_attachment(volume, host, instance)
        leaving = lifecycle.begin_detach(self.site, attachment, AttachmentState.DETACHING)
        lifecycle.finish_detach(self.site, volume, leaving, attachment)


class KeepsTheLock(Engine):
    """Lets go of a volume when its extend went well."""

    held: list[ExitStack] = []  # noqa: RUF012 - as long as the process

    def extend(self, name: str, size_bytes: int, *, wait: bool = True) -> Extend:
        stack = ExitStack()
        self.held.append(stack)
        volume = self.volume(name)
        held = self.site.exclusively(replace(volume, id=f"extend-{volume.id}"))
        aside = copy_context()  # what is never let go of marks no later program of the tests
        aside.run(stack.enter_context, held)
        extend = super().extend(name, size_bytes, wait=wait)
        aside.run(stack.close)
        return extend


class CachesTheTable(MemoryDriver):
    """Reads the table of volumes when it is started, and writes its own copy back with each change."""

    def __init__(self, name: str, options: Any, run: Run, array: MemoryArray | None = None) -> None:
        super().__init__(name, options, run, array)
        self.table = dict(self.array.sizes)

    def create_volume(self, volume: Volume, options: object) -> str:
        provider_data = super().create_volume(volume, options)
        self._write_back(volume)
        return provider_data

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        reply = super().extend_volume(volume, new_size_bytes)
        self._write_back(volume)
        return reply

    def _write_back(self, volume: Volume) -> None:
        self.table[volume.id] = self.array.sizes[volume.id]
        self.array.sizes.clear()
        self.array.sizes.update(self.table)


class OneLockForAll(Engine):
    """Holds the whole backend for as long as it works on one volume of it."""

    def extend(self, name: str, size_bytes: int, *, wait: bool = True) -> Extend:
        with self.site.exclusively(replace(self.volume(name), id="backend")):
            return super().extend(name, size_bytes, wait=wait)


class DetachesWhileHostsLook(DetachesBesideAnExtend):
    """Takes a volume off its host while that is being told of the new size."""

    def detach(
        self, name: str, host: str | None = None, instance: str | None = None, *, force: bool = False
    ) -> None:
        extend = self.last_extend(self.volume(name))
        if extend is not None and extend.phase is Phase.RESCANNING:
            super().detach(name, host, instance, force=force)
        else:
            Engine.detach(self, name, host, instance, force=force)


class RewritesWhoIsLetIn(MemoryDriver):
    """Reads the list of who is let in, adds one, and writes the whole list back."""

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        let_in = {*self.array.exports, (volume.id, connector.host)}
        time.sleep(_GAP_S)
        self.array.exports = let_in
        return ConnectionInfo("memory", {"volume_id": volume.id})


class RewritesSnapshots(MemoryDriver):
    """Reads the table of snapshots, adds one, and writes the whole table back."""

    def create_snapshot(self, volume: Volume, snapshot: Snapshot) -> Taken:
        table = {**self.array.snapshots, snapshot.id: self.array.image(volume.id)}
        time.sleep(_GAP_S)
        self.array.snapshots = table
        return Taken(volume.provider_data, "in RAM")


LIARS = [
    lying_driver(RewritesTheTable, "CON-001"),
    lying_engine(MakesItFirst, "CON-002"),
    lying_engine(TwoAtOnce, "CON-003"),
    lying_engine(AddsWhatEachLacks, "CON-004"),
    lying_engine(DeletesMeanwhile, "CON-005"),
    lying_engine(DetachesBesideAnExtend, "CON-005"),
    lying_engine(KeepsTheLock, "CON-009"),
    lying_driver(CachesTheTable, "CON-006"),
    lying_engine(OneLockForAll, "CON-007"),
    lying_engine(DetachesWhileHostsLook, "EXI-010"),
    lying_driver(RewritesWhoIsLetIn, "ATT-012"),
    lying_driver(RewritesSnapshots, "SNP-011"),
]
