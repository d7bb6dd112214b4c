"""Pictures of samples of any kind, and PNG files that carry their manifest as text.

Images are laid out in a grid; two-vectors become a scatter plot, longer vectors and sequences become lines, volumes
their middle slices, and fields with other numbers of channels one grey picture per channel. In vectors of up to 16
numbers, which are rows of a table, each number has its own range, from bottom to top.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from sfumato.files import atomic

INK, PALE, PAPER = (38, 50, 66), (206, 213, 222), (255, 255, 255)
LINES = ((31, 119, 180), (214, 96, 40), (44, 140, 90), (150, 90, 170), (120, 120, 120), (200, 60, 90))
_CELL = 160  # pixels of a plotted cell
_CAPTIONED = 96  # pixels of a cell with a caption below
_TABLE = 16  # numbers in a vector that are taken for the columns of a table


def picture(
    x: Any,
    kind: str = "array",
    bounds: tuple[float, float] | None = None,
    columns: int | None = None,
    labels: Sequence[str] | None = None,
    lengths: Sequence[int] | None = None,
    captions: Sequence[str] | None = None,
) -> Image.Image:
    """Samples x (N, *shape) in user units as one picture (see the module).

    labels: one per row of the grid. lengths: samples in each row, where not all rows are full. captions: one per
    sample, below it, of samples with spatial axes.
    """
    x = np.asarray(x)
    if x.ndim < 2 or not len(x):
        raise ValueError(f"a picture needs samples (N, *shape), got shape {x.shape}")
    shape = x.shape[1:]
    if len(shape) == 1 and shape[0] == 2:
        return _scatter(x)
    if len(shape) <= 2:
        x = _each_in_its_range(x) if len(shape) == 1 and shape[0] <= _TABLE else x
        span = _range(x)
        return _tile([_plot(c.reshape(-1, c.shape[-1]), span) for c in x], columns, labels, lengths)
    low, high = bounds if bounds is not None else _range(x)
    return grid(_bytes(_planes(x), low, high), columns, labels, lengths, captions)


def _planes(x: np.ndarray) -> np.ndarray:
    """(N, C, *spatial) -> (N, 1, 3 or 4, H, W): volumes by their middle slice, other channels side by side."""
    if x.ndim == 5:
        x = x[:, :, x.shape[2] // 2]
    if x.shape[1] in (1, 3, 4):
        return x
    return np.concatenate([x[:, c : c + 1] for c in range(min(x.shape[1], 16))], axis=-1)


def _range(x: np.ndarray) -> tuple[float, float]:
    """The range of the finite values without the outermost half percent."""
    values = x[np.isfinite(x)].astype(np.float64) if x.dtype.kind == "f" else x.astype(np.float64)
    if not values.size:
        return 0.0, 1.0
    low, high = np.quantile(values, [0.005, 0.995])
    return (float(low), float(high)) if high > low else (float(low) - 0.5, float(low) + 0.5)


def _each_in_its_range(x: np.ndarray) -> np.ndarray:
    """(N, D) with 0 and 1 at the ends of each column's range."""
    low, high = np.array([_range(column) for column in x.T]).T
    scaled: np.ndarray = (x - low) / (high - low)
    return scaled


def _bytes(x: np.ndarray, low: float, high: float) -> np.ndarray:
    if x.dtype == np.uint8 and (low, high) == (0, 255):
        return x
    scaled = (np.nan_to_num(x.astype(np.float64)) - low) / (high - low)
    return np.round(255 * scaled.clip(0, 1)).astype(np.uint8)


def grid(
    x: np.ndarray,
    columns: int | None = None,
    labels: Sequence[str] | None = None,
    lengths: Sequence[int] | None = None,
    captions: Sequence[str] | None = None,
) -> Image.Image:
    """x uint8 (N, C, H, W) with 1, 3 or 4 channels -> one picture, row by row; small images are enlarged."""
    factor = max(1, (64 if captions is None else _CAPTIONED) // max(x.shape[2:]))
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[x.shape[1]]
    cells = []
    for sample in x:
        cell = Image.fromarray(np.ascontiguousarray(sample[0] if mode == "L" else sample.transpose(1, 2, 0)))
        cell = cell.resize((cell.width * factor, cell.height * factor), Image.Resampling.NEAREST)
        if mode == "RGBA":  # over a light background, as viewers show it
            cell = Image.alpha_composite(Image.new("RGBA", cell.size, (*PAPER, 255)), cell)
        cells.append(cell.convert("RGB"))
    if captions is not None:
        cells = _over(cells, captions)
    return _tile(cells, columns, labels, lengths)


def _over(cells: Sequence[Image.Image], captions: Sequence[str]) -> list[Image.Image]:
    """Cells of one size over their captions, in as many lines as the longest needs, up to three."""
    font, line = ImageFont.load_default(11), 14
    width, height = cells[0].size
    split = [_lines(caption, width - 4, font)[:3] for caption in captions]
    most = max(map(len, split))
    made = []
    for cell, lines in zip(cells, split, strict=True):
        sheet = Image.new("RGB", (width, height + 4 + line * most), PAPER)
        sheet.paste(cell, (0, 0))
        draw = ImageDraw.Draw(sheet)
        for i, words in enumerate(lines):
            draw.text((width // 2, height + 2 + line * i), words, INK, font, anchor="ma")
        made.append(sheet)
    return made


def _lines(text: str, width: int, font: Any) -> list[str]:
    """A text in lines of at most this width, broken between words."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _tile(
    cells: Sequence[Image.Image], columns: int | None, labels: Sequence[str] | None, lengths: Sequence[int] | None
) -> Image.Image:
    """Cells of one size in rows, with a thin gap, and with labels a name before each row."""
    columns = columns or math.ceil(math.sqrt(len(cells)))
    lengths = lengths or [min(columns, len(cells) - first) for first in range(0, len(cells), columns)]
    rows = len(lengths)
    width, height = cells[0].size
    gap = 2 if max(width, height) <= 128 else 4
    size = max(11, min(16, height // 3))
    font = ImageFont.load_default(size)
    names = [] if labels is None else [str(name) for name in labels[:rows]]
    left = gap + (max((math.ceil(font.getlength(name)) for name in names), default=0) + 12 if names else 0)
    sheet = Image.new("RGB", (left + columns * (width + gap), gap + rows * (height + gap)), PAPER)
    draw = ImageDraw.Draw(sheet)
    places = [(row, column) for row, length in enumerate(lengths) for column in range(length)]
    for cell, (row, column) in zip(cells, places, strict=True):
        sheet.paste(cell, (left + column * (width + gap), gap + row * (height + gap)))
    for row, name in enumerate(names):
        draw.text((left - 8, gap + row * (height + gap) + height // 2), name, INK, font, anchor="rm")
    return sheet


def _plot(curves: np.ndarray, span: tuple[float, float]) -> Image.Image:
    """One sample (C, L) as C lines; drawn at twice the size, so that lines are smooth."""
    width, height = 2 * _CELL, 2 * _CELL * 3 // 4
    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, width - 1, height - 1), outline=PALE, width=2)
    low, high = span
    across = (np.arange(curves.shape[-1]) + 0.5) / curves.shape[-1] * width
    for c, line in enumerate(curves[: len(LINES)].astype(np.float64)):
        up = (line - low) / (high - low)
        down = height - 8 - (height - 16) * up.clip(0, 1)
        there = ~np.isnan(line)
        points = list(zip(across[there].tolist(), down[there].tolist(), strict=True))
        if not points:
            continue
        if len(points) == 1:
            points = [(0.0, points[0][1]), (float(width), points[0][1])]
        draw.line(points, fill=LINES[c], width=3, joint="curve")
    return image.resize((width // 2, height // 2), Image.Resampling.LANCZOS)


def _scatter(x: np.ndarray) -> Image.Image:
    """x (N, 2) as points in a square frame with axes; the outermost half percent may lie outside."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context("default"):
        figure = Figure(figsize=(4.8, 4.8), layout="constrained")
        axes, canvas = figure.subplots(), FigureCanvasAgg(figure)
        axes.scatter(x[:, 0], x[:, 1], s=4, linewidths=0)
        for column, limit in ((x[:, 0], axes.set_xlim), (x[:, 1], axes.set_ylim)):
            low, high = _range(column)
            limit(low - 0.05 * (high - low), high + 0.05 * (high - low))
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def beside(images: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    """Pictures side by side, each under its title."""
    font, bar, gap = ImageFont.load_default(15), 26, 16
    height = max(image.height for image in images) + bar
    widths = [max(i.width, math.ceil(font.getlength(t))) for i, t in zip(images, titles, strict=True)]
    sheet = Image.new("RGB", (sum(widths) + gap * (len(images) - 1), height), PAPER)
    draw, left = ImageDraw.Draw(sheet), 0
    for image, title, width in zip(images, titles, widths, strict=True):
        draw.text((left + width // 2, bar // 2), title, INK, font, anchor="mm")
        sheet.paste(image, (left + (width - image.width) // 2, bar))
        left += width + gap
    return sheet


def save_png(image: Image.Image, path: str | os.PathLike[str], manifest: Mapping[str, Any] | None = None) -> None:
    """Write a PNG atomically, with its manifest as text chunks: strings as they are, everything else as JSON."""
    chunks = PngImagePlugin.PngInfo()
    for name, value in (manifest or {}).items():
        chunks.add_text(name, value if isinstance(value, str) else json.dumps(value), zip=False)
    with atomic(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=chunks, optimize=True)
