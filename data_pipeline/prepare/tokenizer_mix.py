"""A tokenizer trained on a mixture: text of each source in proportion to its share, from all over the source."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.documents import DataError, Document, Text
from data_pipeline.layout import share_schedule
from data_pipeline.prepare.recipe import load_recipe
from data_pipeline.prepare.sources import filtered
from data_pipeline.readers import make_reader
from data_pipeline.tokenizer import Tokenizer

log = logging.getLogger(__name__)
# SentencePiece needs 3 KB of memory for each thousand of them.
CHARACTERS = 50_000_000
# Shards of a source that its text comes from, if they have enough.
SPREAD = 32


def train_tokenizer(config: Any, names: Sequence[str], characters: int, out: str):
    """Trains a SentencePiece model of `config.data.tokenizer.vocab_size` pieces, and writes it to `out`.

    The text is that of the training splits after their recipes. A source that has less than its part gives all it has.

    Args:
      config: the complete config.
      names: of sources.
      characters: of all text together; 0: `CHARACTERS`.
      out: the file, of the form that `data.tokenizer.path` names.

    Raises:
      DataError: there is no text, or too little for so many pieces.
    """
    sources, total = config.data.sources, characters or CHARACTERS
    # Of a share that changes in the run, the largest.
    shares = {name: max(share for _, share in share_schedule(sources[name].share)) for name in names}
    texts = []
    for name in names:
        own = list(texts_of(sources[name], round(total * shares[name] / sum(shares.values()))))
        log.info("%s: %s characters", name, f"{sum(map(len, own)):,}")
        texts += own
    if not texts:
        raise DataError(f"the training splits of {', '.join(names)} have no text")
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Tokenizer.train(texts, config.data.tokenizer.vocab_size).save(out)


def texts_of(source: Any, characters: int) -> Iterator[str]:
    """Text of documents of the training split, about as many characters as that; from shards all over it.

    Args:
      source: an entry of `config.data.sources`.
      characters: the last text is cut off where they are reached.
    """
    reader, recipe = make_reader(source, "train"), load_recipe(source.get("recipe", ""))
    shards = reader.shards()
    spread = min(SPREAD, len(shards))
    chosen = [n * len(shards) // spread for n in range(spread)]
    others = sorted(set(range(len(shards))) - set(chosen))
    left = characters
    if not left:
        return
    for k, n in enumerate([*chosen, *others]):
        # What the shards before this one did not have is divided among those that follow.
        part = -(-left // max(1, spread - k))
        for text in _texts(filtered(reader, recipe, shards[n])):
            yield text[:part]
            left -= len(text[:part])
            part -= len(text[:part])
            if not part:
                break
        if not left:
            return


def _texts(documents: Iterable[Document]) -> Iterator[str]:
    return (part.text for document in documents for part in document.parts if isinstance(part, Text) and part.text)
