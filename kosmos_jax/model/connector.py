"""From an image's patch features to its few tokens in the decoder's stream.

The paper says "Resampler" and cites Flamingo. The code released with the family has one cross-attention layer and
nothing else; parameter arithmetic agrees with it (docs/fidelity.md). Both are here; a config chooses.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from kosmos_jax.model.attention import Attention
from kosmos_jax.model.layers import gelu, layer_norm, linear, scan_layers, stack, uniform


def _broadcast(queries_QD, features_NPD):
    shape = (features_NPD.shape[0], *queries_QD.shape)
    return jnp.broadcast_to(queries_QD.astype(features_NPD.dtype), shape)


class XConnector(nnx.Module):
    """unilm/kosmos-2/unilm/models/connector.py: a linear map, then learned queries attend to [features; queries]."""

    def __init__(self, config, vision_width, width, rngs, dtype):
        self.config = config
        # fairseq's MultiheadAttention: Xavier-uniform, with a gain of 1/sqrt(2) where q, k and v could be one matrix.
        xavier = uniform(math.sqrt(6 / (2 * width)))
        merged = dict(kernel=uniform(math.sqrt(6 / (2 * width)) / math.sqrt(2)))
        out = dict(kernel=xavier, bias=jax.nn.initializers.zeros)
        inits = dict(query=merged, key=merged, value=merged, out=out)
        self.dense = linear(vision_width, width, rngs, dtype)
        self.queries = nnx.Param(jax.random.normal(rngs.params(), (config.tokens, width)))
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
    (transformers' IdeficsPerceiverResampler, which has ReLU in GELU's place).
    """

    def __init__(self, config, vision_width, width, rngs, dtype):
        self.config = config
        self.dense = linear(vision_width, width, rngs, dtype)
        self.queries = nnx.Param(jax.random.normal(rngs.params(), (config.tokens, width)))
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


CONNECTORS = {"xconnector": XConnector, "perceiver": Perceiver}
