"""What a tokenizer is trained on: text of several sources in proportion, from all over each of them."""

import heapq
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.documents import DataError, Document, Text
from data_pipeline.files import is_local
from data_pipeline.layout import share_schedule
from data_pipeline.prepare.ledger import write_bytes
from data_pipeline.prepare.recipe import load_recipe
from data_pipeline.readers import Reader, make_reader
from data_pipeline.tokenizer import Tokenizer

log = logging.getLogger(__name__)
# Enough for a vocabulary of 64,000 pieces.
CHARACTERS = 100_000_000
# Shards of a source that are read side by side: what a corpus begins with is seldom what it is like.
SHARDS = 8


class Source(NamedTuple):
    """A part of the mix.

    Attributes:
      reader: of the documents.
      weight: its share of the text, before they are divided by their sum.
      kept: what the filters leave of a document, None if nothing.
    """

    reader: Reader
    weight: float
    kept: Callable[[Document], Document | None] = lambda document: document


def mix(sources: Sequence[Source], characters: int) -> Iterator[tuple[int, str]]:
    """Lines of text, with the number of the source that each is from.

    A source that has less text than its share gives all of it, and the others give no more for that. What cannot be
    read is left out: it is counted and named when the source is prepared.

    Args:
      sources: all of them before the next one begins.
      characters: of all together.
    """
    total = sum(source.weight for source in sources)
    for n, source in enumerate(sources):
        for line in _lines(source, round(characters * source.weight / total)):
            yield n, line


def spread(shards: Sequence[str]) -> list[str]:
    """The shards in an order in which the first `SHARDS`, and then the next ones, lie evenly over all."""
    step = -(-len(shards) // SHARDS)
    return [shard for first in range(step) for shard in shards[first::step]]


def _lines(source: Source, characters: int) -> Iterator[str]:
    # The next line is always from the shard that has given least; one that has no more makes room for another one.
    waiting = iter(spread(source.reader.shards()))
    given = [(0, n, _lines_of(source, shard)) for n, shard in zip(range(SHARDS), waiting, strict=False)]
    while given and characters > 0:
        count, n, lines = given[0]
        line = next(lines, None)
        if line is not None:
            line = line[:characters]
            characters -= len(line)
            heapq.heapreplace(given, (count + len(line), n, lines))
            yield line
        elif shard := next(waiting, None):
            heapq.heapreplace(given, (count, n, _lines_of(source, shard)))
        else:
            heapq.heappop(given)


def _lines_of(source: Source, shard: str) -> Iterator[str]:
    for document in source.reader.read(shard):
        kept = source.kept(document) if isinstance(document, Document) else None
        for part in kept.parts if kept else ():
            if isinstance(part, Text):
                yield from filter(str.strip, part.text.splitlines())


def train_tokenizer(config: Any, names: Sequence[str], characters: int, out: str) -> dict[str, int]:
    """Trains SentencePiece on sources of a config, each with its recipe, as `data.tokenizer.vocab_size` says.

    The same files and the same arguments give the same model.

    Args:
      config: the complete config. A source's weight is its share, the largest one if that changes at a step.
      names: of the sources.
      characters: of text, `CHARACTERS` if 0.
      out: a file, which is there when the model is complete.

    Returns:
      How many characters each source gave.

    Raises:
      DataError: a source cannot be used, or the text is too little for the vocabulary.
    """
    folder, _, file = out.rpartition("/")
    if is_local(out):
        Path(folder or ".").mkdir(parents=True, exist_ok=True)
    sources = [_source(config.data.sources[name]) for name in names]
    if not any(source.weight > 0 for source in sources):
        raise DataError(f"no tokenizer can be trained: the shares of {', '.join(names)} are 0")
    taken = dict.fromkeys(names, 0)

    def texts() -> Iterator[str]:
        for n, line in mix(sources, characters or CHARACTERS):
            taken[names[n]] += len(line)
            yield line

    trained = Tokenizer.train(texts(), config.data.tokenizer.vocab_size)
    write_bytes(folder or ".", file, trained.model_bytes)
    log.info("%s: trained on %s", out, ", ".join(f"{n:,} characters of {name}" for name, n in taken.items()))
    return taken


def _source(source: Any) -> Source:
    recipe = load_recipe(source.get("recipe", ""))
    weight = max(share for _, share in share_schedule(source.share))
    return Source(make_reader(source, "train"), weight, lambda document: recipe.apply(document)[0])
