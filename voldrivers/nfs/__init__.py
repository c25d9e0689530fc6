"""Volumes as files on an NFS share or in a directory."""
