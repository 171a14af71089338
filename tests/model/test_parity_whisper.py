"""Whisper's encoder and its log-mel spectrogram give the numbers of their implementations in transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from ml_collections import ConfigDict

from kosmos_jax.model.perception.log_mel import log_mel, mel_filters
from kosmos_jax.model.perception.whisper import Whisper, sinusoids
from tests.model import torch_weights as weights

TOLERANCE, SPECTRUM = 1e-5, 5e-5


def sounds(seconds: float) -> np.ndarray:
    """int16[6, samples]: a voice-like buzz, a chirp, noise, a click, silence, and the loudest there is."""
    time = np.arange(int(seconds * 16_000)) / 16_000
    rng = np.random.default_rng(0)
    buzz = sum(np.sin(2 * np.pi * 120 * n * time) / n for n in range(1, 30)) * np.exp(-3 * time)
    chirp = 0.3 * np.sin(2 * np.pi * (200 + 3000 * time) * time)
    click = np.zeros_like(time)
    click[len(time) // 3] = 0.9
    floor = 1e-2 * rng.standard_normal(len(time))  # as every recording has
    clips = [
        0.4 * buzz + floor,
        chirp + floor,
        0.05 * rng.standard_normal(len(time)),
        click,
        0 * time,
        np.sign(np.sin(9999 * time)),
    ]
    return (np.clip(clips, -1, 1) * 32767).astype(np.int16)


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("seconds", [1, 30])
def test_the_spectrogram_is_that_of_transformers(bins, seconds):
    clips = np.pad(sounds(1), ((0, 0), (0, (seconds - 1) * 16_000)))  # the floor is that of the padded clip
    extractor = transformers.WhisperFeatureExtractor(feature_size=bins, chunk_length=seconds)
    expected = extractor(list(clips / np.float32(32768)), sampling_rate=16_000, return_tensors="np").input_features
    ours = np.asarray(jax.jit(log_mel, static_argnums=1)(clips, bins)).swapaxes(1, 2)
    worst = np.abs(ours - expected).max()
    print(f"log-mel, {bins} bins, {seconds} s: max abs diff {worst:.1e}")
    assert ours.shape == expected.shape and worst <= SPECTRUM


@pytest.mark.parametrize("bins", [80, 128])
def test_the_filters_are_transformers(bins):
    expected = transformers.WhisperFeatureExtractor(feature_size=bins).mel_filters
    assert np.abs(mel_filters(bins) - expected).max() < 1e-9


def test_a_clip_s_spectrogram_does_not_depend_on_the_others_beside_it():
    clips = sounds(0.5)
    alone = np.concatenate([log_mel(clip[None], 80) for clip in clips])
    np.testing.assert_allclose(log_mel(clips, 80), alone, atol=1e-6)
    np.testing.assert_allclose(log_mel(clips, 80), log_mel(clips / np.float32(32768), 80), atol=1e-6)


def encoder(state, config):
    """transformers' WhisperEncoder as the tree of our parameters."""

    def layer(name):
        linear = weights.linear
        projections = dict(query="q_proj", value="v_proj", out="out_proj")
        attention = {ours: linear(state, f"{name}.self_attn.{theirs}") for ours, theirs in projections.items()}
        attention["key"] = linear(state, f"{name}.self_attn.k_proj", bias=False)
        return dict(
            norm1=weights.norm(state, f"{name}.self_attn_layer_norm"),
            attention=attention,
            norm2=weights.norm(state, f"{name}.final_layer_norm"),
            fc1=linear(state, f"{name}.fc1"),
            fc2=linear(state, f"{name}.fc2"),
        )

    def convolution(name):
        return dict(kernel=state.pop(f"{name}.weight").transpose(2, 1, 0), bias=state.pop(f"{name}.bias"))

    blocks = [layer(f"layers.{i}") for i in range(config.layers)]
    trunk, top = np.split(np.arange(config.layers), [config.layers - config.top_layers])
    stacks = {
        name: weights.stacked([blocks[i] for i in part]) for name, part in (("trunk", trunk), ("top", top)) if len(part)
    }
    tree = dict(conv1=convolution("conv1"), conv2=convolution("conv2"), ln_post=weights.norm(state, "layer_norm"))
    return tree | stacks


@pytest.mark.parametrize(
    "sizes",
    [
        dict(mel_bins=80, width=32, layers=3, heads=4, ffn=64, top_layers=1),
        dict(mel_bins=128, width=48, layers=2, heads=2, ffn=80, top_layers=0),
        dict(mel_bins=8, width=20, layers=4, heads=1, ffn=20, top_layers=4),
    ],
    ids=str,
)
def test_the_encoder_is_that_of_transformers(sizes):
    config = ConfigDict(dict(kind="whisper", **sizes))
    described = transformers.WhisperConfig(
        num_mel_bins=config.mel_bins,
        d_model=config.width,
        encoder_layers=config.layers,
        encoder_attention_heads=config.heads,
        encoder_ffn_dim=config.ffn,
        max_source_positions=50,
    )
    theirs = weights.randomize(transformers.models.whisper.modeling_whisper.WhisperEncoder(described), 3)
    with torch.no_grad():
        theirs.embed_positions.weight.copy_(torch.from_numpy(sinusoids(50, config.width)))
    state = weights.arrays(theirs)
    assert np.array_equal(state.pop("embed_positions.weight"), sinusoids(50, config.width))
    shape = (16_000,)
    assert not list(Whisper.problems(config, shape))
    abstract = nnx.eval_shape(lambda: Whisper(config, shape, nnx.Rngs(0), jnp.float32))
    ours = weights.load(abstract, encoder(state, config))
    assert not state, "weights that were not read"

    clips = sounds(1)
    found = np.asarray(jax.jit(lambda model, clips: model(clips))(ours, clips))
    features = np.asarray(log_mel(clips, config.mel_bins)).swapaxes(1, 2)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(features.copy())).last_hidden_state.numpy()
    worst = np.abs(found - expected).max()
    print(f"Whisper's encoder, {sizes}: max abs diff {worst:.1e} on a scale of {np.abs(expected).max():.1f}")
    assert found.shape == (6, Whisper.patches(config, shape), config.width) and worst <= TOLERANCE


def test_the_positions_are_those_that_transformers_makes():
    from transformers.models.whisper.modeling_whisper import sinusoids as theirs

    assert np.abs(sinusoids(1500, 384) - theirs(1500, 384).numpy()).max() < 5e-5


@pytest.mark.parametrize(
    "changes, shape, message",
    [
        (dict(heads=5), (16_000,), "encoder.heads is 5, which does not divide width 32; try 4 or 8"),
        (dict(top_layers=4), (16_000,), "encoder.top_layers is 4; the encoder has 3 layers in all"),
        ({}, (16_001,), "shape is (16001,); a clip is one row of samples, 320 for each vector: try 16000 or 16320"),
        (dict(width=0), (16_000,), "encoder.width is 0; it must be at least 1"),
    ],
)
def test_sizes_that_cannot_be_are_named(changes, shape, message):
    sizes = dict(mel_bins=80, width=32, layers=3, heads=4, ffn=64, top_layers=1)
    assert message in list(Whisper.problems(ConfigDict(sizes | changes), shape))
