"""From PyTorch modules to ours, parameter by parameter: only for tests, and independent of `kosmos_jax.interop`.

A conversion takes what it reads out of the state dict, so that a test can see that nothing was left over.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from einops import rearrange
from flax import nnx


def randomize(module, seed):
    """Draws every parameter of a PyTorch module: weights at unit gain, LayerNorms off one, biases off zero."""
    generator = torch.Generator().manual_seed(seed)
    norms = tuple(name for name, part in module.named_modules() if isinstance(part, torch.nn.LayerNorm))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            elif name.rpartition(".")[0] in norms:
                parameter.copy_(1 + 0.2 * noise)
            else:
                parameter.copy_(noise * noise[0].numel() ** -0.5)
    return module.eval()


def arrays(module):
    """The state dict as NumPy arrays."""
    return {name: tensor.detach().numpy().copy() for name, tensor in module.state_dict().items()}


def load(module, tree):
    """An nnx module with a nested dict of arrays for all of its parameters; names and shapes must agree."""
    graph, params = nnx.split(module)
    expected = jax.tree.map(lambda leaf: leaf.shape, nnx.to_pure_dict(params))
    assert jax.tree.map(np.shape, tree) == expected
    return nnx.merge(graph, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree))


def linear(state, name, bias=True):
    kernel = {"kernel": state.pop(f"{name}.weight").T}
    return {**kernel, "bias": state.pop(f"{name}.bias")} if bias else kernel


def norm(state, name):
    return {"scale": state.pop(f"{name}.weight"), "bias": state.pop(f"{name}.bias")}


def attention(state, name, out="out_proj", bias=True):
    names = dict(query="q_proj", key="k_proj", value="v_proj", out=out)
    return {ours: linear(state, f"{name}.{theirs}", bias) for ours, theirs in names.items()}


def stacked(layers):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *layers)


def decoder(state, layers, prefix=""):
    """torchscale's Decoder, or transformers' Kosmos2TextTransformer, which has the same names behind a prefix."""

    def layer(name):
        inner_norm = norm(state, f"{name}.self_attn.inner_attn_ln")
        return dict(
            attention_norm=norm(state, f"{name}.self_attn_layer_norm"),
            attention={**attention(state, f"{name}.self_attn"), "inner_norm": inner_norm},
            ffn_norm=norm(state, f"{name}.final_layer_norm"),
            fc1=linear(state, f"{name}.ffn.fc1"),
            ffn_inner_norm=norm(state, f"{name}.ffn.ffn_layernorm"),
            fc2=linear(state, f"{name}.ffn.fc2"),
        )

    final_norm = norm(state, f"{prefix}layer_norm")
    return dict(layers=stacked([layer(f"{prefix}layers.{i}") for i in range(layers)]), final_norm=final_norm)


def vision(state, layers, top_layers, prefix="vision_model.model."):
    """transformers' Kosmos2VisionTransformer."""

    def layer(name):
        return dict(
            norm1=norm(state, f"{name}.layer_norm1"),
            attention=attention(state, f"{name}.self_attn"),
            norm2=norm(state, f"{name}.layer_norm2"),
            fc1=linear(state, f"{name}.mlp.fc1"),
            fc2=linear(state, f"{name}.mlp.fc2"),
        )

    blocks = [layer(f"{prefix}encoder.layers.{i}") for i in range(layers)]
    trunk, top = blocks[: layers - top_layers], blocks[layers - top_layers :]
    convolution = state.pop(f"{prefix}embeddings.patch_embedding.weight")
    tree = dict(
        class_token=state.pop(f"{prefix}embeddings.class_embedding"),
        positions=state.pop(f"{prefix}embeddings.position_embedding.weight"),
        patch=dict(kernel=rearrange(convolution, "d c p q -> (p q c) d")),
        ln_pre=norm(state, f"{prefix}pre_layrnorm"),
        ln_post=norm(state, f"{prefix}post_layernorm"),
    )
    return {**tree, **{name: stacked(part) for name, part in (("trunk", trunk), ("top", top)) if part}}


def xconnector(state, prefix="image_to_text_projection."):
    """transformers' Kosmos2ImageToTextProjection."""
    return dict(
        dense=linear(state, f"{prefix}dense"),
        queries=state.pop(f"{prefix}latent_query"),
        attention=attention(state, f"{prefix}x_attn"),
    )


def perceiver(state, layers):
    """transformers' IdeficsPerceiverResampler; it has no map to the decoder's width, so ours becomes the identity."""

    def layer(name):
        return dict(
            features_norm=norm(state, f"{name}.0.context_layer_norm"),
            queries_norm=norm(state, f"{name}.0.latents_layer_norm"),
            attention=attention(state, f"{name}.0", out="output_proj", bias=False),
            ffn_norm=norm(state, f"{name}.1.ln"),
            fc1=linear(state, f"{name}.1.fc", bias=False),
            fc2=linear(state, f"{name}.1.c_proj", bias=False),
        )

    width = state["latents"].shape[1]
    return dict(
        dense=dict(kernel=np.eye(width), bias=np.zeros(width)),
        queries=state.pop("latents"),
        layers=stacked([layer(f"blocks.{i}") for i in range(layers)]),
        final_norm=norm(state, "layer_norm"),
    )


def kosmos2(state, config):
    """transformers' Kosmos2ForConditionalGeneration, for a `config.model` of the same sizes."""
    table, encoder = state.pop("text_model.model.embed_tokens.weight"), config.perception.image.encoder
    assert (state.pop("text_model.lm_head.weight") == table).all()
    return dict(
        embedding=table,
        image=dict(encoder=vision(state, encoder.layers, encoder.top_layers), connector=xconnector(state)),
        decoder=decoder(state, config.text.layers, prefix="text_model.model."),
    )
