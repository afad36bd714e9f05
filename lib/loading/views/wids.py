"""``index.json`` of wids: the tars, and how many samples are in each."""

from __future__ import annotations

import json
from typing import Any

from reelmill.loading.views.tars import Tar, View


class WidsWriter:
    """Writes ``index.json``; of a view of several splits ``index-<split>.json`` for each."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._shards: dict[str, list[dict[str, Any]]] = {split.name: [] for split in view.splits}

    def add(self, tar: Tar) -> None:
        """Take a tar in."""
        self._shards[tar.split.name].append(
            {"url": tar.path, "nsamples": tar.samples, "filesize": tar.blob.size}
        )

    def close(self) -> str:
        """Finish the files; returns the Python expression that opens the view."""
        for split in self._view.splits:
            document = {
                "__kind__": "wids-shard-index-v1",
                "wids_version": 1,
                "name": str(split.version),
                "shardlist": self._shards[split.name],
            }
            text = json.dumps(document, indent=1)
            (self._view.folder / self._name(split.name)).write_text(f"{text}\n", encoding="utf-8")
        first = self._view.splits[0]
        path = str(self._view.folder / self._name(first.name))
        if self._view.remote:
            return f"wids.ShardListDataset({path!r})"
        # With the tars' own folder for a cache it copies none of them.
        cache = str(self._view.folder / first.folder)
        return f"wids.ShardListDataset({path!r}, cache_dir={cache!r})"

    def _name(self, split: str) -> str:
        return "index.json" if len(self._view.splits) == 1 else f"index-{split}.json"
