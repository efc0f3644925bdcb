"""How much a column of a parquet file unpacks to, from the headers of its pages.

The footer of the file says so too, but nothing holds a stranger's footer to the truth, and pyarrow unpacks each page to
the size in the page's own header. A header is a struct of Thrift's compact protocol
(https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md), and `PageHeader` is described in
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift.
"""

from __future__ import annotations

from typing import Any, BinaryIO

UNPACKED, PACKED = 2, 3  # fields of PageHeader: the page's size before and after compression
MOST_HEADER = 2**20  # bytes; statistics in it may hold a value
_DEPTH = 8  # of structs in a header; the format has two
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12


def unpacked_size(stream: BinaryIO, part: Any) -> int:
    """Return the bytes that all pages of a column chunk unpack to.

    Args:
        stream: the file.
        part: pyarrow's `ColumnChunkMetaData`.

    Raises:
        ValueError: the chunk is damaged.
    """
    start = part.data_page_offset
    if part.has_dictionary_page and part.dictionary_page_offset and part.dictionary_page_offset < start:
        start = part.dictionary_page_offset
    end, total = start + part.total_compressed_size, 0
    while start < end:
        stream.seek(start)
        header = _Header(stream.read(min(MOST_HEADER, end - start)))
        sizes = header.numbers()
        if sizes.get(UNPACKED, -1) < 0 or sizes.get(PACKED, -1) < 0:
            raise ValueError("a page has no size")
        total += sizes[UNPACKED]
        start += header.place + sizes[PACKED]
    return total


class _Header:
    """The bytes of a header, and the place up to which they are read."""

    def __init__(self, data: bytes) -> None:
        self._data, self.place = data, 0

    def numbers(self, depth: int = 0) -> dict[int, int]:
        """Read a struct; returns its whole numbers by field."""
        if depth > _DEPTH:
            raise ValueError("the header of a page is too deep")
        found: dict[int, int] = {}
        field = 0
        while head := self._byte():
            delta, kind = head >> 4, head & 15
            field = field + delta if delta else self._signed()
            value = self._value(kind, depth)
            if value is not None:
                found[field] = value
        return found

    def _value(self, kind: int, depth: int, in_list: bool = False) -> int | None:
        if kind in (_TRUE, _FALSE):  # in a struct, the type is the value
            self.place += in_list
        elif kind == _BYTE:
            self.place += 1
        elif kind < _DOUBLE:
            return self._signed()
        elif kind == _DOUBLE:
            self.place += 8
        elif kind == _BINARY:
            length = self._varint()  # which moves the place
            self.place += length
        elif kind in (_LIST, _SET):
            head = self._byte()
            for _ in range(head >> 4 if head >> 4 < 15 else self._varint()):
                self._value(head & 15, depth, True)
        elif kind == _STRUCT:
            self.numbers(depth + 1)
        else:
            raise ValueError("the header of a page is damaged")  # it has no map
        return None

    def _byte(self) -> int:
        if self.place >= len(self._data):
            raise ValueError("the header of a page is cut off")
        self.place += 1
        return self._data[self.place - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("the header of a page is damaged")

    def _signed(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)  # zigzag
