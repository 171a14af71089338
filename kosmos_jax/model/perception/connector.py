"""From an item's features, as many as its encoder gives, to its few vectors in the decoder's stream.

The paper says "Resampler" and cites Flamingo. The code released with the family has one cross-attention layer and
nothing else; parameter arithmetic agrees with it (docs/fidelity.md). Both are here; a config chooses.
"""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from kosmos_jax.checks import around, at_least, below_one, divisors, not_among
from kosmos_jax.model.attention import Attention
from kosmos_jax.model.layers import gelu, layer_norm, linear, scan_layers, stack, uniform


def _broadcast(queries_QD, features_NPD):
    shape = (features_NPD.shape[0], *queries_QD.shape)
    return jnp.broadcast_to(queries_QD.astype(features_NPD.dtype), shape)


class XConnector(nnx.Module):
    """unilm/kosmos-2/unilm/models/connector.py: a linear map, then learned queries attend to [features; queries].

    Args:
      config: the `connector` section of a modality.
      tokens: Q, the learned queries.
      encoder_width, width: d and D.
      rngs: of the initial values.
      dtype: of the arithmetic.
    """

    STACKS = ()

    def __init__(self, config, tokens, encoder_width, width, rngs, dtype):
        self.config = config
        # fairseq's MultiheadAttention: Xavier-uniform, with a gain of 1/sqrt(2) where q, k and v could be one matrix.
        xavier = uniform(math.sqrt(6 / (2 * width)))
        merged = dict(kernel=uniform(math.sqrt(6 / (2 * width)) / math.sqrt(2)))
        out = dict(kernel=xavier, bias=jax.nn.initializers.zeros)
        inits = dict(query=merged, key=merged, value=merged, out=out)
        self.dense = linear(encoder_width, width, rngs, dtype)
        self.queries = nnx.Param(jax.random.normal(rngs.params(), (tokens, width)))
        self.attention = Attention(width, config.heads, rngs, dtype, inits=inits)

    def __call__(self, features_NPd, *, key=None):
        """float[N, P, d] -> float[N, Q, D]."""
        features_NPD = self.dense(features_NPd)
        queries_NQD = _broadcast(self.queries[...], features_NPD)
        context = jnp.concatenate([features_NPD, queries_NQD], axis=1)
        return self.attention(queries_NQD, context, dropout_rate=self.config.dropout, key=key)


class PerceiverLayer(nnx.Module):
    def __init__(self, config, width, rngs, dtype):
        self.features_norm = layer_norm(width, rngs, dtype)
        self.queries_norm = layer_norm(width, rngs, dtype)
        self.attention = Attention(width, config.heads, rngs, dtype, use_bias=False)
        self.ffn_norm = layer_norm(width, rngs, dtype)
        self.fc1 = linear(width, 4 * width, rngs, dtype, use_bias=False)
        self.fc2 = linear(4 * width, width, rngs, dtype, use_bias=False)


class Perceiver(nnx.Module):
    """Flamingo's resampler (arXiv 2204.14198, A.1.1) with `layers` layers, after a linear map to the decoder's width.

    No biases in attention and feed-forward, exact GELU, a final LayerNorm: as in open implementations of it
    (transformers' IdeficsPerceiverResampler, which has ReLU in GELU's place). Arguments as of `XConnector`.
    """

    STACKS = ("layers",)

    def __init__(self, config, tokens, encoder_width, width, rngs, dtype):
        self.config = config
        self.dense = linear(encoder_width, width, rngs, dtype)
        self.queries = nnx.Param(jax.random.normal(rngs.params(), (tokens, width)))
        self.layers = stack(lambda rngs: PerceiverLayer(config, width, rngs, dtype), config.layers, rngs)
        self.final_norm = layer_norm(width, rngs, dtype)

    def __call__(self, features_NPd, *, key=None):
        """float[N, P, d] -> float[N, Q, D]."""
        features_NPD = self.dense(features_NPd)

        def call(layer, x_NQD, key):
            queries = layer.queries_norm(x_NQD)
            context = jnp.concatenate([layer.features_norm(features_NPD), queries], axis=1)
            x_NQD = x_NQD + layer.attention(queries, context, dropout_rate=self.config.dropout, key=key)
            return x_NQD + layer.fc2(gelu(layer.fc1(layer.ffn_norm(x_NQD))))

        queries_NQD = _broadcast(self.queries[...], features_NPD)
        return self.final_norm(scan_layers(self.layers, queries_NQD, key=key, call=call))


def connector_flops(config, tokens: int, patches: int, encoder_width: int, width: int) -> float:
    """Forward, for one item; see kosmos_jax/training/flops.py.

    Args:
      config: the `connector` section of a modality.
      tokens: Q.
      patches: P, the features of an item, each of `encoder_width`.
      encoder_width, width: of the features and of the decoder.
    """
    context = patches + tokens
    dense = 2 * patches * encoder_width * width
    attention = 2 * (2 * tokens + 2 * context) * width**2 + 2 * 2 * tokens * context * width
    if config.kind == "xconnector":
        return dense + attention
    return dense + config.layers * (attention + 2 * tokens * 8 * width**2)


KEYS = ("kind", "heads", "layers", "dropout")


def problems(config, width: int) -> Iterator[str]:
    """What cannot be in the `connector` section of a modality, before a decoder of a width."""
    yield from not_among("connector.kind", config.kind, CONNECTORS)
    numbers = list(at_least("connector", config, {1: ("heads", "layers")}))
    yield from numbers
    yield from below_one("connector", config, ("dropout",))
    if not numbers and width % config.heads:
        yield f"connector.heads is {config.heads}, which does not divide text width {width}; try " + around(
            config.heads, divisors(width)
        )


CONNECTORS = {"xconnector": XConnector, "perceiver": Perceiver}
