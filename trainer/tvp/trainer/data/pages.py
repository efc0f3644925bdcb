"""How much the columns of a parquet file unpack to, from the headers of its pages.

The footer of the file says so too, but nothing holds a stranger's footer to the truth, and pyarrow unpacks each page to
the size in the page's own header. Footer and headers are structs of Thrift's compact protocol
(https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md), described in
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift. pyarrow is not asked for the places
of the pages: `metadata.row_group(i).column(j)` ends the process where a column's statistics are damaged.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any, BinaryIO

MAGIC = b"PAR1"
MOST_HEADER = 2**20  # bytes; statistics in it may hold a value
_DEPTH = 20  # of structs and lists in each other
# Fields by their numbers in parquet.thrift.
_ROW_GROUPS, _COLUMNS, _CHUNK = 4, 1, 3  # of FileMetaData, RowGroup, ColumnChunk
_PATH, _LENGTH, _DATA, _DICTIONARY = 3, 7, 9, 11  # of ColumnMetaData
_UNPACKED, _PACKED = 2, 3  # of PageHeader: the page's size before and after compression
# Types of the protocol.
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12


def unpacked_sizes(stream: BinaryIO, columns: Collection[str]) -> list[int]:
    """Return for each row group and each of these columns the bytes that its pages unpack to.

    Args:
        stream: the file.
        columns: dotted names, such as `image.bytes`.

    Raises:
        ValueError: the file is damaged.
    """
    end = stream.seek(-8, os.SEEK_END)
    tail = stream.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != MAGIC or length > end:
        raise ValueError("it has no footer")
    stream.seek(end - length)
    try:
        chunks = [
            chunk[_CHUNK] for group in _Reader(stream.read(length)).struct()[_ROW_GROUPS] for chunk in group[_COLUMNS]
        ]
        return [_size(stream, chunk) for chunk in chunks if b".".join(chunk[_PATH]).decode() in columns]
    except (KeyError, TypeError) as error:
        raise ValueError("its footer or a page lacks a field") from error


def _size(stream: BinaryIO, chunk: dict[int, Any]) -> int:
    start = min(chunk[_DATA], chunk.get(_DICTIONARY) or chunk[_DATA])
    end, total = start + chunk[_LENGTH], 0
    while start < end:
        stream.seek(start)
        reader = _Reader(stream.read(min(MOST_HEADER, end - start)))
        header = reader.struct()
        if header[_UNPACKED] < 0 or header[_PACKED] < 0:
            raise ValueError("a page has a negative size")
        total += header[_UNPACKED]
        start += reader.place + header[_PACKED]
    return total


class _Reader:
    """Reads structs as dictionaries by field.

    Attributes:
        place: up to which the bytes are read.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self.place = data, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        found: dict[int, Any] = {}
        field = 0
        while head := self._byte():
            delta, kind = head >> 4, head & 15
            field = field + delta if delta else self._signed()
            found[field] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if depth > _DEPTH:
            raise ValueError("it is nested too deeply")
        if kind in (_TRUE, _FALSE, _BYTE):  # of a list; in a struct, the type of a truth is its value
            return self._byte()
        if kind and kind < _DOUBLE:
            return self._signed()
        if kind == _DOUBLE:
            return self._bytes(8)
        if kind == _BINARY:
            return self._bytes(self._varint())
        if kind in (_LIST, _SET):
            head = self._byte()
            n = head >> 4 if head >> 4 < 15 else self._varint()
            return [self._value(head & 15, depth + 1) for _ in range(n)]
        if kind == _STRUCT:
            return self.struct(depth + 1)
        raise ValueError("it is damaged")  # the format has no maps

    def _bytes(self, n: int) -> bytes:
        if n > len(self._data) - self.place:
            raise ValueError("it is cut off")
        self.place += n
        return self._data[self.place - n : self.place]

    def _byte(self) -> int:
        return self._bytes(1)[0]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("it is damaged")

    def _signed(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)  # zigzag
