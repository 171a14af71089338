"""What cannot be in `config.data`: single values, and values that do not fit each other or the model."""

from collections.abc import Iterator

from data_pipeline import readers
from data_pipeline.layout import share_schedule
from data_pipeline.media import MEDIA, host
from data_pipeline.prepare.job import MEDIA_MODES
from kosmos_jax.checks import at_least, nearest_key, not_among
from kosmos_jax.modality import FIRST_PIECE, all_tags, modalities

# The keys that an entry of `config.data.sources` may have whatever its kind; see `readers.keys` for the kind's own.
COMMON_KEYS = ("kind", "share", "per_row", "augment", "prepared", "media", "recipe", "epochs")
# Of the ids before the pieces, SentencePiece has three: this many more come before the tags.
MORE_IDS = FIRST_PIECE - 3


def key_problems(data) -> Iterator[str]:
    """Keys of sources that are missing, or that no source of that kind has."""
    for name, source in data.get("sources", {}).items():
        section = f"data.sources.{name}"
        yield from (f"{section}.{key} is missing" for key in ("kind", "share", "per_row") if key not in source)
        if source.get("kind") not in readers.KINDS:
            continue
        own = readers.keys(source.kind)
        known = [*COMMON_KEYS, *own]
        yield from (f"{section}.{key} is missing" for key, needed in own.items() if needed and key not in source)
        for key in source:
            if key not in known:
                nearest = nearest_key(key, known)
                yield f"{section}.{key} is no key of a source" + (f"; did you mean {nearest}?" if nearest else "")


def value_problems(data) -> Iterator[str]:
    """Values that cannot be, whatever the others are."""
    numbers = {1: ("seq_len", "batch_rows", "bundle_rows", "decode_threads", "prefetch"), 0: ("max_skipped",)}
    yield from at_least("data", data, numbers)
    for name, source in data.sources.items():
        yield from not_among(f"data.sources.{name}.kind", source.kind, readers.KINDS)
        yield from _share_problems(f"data.sources.{name}.share", source.share)
        yield from not_among(f"data.sources.{name}.media", source.get("media", "inline"), MEDIA_MODES)
        if not isinstance(source.get("epochs", 0), int | float) or source.get("epochs", 0) < 0:
            yield f"data.sources.{name}.epochs is {source.epochs!r}; it is how often it may be seen, 0 for any number"
        for key in ("per_row", "augment"):
            section = source.get(key, {})
            if not hasattr(section, "items"):
                yield f"data.sources.{name}.{key} is {section!r}; it has a key for each modality"
                continue
            for kind, value in section.items():
                yield from not_among(f"data.sources.{name}.{key}: the modality {kind}", kind, MEDIA)
                if key == "per_row" and (isinstance(value, bool) or not isinstance(value, int | float)):
                    yield f"data.sources.{name}.per_row.{kind} is {value!r}; it must be a number"
                if key == "augment" and not hasattr(value, "items"):
                    yield f"data.sources.{name}.augment.{kind} is {value!r}; it has the options of the transform"


def _share_problems(key: str, share) -> Iterator[str]:
    if isinstance(share, int | float) and not isinstance(share, bool):
        return
    example = "a number, or from which step on which: ((0, 0.5), (10_000, 0.2))"
    try:
        steps = [step for step, _ in share_schedule(share)]
    except (TypeError, ValueError):
        yield f"{key} is {share!r}; it is {example}"
        return
    if not steps or steps[0] != 0 or steps != sorted(set(steps)):
        yield f"{key} begins at steps {steps}; the first is 0, and they rise"


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
        if not any(share > 0 for _, share in share_schedule(source.share)):
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
