"""The content-addressed store: blobs, action results, versions, refs and leases."""

from reelmill.store.store import Store

__all__ = ["Store"]
