"""The tasks on speech ask with the words of training about voices that were held out."""

import jax
import pytest
from flax import nnx
from PIL import Image

from configs import demo_speech
from data_pipeline import builtin, spoken
from data_pipeline.documents import Media, Text
from data_pipeline.tokenizer import Tokenizer
from kosmos_jax.config import from_json, to_json
from kosmos_jax.errors import UserError
from kosmos_jax.evaluation.pictures import draw_answers
from kosmos_jax.evaluation.tasks import run_tasks
from kosmos_jax.inference.generator import Generator
from kosmos_jax.modality import modalities
from kosmos_jax.model import Kosmos, parameters


@pytest.fixture(scope="module")
def config():
    config = demo_speech.get_config()
    config.model.text.update(width=32, layers=1, heads=2, ffn=32)
    for section in config.model.perception.values():
        section.encoder.update(width=16, layers=1, heads=2, ffn=16)
        section.connector.update(heads=2)
    config.evaluation.update(tasks=("spoken", "spoken_sum", "spoken_few_shot"), examples=12)
    return config


@pytest.fixture(scope="module")
def generator(config):
    texts = [part.text for i in range(60) for part in spoken.SpokenDigits("train")[i].parts if isinstance(part, Text)]
    tokenizer = Tokenizer.train(texts, 36, modalities=modalities(config.model))
    config.model.text.vocab_size = tokenizer.size
    model = from_json(to_json(config)).model
    return Generator(model, jax.jit(lambda: parameters(Kosmos(model, nnx.Rngs(0))))(), tokenizer)


@pytest.fixture(scope="module")
def results(generator, config):
    return run_tasks(generator, config, "test")


@pytest.fixture(scope="module")
def label_of():
    clips, labels, _ = spoken.spoken_digits("test")
    return dict(zip(clips, labels, strict=True)) | dict(zip(*builtin.digits("test"), strict=True))


def test_a_clip_is_named_in_the_words_of_a_caption(results, label_of):
    for example in results["spoken"].examples:
        clip, words = example.prompt
        assert spoken.CAPTIONS[0].format(example.expected).startswith(words.text)
        assert clip.kind == "audio" and example.expected == builtin.WORDS[label_of[clip.data]]


def test_sums_have_one_clip_and_one_image_in_turns(results, label_of):
    kinds = []
    for example in results["spoken_sum"].examples:
        one, other = (part for part in example.prompt if isinstance(part, Media))
        assert example.expected == builtin.WORDS[label_of[one.data] + label_of[other.data]]
        assert example.prompt == builtin.sum_prompt(one.data, other.data, kinds=(one.kind, other.kind))
        kinds.append((one.kind, other.kind))
    assert kinds == [("audio", "image"), ("image", "audio")] * 6


def test_shots_are_clips_with_labels_in_one_style(results, label_of):
    for i, example in enumerate(results["spoken_few_shot"].examples):
        style = list(builtin.LABELS)[i % 3]
        *shown, query = (part.data for part in example.prompt if isinstance(part, Media))
        assert example.prompt == builtin.list_prompt([(x, label_of[x]) for x in shown], style, query, "audio")
        assert example.expected == builtin.LABELS[style](label_of[query]) and query not in shown


def test_the_picture_shows_spectrograms(results, tmp_path):
    draw_answers(results, tmp_path / "answers.png")
    assert min(Image.open(tmp_path / "answers.png").size) > 300


def test_without_speech_in_the_config_the_tasks_say_so(generator, config):
    silent = from_json(to_json(config)).to_dict()
    silent["data"]["sources"] = {"text": silent["data"]["sources"]["text"]}
    with pytest.raises(UserError, match="need a source of kind spoken_digits"):
        run_tasks(generator, type(config)(silent), "test")
