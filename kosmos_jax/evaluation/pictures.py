"""Two pictures: test items with the model's answers, and the losses of a run."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.documents import Media

COLUMNS = 12  # items side by side
ROWS = 3  # of questions of a task, and one more for wrong answers
RIGHT_COLOR, WRONG_COLOR = "#222222", "#d62728"


def draw_answers(results, path: Path):
    """The first questions of each task with items, and a row of others that it got wrong.

    Under each stands the model's answer: black when right; when wrong, red with the right word after it.

    Args:
      results: name -> tasks.Result; at least one has examples.
      path: of the PNG file.
    """
    plt = _pyplot()
    parts = []
    for name, result in results.items():
        if result.examples:
            per_row = COLUMNS // sum(isinstance(part, Media) for part in result.examples[0].prompt)
            first = result.examples[: ROWS * per_row]
            wrong = [e for e in result.examples[len(first) :] if not e.right][:per_row]
            title = f"{name}: {result.value:.1%} of {result.n} right"
            parts.append((title + (" (last row: more of the wrong ones)" if wrong else ""), first, wrong, per_row))
    heights = [0.45 + 1.2 * (-(-len(first) // per_row) + bool(wrong)) for _, first, wrong, per_row in parts]
    figure = plt.figure(figsize=(COLUMNS, sum(heights)))
    panels = figure.subfigures(len(parts), 1, height_ratios=heights, squeeze=False)[:, 0]
    for panel, height, (title, first, wrong, per_row) in zip(panels, heights, parts, strict=True):
        rows = -(-len(first) // per_row) + bool(wrong)
        axes = panel.subplots(rows, per_row, squeeze=False)
        panel.subplots_adjust(
            left=0.01, right=0.99, top=1 - 0.4 / height, bottom=0.25 / height, hspace=0.3, wspace=0.08
        )
        panel.text(0.01, 1 - 0.1 / height, title, va="top", fontsize=12)
        for axis in axes.flat:
            axis.axis("off")
        for axis, example in [*zip(axes.flat, first, strict=False), *zip(axes[-1], wrong, strict=False)]:
            axis.imshow(_side_by_side(example.prompt), cmap="gray", vmin=0, vmax=255)
            text = example.answer if example.right else f"{example.answer} ({example.expected})"
            color = RIGHT_COLOR if example.right else WRONG_COLOR
            axis.text(0.5, -0.04, text, transform=axis.transAxes, ha="center", va="top", fontsize=10, color=color)
    with path.open("wb") as file:
        figure.savefig(file, dpi=90)
    plt.close(figure)


def _side_by_side(prompt) -> np.ndarray:
    pictures = [DRAWN[part.kind](part.data) for part in prompt if isinstance(part, Media)]
    size = max(picture.height for picture in pictures)
    gap = np.full((size, max(1, size // 8)), 255, np.uint8)
    squares = [np.asarray(picture.resize((size, size))) for picture in pictures]
    return np.concatenate([part for square in squares for part in (gap, square)][1:], axis=1)


def _drawn_image(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("L")


def _drawn_audio(data: bytes) -> Image.Image:
    """The mel spectrogram of a clip, low notes at the bottom."""
    from data_pipeline.media import audio
    from kosmos_jax.model.perception.log_mel import HOP, log_mel

    clip = audio.decode(data)
    samples = -(-len(clip.samples) * audio.RATE // clip.rate // HOP) * HOP
    mel_TM = np.asarray(log_mel(audio.item(clip, (samples,))[None], 64)[0])
    scaled = (mel_TM - mel_TM.min()) / max(float(np.ptp(mel_TM)), 1e-6)
    return Image.fromarray((255 * scaled.T[::-1]).astype(np.uint8))


DRAWN = {"image": _drawn_image, "audio": _drawn_audio}


def draw_losses(metrics: Path, path: Path):
    """Loss by step of each source: every step faint, a running mean over it, and dots on held-out data.

    Args:
      metrics: a run's metrics.jsonl; reads its keys loss/<source> and val/<source>.
      path: of the PNG file.
    """
    plt = _pyplot()
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    sources = sorted({key.partition("/")[2] for line in lines for key in line if key.startswith("loss/")})
    figure, axis = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    for source in sources:
        steps, losses = _series(lines, f"loss/{source}")
        (line,) = axis.plot(steps, _running_mean(losses), label=source, linewidth=1.6)
        axis.plot(steps, losses, color=line.get_color(), alpha=0.2, linewidth=0.6)
        held_out = _series(lines, f"val/{source}")
        axis.plot(*held_out, "o", color=line.get_color(), markersize=4, markeredgecolor="white", markeredgewidth=0.5)
    axis.plot([], [], "o", color="gray", markersize=4, label="held out")
    axis.set(xlabel="step", ylabel="loss (nats per token)", yscale="log")
    for ticks in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        ticks("{x:g}")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)
    with path.open("wb") as file:
        figure.savefig(file, dpi=130)
    plt.close(figure)


def _series(lines, key):
    found = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    return np.array(found, np.float64).reshape(-1, 2).T


def _running_mean(values, share=0.02):
    """The mean of the last 2% of the steps, fewer at the start."""
    window = max(1, int(len(values) * share))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    last = np.arange(1, len(values) + 1)
    first = np.maximum(last - window, 0)
    return (sums[last] - sums[first]) / (last - first)


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
