"""Cross-field validation of a config, before anything slow starts."""

import difflib
import re
from collections.abc import Iterator

from kosmos_jax.errors import UserError

CHOICES = {
    "model.dtype": ("auto", "float32", "bfloat16"),
    "model.remat": ("none", "dots", "full"),
    "model.text.attention": ("auto", "reference", "splash", "triton"),
    "model.text.positions": ("xpos", "sinusoidal", "both"),
    "model.text.init": ("torchscale", "magneto"),
    "model.vision.activation": ("quick_gelu", "gelu"),
    "model.connector.kind": ("xconnector", "perceiver"),
}
# Smallest allowed values.
AT_LEAST = {
    1: """model.scan_unroll model.text.vocab_size model.text.width model.text.layers model.text.heads
    model.text.ffn model.text.max_positions model.vision.image_size model.vision.patch_size model.vision.width
    model.vision.layers model.vision.heads model.vision.ffn model.connector.tokens model.connector.heads
    model.connector.layers data.seq_len data.batch_rows data.decode_threads data.prefetch training.steps
    training.microbatches training.log_every training.eval_batches
    training.checkpoint_every training.keep_last
    evaluation.examples""".split(),
    0: """seed model.vision.top_layers data.max_skipped training.eval_every training.keep_every training.loss_chunk
    training.hang_seconds training.join_seconds training.wait_seconds training.max_failed_saves
    training.max_nonfinite training.spike_factor training.optimizer.learning_rate
    training.optimizer.warmup_steps training.optimizer.eps training.optimizer.weight_decay
    training.optimizer.clip_norm""".split(),
}
# Probabilities and decay rates: 0 is allowed, 1 is not.
BELOW_ONE = """model.text.dropout model.text.attention_dropout model.connector.dropout training.ema_decay
    training.optimizer.b1 training.optimizer.b2""".split()
# Of all sources, then of those of kind "tfds".
SOURCE_KEYS = ("kind", "share", "images_per_row", "augment.crop_scale", "augment.rotate")
SOURCE_KEYS += ("name", "data_dir", "splits", "template", "interleaved")
# <s>, <pad>, </s>, <unk> take the place of SentencePiece's three; then come six tags: seven more ids than pieces.
SPECIAL_IDS, KOSMOS2_IDS = 7, 6 + 1024
# Positions for which xPos was measured: twice model.positions.CENTRE. Its scale leaves float32's range further on.
XPOS_POSITIONS = 32_768


class ConfigError(UserError, ValueError):
    """A config that cannot be right."""


def validate(config, where: str = "the config", model_only: bool = False) -> None:
    """Checks each value, and values against each other.

    Args:
      config: a complete config, see configs/kosmos1.py.
      where: the file's name, for the message.
      model_only: whether data and training need not fit the model.

    Raises:
      ConfigError: naming file, key, value and what would be right, for everything that is wrong at once.
    """
    # Each kind of check relies on the ones before it.
    problems = (
        list(_key_problems(config))
        or list(_single_values(config))
        or [
            *_text_problems(config.model.text, config.data.seq_len),
            *_image_problems(config.model),
            *([] if model_only else [*_data_problems(config), *_run_problems(config)]),
        ]
    )
    if problems:
        raise ConfigError("\n".join(f"{where}: {problem}" for problem in problems))


def flat(tree, prefix: str = "") -> dict:
    """The values of a nested dictionary by their keys: {"model.text.width": 2048, ...}."""
    values = {}
    for key, value in tree.items():
        values |= flat(value, f"{prefix}{key}.") if hasattr(value, "items") else {f"{prefix}{key}": value}
    return values


def dotted_keys(tree) -> list[str]:
    """The keys of all values in a nested dictionary: "model.text.width"."""
    return list(flat(tree))


def nearest_key(key: str, keys: list[str]) -> str | None:
    """The key that was meant: the same last word in another section, or else the most similar spelling."""
    last = key.rpartition(".")[2]
    same_word = [candidate for candidate in keys if candidate.rpartition(".")[2] == last]
    nearest = difflib.get_close_matches(key, same_word or keys, n=1, cutoff=0.0 if same_word else 0.5)
    return nearest[0] if nearest else None


def _key_problems(config) -> Iterator[str]:
    """Keys that configs/kosmos1.py does not have, and the reverse; a source's keys depend on its kind."""
    from configs import kosmos1

    def known(tree):
        return [key for key in dotted_keys(tree) if not key.startswith("data.sources.")]

    wanted, given = known(kosmos1.get_config()), known(config)
    for key in given:
        if key not in wanted:
            nearest = nearest_key(key, [other for other in wanted if other not in given] or wanted)
            yield f"{key} is no key of a config" + (f"; did you mean {nearest}?" if nearest else "")
    for key in wanted:
        if key not in given:
            yield f"{key} is missing; configs/kosmos1.py says what it means"
    for name, source in config.get("data", {}).get("sources", {}).items():
        for key in ("kind", "share", "images_per_row"):
            if key not in source:
                yield f"data.sources.{name}.{key} is missing"
        for key in dotted_keys(source):
            if not key.startswith("splits.") and key not in SOURCE_KEYS:
                nearest = nearest_key(key, list(SOURCE_KEYS))
                yield f"data.sources.{name}.{key} is no key of a source" + (
                    f"; did you mean {nearest}?" if nearest else ""
                )


def _value(config, key: str):
    for step in key.split("."):
        config = config[step]
    return config


def _single_values(config) -> Iterator[str]:
    numbers = [*AT_LEAST[0], *AT_LEAST[1], *BELOW_ONE]
    wrong = [key for key in numbers if not isinstance(_value(config, key), int | float)]
    if wrong:
        yield from (f"{key} is {_value(config, key)!r}; it must be a number" for key in wrong)
        return
    for key, choices in CHOICES.items():
        yield from _not_among(key, _value(config, key), choices)
    for least, keys in AT_LEAST.items():
        yield from (
            f"{key} is {_value(config, key)}; it must be at least {least}"
            for key in keys
            if not _value(config, key) >= least
        )
    for key in BELOW_ONE:
        if not 0 <= _value(config, key) < 1:
            yield f"{key} is {_value(config, key)}; it must be at least 0 and below 1"


def _not_among(key: str, value: str, choices) -> Iterator[str]:
    if value not in choices:
        nearest = difflib.get_close_matches(value, choices, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"it is one of {', '.join(map(repr, choices))}"
        yield f"{key} is {value!r}; {hint}"


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _around(value: int, candidates: list[int]) -> str:
    """The nearest candidates below and above: "8 or 16"."""
    below = [c for c in candidates if c < value][-1:]
    above = [c for c in candidates if c > value][:1]
    return " or ".join(map(str, below + above))


def _heads_problems(section: str, heads: int, width: int, even: bool = False) -> Iterator[str]:
    fitting = [d for d in _divisors(width) if not even or width // d % 2 == 0]
    if heads in fitting:
        return
    hint = f"; try {_around(heads, fitting)}" if fitting else ""
    if width % heads:
        yield f"{section}.heads is {heads}, which does not divide width {width}{hint}"
    else:
        yield f"{section}.heads is {heads}, so a head is {width // heads} wide; xPos needs an even number{hint}"


def most_positions(text) -> int:
    """The tokens that a row or a prompt with its continuation may have, by `config.model.text`."""
    limits = {"xpos": XPOS_POSITIONS, "sinusoidal": text.max_positions}
    return limits.get(text.positions) or min(limits.values())


def _text_problems(text, seq_len: int) -> Iterator[str]:
    yield from _heads_problems("model.text", text.heads, text.width, even=text.positions != "sinusoidal")
    if text.positions != "xpos" and text.width % 2:
        yield f"model.text.width is {text.width}; sinusoidal positions need an even width"
    if seq_len > most_positions(text):
        yield (
            f"data.seq_len is {seq_len}; with model.text.positions={text.positions!r} and "
            f"max_positions={text.max_positions} a row has at most {most_positions(text)} tokens"
        )


def _image_problems(model) -> Iterator[str]:
    vision, connector = model.vision, model.connector
    yield from _heads_problems("model.vision", vision.heads, vision.width)
    if vision.image_size % vision.patch_size:
        around = _around(vision.image_size, [vision.patch_size * n for n in range(1, vision.image_size + 1)])
        yield (
            f"model.vision.image_size is {vision.image_size}, not a multiple of patch_size {vision.patch_size}; "
            f"try {around}"
        )
    if vision.top_layers > vision.layers:
        yield f"model.vision.top_layers is {vision.top_layers}; the tower has {vision.layers} layers in all"
    width = model.text.width
    if width % connector.heads:
        around = _around(connector.heads, _divisors(width))
        yield f"model.connector.heads is {connector.heads}, which does not divide text width {width}; try {around}"


def _data_problems(config) -> Iterator[str]:
    from data_pipeline.sources import KINDS

    data, vocabulary = config.data, config.model.text.vocab_size
    tokens_each = config.model.connector.tokens + 2  # with <image> and </image>
    ids = data.tokenizer.vocab_size + SPECIAL_IDS + (KOSMOS2_IDS if data.tokenizer.kosmos2_tags else 0)
    if not data.tokenizer.path and vocabulary != ids:
        yield (
            f"model.text.vocab_size is {vocabulary}; a tokenizer trained to {data.tokenizer.vocab_size} pieces has "
            f"{ids} ids with its tags"
        )
    if not len(data.sources):
        yield "data.sources is empty; there is nothing to learn from"
    for name, source in data.sources.items():
        key = f"data.sources.{name}"
        yield from _not_among(f"{key}.kind", source.kind, KINDS)
        if not source.share > 0:
            yield f"{key}.share is {source.share}; a source that takes part has a share above 0"
        most = (data.seq_len - 1) // tokens_each
        if not 0 <= source.images_per_row <= most:
            yield (
                f"{key}.images_per_row is {source.images_per_row}; in a row of {data.seq_len} tokens there is room "
                f"for {most} images of {tokens_each} tokens"
            )
        if "augment" in source:
            scale = tuple(source.augment.get("crop_scale", (1.0, 1.0)))
            if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
                yield f"{key}.augment.crop_scale is {scale}; it is (smallest, largest) share of the area, up to 1"


def _run_problems(config) -> Iterator[str]:
    rows, microbatches, mesh = config.data.batch_rows, config.training.microbatches, config.mesh
    if rows % microbatches:
        around = _around(rows, [microbatches * n for n in range(1, rows + 1)])
        yield f"data.batch_rows is {rows}, which training.microbatches {microbatches} does not divide; try {around}"
    profile = tuple(config.training.profile)
    if profile != (0, 0) and not (len(profile) == 2 and 1 <= profile[0] <= profile[1]):
        yield f"training.profile is {profile}; it is (first step, last step), counted from 1, or (0, 0) for no trace"
    for pattern in config.training.frozen:
        try:
            re.compile(pattern)
        except re.error as error:
            yield f"training.frozen: {pattern!r} is not a regular expression: {error}"
    wrong = [f"mesh.{axis} is {size}" for axis, size in mesh.items() if size < 1 and size != -1]
    yield from (f"{axis}; it must be positive, or -1 for all devices that are left" for axis in wrong)
    open_axes = [axis for axis, size in mesh.items() if size == -1]
    if len(open_axes) > 1:
        yield f"mesh.{' and mesh.'.join(open_axes)} are -1; at most one can take all devices that are left"
    if mesh.context > 1 and config.data.seq_len % mesh.context:
        yield f"data.seq_len is {config.data.seq_len}, which mesh.context {mesh.context} does not divide"
