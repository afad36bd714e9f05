"""Check: did the bytes behind known addresses change? Builds that refresh make it, not recipes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from reelmill.fetch.fetcher import Fetched, FetchFailure, Request, fetch_iter
from reelmill.shards import provenance
from reelmill.shards.removed import CHANGED
from reelmill.store.model import Shard
from reelmill.tasks.contract import Job, Output, Reject, Slot, Stage, digests
from reelmill.tasks.download import DownloadParams, fetch_policy


@dataclass(frozen=True, slots=True)
class Known:
    """A shard of videos to check, and where it says how each was had."""

    shard: Shard
    provenance: str | None
    slot: Mapping[str, int | str]

    def order(self) -> Slot:
        """What is to be made of it."""
        inputs = {"source": digests(self.shard), "provenance": {"blob": self.provenance}}
        return Slot(self.shard.id, inputs, {"source": self.shard}, slot=self.slot)


class Check(Stage[DownloadParams]):
    """Asks for every video of a shard whether it changed. Its rejects are the addresses that did,
    and those that cannot be had any more; of the others it says nothing.

    A server is asked by the validators that it gave (``ETag``, ``Last-Modified``). One that gave
    none, or ignores them, sends the file, whose digest decides.
    """

    name = "check"
    params = DownloadParams
    roles = ("source", "provenance")
    memory = 250_000_000

    def make(self, job: Job[DownloadParams]) -> Iterator[Output]:
        rows = {row["key"]: row for row in job.reader("source").rows()}
        blob = job.action.inputs["provenance"]["blob"]
        known = provenance.decode(job.store.read_blob(blob, "parquet")) if blob else {}
        requests = [_request(key, row["url"], known.get(key, {})) for key, row in rows.items()]
        for key, outcome in fetch_iter(requests, fetch_policy(job.params), job.scratch):
            if isinstance(outcome, FetchFailure):
                yield Reject(key, outcome.reason, outcome.message)
            elif isinstance(outcome, Fetched):
                with outcome as file:
                    if file.sha256 != rows[key]["sha256"]:
                        yield Reject(key, CHANGED, f"{file.size} bytes, sha256 {file.sha256}")


def _request(key: str, url: str, known: Mapping[str, Any]) -> Request:
    return Request(key, url, etag=known.get("etag"), last_modified=known.get("last_modified"))
