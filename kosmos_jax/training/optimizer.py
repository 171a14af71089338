"""Optimizers by name, the paper's schedule, and which parameters train at all."""

import re
from collections.abc import Mapping

import jax.numpy as jnp
import optax

from kosmos_jax.errors import UserError

# Scaling of gradients by name; clipping, weight decay and the schedule are the same for all.
SCALERS = {
    "adamw": lambda c: optax.scale_by_adam(b1=c.b1, b2=c.b2, eps=c.eps, mu_dtype=jnp.float32),
    "lion": lambda c: optax.scale_by_lion(b1=c.b1, b2=c.b2),
    "adafactor": lambda c: optax.scale_by_factored_rms(),
    "sgd": lambda c: optax.trace(decay=c.b1),
}


def learning_rate(config, steps: int) -> optax.Schedule:
    """Linear up to the peak over `warmup_steps`, then linear to 0 at `steps` (paper, section 3.2).

    The first update already has a rate of peak / warmup_steps, and the last one's is not yet 0.
    """
    peak, warmup = config.learning_rate, max(config.warmup_steps, 1)
    rise = optax.linear_schedule(peak / warmup, peak, warmup - 1)
    fall = optax.linear_schedule(peak, 0.0, max(steps - warmup, 0) + 1)
    return optax.join_schedules([rise, fall], [warmup - 1])


def make_optimizer(config, steps: int) -> optax.GradientTransformation:
    """Clip by global norm, scale by `config.name`, decay every weight (fairseq excludes none), follow the schedule.

    A `clip_norm` of 0 does not clip, as in fairseq.
    """
    if config.name not in SCALERS:
        raise UserError(f"training.optimizer.name is {config.name!r}; it is one of {', '.join(SCALERS)}")
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        SCALERS[config.name](config),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(learning_rate(config, steps)),
    )


def split_frozen(params: Mapping[str, object], frozen_patterns) -> tuple[dict, dict]:
    """Splits parameters in those that train and those that do not.

    Args:
      params: path -> array.
      frozen_patterns: regular expressions for full paths; a path that none matches trains.

    Returns:
      (trainable, frozen).

    Raises:
      UserError: a pattern matches no parameter, several match one, or nothing is left to train.
    """
    matches = {path: [p for p in frozen_patterns if re.fullmatch(p, path)] for path in params}
    for pattern in frozen_patterns:
        if not any(pattern in found for found in matches.values()):
            raise UserError(
                f"training.frozen: {pattern!r} matches no parameter; paths look like {next(iter(params))!r}"
            )
    for path, found in matches.items():
        if len(found) > 1:
            raise UserError(
                f"training.frozen: parameter {path} is matched by {' and '.join(map(repr, found))}; one will do"
            )
    trainable = {path: leaf for path, leaf in params.items() if not matches[path]}
    if not trainable:
        raise UserError("training.frozen matches every parameter; nothing is left to train")
    return trainable, {path: leaf for path, leaf in params.items() if matches[path]}
