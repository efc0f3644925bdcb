"""TIFF files of every kind, written by hand, and the levels that their specification gives them.

Source: TIFF 6.0, sections 3 to 6, 9 (FillOrder), 14 (Predictor), 16 (CMYK), 18 (ExtraSamples), 19 (SampleFormat),
21 (YCbCr).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, MASK, CMYK, YCBCR, LAB = 0, 1, 2, 3, 4, 5, 6, 8
N_COLOURS = {RGB: 3, CMYK: 4, YCBCR: 3, LAB: 3}
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
DROPPED, MULTIPLIED, SEPARATE = 0, 1, 2  # meanings of an extra sample


@dataclass(frozen=True)
class Tiff:
    """A kind of TIFF file.

    Attributes:
        order: b"II" or b"MM".
        photometric, bits, format: of its samples.
        extra: meanings of the samples behind the colours.
        planar: whether each sample has a plane of its own.
        deflated: whether its strips are compressed.
        predictor: 1 none, 2 differences of whole numbers.
        fill_order: 2 where the lowest bit of a byte comes first.
        tiled: in tiles of 16 x 16 pixels, instead of strips of 5 rows.
    """

    order: bytes = b"II"
    photometric: int = BLACK_IS_ZERO
    bits: int = 8
    format: int = UNSIGNED
    extra: tuple[int, ...] = ()
    planar: bool = False
    deflated: bool = False
    predictor: int = 1
    fill_order: int = 1
    tiled: bool = False

    @property
    def n_samples(self) -> int:
        return N_COLOURS.get(self.photometric, 1) + len(self.extra)

    def values(self, height=19, width=23, seed=0):
        """Stored values (height, width, n_samples) of a random picture."""
        rng = np.random.default_rng(seed)
        shape = (height, width, self.n_samples)
        if self.format == FLOAT:
            return rng.random(shape).astype({16: np.float16, 32: np.float32, 64: np.float64}[self.bits])
        if self.format == SIGNED:
            return rng.integers(-(2 ** (self.bits - 1)), 2 ** (self.bits - 1), shape)
        values = rng.integers(0, 2**self.bits, shape)
        n = N_COLOURS.get(self.photometric, 1)
        for i, meaning in enumerate(self.extra, n):
            if meaning == MULTIPLIED:  # no colour is brighter than its share
                values[..., :n] = values[..., :n] * values[..., i : i + 1] // (2**self.bits - 1)
        return values

    def file(self, values, colours=None):
        """The file's bytes; colours: (2 ** bits, 3) of 16 bits, for a palette."""
        height, width, n_samples = values.shape
        planes = [values[..., i : i + 1] for i in range(n_samples)] if self.planar else [values]
        pieces = []
        for plane in planes:
            if self.tiled:
                full = np.zeros((-(-height // 16) * 16, -(-width // 16) * 16, plane.shape[2]), plane.dtype)
                full[:height, :width] = plane
                for top in range(0, full.shape[0], 16):
                    pieces += [full[top : top + 16, left : left + 16] for left in range(0, full.shape[1], 16)]
            else:
                pieces += [plane[top : top + 5] for top in range(0, height, 5)]
        data = [self._piece(piece) for piece in pieces]
        short, long = lambda *v: (3, v), lambda *v: (4, v)
        tags = {
            256: long(width), 257: long(height), 258: short(*[self.bits] * n_samples),
            259: short(8 if self.deflated else 1), 262: short(self.photometric), 266: short(self.fill_order),
            277: short(n_samples), 284: short(2 if self.planar else 1), 339: short(*[self.format] * n_samples),
        }  # fmt: skip
        if self.predictor != 1:
            tags[317] = short(self.predictor)
        if self.extra:
            tags[338] = short(*self.extra)
        if colours is not None:
            tags[320] = short(*colours.T.ravel().tolist())
        if self.photometric == YCBCR:
            tags[530] = short(1, 1)
        offsets, counts = (324, 325) if self.tiled else (273, 279)
        if self.tiled:
            tags |= {322: short(16), 323: short(16)}
        else:
            tags[278] = short(5)
        tags[counts] = long(*map(len, data))
        tags[offsets] = long(*[0] * len(data))
        return self._assemble(tags, offsets, data)

    def _piece(self, piece):
        end = "<" if self.order == b"II" else ">"
        if self.predictor == 2:
            piece = np.concatenate([piece[:, :1], np.diff(piece, axis=1)], 1) % 2**self.bits
        rows = []
        for row in piece:
            if self.format == FLOAT:
                rows.append(row.astype(row.dtype.newbyteorder(end)).tobytes())
            elif self.bits in (8, 16, 32, 64):
                rows.append((row % 2**self.bits).astype(f"{end}u{self.bits // 8}").tobytes())
            else:  # bits from the highest on, rows begin at a byte
                spelt = "".join(f"{int(v) % 2**self.bits:0{self.bits}b}" for v in row.ravel())
                spelt += "0" * (-len(spelt) % 8)
                rows.append(bytes(int(spelt[i : i + 8], 2) for i in range(0, len(spelt), 8)))
        data = b"".join(rows)
        data = zlib.compress(data) if self.deflated else data
        return bytes(int(f"{byte:08b}"[::-1], 2) for byte in data) if self.fill_order == 2 else data

    def _assemble(self, tags, offsets, data):
        end = "<" if self.order == b"II" else ">"
        n_directory = 2 + 12 * len(tags) + 4
        behind, at = b"", 8 + n_directory
        sizes = {tag: (2 if kind == 3 else 4) * len(v) for tag, (kind, v) in tags.items()}
        at_data = at + sum(size + size % 2 for size in sizes.values() if size > 4)
        starts = [at_data + sum(map(len, data[:i])) for i in range(len(data))]
        tags[offsets] = (4, tuple(starts))
        rows = b""
        for tag in sorted(tags):
            kind, values = tags[tag]
            packed = struct.pack(f"{end}{len(values)}{'H' if kind == 3 else 'I'}", *values)
            place = packed.ljust(4, b"\0")
            if len(packed) > 4:
                place = struct.pack(end + "I", at + len(behind))
                behind += packed + b"\0" * (len(packed) % 2)
            rows += struct.pack(end + "HHI", tag, kind, len(values)) + place
        head = self.order + struct.pack(end + "HI", 42, 8) + struct.pack(end + "H", len(tags))
        return head + rows + bytes(4) + behind + b"".join(data)

    def levels(self, values, colours=None):
        """The picture on white, (height, width, 3) from 0 to 255, as the specification has it; not for LAB."""
        n = N_COLOURS.get(self.photometric, 1)
        shares = values / (1.0 if self.format == FLOAT else 2.0**self.bits - 1)
        alpha = np.ones(values.shape[:2])[..., None]
        for i, meaning in enumerate(self.extra, n):
            if meaning != DROPPED:
                alpha = shares[..., i : i + 1]
        own = shares[..., :n]
        if self.extra and MULTIPLIED in self.extra:
            own = np.where(alpha > 0, own / np.maximum(alpha, 1e-9), 0)
        if self.photometric == WHITE_IS_ZERO:
            own = 1 - own
        elif self.photometric == PALETTE:
            own = colours[values[..., 0]] / 65535
        elif self.photometric == CMYK:
            own = (1 - own[..., :3]) * (1 - own[..., 3:])
        elif self.photometric == YCBCR:
            y, b, r = own[..., 0], own[..., 1] - 128 / 255, own[..., 2] - 128 / 255
            own = np.stack([y + 1.402 * r, y - 0.344136 * b - 0.714136 * r, y + 1.772 * b], -1).clip(0, 1)
        return 255 * (np.broadcast_to(own, (*values.shape[:2], 3)) * alpha + 1 - alpha)
