"""Fetching of media from HTTP(S), object stores and disks."""
