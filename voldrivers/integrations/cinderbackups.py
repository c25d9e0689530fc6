"""What a backup is made of: Cinder's backup service reads a volume as it finds it on a host, byte by byte."""

from typing import Any

from cinder import objects
from cinder.volume import driver as cinder_driver

Theirs = Any  # Any: Cinder's own objects, which have no types


class Backups(cinder_driver.VolumeDriver):  # type: ignore[misc]  # Cinder has no types
    """The part of a driver that says what is read for a backup."""

    def is_raw(self, volume: Theirs) -> bool:
        """Tell whether what a host finds is the volume byte for byte."""
        raise NotImplementedError

    def backup_use_temp_snapshot(self) -> bool:
        """Have what cannot be read itself copied: a snapshot of ours cannot be attached."""
        return False

    def _get_backup_volume_temp_volume(self, context: Theirs, backup: Theirs) -> Theirs:
        """Have a volume that lies in a qcow2 copied first, as Cinder has one that is in use."""
        volume = objects.Volume.get_by_id(context, backup.volume_id)
        if backup.snapshot_id or volume.previous_status == "in-use" or self.is_raw(volume):
            return super()._get_backup_volume_temp_volume(context, backup)
        copy = self._create_temp_cloned_volume(context, volume, status="backing-up")
        backup.temp_volume_id = copy.id
        backup.save()
        return copy
