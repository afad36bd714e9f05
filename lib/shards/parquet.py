"""Parquet blobs: whole tables as bytes, the same for equal tables and one version of pyarrow."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from reelmill.errors import ShardError


def write(table: pa.Table, *, row_group_size: int | None = None) -> bytes:
    """A table as parquet bytes; pyarrow's own ``row_group_size`` (rows) if there is none."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, compression="zstd", compression_level=3, row_group_size=row_group_size
    )
    data: bytes = sink.getvalue().to_pybytes()
    return data


def read(
    data: bytes, what: str, columns: Sequence[str] | None = None, *, most: int | None = None
) -> pa.Table:
    """A table, or those of some columns that it has, from parquet bytes.

    Args:
        what: what messages call it.
        most: how many values there may be, where the bytes are a stranger's; columns are flat then.

    Raises:
        ShardError: the bytes are no parquet, or hold too many values.
    """
    try:
        # On this thread alone: what is read is small, and a process that ends while a thread of
        # Arrow's starts is aborted.
        with pq.ParquetFile(pa.BufferReader(data), pre_buffer=False) as file:
            if most is not None:
                _refuse(file.metadata, most, what)
            table = file.read(columns, use_threads=False)
        if columns is not None:
            table = table.select([name for name in columns if name in table.column_names])
    except (pa.ArrowException, OSError) as error:
        raise ShardError(f"{what} is not readable parquet: {str(error).splitlines()[0]}") from None
    return table


def _refuse(about: pq.FileMetaData, most: int, what: str) -> None:
    columns = [about.schema.column(number) for number in range(about.num_columns)]
    flat = all(
        one.physical_type in ("INT64", "DOUBLE")
        and one.max_repetition_level == 0
        and one.max_definition_level <= 1
        for one in columns
    )
    if not flat or about.num_rows * len(columns) > most:
        raise ShardError(f"{what} holds other values, or more than {most}")
