"""Sinusoidal positions, CLIP's tower and both connectors give the numbers of their implementations in transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

from kosmos_jax.model.perception.clip import PIXEL_MEAN, PIXEL_STD, normalize_pixels
from kosmos_jax.model.perception.connector import Perceiver
from tests.model import torch_weights as weights
from tests.model.tiny import model_config, random_model

TOLERANCE = 1e-5
SHAPES = {
    "square": {},
    "wide text, all blocks on top": {
        "text.width": 80,
        "text.heads": 5,
        "text.layers": 2,
        "text.ffn": 112,
        "perception.image.shape": (20, 20, 3),
        "perception.image.encoder.patch_size": 4,
        "perception.image.encoder.width": 40,
        "perception.image.encoder.heads": 2,
        "perception.image.encoder.ffn": 72,
        "perception.image.encoder.top_layers": 3,
        "perception.image.tokens": 3,
        "perception.image.connector.heads": 5,
    },
    "deep, no block on top": {
        "text.width": 48,
        "text.heads": 2,
        "text.layers": 6,
        "text.ffn": 160,
        "perception.image.shape": (18, 18, 3),
        "perception.image.encoder.patch_size": 6,
        "perception.image.encoder.width": 36,
        "perception.image.encoder.layers": 5,
        "perception.image.encoder.heads": 6,
        "perception.image.encoder.ffn": 64,
        "perception.image.encoder.top_layers": 0,
        "perception.image.tokens": 7,
        "perception.image.connector.heads": 2,
    },
    "exact gelu": {
        "perception.image.encoder.activation": "gelu",
        "text.heads": 1,
        "perception.image.connector.heads": 1,
        "text.vocab_size": 131,
    },
}


def kosmos2(config, seed):
    text, image = config.text, config.perception.image
    vision = image.encoder
    text_config = dict(
        vocab_size=text.vocab_size,
        embed_dim=text.width,
        layers=text.layers,
        attention_heads=text.heads,
        ffn_dim=text.ffn,
        max_position_embeddings=text.max_positions,
    )
    vision_config = dict(
        hidden_size=vision.width,
        num_hidden_layers=vision.layers,
        num_attention_heads=vision.heads,
        intermediate_size=vision.ffn,
        image_size=image.shape[0],
        patch_size=vision.patch_size,
        hidden_act=vision.activation,
    )
    together = transformers.Kosmos2Config(
        text_config=text_config, vision_config=vision_config, latent_query_num=image.tokens
    )
    together._attn_implementation = "eager"
    return weights.randomize(transformers.Kosmos2ForConditionalGeneration(together), seed)


def interleaved_rows(config, rng, length=32):
    """Three rows: one image; two images and right padding; text alone with left padding."""
    count, size = config.perception.image.tokens, config.perception.image.shape[0]
    tokens = rng.integers(4, config.text.vocab_size, (3, length)).astype(np.int32)
    slots = np.full((3, length), -1, np.int32)
    for image, (row, start) in enumerate([(0, 5), (1, 1), (1, 4 + count)]):
        slots[row, start : start + count] = image * count + np.arange(count)
    tokens[1, -6:] = tokens[2, :9] = 1
    kept = tokens != 1
    positions = np.maximum(np.cumsum(kept, axis=1) - 1, 0).astype(np.int32)
    images = rng.standard_normal((3, size, size, 3)).astype(np.float32)
    return tokens, kept.astype(np.int32), positions, slots, images


@pytest.fixture(scope="module", params=SHAPES)
def pair(request):
    """Our model and transformers' with the same random parameters, and a batch."""
    config = model_config(**{"text.positions": "sinusoidal", **SHAPES[request.param]})
    seed = list(SHAPES).index(request.param)
    theirs = kosmos2(config, seed)
    state = weights.arrays(theirs)
    ours = weights.load(random_model(config), weights.kosmos2(state, config))
    assert not state, "these parameters have no counterpart in our model"
    return ours, theirs, interleaved_rows(config, np.random.default_rng(seed))


def channels_first(images_NHWC):
    return torch.from_numpy(images_NHWC.transpose(0, 3, 1, 2).copy())


def difference(name, ours, theirs):
    worst = np.abs(np.asarray(ours) - theirs.numpy()).max()
    print(f"{name}: max abs diff {worst:.1e} on a scale of {theirs.abs().max():.2f}")
    return worst


@jax.jit
def everything(model, tokens, segments, positions, slots, images):
    features = model.image.encoder(images)
    hidden = model(tokens, segments, positions, slots, {"image": images})
    return features, model.image(images), model.logits(hidden)


@torch.no_grad()
def test_interleaved_rows_give_the_numbers_of_transformers(pair):
    ours, theirs, batch = pair
    tokens, kept, positions, slots, images = batch
    features, embeddings, logits = everything(ours, *batch)
    expected = theirs(
        pixel_values=channels_first(images),
        input_ids=torch.from_numpy(tokens).long(),
        attention_mask=torch.from_numpy(kept).long(),
        image_embeds_position_mask=torch.from_numpy(slots >= 0),
        use_cache=False,
    )
    tower = theirs.vision_model
    patches = tower.model.post_layernorm(tower(channels_first(images)).last_hidden_state)
    assert difference("vision features", features, torch.nn.functional.normalize(patches, dim=-1)) <= TOLERANCE
    assert difference("image embeddings", embeddings, expected.image_embeds.reshape(embeddings.shape)) <= TOLERANCE
    real = kept == 1
    assert difference("logits", np.asarray(logits)[real], expected.logits[torch.from_numpy(real)]) <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("layers, heads, queries", [(1, 4, 5), (3, 2, 8)])
def test_perceiver_is_that_of_idefics_with_gelu(layers, heads, queries):
    width = 32
    config = transformers.IdeficsConfig(vision_config=dict(embed_dim=width))
    theirs = IdeficsPerceiverResampler(config, width, layers, heads, width // heads, queries)
    for _, feed_forward in theirs.blocks:
        feed_forward.act = torch.nn.GELU()
    weights.randomize(theirs, seed=layers)
    state = weights.arrays(theirs)
    sizes = model_config(
        **{
            "perception.image.connector.layers": layers,
            "perception.image.connector.heads": heads,
            "perception.image.tokens": queries,
        }
    )
    image = sizes.perception.image
    abstract = nnx.eval_shape(lambda: Perceiver(image.connector, image.tokens, width, width, nnx.Rngs(0), jnp.float32))
    ours = weights.load(abstract, weights.perceiver(state, layers))
    assert not state
    features = np.random.default_rng(0).standard_normal((2, 17, width)).astype(np.float32)
    expected = theirs(torch.from_numpy(features))
    assert difference("perceiver", jax.jit(lambda m, x: m(x))(ours, features), expected) <= TOLERANCE


def test_bytes_are_normalised_with_clips_constants():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    assert (PIXEL_MEAN, PIXEL_STD) == (tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD))
    expected = (images / 255.0 - np.array(OPENAI_CLIP_MEAN)) / np.array(OPENAI_CLIP_STD)
    assert np.abs(jax.jit(normalize_pixels)(images) - expected).max() < 1e-6
