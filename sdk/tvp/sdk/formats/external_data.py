"""The other files that a graph reads its weights from, found without onnx.

A bundle may come from a stranger, and onnxruntime reads every file that a graph names: before version 1.24 any file of
the machine, and today any file beside the graph, whether its digest was checked or not. So a graph is opened only if
its manifest lists every file that it names.
"""

from __future__ import annotations

import mmap
from collections.abc import Container, Iterator
from pathlib import Path

from ..errors import BundleError

# The messages of onnx.proto that may contain weights: number and message of each field that leads to them.
WEIGHT_FIELDS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
KEY, VALUE = 1, 2  # fields of an entry of a tensor's external data
FIXED = {1: 8, 5: 4}  # bytes of a value, for the wire types of a fixed size
MAX_DEPTH = 100  # of messages in messages: protobuf's own bound
MAX_ENTRY = 4096  # bytes; an entry is a name or a number
MAX_FIELDS = 10_000_000  # takes some seconds; the graph of a large model has some ten thousand
Buffer = memoryview | mmap.mmap


def refuse_elsewhere(graph: Path, listed: Container[str]) -> None:
    """Raise BundleError for a graph that reads weights from an unlisted file.

    Args:
        graph: the file of the graph.
        listed: names of the files beside it that it may read.
    """
    try:
        with open(graph, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            names = locations(data, str(graph))
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise BundleError(f"{graph} cannot be read: {error}.") from error
    for name in names:
        if not is_plain(name) or name not in listed:
            raise BundleError(
                f"{graph} reads its weights from {name!r}, which is not a file that its manifest lists. "
                "Export or copy the bundle again."
            )


def is_plain(name: str) -> bool:
    """Return whether a name can be that of a file beside a graph; onnxruntime marks an address in memory by a `*`."""
    return not set(name) & set("/*")


def locations(data: Buffer, name: str) -> set[str]:
    """Return the `location` of every tensor that lies in another file.

    Args:
        data: a serialised onnx model.
        name: of the model, for messages.

    Raises:
        BundleError: the bytes are not an onnx model.
    """
    found: set[str] = set()
    left = [MAX_FIELDS]
    stack = [("model", _fields(data, 0, len(data), left))]
    try:
        while stack:
            kind, fields = stack[-1]
            field = next(fields, None)
            if field is None:
                stack.pop()
                continue
            number, begin, end = field
            deeper = WEIGHT_FIELDS[kind].get(number)
            if deeper == "entry":
                found.update(_location(data, begin, end))
            elif deeper:
                stack.append((deeper, _fields(data, begin, end, left)))
            if len(stack) > MAX_DEPTH:
                raise ValueError("messages are nested too deeply")
    except (ValueError, IndexError) as error:
        raise BundleError(f"{name} is damaged: it is not an onnx model. Export or copy the bundle again.") from error
    return found


def _location(data: Buffer, start: int, end: int) -> Iterator[str]:
    """Yield the location that an entry of a tensor's external data holds; nothing for other entries."""
    if end - start > MAX_ENTRY:
        raise ValueError("an entry is too long for a name")
    entry = {number: bytes(data[begin:stop]) for number, begin, stop in _fields(data, start, end, [MAX_ENTRY])}
    if entry.get(KEY) == b"location":
        yield entry.get(VALUE, b"").decode()


def _fields(data: Buffer, start: int, end: int, left: list[int]) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of each field that has a length; other fields are skipped.

    Args:
        data: the model.
        start, end: where the message lies in it.
        left: one number: how many more fields may be read. Every message that is given the same list counts it down.
    """
    while start < end:
        left[0] -= 1
        if left[0] < 0:
            raise ValueError("there are more fields than in any graph")
        tag, start = _varint(data, start)
        if tag >> 32:  # protobuf's own parser would drop the upper bits
            raise ValueError("a field's number has more than 32 bits")
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            _, start = _varint(data, start)
        elif wire in FIXED:
            start += FIXED[wire]
        elif wire == 2:
            size, start = _varint(data, start)
            if size > end - start:
                raise ValueError("a field is longer than its message")
            yield number, start, start + size
            start += size
        else:
            raise ValueError(f"the wire type {wire} is unknown")
    if start != end:
        raise ValueError("a field is longer than its message")


def _varint(data: Buffer, start: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[start]
        value |= (byte & 0x7F) << shift
        start += 1
        if byte < 0x80:
            return value, start
        shift += 7
        if shift > 63:
            raise ValueError("a number has more than 64 bits")
