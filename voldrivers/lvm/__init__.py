"""The LVM driver: volumes are logical volumes, reached over iSCSI."""
