"""Tables of video addresses: read in batches, in bounded memory, from wherever they are."""

from reelmill.tables.files import TableError
from reelmill.tables.spans import parse_spans
from reelmill.tables.table import FORMATS, SEQUENCES, Table, format_of, open_table

__all__ = ["FORMATS", "SEQUENCES", "Table", "TableError", "format_of", "open_table", "parse_spans"]
