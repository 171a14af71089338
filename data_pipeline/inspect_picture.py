"""Packed rows as a picture: a stripe for each, what its tokens are, and its media above their places."""

import colorsys
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipeline.inspect_rows import Item, Row, hue

log = logging.getLogger(__name__)
# Inches of a row's width, of a stripe's height, and of the least and most that media have above it.
WIDTH, STRIPE, MEDIA = 10, 0.2, (0.25, 0.7)
# A picture of more rows is too long to look at.
ROWS = 48


def write_picture(mixture, title: str, rows: Sequence[Row], out: Path):
    """Writes it, if matplotlib is installed.

    Args:
      mixture: whose rows these are.
      title: above them.
      rows: by source; of each of them equally many are drawn, `ROWS` at most together.
      out: the file, "page.png".
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError:
        log.warning("%s is not written: pip install 'kosmos_jax[data]'", out)
        return
    most = max(1, ROWS // len(mixture.names))
    rows = [row for n, row in enumerate(rows) if n < most or rows[n - most].source != row.source]
    slot = WIDTH / rows[0].seq_len
    widest = max([item.count for row in rows for item in row.items], default=0) * slot
    room = float(np.clip(widest, *MEDIA))
    heights = [STRIPE + 0.12 + room * bool(row.items) for row in rows]
    figure = Figure(figsize=(WIDTH + 4, sum(heights) + 1.1), layout="constrained")
    grid = figure.subplots(len(rows), squeeze=False, gridspec_kw=dict(height_ratios=heights))[:, 0]
    for row, axes in zip(rows, grid, strict=True):
        _draw(axes, mixture, row, room / STRIPE, slot)
    greys = {"learned": (0.5,) * 3, "read": (0.85,) * 3, "media": (0.15,) * 3, "padding": (1.0,) * 3}
    patches = [Patch(facecolor=grey, edgecolor="0.5", label=name) for name, grey in greys.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False)
    figure.suptitle(title)
    figure.savefig(out, dpi=100)


def _draw(axes, mixture, row: Row, room: float, slot: float):
    """Args: room: for media, in heights of a stripe. slot: inches of a token's width."""
    tone = hue(mixture, row.source) / 360
    read, learned, media = (colorsys.hls_to_rgb(tone, light, 0.6) for light in (0.85, 0.5, 0.15))
    stripe, at = np.ones((1, row.seq_len, 3)), 0
    for segment in row.segments:
        end = at + len(segment.tokens)
        stripe[0, at:end] = np.where(segment.learned[:, None], learned, read)
        for offset, item in segment.items.items():
            begin = at + offset
            stripe[0, begin : begin + item.count] = media
            width = min(item.count, room * STRIPE / slot)  # square where the place is wide enough
            middle = begin + item.count / 2
            _draw_item(axes, item, (middle - width / 2, middle + width / 2, 1.1, 1 + room), media)
        axes.axvline(at, 0, 1 / (1 + room * bool(row.items)), color="black", linewidth=1)
        at = end
    axes.imshow(stripe, extent=(0, row.seq_len, 0, 1), aspect="auto", interpolation="nearest")
    axes.set(xlim=(0, row.seq_len), ylim=(0, 1 + room * bool(row.items)), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    place = f"{row.microbatch}: {row.number}" if mixture.microbatches > 1 else f"{row.number}"
    # Names and messages are other people's: no formulas.
    axes.text(-0.005, 0, f"{mixture.names[row.source]}, row {place}", ha="right", va="bottom", fontsize=9,
              transform=axes.transAxes, parse_math=False)  # fmt: skip
    axes.text(1.005, 0, f"{row.used / row.seq_len:.1%}", va="bottom", fontsize=9, transform=axes.transAxes)


def _draw_item(axes, item: Item, extent: tuple[float, float, float, float], colour):
    left, right, bottom, top = extent
    if item.value.ndim == 3 and item.value.dtype == np.uint8:
        axes.imshow(item.value, extent=extent, aspect="auto")
    elif item.value.ndim == 1 and item.value.dtype == np.int16:
        parts = np.array_split(item.value.astype(float), min(120, len(item.value)))
        middle, scale = (bottom + top) / 2, (top - bottom) / 2**16
        low = [middle + scale * part.min() for part in parts]
        high = [middle + scale * part.max() for part in parts]
        axes.fill_between(np.linspace(left, right, len(parts)), low, high, color=colour, linewidth=0.3)
