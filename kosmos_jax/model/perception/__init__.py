"""Perception: what an encoder sees or hears in an item, as a few vectors in the decoder's stream.

An encoder is an nnx.Module with

    DTYPES                       of items that it reads
    KEYS                         its keys in the `encoder` section of the config, beside `kind`
    STACKS                       names of its submodules whose parameters have a leading axis of layers
    SHARDINGS                    (pattern of a parameter's path, name of a sharding) where the common rules have none,
                                 see kosmos_jax/parallel/sharding.py
    __init__(config, shape, rngs, dtype, constrain)
    __call__(items, *, remat, unroll) -> float[N, P, d]
    width                        d
    patches(config, shape)       P
    flops(config, shape)         forward, of one item, by part from the input upward; a part is the name of a submodule,
                                 so that what trains in it is known
    described(shape, tokens)     an item in words, for the log
    problems(config, shape)      messages on what cannot be in the config

Another one adds its entry to `ENCODERS`.
"""

from collections.abc import Iterator

from flax import nnx

from kosmos_jax.checks import at_least, not_among
from kosmos_jax.model.layers import unpinned
from kosmos_jax.model.perception import connector
from kosmos_jax.model.perception.clip import Clip
from kosmos_jax.model.perception.connector import CONNECTORS, connector_flops
from kosmos_jax.model.perception.whisper import Whisper

ENCODERS = {"clip": Clip, "whisper": Whisper}


class Perception(nnx.Module):
    """Encoder, then connector."""

    def __init__(self, config, width, rngs, dtype, constrain=unpinned):
        """Args: config: a modality's section of the config. width: D, of the decoder."""
        make_encoder, make_connector = ENCODERS[config.encoder.kind], CONNECTORS[config.connector.kind]
        self.encoder = make_encoder(config.encoder, config.shape, rngs, dtype, constrain)
        self.connector = make_connector(config.connector, config.tokens, self.encoder.width, width, rngs, dtype)
        self.constrain = constrain

    def __call__(self, items, *, key=None, remat="none", unroll=1):
        """Items of a batch to vectors of the decoder's stream.

        Args:
          items: [N, *shape], as the modality's host side gives them.
          key: dropout key, or None.
          remat, unroll: see `layers.scan_layers`.

        Returns:
          float[N, Q, D].
        """
        features_NPd = self.encoder(items, remat=remat, unroll=unroll)
        return self.constrain(self.connector(features_NPd, key=key), "items_npd")


def stacks(section) -> tuple[str, ...]:
    """Paths, below a modality's name, of the modules whose every parameter has a leading axis of layers."""
    encoder, kind = ENCODERS[section.encoder.kind], CONNECTORS[section.connector.kind]
    return tuple(f"encoder/{name}" for name in encoder.STACKS) + tuple(f"connector/{name}" for name in kind.STACKS)


def flops(section, width: int) -> dict[str, float]:
    """Forward, of one item, by part from the input upward: {"encoder/trunk": ..., "connector": ...}.

    Args:
      section: a modality's section of the config.
      width: D, of the decoder.
    """
    encoder, config, shape = ENCODERS[section.encoder.kind], section.encoder, tuple(section.shape)
    parts = {f"encoder/{name}": value for name, value in encoder.flops(config, shape).items()}
    patches = encoder.patches(config, shape)
    return parts | {"connector": connector_flops(section.connector, section.tokens, patches, config.width, width)}


def keys(section) -> list[str]:
    """The keys that a modality's section has to have; where its encoder is none of `ENCODERS`, those that it has."""
    given = section.get("encoder")
    given = given if hasattr(given, "keys") else {}
    encoder = ENCODERS.get(str(given.get("kind")))
    own = {"kind", *(encoder.KEYS if encoder else given)}
    parts = [*(f"encoder.{key}" for key in sorted(own)), *(f"connector.{key}" for key in connector.KEYS)]
    return ["tokens", "shape", "dtype", *parts]


def value_problems(section) -> Iterator[str]:
    """What cannot be in a modality's section, whatever the rest is; messages begin with the key."""
    yield from at_least("", section, {1: ("tokens",)})
    shape = section.shape
    if not isinstance(shape, list | tuple) or not shape or not all(isinstance(n, int) and n > 0 for n in shape):
        yield f"shape is {shape!r}; it is made of whole numbers above 0, such as (224, 224, 3)"
    yield from not_among("encoder.kind", section.encoder.kind, ENCODERS)
    if encoder := ENCODERS.get(section.encoder.kind):
        yield from not_among("dtype", section.dtype, encoder.DTYPES)


def problems(section, width: int) -> Iterator[str]:
    """What cannot be in a modality's section, before a decoder of a width, once `value_problems` has none."""
    yield from ENCODERS[section.encoder.kind].problems(section.encoder, tuple(section.shape))
    yield from connector.problems(section.connector, width)
