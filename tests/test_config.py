import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from kosmos_jax.config import ConfigError, apply_overrides, from_json, load_config, to_json, validate

ROOT = Path(__file__).parents[1]
KOSMOS1 = ROOT / "configs/kosmos1.py"
FILES = ["demo.py", "demo_speech.py", "kosmos1.py", "kosmos2.py"]
FILES += [f"kosmos1_sizes.py:{size}" for size in ("0.1b", "0.4b", "1.6b", "7b", "30b")]
FILES += [f"kosmos1_speech.py:{size}" for size in ("tiny", "small", "large-v3")]
GOLDEN = Path(__file__).parent / "goldens/kosmos1.json"


@pytest.mark.parametrize("file", FILES)
def test_every_config_passes_its_checks_and_survives_json(file):
    config = load_config(ROOT / "configs" / file)
    again = from_json(to_json(config))
    assert again == config
    assert to_json(again) == to_json(config)
    assert isinstance(again.training.frozen, tuple)


def test_resolved_kosmos1_is_the_golden_text():
    # After a wanted change: write to_json(load_config("configs/kosmos1.py")) to the golden file.
    assert to_json(load_config(KOSMOS1)) == GOLDEN.read_text()


def test_steps_of_kosmos1_hold_the_tokens_of_the_paper():
    data = load_config(KOSMOS1).data
    shares = sum(source.share for source in data.sources.values())
    rows = {name: source.share / shares * data.batch_rows for name, source in data.sources.items()}
    assert rows == pytest.approx({"text": 240, "captions": 240, "interleaved": 96})
    tokens = {name: count * data.seq_len for name, count in rows.items()}
    assert tokens == pytest.approx({"text": 500_000, "captions": 500_000, "interleaved": 200_000}, rel=0.02)


def test_the_size_of_the_paper_is_the_paper_s_config():
    sized = json.loads(to_json(load_config(ROOT / "configs/kosmos1_sizes.py:1.6b")))
    paper = json.loads(to_json(load_config(KOSMOS1)))
    assert sized.pop("name") == "kosmos1_1.6b"
    assert paper.pop("name") == "kosmos1"
    assert sized == paper


@pytest.mark.parametrize(
    "override, section, value",
    [
        ("--config.training.steps=500", "training.steps", 500),
        ("training.steps=3e5", "training.steps", 300_000),
        ("training.optimizer.learning_rate=1", "training.optimizer.learning_rate", 1.0),
        ("data.isolate_documents=False", "data.isolate_documents", False),
        ("data.cache=/tmp/a=b c", "data.cache", "/tmp/a=b c"),
        ("data.sources.text.share=0.3", "data.sources.text.share", 0.3),
        (
            "data.sources.captions.augment.image.crop_scale=(0.5, 1)",
            "data.sources.captions.augment.image.crop_scale",
            (0.5, 1.0),
        ),
        (
            "data.sources.captions.augment.image.crop_scale=0.5,1",
            "data.sources.captions.augment.image.crop_scale",
            (0.5, 1.0),
        ),
        ("evaluation.tasks=caption,sum", "evaluation.tasks", ("caption", "sum")),
        ("evaluation.tasks=caption", "evaluation.tasks", ("caption",)),
        ("evaluation.tasks=", "evaluation.tasks", ()),
        ("training.frozen=image/encoder/trunk/.*", "training.frozen", ("image/encoder/trunk/.*",)),
        (
            "training.frozen=['image/encoder/(trunk|top)/.{1,9}']",
            "training.frozen",
            ("image/encoder/(trunk|top)/.{1,9}",),
        ),
    ],
)
def test_an_override_is_read_as_the_type_of_what_it_replaces(override, section, value):
    found = load_config(KOSMOS1, [override])
    for step in section.split("."):
        found = found[step]
    assert found == value
    assert type(found) is type(value)


@given(st.integers(1, 10**9), st.floats(0, 1e6), st.booleans(), st.lists(st.text(st.characters(codec="ascii"))))
def test_overrides_written_as_python_come_back_as_they_were(steps, rate, isolate, frozen):
    written = [f"a.steps={steps}", f"a.rate={rate!r}", f"b.isolate={isolate}", f"b.frozen={frozen!r}"]
    before = {"a": {"steps": 1, "rate": 0.5}, "b": {"isolate": True, "frozen": ("x",)}}
    after = {"a": {"steps": steps, "rate": rate}, "b": {"isolate": isolate, "frozen": tuple(frozen)}}
    assert apply_overrides(before, written).to_dict() == after


@pytest.mark.parametrize(
    "override, message",
    [
        ("training.stepz=5", "--config.training.stepz: {} has no such key; did you mean --config.training.steps?"),
        ("learning_rate=1", "did you mean --config.training.optimizer.learning_rate?"),
        ("model.txt.width=64", "did you mean --config.model.text.width?"),
        ("training.steps.more=5", "has no such key"),
        ("training.steps=5.5", "--config.training.steps is '5.5'; {} has 300000 there, so it must be a whole number"),
        ("training.steps=many", "must be a whole number"),
        ("data.isolate_documents=maybe", "must be true or false"),
        ("training.spike_factor=x", "must be a number"),
        ("data.sources.captions.augment.image.crop_scale=a,b", "must be values such as"),
        ("evaluation.tasks=1,2", "must be values such as"),
        ("data.sources.text=5", "--config.data.sources.text is a section and takes no value"),
        ("training.steps", "write --config.training.steps=VALUE"),
    ],
)
def test_a_wrong_override_names_the_key_and_what_would_be_right(override, message):
    with pytest.raises(ConfigError) as caught:
        load_config(KOSMOS1, [override])
    assert message.format(KOSMOS1) in str(caught.value)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            ["model.text.heads=12", "model.text.width=512"],
            "model.text.heads is 12, which does not divide width 512; try 8 or 16",
        ),
        (["model.text.heads=64", "model.text.width=192"], "a head is 3 wide; xPos needs an even number; try 48 or 96"),
        (["model.text.positions=xpoz"], "model.text.positions is 'xpoz'; did you mean 'xpos'?"),
        (["model.dtype=int8"], "model.dtype is 'int8'; it is one of 'auto', 'float32', 'bfloat16'"),
        (
            ["model.text.positions=both", "model.text.max_positions=128"],
            "data.seq_len is 2048; with model.text.positions='both' and max_positions=128 a row has at most 128 tokens",
        ),
        (["data.seq_len=32769"], "model.text.positions='xpos' and max_positions=2048 a row has at most 32768 tokens"),
        (["model.text.dropout=1"], "model.text.dropout is 1.0; it must be at least 0 and below 1"),
        (
            ["model.perception.image.shape=(220, 220, 3)"],
            "no multiple of encoder.patch_size 14; try a size of 210 or 224",
        ),
        (
            ["model.perception.image.encoder.heads=5"],
            "model.perception.image.encoder.heads is 5, which does not divide width 1024; try 4 or 8",
        ),
        (
            ["model.perception.image.encoder.top_layers=25"],
            "model.perception.image.encoder.top_layers is 25; the encoder has 24 layers",
        ),
        (
            ["model.perception.image.connector.heads=5"],
            "model.perception.image.connector.heads is 5, which does not divide text width 2048; try 4 or 8",
        ),
        (["data.tokenizer.path=", "data.tokenizer.vocab_size=1000"], "a tokenizer trained to 1000 pieces has 1007 ids"),
        (["data.tokenizer.path=", "data.tokenizer.kosmos2_tags=true"], "trained to 64000 pieces has 65037 ids"),
        (["data.sources.text.share=0"], "data.sources.text.share is 0.0"),
        (["data.sources.text.kind=pydocs"], "data.sources.text.kind is 'pydocs'; did you mean 'pydoc'?"),
        (["data.sources.captions.per_row.image=32"], "room for 31 items of 66 tokens"),
        (["data.sources.captions.augment.image.crop_scale=1,0.5"], "crop_scale is (1.0, 0.5)"),
        (["data.sources.captions.augment.image.crop_scale=1"], "crop_scale is (1.0,)"),
        (["training.microbatches=5"], "training.microbatches 5 does not divide; try 575 or 580"),
        (["training.steps=0"], "training.steps is 0; it must be at least 1"),
        (["training.optimizer.learning_rate=nan"], "training.optimizer.learning_rate is nan"),
        (["training.frozen=image/("], "is not a regular expression"),
        (["mesh.data=-1"], "mesh.data and mesh.fsdp are -1; at most one"),
        (["mesh.tensor=0"], "mesh.tensor is 0; it must be positive"),
        (["mesh.context=3"], "data.seq_len is 2048, which mesh.context 3 does not divide"),
    ],
)
def test_values_that_do_not_fit_each_other_are_named_with_the_file(overrides, message):
    with pytest.raises(ConfigError) as caught:
        load_config(KOSMOS1, overrides)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{KOSMOS1}: ")


def test_everything_wrong_is_told_at_once():
    with pytest.raises(ConfigError) as caught:
        load_config(KOSMOS1, ["model.text.heads=5", "mesh.tensor=0", "data.sources.text.share=-1"])
    assert len(str(caught.value).splitlines()) == 3


def test_a_missing_file_is_told_with_the_nearest_one():
    with pytest.raises(ConfigError, match=r"dem\.py does not exist; did you mean .*configs/demo\.py\?"):
        load_config(ROOT / "configs/dem.py")


def write_config(folder, line):
    file = folder / "mine.py"
    file.write_text(
        f"from configs import kosmos1\n\n\ndef get_config():\n    config = kosmos1.get_config()\n    {line}\n"
        "    return config\n"
    )
    return file


def test_a_config_made_from_another_one_has_its_own_values(tmp_path):
    file = write_config(tmp_path, "config.training.steps = 7")
    assert load_config(file).training.steps == 7
    assert load_config(KOSMOS1).training.steps != 7


def test_a_key_mistyped_in_a_file_is_told_with_the_nearest_one(tmp_path):
    file = write_config(tmp_path, "config.training.stepz = 7")
    with pytest.raises(
        ConfigError, match=r"mine\.py: training\.stepz is no key of a config; did you mean training\.st"
    ):
        load_config(file)


def test_a_key_that_is_not_there_is_missed(tmp_path):
    file = write_config(tmp_path, "del config.data.seq_len, config.data.sources.text.share")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert "data.seq_len is missing" in str(caught.value)
    assert "data.sources.text.share is missing" in str(caught.value)


def test_an_error_in_a_file_is_told_with_its_line(tmp_path):
    file = write_config(tmp_path, "config.training.steps = 'seven'")
    with pytest.raises(ConfigError, match=r"mine\.py, line 6: TypeError: .*steps"):
        load_config(file)


@pytest.mark.parametrize(
    "line, message",
    [
        ("image.encoder.kind = 'klip'", "model.perception.image.encoder.kind is 'klip'; did you mean 'clip'?"),
        ("image.dtype = 'float32'", "model.perception.image.dtype is 'float32'; it is one of 'uint8'"),
        ("mask = IMAGE", "model.perception.mask: no modality can have this name"),
        ("smell = IMAGE", "model.perception.smell has no host side in data_pipeline.media.MEDIA"),
        ("smell = dict(IMAGE, tokens=2.5)", "model.perception.smell.tokens is 2.5; it must be a whole number"),
        ("smell = dict(IMAGE, shape=28)", "model.perception.smell.shape is 28; it is made of whole numbers above 0"),
    ],
)
def test_a_modality_that_cannot_be_is_told_by_its_key(line, message, tmp_path):
    line = line.replace("IMAGE", "config.model.perception.image.to_dict()")
    file = write_config(tmp_path, f"config.unlock(); config.model.perception.{line}")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert message in str(caught.value)


def test_what_a_row_holds_is_a_number_for_each_modality():
    config = load_config(KOSMOS1)
    for per_row, message in (
        (4, "has a key for each modality"),
        (dict(image="many"), "is 'many'; it must be a number"),
    ):
        tree = config.to_dict()
        tree["data"]["sources"]["captions"]["per_row"] = per_row
        with pytest.raises(ConfigError, match=message):
            validate(ConfigDict(tree))


def test_an_unknown_size_is_told_with_those_that_exist():
    with pytest.raises(ConfigError, match="size '8b' is none of 0.1b, 0.4b, 1.6b, 7b, 30b"):
        load_config(ROOT / "configs/kosmos1_sizes.py:8b")


def test_the_config_of_a_workdir_can_be_run_again(tmp_path):
    config = load_config(KOSMOS1, ["training.steps=7"])
    (tmp_path / "config.json").write_text(to_json(config))
    assert load_config(tmp_path / "config.json") == config


def test_two_sources_do_not_share_one_section():
    config = load_config(KOSMOS1, ["data.sources.captions.augment.image.rotate=3"])
    assert config.data.sources.captions.augment.image.rotate == 3.0
    assert config.data.sources.interleaved.augment.image.rotate == 0.0
