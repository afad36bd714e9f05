"""Tables of video addresses: read in batches, in bounded memory, from wherever they are."""

from reelmill.tables.files import TableError
from reelmill.tables.spans import parse_spans
from reelmill.tables.table import FORMATS, Table, format_of, open_table

__all__ = ["FORMATS", "Table", "TableError", "format_of", "open_table", "parse_spans"]
