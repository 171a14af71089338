"""Tiny models whose every parameter is random: a LayerNorm of ones and zeros would hide that it is missing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from kosmos_jax.model import abstract_model, with_parameters

# Compiling takes nearly all of these tests' time, and what they claim holds for code that is not optimised too.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def model_config(**overrides):
    """`config.model`, every size small; model_config(**{"text.width": 48}) changes one."""
    config = ConfigDict(
        dict(
            dtype="float32",
            remat="none",
            scan_unroll=1,
            text=dict(
                vocab_size=64,
                width=32,
                layers=3,
                heads=4,
                ffn=64,
                max_positions=64,
                positions="xpos",
                dropout=0.1,
                attention="auto",
                attention_dropout=0.1,
                init="torchscale",
            ),
            perception=dict(
                image=dict(
                    tokens=4,
                    shape=(16, 16, 3),
                    dtype="uint8",
                    encoder=dict(
                        kind="clip",
                        patch_size=8,
                        width=24,
                        layers=3,
                        heads=3,
                        ffn=48,
                        activation="quick_gelu",
                        top_layers=1,
                    ),
                    connector=dict(kind="xconnector", heads=4, layers=2, dropout=0.1),
                ),
            ),
        )
    )
    config.update_from_flattened_dict(overrides)
    return FrozenConfigDict(config)


def random_model(config, seed=0):
    """A model with noise in every parameter, norms and biases too; made without compiling an initializer."""
    rng = np.random.default_rng(seed)
    graph, shapes = abstract_model(config)

    def draw(path, leaf):
        noise, name = rng.standard_normal(leaf.shape), path.rpartition("/")[2]
        if name == "scale":
            return jnp.asarray(1 + 0.2 * noise, leaf.dtype)
        if name == "bias":
            return jnp.asarray(0.2 * noise, leaf.dtype)
        fan_in = leaf.shape[-2] if name == "kernel" else leaf.shape[-1]
        return jnp.asarray(fan_in**-0.5 * noise, leaf.dtype)

    return with_parameters(graph, {path: draw(path, leaf) for path, leaf in shapes.items()})


def _logits(model, *batch, key=None):
    return model.logits(model(*batch, key=key))


logits_of = jax.jit(_logits)
quick_logits_of = quick_jit(_logits)
