"""Weights that others publish become checkpoints that give the others' numbers."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from configs import kosmos1
from kosmos_jax import checkpoint
from kosmos_jax.cli import main
from kosmos_jax.config import apply_overrides
from kosmos_jax.errors import UserError
from kosmos_jax.interop import names
from kosmos_jax.interop.export import export
from kosmos_jax.interop.importing import import_weights, vision_parameters
from kosmos_jax.model import abstract_model, parameters, with_parameters
from kosmos_jax.parallel.mesh import make_mesh
from kosmos_jax.parallel.sharding import parameter_specs
from tests.interop.conftest import SINUSOIDAL
from tests.model.tiny import model_config, random_model
from tests.model.torch_weights import randomize

TOWER = dict(hidden_size=24, intermediate_size=48, num_hidden_layers=3, num_attention_heads=3, image_size=16)


@pytest.fixture(scope="module")
def tokenizer_file(tokenizer, tmp_path_factory):
    tokenizer.save(tmp_path_factory.mktemp("tokenizer") / "sentencepiece.bpe.model")
    return tmp_path_factory.getbasetemp() / "tokenizer0/sentencepiece.bpe.model"


@pytest.fixture(scope="module")
def base_config(tokenizer):
    """A config whose text model fits the tiny tokenizer, for imports of a vision tower alone."""
    tree = kosmos1.get_config().to_dict()
    tree["model"] = model_config(**{"text.vocab_size": tokenizer.size}).to_dict()
    return apply_overrides(tree, [])


def features_of(model, params, pixels):
    graph, _ = abstract_model(model)
    run = jax.jit(lambda params, pixels: with_parameters(graph, params).vision(pixels))
    return np.asarray(run(params, pixels.numpy().transpose(0, 2, 3, 1)))


def unit(features):
    return torch.nn.functional.normalize(features, dim=-1).detach().numpy()


def clip_vision(seed, **changes):
    config = transformers.CLIPVisionConfig(**TOWER | dict(patch_size=8, hidden_act="quick_gelu") | changes)
    return randomize(transformers.CLIPVisionModel(config), seed)


def theirs_of(model, pixels):
    tower = getattr(model, "vision_model", model)
    return unit(tower.post_layernorm(tower(pixels).last_hidden_state))


def clip_state(model, prefix):
    """The state dict of a CLIPVisionModel with the prefix of some version of transformers."""
    state = {re.sub(r"^vision_model\.", "", name): tensor for name, tensor in model.state_dict().items()}
    return {prefix + name: tensor for name, tensor in state.items()}


def save_clip(folder, model, prefix, extra=()):
    model.config.save_pretrained(folder)
    state = clip_state(model, prefix) | {name: torch.ones(2) for name in extra}
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items() if "position_ids" not in name},
        folder / "model.safetensors",
    )


@pytest.mark.parametrize("prefix, activation, extra", [
    ("", "gelu", ()),
    (
        *("vision_model.", "quick_gelu"),
        ("visual_projection.weight", "text_model.x", "logit_scale", "vision_model.embeddings.position_ids"),
    ),
])  # fmt: skip
def test_clip_as_transformers_writes_it(tmp_path, base_config, tokenizer_file, prefix, activation, extra):
    theirs = clip_vision(3, hidden_act=activation)
    save_clip(tmp_path, theirs, prefix, extra)
    record = import_weights("clip", tmp_path, tmp_path / "out", config=base_config, tokenizer=tokenizer_file)
    assert record.config.model.vision.activation == activation
    pixels = torch.randn(2, 3, 16, 16)
    ours = features_of(record.config.model, checkpoint.restore(record.directory).params, pixels)
    assert np.abs(ours - theirs_of(theirs, pixels)).max() < 1e-5


def openai_state(model, layers=3):
    """The names of OpenAI and open_clip, attention fused, from a CLIPVisionModel."""
    old, new = clip_state(model, ""), {}
    for name, tensor in old.items():
        block = re.fullmatch(r"encoder\.layers\.(\d+)\.(.*)", name)
        if not block:
            renamed = {
                "embeddings.class_embedding": "class_embedding",
                "embeddings.patch_embedding.weight": "conv1.weight",
                "embeddings.position_embedding.weight": "positional_embedding",
            }
            new[renamed.get(name, name.replace("pre_layrnorm", "ln_pre").replace("post_layernorm", "ln_post"))] = tensor
            continue
        tail = (
            block[2]
            .replace("layer_norm", "ln_")
            .replace("mlp.fc1", "mlp.c_fc")
            .replace("mlp.fc2", "mlp.c_proj")
            .replace("self_attn.out_proj", "attn.out_proj")
        )
        if not re.search(r"self_attn\.[qkv]_proj", tail):
            new[f"transformer.resblocks.{block[1]}.{tail}"] = tensor
    for i in range(layers):
        for part in ("weight", "bias"):
            qkv = [old[f"encoder.layers.{i}.self_attn.{p}_proj.{part}"] for p in "qkv"]
            new[f"transformer.resblocks.{i}.attn.in_proj_{part}"] = torch.cat(qkv)
    return {f"visual.{name}": tensor for name, tensor in new.items() if "position_ids" not in name}


@pytest.mark.parametrize(
    "origin, activation", [("openai", "quick_gelu"), ("laion", "gelu"), ("open_clip-quickgelu", "quick_gelu")]
)
def test_openai_and_open_clip(tmp_path, origin, activation):
    # Their heads are 64 wide, and nothing in the file says so.
    theirs = clip_vision(5, hidden_size=128, num_attention_heads=2, hidden_act=activation)
    state = openai_state(theirs) | {
        "visual.proj": torch.ones(3),
        "text_projection": torch.ones(3),
        "transformer.x": torch.ones(1),
    }
    if origin == "openai":
        state |= {key: torch.tensor(1) for key in ("input_resolution", "context_length", "vocab_size")}
    else:
        quick = activation == "quick_gelu"
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"quick_gelu": quick}}))
    torch.save(
        {
            name: tensor.half() if origin == "openai" and tensor.is_floating_point() else tensor
            for name, tensor in state.items()
        },
        tmp_path / "x.pt",
    )
    if origin == "openai":
        theirs = theirs.half().float()
    # An activation other than the config's is refused.
    model = model_config(**{"vision.width": 128, "vision.heads": 2, "vision.activation": activation})
    random = parameters(random_model(model))
    given = vision_parameters(tmp_path / "x.pt", model, random)
    pixels = torch.randn(2, 3, 16, 16)
    ours = features_of(model, random | given, pixels)
    assert np.abs(ours - theirs_of(theirs, pixels)).max() < 1e-5


def test_without_a_word_about_the_activation_nothing_is_guessed(tmp_path):
    torch.save(openai_state(clip_vision(5, hidden_size=128, num_attention_heads=2)), tmp_path / "x.pt")
    with pytest.raises(UserError, match="open_clip_config.json"):
        vision_parameters(tmp_path / "x.pt", model_config(), {})


def test_init_vision_lands_on_the_mesh_and_reads_only_parts(tmp_path, monkeypatch):
    """On 8 devices, each part of a sharded kernel is read by itself, never the whole."""
    theirs = clip_vision(3)
    save_clip(tmp_path, theirs, "vision_model.")
    model = model_config()
    shapes = abstract_model(model)[1]
    mesh = make_mesh(dict(data=1, fsdp=8, tensor=1, context=1))
    specs = parameter_specs(shapes, mesh)
    abstract = {
        n: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=jax.NamedSharding(mesh, specs[n])) for n, s in shapes.items()
    }
    params = vision_parameters(tmp_path, model, abstract)
    assert all(params[name].sharding.is_equivalent_to(abstract[name].sharding, params[name].ndim) for name in params)
    kernel = params["vision/trunk/fc1/kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 8
    pixels = torch.randn(2, 3, 16, 16)
    alone = parameters(random_model(model)) | {name: jnp.asarray(np.asarray(array)) for name, array in params.items()}
    assert np.abs(features_of(model, alone, pixels) - theirs_of(theirs, pixels)).max() < 1e-5


def test_init_vision_of_another_size_is_refused(tmp_path):
    save_clip(tmp_path, clip_vision(3), "vision_model.")
    with pytest.raises(UserError, match="width 24, config has 32"):
        vision_parameters(tmp_path, model_config(**{"vision.width": 32, "vision.heads": 4}), {})


@pytest.fixture(scope="module")
def exported(sinusoidal_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "out"
    export(sinusoidal_run, "torch", folder)
    return folder


@pytest.fixture(scope="module")
def unilm_file(exported, tmp_path_factory):
    """The names of microsoft/unilm's kosmos-2.pt, as transformers' converter lists them, with our weights."""
    folder = tmp_path_factory.mktemp("unilm")
    ours = load_file(exported / "model.safetensors")
    patch = ours["vision.patch.weight"]
    ours["vision.patch.weight"] = torch.from_numpy(names.to_convolution(patch.numpy()))
    state = {names.unilm(name): tensor for name, tensor in ours.items()}
    state["gpt_model.decoder.output_projection.weight"] = ours["embedding.weight"]
    state["gpt_model.decoder.embed_positions._float_tensor"] = torch.ones(1)
    state["gpt_model.decoder.self_attn_sope.scale"] = torch.ones(4)
    torch.save({"model": state, "args": None}, folder / "kosmos-2.pt")
    return folder / "kosmos-2.pt"


# From transformers 5.23, models/kosmos2/convert_kosmos2_original_pytorch_checkpoint_to_pytorch.py: parts of their names
# and the parts that these become, in its order.
CONVERTER = {
    "gpt_model.decoder.output_projection": "text_model.lm_head",
    "gpt_model.decoder": "text_model.model",
    "img_connector": "image_to_text_projection",
    "img_model.visual.class_embedding": "vision_model.model.embeddings.class_embedding",
    "img_model.visual.positional_embedding": "vision_model.model.embeddings.position_embedding.weight",
    "img_model.visual.conv1": "vision_model.model.embeddings.patch_embedding",
    "img_model.visual": "vision_model.model",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
    "transformer.resblocks": "encoder.layers",
    "ts_attn": "self_attn",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def test_unilms_names_are_those_that_transformers_converts(unilm_file):
    model = model_config(**SINUSOIDAL)
    for name in names.torch_names(abstract_model(model)[1]):
        converted = names.unilm(name)
        for theirs, hf in CONVERTER.items():
            converted = converted.replace(theirs, hf)
        assert converted == names.kosmos2(name)


def test_unilm(unilm_file, sinusoidal_run, tmp_path, tokenizer_file):
    record = import_weights("unilm", unilm_file, tmp_path / "out", tokenizer=tokenizer_file)
    before, after = checkpoint.restore(sinusoidal_run).params, checkpoint.restore(record.directory).params
    assert all(np.array_equal(before[name], after[name]) for name in before)
    text = record.config.model.text
    assert (text.width, text.layers, text.ffn, text.heads, text.positions) == (32, 3, 64, 1, "sinusoidal")


def test_vocabulary_surgery(sinusoidal_run, exported, tokenizer, tmp_path):
    """65,037 ids to 64,007 and back, in small: with Kosmos-2's tags there are 1,030 more at the end."""
    more = tokenizer.size + 1030
    grown = import_weights("torch", exported, tmp_path / "grown", vocab_size=more)
    before, after = (checkpoint.restore(path).params["embedding"] for path in (sinusoidal_run, grown.directory))
    assert after.shape[0] == more == grown.tokenizer.size and np.array_equal(after[: len(before)], before)
    new = np.asarray(after[len(before) :])
    assert abs(new.mean()) < 0.01 and new.std() == pytest.approx(new.shape[1] ** -0.5, rel=0.05)

    export(tmp_path / "grown", "torch", tmp_path / "large")
    cut = import_weights("torch", tmp_path / "large", tmp_path / "cut", vocab_size=tokenizer.size)
    assert np.array_equal(checkpoint.restore(cut.directory).params["embedding"], before)

    with pytest.raises(UserError, match=f"{tokenizer.size} ids, or {more}"):
        import_weights("torch", exported, tmp_path / "no", vocab_size=99)


def test_what_does_not_fit_is_listed_by_name_and_nothing_is_written(exported, tmp_path, capsys):
    folder = shutil.copytree(exported, tmp_path / "out")
    state = load_file(folder / "model.safetensors")
    del state["decoder.layers.1.fc2.bias"]
    state["decoder.extra"] = torch.ones(2)
    state["connector.dense.weight"] = torch.ones(3, 5)
    save_file(state, folder / "model.safetensors")
    assert main(["import", "--from", "torch", "--source", str(folder), "--out", f"{tmp_path}/back"]) == 2
    said = capsys.readouterr().err
    for word in (
        "1 missing",
        "decoder.layers.1.fc2.bias",
        "1 surplus",
        "decoder.extra",
        "connector.dense.weight [3, 5], the model has [32, 24]",
    ):
        assert word in said
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("kind, spoil, message", [
    ("hf-remote-code", {}, "config.json has no text"),
    ("hf-kosmos2", {}, "config.json has no model_type"),
    ("unilm", {}, "no gpt_model.decoder.embed_tokens.weight"),
    ("clip", {}, "no vision tower"),
    ("torch", {"config.json": b"[]"}, "config.json has no model.text"),
    ("torch", {"config.json": None}, "config.json cannot be read: No such file"),
    ("torch", {"heads": 7}, "model.text.heads is 7, which does not divide width 32"),
    ("torch", {"rope": "yes"}, "model.text.rope is no key"),
    ("torch", {"vocab_size": 400}, r"embedding.weight \[51, 32\], the model has \[400, 32\]"),
    ("torch", {"sentencepiece.bpe.model": b"{}"}, "no SentencePiece model"),
    ("torch", {"sentencepiece.bpe.model": None}, "--tokenizer FILE"),
])  # fmt: skip
def test_a_folder_that_is_not_what_it_should_be_is_told(exported, tmp_path, kind, spoil, message):
    folder = shutil.copytree(exported, tmp_path / "in")
    for name, value in spoil.items():
        file = folder / name
        if not file.exists():
            config = json.loads((folder / "config.json").read_text())
            config["model"]["text"][name] = value
            (folder / "config.json").write_text(json.dumps(config))
        elif value is None:
            file.unlink()
        else:
            file.write_bytes(value)
    with pytest.raises(UserError, match=message):
        import_weights(kind, folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_result_generates_and_trains_from(sinusoidal_run, exported, tmp_path):
    """`generate` takes an import as it is; `train` starts from it by config.init.checkpoint."""
    from kosmos_jax.training.optimizer import make_optimizer
    from kosmos_jax.training.start import given_parameters
    from kosmos_jax.training.state import state_shardings

    import_weights("torch", exported, tmp_path / "back")
    assert main(["generate", "--checkpoint", f"{tmp_path}/back", "--prompt", "The digit", "--max-new-tokens", "3"]) == 0

    config = apply_overrides(
        checkpoint.read_record(sinusoidal_run).config, [f"init.checkpoint={tmp_path}/back", "mesh.fsdp=8"]
    )
    optimizer = make_optimizer(config.training.optimizer, 10)
    _, abstract, shardings = state_shardings(config, optimizer, make_mesh(config.mesh))
    params = given_parameters(config, abstract, shardings)
    expected = checkpoint.restore(sinusoidal_run).params
    assert params.keys() == expected.keys()
    assert all(np.array_equal(params[name], expected[name]) for name in params)
    assert not params["decoder/layers/fc1/kernel"].sharding.is_fully_replicated

    other = apply_overrides(config, ["model.text.ffn=96"])
    _, abstract, shardings = state_shardings(other, optimizer, make_mesh(config.mesh))
    with pytest.raises(UserError, match="another model"):
        given_parameters(other, abstract, shardings)
