"""Samples as a page shows them: χ with its interval, and the text, picture or number of the row it lies in."""

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray
from torch import Tensor

from patterning.core.arrays import Floats
from patterning.core.batch import leaves, take_rows
from patterning.core.task import Task
from patterning.face.examples import CONTEXT, Decode, Example, as_text, tokens_of
from patterning.report.shapes import BLUE, ORANGE, line, number, svg
from patterning.report.tokens import coloured_tokens

AFTER = 8
"""Tokens that are shown after a predicted one."""
LONGEST = 6
"""Decimals past which a number is written with its power of ten."""
SMALLEST = 8
"""Least side of what is taken for a picture."""


@dataclass(frozen=True)
class Places:
    """Where the samples of a row of χ lie, with its values: `row`, `position`, `chi` (n,)."""

    row: NDArray[np.int64]
    position: NDArray[np.int64]
    chi: Floats

    def of_row(self, row: int) -> dict[int, float]:
        """χ by position, of the samples in one row of the data."""
        return {int(self.position[j]): float(self.chi[j]) for j in np.flatnonzero(self.row == row)}

    @property
    def reach(self) -> float:
        """|χ| that has the full colour: exceeded by one sample in fifty."""
        return float(np.quantile(np.abs(self.chi), 0.98)) or 1.0


def sample_list(examples: Sequence[Example], places: Places, task: Task | None, decode: Decode | None) -> Markup:
    """Samples one under the other: χ ± its 95 % half-width in figures and as a bar on a common axis, and what it is."""
    most = max((abs(e.chi) + _finite(e.half_width) for e in examples), default=1.0) or 1.0
    items = [
        Markup('<li><span class="value {}">{}</span>{}<span class="what"><em>{}</em> {}</span></li>').format(
            "more" if e.chi > 0 else "less",
            with_error(e.chi, e.half_width),
            _bar(e, most),
            where(e, task),
            view(e, places, task, decode),
        )
        for e in examples
    ]
    return Markup('<ol class="samples">{}</ol>').format(Markup("").join(items))


def with_error(value: float, half_width: float) -> str:
    """Such as +0.00582 ± 0.00007: two figures of the half-width, and the value to as many decimals."""
    if not (half_width > 0 and math.isfinite(half_width)):
        return f"{value:+.3g}"
    decimals = 1 - math.floor(math.log10(half_width))
    if decimals > LONGEST:
        return f"{value:+.3g} ± {half_width:.2g}"
    return f"{value:+.{max(decimals, 0)}f} ± {half_width:.{max(decimals, 0)}f}"


def where(example: Example, task: Task | None) -> str:
    """Its row, by id, and its place there where a row holds several samples."""
    several = example.position > 0 if task is None else task.samples_per_row > 1
    return f"row {example.id}, position {example.position}" if several else f"sample {example.id}"


def view(example: Example, places: Places, task: Task | None, decode: Decode | None) -> Markup:
    """Its text, with every token coloured by its own χ where a tokenizer says what they are; or its picture."""
    if task is None:
        return Markup("")
    if decode is not None and hasattr(decode, "decode") and task.samples_per_row > 1:
        return _coloured_row(example, places, task, decode)
    if decode is not None:
        return Markup('<span class="text">{}</span>').format(as_text(decode, task, example.row, example.position))
    data = take_rows(task.data, torch.tensor([example.row]))
    label = _label(data)
    picture = picture_of(data)
    shown = Markup("") if picture is None else _image(picture, f"picture of row {example.id}")
    return shown + (Markup("") if label is None else Markup(" label {}").format(label))


def _coloured_row(example: Example, places: Places, task: Task, decode: Any) -> Markup:
    """The tokens around a sample; sample i is the prediction of token i + 1, so token 0 has no χ."""
    tokens = tokens_of(take_rows(task.data, torch.tensor([example.row])))[0].tolist()
    chi, target = places.of_row(example.row), example.position + 1
    first, last = max(0, target - CONTEXT), min(len(tokens), target + 1 + AFTER)
    pieces = [str(decode.decode([token])) for token in tokens[first:last]]
    scores = [chi.get(k - 1, math.nan) for k in range(first, last)]
    return coloured_tokens(pieces, scores, places.reach, marked=target - first)


def picture_of(data: Any) -> NDArray[np.uint8] | None:
    """(h, w) or (h, w, 3) of the one row in `data` that looks like a picture; None where none does.

    A picture is a real-valued or 8-bit array of (channels, h, w) with 1 or 3 channels, of (h, w) with h = w, or of h²
    numbers that are all >= 0; with a side of at least 8.
    """
    for leaf in leaves(data):
        if not (leaf.is_floating_point() or leaf.dtype == torch.uint8):
            continue
        values = _as_picture(leaf[0])
        if values is not None and bool(torch.isfinite(values).all()):
            return _bytes(values)
    return None


def _as_picture(values: Tensor) -> Tensor | None:
    values = values.detach().cpu().float()
    if values.ndim == 3 and values.shape[0] in (1, 3):
        values = values.permute(1, 2, 0).squeeze(2)
    elif values.ndim == 1 and bool((values >= 0).all()) and math.isqrt(len(values)) ** 2 == len(values):
        values = values.view(math.isqrt(len(values)), -1)
    elif values.ndim != 2 or values.shape[0] != values.shape[1]:
        return None
    return values if min(values.shape[:2]) >= SMALLEST else None


def _bytes(values: Tensor) -> NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    return ((values - low) / (high - low or 1.0) * 255).round().numpy().astype(np.uint8)


def _label(data: Any) -> int | None:
    """The whole number that a row has beside its input."""
    own = [leaf for leaf in leaves(data) if leaf.ndim == 1 and not leaf.is_floating_point()]
    return int(own[0][0]) if len(own) == 1 else None


def _image(pixels: NDArray[np.uint8], alt: str) -> Markup:
    data = base64.b64encode(png(pixels)).decode()
    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(alt, data)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file (ISO/IEC 15948) of (h, w) grey or (h, w, 3) RGB bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if pixels.ndim == 2 else 2, 0, 0, 0)
    lines = b"".join(b"\x00" + np.ascontiguousarray(row).tobytes() for row in pixels)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _bar(example: Example, most: float) -> Markup:
    """χ as a dot with its interval, on an axis from -most to most with 0 in the middle."""
    wide, high, colour = 160.0, 14.0, BLUE if example.chi > 0 else ORANGE
    reach = _finite(example.half_width)

    def x(value: float) -> float:
        return wide / 2 * (1 + 0.95 * value / most)

    body = line(wide / 2, 0, wide / 2, high, "currentColor", 1, opacity=0.5)
    body += line(x(example.chi - reach), high / 2, x(example.chi + reach), high / 2, colour, 2)
    body += Markup('<circle cx="{}" cy="{}" r="3.5" fill="{}"/>').format(number(x(example.chi)), high / 2, colour)
    return svg(body, wide, high, with_error(example.chi, reach), "display:block")


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
