"""Whisper's encoder as transformers and OpenAI publish it gives their numbers here."""

import copy

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from configs import kosmos1_speech
from kosmos_jax import checkpoint
from kosmos_jax.cli import main
from kosmos_jax.config import apply_overrides
from kosmos_jax.errors import UserError
from kosmos_jax.interop.importing import encoder_parameters, import_weights
from kosmos_jax.model import abstract_model, parameters, with_parameters
from kosmos_jax.model.perception.log_mel import log_mel
from kosmos_jax.model.perception.whisper import sinusoids
from kosmos_jax.parallel.mesh import make_mesh
from kosmos_jax.parallel.sharding import parameter_specs
from tests.model.test_parity_whisper import sounds
from tests.model.tiny import model_config, random_model
from tests.model.torch_weights import randomize

SIZES = dict(mel_bins=80, width=128, layers=3, heads=2, ffn=96)
OPENAI = {
    "self_attn_layer_norm": "attn_ln",
    "final_layer_norm": "mlp_ln",
    "self_attn.q_proj": "attn.query",
    "self_attn.k_proj": "attn.key",
    "self_attn.v_proj": "attn.value",
    "self_attn.out_proj": "attn.out",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
    "layers.": "blocks.",
    "layer_norm": "ln_post",
    "embed_positions.weight": "positional_embedding",
}


def with_audio(**changes):
    """The tiny model that hears clips of a second by an encoder of these sizes."""
    tree = model_config().to_dict()
    tree["perception"]["audio"] = dict(
        tokens=3,
        shape=(16_000,),
        dtype="int16",
        encoder=dict(kind="whisper", **SIZES | dict(top_layers=1) | changes),
        connector=dict(kind="perceiver", heads=4, layers=1, dropout=0.0),
    )
    return apply_overrides(dict(model=tree), []).model


@pytest.fixture(scope="module")
def theirs():
    config = transformers.WhisperConfig(
        **dict(d_model=128, encoder_layers=3, encoder_attention_heads=2, encoder_ffn_dim=96, max_source_positions=50),
        **dict(decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=8, vocab_size=60, num_mel_bins=80),
        **dict(pad_token_id=1, bos_token_id=2, eos_token_id=2, decoder_start_token_id=3),
    )
    model = randomize(transformers.WhisperModel(config), 1)
    with torch.no_grad():
        model.encoder.embed_positions.weight.copy_(torch.from_numpy(sinusoids(50, 128)))
    return model


def saved(model, folder, form):
    """A folder or file as somebody publishes it."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if form == "transformers":
        model.config.save_pretrained(folder)
        save_file({f"model.{name}": tensor for name, tensor in state.items()}, folder / "model.safetensors")
        return folder
    renamed = {}
    for name, tensor in state.items():
        for theirs, openai in OPENAI.items():
            name = name.replace(theirs, openai)
        renamed[name] = tensor.half()
    torch.save(dict(dims=dict(n_mels=80), model_state_dict=renamed), folder / "tiny.pt")
    return folder / "tiny.pt"


@pytest.mark.parametrize("form", ["transformers", "openai"])
def test_the_encoder_lands_on_the_mesh_and_hears_as_theirs(theirs, tmp_path, form):
    model, path = with_audio(), saved(theirs, tmp_path, form)
    shapes, mesh = abstract_model(model)[1], make_mesh(dict(data=1, fsdp=8, tensor=1, context=1))
    specs = parameter_specs(model, shapes, mesh)
    wanted = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=jax.NamedSharding(mesh, specs[name]))
        for name, leaf in shapes.items()
    }
    given = encoder_parameters("audio", path, model, wanted)
    assert given.keys() == {name for name in shapes if name.startswith("audio/encoder/")}
    kernel = given["audio/encoder/trunk/fc1/kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 8

    graph, params = abstract_model(model)[0], parameters(random_model(model))
    params |= {name: np.asarray(array) for name, array in given.items()}
    clips = sounds(1)
    found = jax.jit(lambda params, clips: with_parameters(graph, params).audio.encoder(clips))(params, clips)
    features = torch.from_numpy(np.asarray(log_mel(clips, 80)).swapaxes(1, 2).copy())
    encoder = theirs.encoder
    if form == "openai":  # rounded, but for the positions, which we compute
        encoder = copy.deepcopy(encoder).half().float()
        encoder.embed_positions = theirs.encoder.embed_positions
    with torch.no_grad():
        expected = encoder(features).last_hidden_state.numpy()
    assert np.abs(np.asarray(found) - expected).max() < 1e-5


def test_import_makes_a_checkpoint_with_the_encoder_and_fresh_values_elsewhere(theirs, tmp_path, tokenizer):
    source = tmp_path / "whisper"
    source.mkdir()
    saved(theirs, source, "transformers")
    tokenizer.save(source / "sentencepiece.bpe.model")
    tree = kosmos1_speech.get_config().to_dict()
    tree["model"] = with_audio().to_dict()
    tree["model"]["text"]["vocab_size"] = tokenizer.size + 2
    record = import_weights("whisper", source, tmp_path / "out", config=apply_overrides(tree, []))
    params = checkpoint.restore(record.directory).params
    np.testing.assert_array_equal(
        params["audio/encoder/conv1/kernel"], theirs.state_dict()["encoder.conv1.weight"].numpy().transpose(2, 1, 0)
    )
    assert record.tokenizer.tags[-2:] == ("<audio>", "</audio>")
    prompt = ["generate", "--checkpoint", str(tmp_path / "out"), "--prompt", "The digit", "--max-new-tokens", "2"]
    assert main(prompt) == 0


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(width=96), "encoder.width 128, config has 96"),
        (dict(mel_bins=128), "encoder.mel_bins 80, config has 128"),
        (dict(layers=2), "encoder.layers 3, config has 2"),
    ],
)
def test_an_encoder_of_another_size_is_refused(theirs, tmp_path, changes, message):
    saved(theirs, tmp_path, "transformers")
    with pytest.raises(UserError, match=f"init.audio.*another encoder than model.perception.audio: .*{message}"):
        encoder_parameters("audio", tmp_path, with_audio(**changes), {})


def test_a_config_with_another_activation_or_other_positions_is_refused(theirs, tmp_path):
    saved(theirs, tmp_path, "transformers")
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(
        text.replace('"activation_function": "gelu"', '"activation_function": "relu"')
    )
    with pytest.raises(UserError, match="activation_function is 'relu' and must be 'gelu'"):
        encoder_parameters("audio", tmp_path, with_audio(), {})
    (tmp_path / "config.json").write_text(text)
    state = {f"model.{name}": tensor.contiguous() for name, tensor in theirs.state_dict().items()}
    state["model.encoder.embed_positions.weight"] = torch.zeros(50, 128)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="embed_positions.weight is another table of positions"):
        encoder_parameters("audio", tmp_path, with_audio(), abstract_model(with_audio())[1])


def test_what_is_no_whisper_is_told(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="holds no encoder of Whisper"):
        encoder_parameters("audio", tmp_path, with_audio(), {})
