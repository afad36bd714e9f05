"""The shard format: a deterministic USTAR writer, the parquet index, reading by range."""
