"""What cannot be in `config.data`: single values, and values that do not fit each other or the model."""

import math
from collections.abc import Iterator

from data_pipeline import sources
from data_pipeline.media import MEDIA, host
from kosmos_jax.checks import at_least, nearest_key, not_among
from kosmos_jax.modality import FIRST_PIECE, all_tags, modalities

# Of the ids before the pieces, SentencePiece has three: this many more come before the tags.
MORE_IDS = FIRST_PIECE - 3


def key_problems(data) -> Iterator[str]:
    """Keys of sources that are missing, or that no source of that kind has."""
    for name, source in data.get("sources", {}).items():
        section = f"data.sources.{name}"
        yield from (f"{section}.{key} is missing" for key in ("kind", "share", "per_row") if key not in source)
        if source.get("kind") not in sources.KINDS:
            continue
        own = sources.keys(source.kind)
        known = [*sources.COMMON_KEYS, *own]
        yield from (f"{section}.{key} is missing" for key, needed in own.items() if needed and key not in source)
        for key in source:
            if key not in known:
                nearest = nearest_key(key, known)
                yield f"{section}.{key} is no key of a source" + (f"; did you mean {nearest}?" if nearest else "")


def value_problems(data) -> Iterator[str]:
    """Values that cannot be, whatever the others are."""
    numbers = {1: ("seq_len", "batch_rows", "decode_threads", "prefetch"), 0: ("max_skipped",)}
    yield from at_least("data", data, numbers)
    for name, source in data.sources.items():
        yield from not_among(f"data.sources.{name}.kind", source.kind, sources.KINDS)
        yield from at_least(f"data.sources.{name}", source, {-math.inf: ("share",)})
        for key in ("per_row", "augment"):
            section = source.get(key, {})
            if not hasattr(section, "items"):
                yield f"data.sources.{name}.{key} is {section!r}; it has a key for each modality"
                continue
            for kind, value in section.items():
                yield from not_among(f"data.sources.{name}.{key}: the modality {kind}", kind, MEDIA)
                if key == "per_row" and (isinstance(value, bool) or not isinstance(value, int)):
                    yield f"data.sources.{name}.per_row.{kind} is {value!r}; it must be a whole number"
                if key == "augment" and not hasattr(value, "items"):
                    yield f"data.sources.{name}.augment.{kind} is {value!r}; it has the options of the transform"


def problems(config) -> Iterator[str]:
    """Values that do not fit each other, or the model; each can be by itself."""
    data, vocabulary, found = config.data, config.model.text.vocab_size, modalities(config.model)
    ids = data.tokenizer.vocab_size + MORE_IDS + len(all_tags(found, data.tokenizer.kosmos2_tags))
    if not data.tokenizer.path and vocabulary != ids:
        yield (
            f"model.text.vocab_size is {vocabulary}; a tokenizer trained to {data.tokenizer.vocab_size} pieces has "
            f"{ids} ids with its tags"
        )
    for modality in found:
        if modality.name not in MEDIA:
            yield f"model.perception.{modality.name} has no host side in data_pipeline.media.MEDIA"
    if not len(data.sources):
        yield "data.sources is empty; there is nothing to learn from"
    for name, source in data.sources.items():
        key = f"data.sources.{name}"
        if not source.share > 0:
            yield f"{key}.share is {source.share}; a source that takes part has a share above 0"
        known = {modality.name: modality for modality in found}
        for kind, limit in source.per_row.items():
            if kind not in known:
                if limit:
                    yield f"{key}.per_row.{kind} is {limit}; the model has no model.perception.{kind}"
                continue
            each = known[kind].tokens + 2  # with its two tags
            most = (data.seq_len - 1) // each
            if not 0 <= limit <= most:
                yield (
                    f"{key}.per_row.{kind} is {limit}; in a row of {data.seq_len} tokens there is room for {most} "
                    f"items of {each} tokens"
                )
        for kind, options in source.get("augment", {}).items():
            if kind not in known:
                yield f"{key}.augment.{kind}: the model has no model.perception.{kind}"
            for option in options:
                if option not in host(kind).AUGMENT:
                    nearest = nearest_key(option, list(host(kind).AUGMENT))
                    hint = f"; did you mean {nearest}?" if nearest else ""
                    yield f"{key}.augment.{kind}.{option} is no option of {kind}{hint}"
            yield from (f"{key}.augment.{kind}.{message}" for message in host(kind).problems(options))
