"""Weights that others publish become checkpoints that give the others' numbers."""

import contextlib
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

from configs import kosmos1, kosmos2
from kosmos_jax import checkpoint
from kosmos_jax.cli import main
from kosmos_jax.config import apply_overrides
from kosmos_jax.config_checks import flat
from kosmos_jax.errors import UserError
from kosmos_jax.interop.export import export
from kosmos_jax.interop.formats import IMPORTS, clip, ours
from kosmos_jax.interop.formats import kosmos2 as kosmos2_format
from kosmos_jax.interop.formats.base import Fields, Source
from kosmos_jax.interop.importing import encoder_parameters, import_weights
from kosmos_jax.interop.verify import report, verify
from kosmos_jax.interop.weights import Reader
from kosmos_jax.model import abstract_model, parameters, with_parameters
from kosmos_jax.parallel.mesh import make_mesh
from kosmos_jax.parallel.sharding import parameter_specs
from tests.inference.conftest import TEXTS
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
    run = jax.jit(lambda params, pixels: with_parameters(graph, params).image.encoder(pixels))
    return np.asarray(run(params, pixels.numpy().transpose(0, 2, 3, 1)))


def with_encoder(**changes):
    return model_config(**{f"perception.image.encoder.{key}": value for key, value in changes.items()})


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
    assert record.config.model.perception.image.encoder.activation == activation
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


def write_open_clip_config(folder, quick_gelu=False, **vision):
    sizes = dict(image_size=16, layers=3, width=128, patch_size=8) | vision
    config = dict(embed_dim=8, quick_gelu=quick_gelu, vision_cfg=sizes, text_cfg=dict(context_length=77))
    (folder / "open_clip_config.json").write_text(json.dumps(dict(model_cfg=config, preprocess_cfg={})))


@pytest.mark.parametrize(
    "origin, activation", [("openai", "quick_gelu"), ("laion", "gelu"), ("open_clip-quickgelu", "quick_gelu")]
)
def test_openai_and_open_clip(tmp_path, origin, activation):
    # Heads are 64 wide where nothing says otherwise.
    theirs = clip_vision(5, hidden_size=128, num_attention_heads=2, hidden_act=activation)
    state = openai_state(theirs) | {
        "visual.proj": torch.ones(3),
        "text_projection": torch.ones(3),
        "transformer.x": torch.ones(1),
    }
    if origin == "openai":
        state |= {key: torch.tensor(1) for key in ("input_resolution", "context_length", "vocab_size")}
    else:
        write_open_clip_config(tmp_path, quick_gelu=activation == "quick_gelu")
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
    model = with_encoder(width=128, heads=2, activation=activation)
    random = parameters(random_model(model))
    given = encoder_parameters("image", tmp_path / "x.pt", model, random)
    pixels = torch.randn(2, 3, 16, 16)
    ours = features_of(model, random | given, pixels)
    assert np.abs(ours - theirs_of(theirs, pixels)).max() < 1e-5


def test_open_clips_head_width_is_that_of_its_config(tmp_path):
    """As in ViT-H-14, ViT-bigG-14 and others, whose heads are 80 or 104 wide."""
    theirs = clip_vision(5, hidden_size=320, num_attention_heads=4, hidden_act="gelu")
    torch.save(openai_state(theirs), tmp_path / "x.pt")
    write_open_clip_config(tmp_path, width=320, head_width=80, mlp_ratio=48 / 320)
    model = with_encoder(width=320, heads=4, activation="gelu")
    random = parameters(random_model(model))
    pixels = torch.randn(2, 3, 16, 16)
    ours = features_of(model, random | encoder_parameters("image", tmp_path / "x.pt", model, random), pixels)
    assert np.abs(ours - theirs_of(theirs, pixels)).max() < 1e-5


@pytest.mark.parametrize("vision, message", [
    (dict(no_ln_pre=True), "no_ln_pre is True and must be False"),
    (dict(norm_kwargs={"eps": 1e-6}), "norm_kwargs"),
    (dict(qk_norm=True), r"qk_norm \(True\) is unknown"),
    (dict(layers=24, width=1024), "layers is 24 and must be 3\n.*width is 1024 and must be 128"),
    (dict(head_width="64"), "head_width is '64'"),
])  # fmt: skip
def test_an_open_clip_config_of_another_tower_is_refused(tmp_path, vision, message):
    torch.save(openai_state(clip_vision(5, hidden_size=128, num_attention_heads=2)), tmp_path / "x.pt")
    write_open_clip_config(tmp_path, **vision)
    with pytest.raises(UserError, match=f"open_clip_config.json: vision_cfg.*\n.*{message}"):
        encoder_parameters("image", tmp_path / "x.pt", model_config(), {})


def test_without_a_word_about_the_activation_nothing_is_guessed(tmp_path):
    torch.save(openai_state(clip_vision(5, hidden_size=128, num_attention_heads=2)), tmp_path / "x.pt")
    with pytest.raises(UserError, match="open_clip_config.json"):
        encoder_parameters("image", tmp_path / "x.pt", model_config(), {})


def test_init_image_lands_on_the_mesh_and_reads_only_parts(tmp_path, monkeypatch):
    """On 8 devices, each part of a sharded kernel is read by itself, never all of it."""
    theirs = clip_vision(3)
    save_clip(tmp_path, theirs, "vision_model.")
    model = model_config()
    shapes = abstract_model(model)[1]
    mesh = make_mesh(dict(data=1, fsdp=8, tensor=1, context=1))
    specs = parameter_specs(model, shapes, mesh)
    abstract = {
        n: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=jax.NamedSharding(mesh, specs[n])) for n, s in shapes.items()
    }
    params = encoder_parameters("image", tmp_path, model, abstract)
    assert all(params[name].sharding.is_equivalent_to(abstract[name].sharding, params[name].ndim) for name in params)
    kernel = params["image/encoder/trunk/fc1/kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 8
    pixels = torch.randn(2, 3, 16, 16)
    alone = parameters(random_model(model)) | {name: jnp.asarray(np.asarray(array)) for name, array in params.items()}
    assert np.abs(features_of(model, alone, pixels) - theirs_of(theirs, pixels)).max() < 1e-5


def test_init_image_of_another_size_is_refused(tmp_path):
    save_clip(tmp_path, clip_vision(3), "vision_model.")
    with pytest.raises(UserError, match="width 24, config has 32"):
        encoder_parameters("image", tmp_path, with_encoder(width=32, heads=4), {})


@pytest.fixture(scope="module")
def exported(sinusoidal_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "out"
    export(sinusoidal_run, "torch", folder)
    return folder


@pytest.fixture(scope="module")
def kosmos2_folder(sinusoidal_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kosmos2") / "out"
    export(sinusoidal_run, "hf-kosmos2", folder)
    return folder


@pytest.mark.parametrize("kind, run", [("hf-kosmos2", "sinusoidal_run"), ("hf-remote-code", "xpos_run")])
def test_what_pytorch_changed_and_saved_comes_back(kind, run, request, tmp_path):
    """Export, fine-tuning, save_pretrained, import: no file of ours is in the folder but what transformers wrote."""
    run = request.getfixturevalue(run)
    export(run, kind, tmp_path / "exported")
    load = dict(pretrained_model_name_or_path=tmp_path / "exported", trust_remote_code=True)
    model = transformers.AutoModelForImageTextToText.from_pretrained(**load)
    randomize(model, 7)
    model.save_pretrained(tmp_path / "tuned")
    transformers.AutoProcessor.from_pretrained(**load).save_pretrained(tmp_path / "tuned")
    assert not (tmp_path / "tuned/sentencepiece.bpe.model").exists()

    words = ["--from", kind, "--source", f"{tmp_path}/tuned", "--out", f"{tmp_path}/back"]
    assert main(["import", *words]) == 0
    # That of the export asks for eager attention; the one of Kosmos-2 by default is wrong in transformers 4.57.
    shutil.copyfile(tmp_path / "exported/config.json", tmp_path / "tuned/config.json")
    text, good = report(verify(tmp_path / "back", kind, tmp_path / "tuned", "float32"), "float32")
    assert good, text
    before, after = checkpoint.read_record(run), checkpoint.read_record(tmp_path / "back")
    assert after.tokenizer.size == before.tokenizer.size
    assert after.tokenizer.encode(" ".join(TEXTS)) == before.tokenizer.encode(" ".join(TEXTS))


# PretrainedConfig of transformers 4.35, which published files have in full in each section.
IN_FULL = {
    **dict.fromkeys(
        """architectures bad_words_ids begin_suppress_tokens cross_attention_hidden_size decoder_start_token_id
        exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id prefix problem_type
        sep_token_id suppress_tokens task_specific_params tokenizer_class torch_dtype""".split()
    ),
    **dict.fromkeys(
        """add_cross_attention do_sample early_stopping is_decoder is_encoder_decoder output_attentions
        output_hidden_states output_scores remove_invalid_values return_dict_in_generate tf_legacy_loss
        tie_encoder_decoder torchscript use_bfloat16""".split(),
        False,
    ),
    **dict(_name_or_path="", chunk_size_feed_forward=0, diversity_penalty=0.0, encoder_no_repeat_ngram_size=0),
    **dict(id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0}, length_penalty=1.0, max_length=20, min_length=0),
    **dict(num_beam_groups=1, num_beams=1, num_return_sequences=1, pruned_heads={}, repetition_penalty=1.0),
    **dict(return_dict=True, temperature=1.0, tie_word_embeddings=True, top_k=50, top_p=1.0, typical_p=1.0),
}


@pytest.mark.parametrize("form", ["as it is", "in full", "published"])
def test_configs_in_the_forms_that_transformers_has_written_are_read(tmp_path, form):
    kosmos = transformers.Kosmos2Config()
    their_clip = transformers.CLIPConfig(vision_config=dict(hidden_size=1536, hidden_act="gelu"))
    for name, config in (("kosmos", kosmos), ("clip", their_clip)):
        tree = json.loads(config.to_json_string(use_diff=form != "in full"))
        if form == "published":
            for section in ("text_config", "vision_config"):
                tree[section] = IN_FULL | dict(dropout=0.1 if section == "text_config" else 0.0) | tree[section]
            tree |= dict(vision_config_dict=None, text_config_dict=None) if name == "clip" else {}
            tree["text_config"]["no_repeat_ngram_size"] = 3
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(tree))
    ours = kosmos2.get_config().model
    found = IMPORTS["hf-kosmos2"](Source(tmp_path / "kosmos", {})).sections
    flat_ours, flat_found = flat(ours), flat(found)
    assert {key for key, value in flat_found.items() if flat_ours[key] != value} == {"text.attention_dropout"}
    tensors = {"vision_model.pre_layrnorm.weight": None}
    image = IMPORTS["clip"](Source(tmp_path / "clip", tensors)).sections["perception"]["image"]
    sizes = dict(patch_size=32, width=1536, layers=12, heads=12, ffn=3072, activation="gelu")
    assert image == dict(shape=(224, 224, 3), encoder=dict(kind="clip", **sizes))


@pytest.mark.parametrize("key, value, message", [
    ("text_config.pad_token_id", 5, "pad_token_id is 5 and must be 1"),
    ("text_config.eos_token_id", [2, 3], r"eos_token_id is \[2, 3\] and must be 2"),
    ("text_config.activation_function", "relu", "activation_function is 'relu' and must be 'gelu'"),
    ("text_config.scale_embedding", False, "scale_embedding is False"),
    ("text_config.layer_norm_eps", 1e-6, "layer_norm_eps is 1e-06"),
    ("text_config.layerdrop", 0.1, "layerdrop is 0.1"),
    ("text_config.rope_theta", 1e4, r"rope_theta \(10000.0\) is unknown; delete it"),
    ("text_config.embed_dim", "32", "embed_dim is '32' and must be a value such as 2048"),
    ("text_config.layers", None, "layers is None"),
    ("text_config.layers", True, "layers is True"),
    ("text_config", [], "text_config is .*; it must be an object"),
    ("vision_config.layer_norm_eps", 1e-6, "layer_norm_eps is 1e-06"),
    ("vision_config.num_channels", 1, "num_channels is 1"),
    ("vision_config.hidden_act", "gelu_new", "model.perception.image.encoder.activation is 'gelu_new'"),
    ("quantization_config", {}, "quantization_config"),
    ("model_type", "kosmos-2.5", "model_type is 'kosmos-2.5' and must be 'kosmos-2'"),
    ("text_config.embed_dim", 64, r"layer_norm.bias \[32\], the model has \[64\]"),
    ("text_config.layers", 2, "surplus"),
])  # fmt: skip
def test_a_field_that_is_not_honoured_is_refused_by_name(kosmos2_folder, tmp_path, key, value, message):
    folder = shutil.copytree(kosmos2_folder, tmp_path / "in")
    config = json.loads((folder / "config.json").read_text())
    *section, name = key.split(".")
    (config[section[0]] if section else config)[name] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"(?s){message}"):
        import_weights("hf-kosmos2", folder, tmp_path / "out")


def fields_of(section, path=()):
    for key, value in section.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from fields_of(value, (*path, key))


@pytest.mark.parametrize(
    "kind, folder, around, inside",
    [
        (
            *("hf-kosmos2", "kosmos2_folder", kosmos2_format.AROUND),
            dict(text_config=kosmos2_format.TEXT, vision_config=clip.KOSMOS2_VISION),
        ),
        ("clip", "kosmos2_folder", clip.AROUND_VISION, dict(vision_config=clip.KOSMOS2_VISION)),
        ("hf-remote-code", "remote_code", ours.REMOTE_CODE, dict.fromkeys(ours.SECTIONS, Fields())),
        ("torch", "exported", ours.TORCH, dict(model=ours.TORCH_MODEL)),
    ],
)
def test_whatever_a_config_says_it_is_read_refused_or_harmless(kind, folder, around, inside, request, tmp_path):
    """`inside` are the fields of each section, `around` those of the rest."""
    folder = request.getfixturevalue(folder)
    shutil.copyfile(folder / "model.safetensors", tmp_path / "model.safetensors")
    text = (folder / "config.json").read_text()
    (tmp_path / "config.json").write_text(text)
    expected = Reader(kind, tmp_path).sections
    for path in fields_of(json.loads(text)):
        *sections, field = path
        if path[0] in inside:
            harmless = len(path) > 1 and path[1] in inside[path[0]].harmless and path[1] not in ours.SECTIONS
        else:
            harmless = path[0] in around.harmless
        for value in (None, [], {}, "x", -1, True, 1.5):
            config = section = json.loads(text)
            for name in sections:
                section = section[name]
            before, section[field] = section[field], value
            (tmp_path / "config.json").write_text(json.dumps(config))
            with contextlib.suppress(UserError):
                found = Reader(kind, tmp_path).sections
                assert harmless or value == before or found != expected, (path, value)


@pytest.mark.parametrize("kind, key, value", [
    ("clip", "layer_norm_eps", 1e-6),
    ("clip", "attention_dropout", 0.1),
    ("clip", "use_head", True),
    ("hf-remote-code", "pad_token_id", 5),
    ("hf-remote-code", "rope", {}),
    ("torch", "rope", {}),
    ("torch", "model.rope", {}),
])  # fmt: skip
def test_every_source_refuses_fields_that_it_does_not_honour(xpos_run, tmp_path, kind, key, value):
    folder = tmp_path / "in"
    if kind == "clip":
        folder.mkdir()
        save_clip(folder, clip_vision(3), "vision_model.")
    else:
        export(xpos_run, kind, folder)
    config = json.loads((folder / "config.json").read_text())
    *section, name = key.split(".")
    (config[section[0]] if section else config)[name] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"config.json: .*\n.*{name}"):
        import_weights(kind, folder, tmp_path / "out")


@pytest.mark.parametrize("file, section, key", [
    ("preprocessor_config.json", None, "image_mean"),
    ("processor_config.json", "image_processor", "image_std"),
    ("open_clip_config.json", "preprocess_cfg", "mean"),
])  # fmt: skip
def test_weights_for_pixels_normalised_otherwise_are_refused(tmp_path, file, section, key):
    save_clip(tmp_path, clip_vision(3), "vision_model.")
    processor = dict(resample=3, image_mean=[0.48145466, 0.4578275, 0.40821073])
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    Reader("clip", tmp_path)
    values = {key: [0.5, 0.5, 0.5]}
    (tmp_path / file).write_text(json.dumps({section: values} if section else values))
    with pytest.raises(UserError, match=rf"{file}.*\n.*{key} is \[0.5"):
        Reader("clip", tmp_path)


def test_the_section_that_transformers_takes_is_read(tmp_path):
    """Old CLIP files have two; `vision_config_dict` wins there, with defaults for what it lacks."""
    tower = clip_vision(3, num_attention_heads=6).config.to_diff_dict()
    config = dict(model_type="clip", vision_config=tower, vision_config_dict=dict(num_attention_heads=8))
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = IMPORTS["clip"](Source(tmp_path, {"vision_model.pre_layrnorm.weight": None})).sections
    theirs = transformers.CLIPConfig.from_pretrained(tmp_path).vision_config
    assert found["perception"]["image"]["encoder"]["heads"] == theirs.num_attention_heads == 8


def test_an_output_layer_other_than_the_embedding_is_refused(kosmos2_folder, tokenizer_file, tmp_path, monkeypatch):
    monkeypatch.setattr("kosmos_jax.interop.weights.ROWS", 20)
    file = tmp_path / "pytorch_model.bin"
    shutil.copyfile(kosmos2_folder / "config.json", tmp_path / "config.json")
    name, state = "text_model.lm_head.weight", load_file(kosmos2_folder / "model.safetensors")
    state[name] = state["text_model.model.embed_tokens.weight"]
    torch.save(state, file)
    import_weights("hf-kosmos2", tmp_path, tmp_path / "tied", tokenizer=tokenizer_file)
    for head in (state[name][:-1], torch.cat([state[name][:-1], state[name][-1:] + 1])):
        torch.save(state | {name: head}, file)
        with pytest.raises(UserError, match=f"{name} is not the embedding"):
            import_weights("hf-kosmos2", tmp_path, tmp_path / "untied", tokenizer=tokenizer_file)


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
    state["image.connector.dense.weight"] = torch.ones(3, 5)
    save_file(state, folder / "model.safetensors")
    assert main(["import", "--from", "torch", "--source", str(folder), "--out", f"{tmp_path}/back"]) == 2
    said = capsys.readouterr().err
    for word in (
        "1 missing",
        "decoder.layers.1.fc2.bias",
        "1 surplus",
        "decoder.extra",
        "image.connector.dense.weight [3, 5], the model has [32, 24]",
    ):
        assert word in said
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_quantized_weights_are_refused(exported, tmp_path, file, dtype):
    folder = shutil.copytree(exported, tmp_path / "in")
    state = load_file(folder / "model.safetensors")
    state["decoder.layers.1.fc2.weight"] = state["decoder.layers.1.fc2.weight"].to(dtype)
    (folder / "model.safetensors").unlink()
    (save_file if file.endswith("s") else torch.save)(state, folder / file)
    with pytest.raises(UserError, match="(?s)1 not floats.*decoder.layers.1.fc2.weight"):
        import_weights("torch", folder, tmp_path / "out")


@pytest.mark.parametrize("kind, spoil, message", [
    ("hf-remote-code", {}, "config.json has no text"),
    ("hf-kosmos2", {"config.json": b"[]"}, "config.json has no model_type"),
    ("hf-kosmos2", {}, "config.json has no model_type"),
    ("clip", {}, "no vision tower"),
    ("clip", {"config.json": b"{}"}, "no vision tower"),
    ("torch", {"config.json": b"[]"}, "config.json has no model.text"),
    ("torch", {"config.json": b'{"model": {"text": {"heads": 1}}}'}, r"model.text: .*\n.*vocab_size is missing\n"),
    ("torch", {"config.json": None}, "config.json cannot be read: No such file"),
    ("torch", {"heads": 7}, "model.text.heads is 7, which does not divide width 32"),
    ("torch", {"rope": "yes"}, r"config.json: model.text: .*\n.*rope \('yes'\) is unknown"),
    ("torch", {"heads": "1"}, "heads is '1' and must be a value such as 32"),
    ("torch", {"positions": None}, "positions is None"),
    ("torch", {"vocab_size": 400}, r"embedding.weight \[51, 32\], the model has \[400, 32\]"),
    ("torch", {"sentencepiece.bpe.model": b"{}"}, "no SentencePiece model"),
    ("torch", {"sentencepiece.bpe.model": None, "tokenizer.json": None}, "no tokenizer: .*in.sentence.*Put it there"),
])  # fmt: skip
def test_a_folder_that_is_not_what_it_should_be_is_told(exported, tmp_path, kind, spoil, message):
    folder = shutil.copytree(exported, tmp_path / "in")
    for name, value in spoil.items():
        file = folder / name
        if not file.suffix:
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


def test_a_tokenizer_is_a_file_or_a_folder(exported, tokenizer, tmp_path):
    source = tmp_path / "model.safetensors"
    for name in ("model.safetensors", "config.json"):
        shutil.copyfile(exported / name, tmp_path / name)
    for out, given in enumerate((exported, exported / "tokenizer.json", exported / "sentencepiece.bpe.model")):
        record = import_weights("torch", source, tmp_path / str(out), tokenizer=given)
        assert record.tokenizer.encode(" ".join(TEXTS)) == tokenizer.encode(" ".join(TEXTS))
    (tmp_path / "empty").mkdir()
    for given, missing in (("empty", "empty/sentencepiece.bpe.model and no .*/empty/tokenizer.json"), ("x", "x")):
        with pytest.raises(UserError, match=rf"there is no [^ ]*/{missing}\. --tokenizer takes .* a folder"):
            import_weights("torch", source, tmp_path / "no", tokenizer=tmp_path / given)


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
