"""Virtual machines with real LVM, LIO, open-iscsi, multipath, NFS and QEMU, to try drivers in."""
