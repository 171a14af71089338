"""The decoder with xPos and sub-LN gives the numbers of the paper's own library, torchscale."""

import numpy as np
import pytest
import torch
from flax import nnx
from flax.traverse_util import flatten_dict

from tests.model import torch_weights as weights
from tests.model.tiny import logits_of, model_config, random_model
from tests.model.torchscale_alone import torchscale_alone


@pytest.fixture(scope="module")
def torchscale():
    with torchscale_alone() as decoder:
        yield decoder


def parts(module):
    return nnx.to_pure_dict(nnx.state(module))


def their_decoder(torchscale, config, seed=None):
    from torchscale.architecture.config import DecoderConfig

    text = config.text
    args = DecoderConfig(
        decoder_embed_dim=text.width,
        decoder_attention_heads=text.heads,
        decoder_ffn_embed_dim=text.ffn,
        decoder_layers=text.layers,
        vocab_size=text.vocab_size,
        subln=True,
        xpos_rel_pos=True,
        no_scale_embedding=False,
        share_decoder_input_output_embed=True,
    )
    decoder = torchscale.Decoder(args, embed_tokens=torch.nn.Embedding(text.vocab_size, text.width))
    return decoder if seed is None else weights.randomize(decoder, seed)


SHAPES = [  # width, heads, layers, ffn, tokens in a row
    (32, 4, 3, 64, 33),
    (80, 10, 5, 96, 17),
    (48, 1, 1, 100, 600),
]


@torch.no_grad()
@pytest.mark.parametrize("width, heads, layers, ffn, length", SHAPES)
def test_logits_are_those_of_torchscale(torchscale, width, heads, layers, ffn, length):
    sizes = {"text.width": width, "text.heads": heads, "text.layers": layers, "text.ffn": ffn}
    config = model_config(**sizes, **{"perception.image.connector.heads": heads})
    theirs = their_decoder(torchscale, config, seed=length)
    state = weights.arrays(theirs)
    model = random_model(config)
    read = dict(embedding=state.pop("embed_tokens.weight"), decoder=weights.decoder(state, layers))
    ours = weights.load(model, parts(model) | read)
    assert not [name for name in state if not name.endswith(("output_projection.weight", "xpos.scale"))]

    tokens = np.random.default_rng(length).integers(2, config.text.vocab_size, (2, length))
    expected = theirs(torch.from_numpy(tokens))[0].numpy()
    positions = np.broadcast_to(np.arange(length), tokens.shape)
    logits = logits_of(ours, tokens, np.ones_like(tokens), positions)
    worst = np.abs(np.asarray(logits) - expected).max()
    print(f"decoder of {layers} layers, {length} tokens: max abs diff {worst:.1e} on a scale of {expected.max():.2f}")
    assert worst <= 1e-5


def test_initial_spread_of_every_matrix_is_that_of_torchscale(torchscale, initial_model):
    torch.manual_seed(0)
    layers = initial_model.config.text.layers
    state = weights.arrays(their_decoder(torchscale, initial_model.config))
    theirs = flatten_dict(weights.decoder(state, layers)["layers"], sep="/")
    ours = flatten_dict(parts(initial_model.decoder.layers), sep="/")
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        values = np.asarray(values)
        # The largest of n uniform draws is within a few bound/n of the bound.
        assert abs(values).max() == pytest.approx(abs(theirs[name]).max(), rel=10 / values.size), name
        assert values.std() == pytest.approx(theirs[name].std(), rel=2 / values.size**0.5), name
