"""The global batch of step N as a pure function of (config, seed, N).

Every step holds the same number of rows of each source, in the same places. The rows of a source are drawn without
replacement: draw g of a source is row shuffled(g mod R) of its plan of R rows, in the order of epoch g // R. So nothing
has to be remembered between steps, and any process can compute any row.
"""

import collections
import dataclasses
import hashlib
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipeline import images as pixels
from data_pipeline.documents import DataError, RecordError, RowError
from data_pipeline.index import load_index
from data_pipeline.plan import Plan, load_plan
from data_pipeline.rows import Piece, assemble
from data_pipeline.shuffle import shuffled
from data_pipeline.sources import Source, make_source
from data_pipeline.tokenizer import Tokenizer

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Member:
    """One source of the mixture with its plan and its share of a microbatch."""

    source: Source
    plan: Plan
    rows: int
    images_per_row: int
    augment: dict[str, Any]


class Mixture:
    """Rows of several sources in fixed shares.

    Attributes:
      names: the sources in the order in which `row_source` counts them: by name.
      rows: B, rows in a microbatch.
      images: N, places in a microbatch's image buffer: the sum of its rows' `images_per_row`, raised to a multiple of
        `data_shards` and at least one.
      row_source: int32[B], the source of each row; the sources are spread evenly over the rows.
      skipped: records that could not be read when the sources were indexed, or that their rows cannot hold, by
        "source/kind".

    Raises:
      DataError: a source with a positive share would get no row, or `batch_rows` does not divide.
      DataError: more than `data.max_skipped` records were skipped.
    """

    def __init__(self, config: Any, tokenizer: Tokenizer, split: str, cache: str | Path, data_shards: int = 1):
        """Args: config: the whole config. split: "train", "validation" or "test". data_shards: devices that split N."""
        data, cache = config.data, Path(cache)
        self.config, self.tokenizer, self.split = config, tokenizer, split
        self._seed, self._size, self._image_tokens = (
            config.seed,
            config.model.vision.image_size,
            config.model.connector.tokens,
        )
        self._seq_len, self._isolate = data.seq_len, data.isolate_documents
        self.microbatches = config.training.microbatches
        self.names, self.rows, counts, self.images, self.shapes = batch_layout(config, data_shards)
        self.skipped, self._members = collections.Counter(), []
        for name, count in zip(self.names, counts, strict=True):
            member = data.sources[name]
            source = make_source(member, split)
            index = load_index(source, tokenizer, self._image_tokens, cache, f"{name}-{split}")
            plan = load_plan(index, data.seq_len, member.images_per_row, cache)
            skipped, last = dict(index.skipped), index.last_skipped
            if len(plan.skipped):
                error = RowError(source[int(plan.skipped[-1])].where, plan.why)
                skipped[error.kind], last = len(plan.skipped), str(error)
            if skipped:
                self.skipped.update({f"{name}/{kind}": n for kind, n in skipped.items()})
                log.warning("%s: %s records cannot be read, the last: %s", name, skipped, last)
            if self.skipped.total() > data.max_skipped:
                raise DataError(too_many_skipped(self.skipped, data.max_skipped, last))
            if not len(plan):
                raise DataError(f"data.sources.{name}: no document in split {split!r}")
            self._members.append(_Member(source, plan, count, member.images_per_row, dict(member.get("augment", {}))))

        self.row_source = spread(counts)
        places = np.array([member.images_per_row for member in self._members])[self.row_source]
        self._image_first = np.concatenate([[0], np.cumsum(places)])
        self._seen_before = [np.cumsum(self.row_source == s) - (self.row_source == s) for s in range(len(self.names))]

    @property
    def fingerprint(self) -> str:
        """Changes when a step's batch would: with the sources, the tokenizer, the packing or the shares."""
        parts = [self.tokenizer.fingerprint, self._seed, self._isolate, self.microbatches]
        parts += [(m.source.fingerprint, m.rows, m.images_per_row, sorted(m.augment.items())) for m in self._members]
        parts += [m.plan.skipped.tolist() for m in self._members if len(m.plan.skipped)]
        return hashlib.sha256(repr((parts, self._seq_len, self._image_tokens, self._size)).encode()).hexdigest()[:16]

    def summary(self) -> list[str]:
        """A line for each source and one for the whole, for the log."""
        lines = []
        for name, m in zip(self.names, self._members, strict=True):
            fills = f"text fill {m.plan.fill:.3f}" + (
                f", image fill {m.plan.image_fill:.3f}" if m.images_per_row else ""
            )
            rows = f"{m.rows} of the {self.rows} rows of a microbatch, {len(m.plan):,} rows an epoch"
            lines.append(f"{name}: {len(m.source):,} documents, {rows}, {fills}")
        lines.append(f"all: text fill {self.plan_fill():.3f}, image fill {self.image_fill():.3f}")
        return lines

    def plan_fill(self) -> float:
        """Share of text positions that hold a token, on average over the steps."""
        return float(np.average([m.plan.fill for m in self._members], weights=[m.rows for m in self._members]))

    def image_fill(self) -> float:
        """Share of the image buffer that holds an image, on average over the steps."""
        used = sum(m.plan.image_fill * m.images_per_row * m.rows for m in self._members)
        return float(used / self.images)

    def epoch(self, step: int) -> dict[str, float]:
        """How often each source has been seen when step `step` begins."""
        return {
            name: step * self.microbatches * member.rows / len(member.plan)
            for name, member in zip(self.names, self._members, strict=True)
        }

    def batch(self, step: int, rows: slice = slice(None), images: slice = slice(None)) -> tuple[dict, dict]:
        """The batch of a step, or the part of it that one process holds.

        Args:
          step: from 0.
          rows: which of the B rows of every microbatch.
          images: which of the N image places of every microbatch.

        Returns:
          arrays: int32[A, rows, T] tokens, targets, segment_ids, positions, slots; int32[A, rows] row_source;
            uint8[A, images, H, W, 3] images.
          stats: text_fill and image_fill of this part, and `skipped`: a list of (source, kind, where, message).
        """
        rows, images = range(self.rows)[rows], range(self.images)[images]
        buffer = np.zeros((self.microbatches, len(images), self._size, self._size, 3), np.uint8)
        parts, skipped, used = collections.defaultdict(list), [], 0
        for a in range(self.microbatches):
            for row in range(self.rows):
                first, stop = int(self._image_first[row]), int(self._image_first[row + 1])
                shown = range(max(first, images.start), min(stop, images.stop))
                if row not in rows and not shown:
                    continue
                arrays, row_images, troubles = self._row(step, a, row)
                for place in shown:
                    if place - first < len(row_images):
                        buffer[a, place - images.start] = row_images[place - first]
                        used += 1
                if row in rows:
                    skipped += troubles
                    for name, value in arrays.items():
                        parts[name].append(value)
        shape = (self.microbatches, len(rows), -1)
        arrays = {name: np.stack(values).reshape(shape) for name, values in parts.items()}
        arrays["row_source"] = np.tile(self.row_source[rows.start : rows.stop], (self.microbatches, 1))
        arrays["images"] = buffer
        stats = {
            "text_fill": float((arrays["segment_ids"] > 0).mean()),
            "image_fill": used / max(1, buffer.shape[0] * buffer.shape[1]),
            "skipped": skipped,
        }
        return arrays, stats

    def _row(self, step: int, a: int, row: int) -> tuple[dict, list[np.ndarray], list]:
        """Row `row` of microbatch `a`: its arrays, all its images, and the records in it that could not be read."""
        s = int(self.row_source[row])
        member, name = self._members[s], self.names[s]
        draw = (step * self.microbatches + a) * member.rows + int(self._seen_before[s][row])
        epoch, i = divmod(draw, len(member.plan))
        planned = shuffled(i, len(member.plan), (self._seed, s, epoch))
        pieces, row_images, troubles = [], [], []
        draws = pixels.philox((self._seed, s, draw)).random((member.images_per_row, 4))
        for document, start, stop in member.plan.row(planned):
            try:
                piece, piece_images = self._piece(member, document, start, stop, draws[len(row_images) :])
                pieces.append(piece)
                row_images += piece_images
            except RecordError as error:
                pieces.append(None)
                troubles.append((name, error.kind, error.where, str(error)))
        first_image = int(self._image_first[row])
        arrays = assemble(pieces, self._seq_len, self.tokenizer, self._image_tokens, self._isolate, first_image)
        return arrays, row_images, troubles

    def _piece(self, member: _Member, i: int, start: int, stop: int, draws: np.ndarray):
        document = member.source[i]
        encoded = self.tokenizer.encode_document(document.segments, self._image_tokens)
        piece = Piece(encoded, start, stop)
        if stop > len(encoded.tokens):
            raise RecordError(document.where, "is shorter than when it was indexed: remove the cache directory")
        decoded = [pixels.decode(encoded.images[n], f"{document.where} image {n}") for n in piece.images]
        if self.split != "train":
            return piece, [pixels.squash(image, self._size) for image in decoded]
        return piece, [
            pixels.augmented(image, self._size, draw, **member.augment)
            for image, draw in zip(decoded, draws, strict=False)
        ]


class Layout(NamedTuple):
    """What a batch is like; it follows from the config alone.

    Attributes:
      names: the sources, by name.
      rows: of a microbatch.
      counts: rows of each source in a microbatch.
      images: places for images in a microbatch, a multiple of the data shards.
      shapes: of the arrays of a global batch.
    """

    names: tuple[str, ...]
    rows: int
    counts: list[int]
    images: int
    shapes: dict[str, tuple[int, ...]]


def batch_layout(config: Any, data_shards: int = 1) -> Layout:
    """The layout of the batches of a whole config; nothing is opened.

    Raises:
      DataError: rows cannot be divided over microbatches and devices, or a source gets none.
    """
    sources, size = config.data.sources, config.model.vision.image_size
    microbatches, names = config.training.microbatches, tuple(sorted(sources))
    rows = _microbatch_rows(config.data.batch_rows, microbatches, data_shards)
    counts = row_counts({name: sources[name].share for name in names}, rows, microbatches)
    places = sum(count * sources[name].images_per_row for name, count in zip(names, counts, strict=True))
    images = -(-max(1, places) // data_shards) * data_shards
    text = ("tokens", "targets", "segment_ids", "positions", "slots")
    shapes = dict.fromkeys(text, (microbatches, rows, config.data.seq_len))
    shapes |= {"row_source": (microbatches, rows), "images": (microbatches, images, size, size, 3)}
    return Layout(names, rows, counts, images, shapes)


def _microbatch_rows(batch_rows: int, microbatches: int, data_shards: int) -> int:
    unit = microbatches * data_shards
    if batch_rows % unit or batch_rows < 1:
        good = max(1, round(batch_rows / unit)) * unit
        raise DataError(
            f"data.batch_rows is {batch_rows}, which does not divide over training.microbatches={microbatches} and "
            f"{data_shards} data shards; try {good}"
        )
    return batch_rows // microbatches


def row_counts(shares: dict[str, float], rows: int, microbatches: int = 1) -> list[int]:
    """Rows of each source in a microbatch of `rows`, by largest remainder.

    Raises:
      DataError: a positive share gets no row; names the least `data.batch_rows` above that gives every source one.
    """
    counts = _largest_remainder(list(shares.values()), rows)
    if starved := [name for (name, share), n in zip(shares.items(), counts, strict=True) if share > 0 and n == 0]:
        good = rows
        while 0 in _largest_remainder([share for share in shares.values() if share > 0], good):
            good += 1
        raise DataError(
            f"data.sources.{starved[0]}.share is {shares[starved[0]]:g}, less than one of the {rows} rows of a "
            f"microbatch; raise it, or set data.batch_rows to {good * microbatches}"
        )
    return counts


def _largest_remainder(shares: list[float], rows: int) -> list[int]:
    exact = np.array(shares, float) / sum(shares) * rows
    counts = np.floor(exact + 1e-9).astype(int)
    for i in np.argsort(counts - exact, kind="stable")[: rows - counts.sum()]:
        counts[i] += 1
    return counts.tolist()


def spread(counts: list[int]) -> np.ndarray:
    """int32[sum(counts)]: i counts[i] times, as evenly as Bresenham's line: [2, 4] gives 1 0 1 1 0 1."""
    source = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    place = np.concatenate([(np.arange(n) + 0.5) / n for n in counts if n] or [np.zeros(0)])
    return source[np.lexsort((source, place))]


def too_many_skipped(skipped: dict[str, int], limit: int, last: str) -> str:
    counts = ", ".join(f"{name}: {n}" for name, n in sorted(skipped.items()))
    return f"{sum(skipped.values())} records cannot be read ({counts}), data.max_skipped is {limit}. The last: {last}"
