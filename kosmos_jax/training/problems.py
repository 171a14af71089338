"""What cannot be in `config.training`, `config.mesh` and `config.evaluation`."""

import re
from collections.abc import Iterator

from kosmos_jax.checks import around, at_least, below_one
from kosmos_jax.model.positions import most_positions


def value_problems(config) -> Iterator[str]:
    """Values that cannot be, whatever the others are."""
    yield from at_least("", config, {0: ("seed",)})
    ones = ("steps", "microbatches", "log_every", "eval_batches", "checkpoint_every", "keep_last")
    zeros = ("eval_every", "keep_every", "loss_chunk", "hang_seconds", "join_seconds", "wait_seconds")
    zeros += ("max_failed_saves", "max_nonfinite", "spike_factor")
    yield from at_least("training", config.training, {1: ones, 0: zeros})
    rates = ("learning_rate", "warmup_steps", "eps", "weight_decay", "clip_norm")
    yield from at_least("training.optimizer", config.training.optimizer, {0: rates})
    yield from below_one("training.optimizer", config.training.optimizer, ("b1", "b2"))
    yield from below_one("training", config.training, ("ema_decay",))
    yield from at_least("evaluation", config.evaluation, {1: ("examples",)})


def problems(config) -> Iterator[str]:
    """Values that do not fit each other, or the model and the data; each can be by itself."""
    rows, microbatches, mesh = config.data.batch_rows, config.training.microbatches, config.mesh
    text, seq_len = config.model.text, config.data.seq_len
    if seq_len > most_positions(text):
        yield (
            f"data.seq_len is {seq_len}; with model.text.positions={text.positions!r} and "
            f"max_positions={text.max_positions} a row has at most {most_positions(text)} tokens"
        )
    if rows % microbatches:
        multiples = around(rows, [microbatches * n for n in range(1, rows + 1)])
        yield f"data.batch_rows is {rows}, which training.microbatches {microbatches} does not divide; try {multiples}"
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
    if mesh.context > 1 and seq_len % mesh.context:
        yield f"data.seq_len is {seq_len}, which mesh.context {mesh.context} does not divide"
