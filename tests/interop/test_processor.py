"""What an export writes beside the weights, read by tokenizers and transformers: the ids and pixels of kosmos_jax.

Nothing here depends on the version of transformers: PYTHONPATH=FOLDER runs these tests with the one that is installed
in FOLDER (see the Makefile).
"""

import io
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics
from types import SimpleNamespace

import numpy as np
import pytest
import sentencepiece
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer as Tokenizers

from configs import kosmos1, kosmos2
from data_pipeline.media.image import squash
from data_pipeline.tokenizer import Tokenizer
from kosmos_jax.errors import UserError
from kosmos_jax.interop import model_card, processor, tokenizer_json
from kosmos_jax.interop.export import export
from kosmos_jax.modality import KOSMOS2_TAGS, TAGS

TEXTS = [
    "The digit is seven. A photo of a snowman, and a photo of two dogs: 1, 2, 3, 10, 100.",
    "Cafés naïfs à Zürich, año, façade; tiếng Việt: một người, hệ thống, ượt. Ποιός είναι;",
    "한국어 각 글 가나다 日本語 ガギグゲゴ パピプ 中文 שלום عربي العربية हिन्दी ক্ষ ไทย",
    "if x <= 1 and y > 2: print('a/b', \"<s>\", [k]) # ~~~ --- === 😀 👍🏽",
]
PROSE = [*TEXTS * 9, topics["assignment"]]
UNUSUAL = {
    "spaces": "  one   two \t three\u00a0four\u3000five\u2003 ",
    "other line ends": "one\r two\u2028three\u2029 four\x0cfive",
    "zero width": "a\u200bb c\u200dd \ufefff \u200ee\u200f g\u2060h i\u00adj",
    "ligatures": "\ufb01ne \ufb03 \u0132 \u01c4 \u2460 \u00bd \u2122 \u33a1 \u2167 \ufdfa \uff28\uff21",
    "ligature and accent": "\ufb01\u0301 \u0132\u0302 \u0149\u0303 \u00bd\u0300",
    "accents apart": "Cafe\u0301 nai\u0308f a\u030angstro\u0308m",
    "two accents": "tie\u0302\u0301ng Vie\u0323\u0302t hu\u031bo\u031b\u0323",
    "accents in another order": "e\u0302\u0323 \u00ea\u0323 \u00e9\u032d a\u0301\u0323 c\u0323\u0302",
    "accents of nothing": "\u0301 a \u0300\u0301 \u0344 i\u0344 \u0340\u0341",
    "letters of a superscript": "\u00aa\u0300 \u2090\u0302\u0301 \u1d43\u0308",
    "Korean in parts": "\u1112\u1161\u11ab\u1100\u116e\u11a8 \uac00\u11a8 \u1161\u11ab \u11a8",
    "half-width": "\uff76\uff9e\uff77\uff9e \uff8a\uff9f \uff66 \uffa1\uffc2",
    "emoji": "\U0001f600 \U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea 1\ufe0f\u20e3 \u00a9",
    "right to left": "\u05e9\u05dc\u05d5\u05dd \u0639\u0631\u0628\u064a\u0651\u064b \u200f\u202btext\u202c",
    "Indic": "\u0939\u093f\u0928\u094d\u0926\u0940 \u0958 \u0915\u093c \u0995\u09c7\u09be \u0ddc\u0dca",
    "Thai, Tibetan": "\u0e44\u0e17\u0e22 \u0e33 \u0f73 \u0f77\u0f81",
    "control characters": "a\x01b \x00c e\x07\u0301 \x7f\x9f d\x08",
    "private and unassigned": "\ue000 \U000f0000 \U000e0001 \ufffd \uffff \U0010ffff \u0378",
    "looks like a space": "a \u2581b \u2581\u2581 c\u2581",
    "nearly tags": "< s> <s > \uff1cs\uff1e <\u200bs> <image <<image >>",
    "nothing": "",
    "only spaces": " \u200b ",
}
FRAGMENTS = st.sampled_from(
    [*"aeouAEinc\u00ea\u01b0\u00fc\u00aa\u2090\ufb01\u00bd "]
    + [*"\u0300\u0301\u0302\u0303\u0308\u030a\u0323\u031b\u0327\u0344"]
    + [*"\u1100\u1112\u1161\u116e\u11a8\u11ab\uac00\uac01\uff76\uff8a\uff9e\uff9f\u304b\u3099\u309a"]
    + [*"\u0995\u09c7\u09be\u0dd9\u0dcf\u0dca\u0915\u093c\u0958\u200d\u200b\x01\x1f\u2581\ufe0f\U0001f44d\U0001f3fd"]
)
# Left out: the two characters that tokenizer_json uses itself, and line ends, which only kosmos_jax reads as such.
ANYTHING = st.characters(exclude_categories=["Cs"], exclude_characters=[tokenizer_json.WALL, tokenizer_json.GAP, "\n"])
UNICODE = st.text(st.one_of(ANYTHING, FRAGMENTS), max_size=24)


@pytest.fixture(scope="module")
def ours():
    return Tokenizer.train(PROSE, vocab_size=500, kosmos2_tags=True)


@pytest.fixture(scope="module")
def pieces(ours):
    return sentencepiece.SentencePieceProcessor(model_proto=ours.model_bytes)


@pytest.fixture(scope="module")
def theirs(ours):
    return tokenizer_json.build(ours, kosmos2=True)


def record(tokenizer, step=300, config=kosmos1, **changes):
    config = config.get_config()
    config.update_from_flattened_dict(changes)
    return SimpleNamespace(config=config, tokenizer=tokenizer, step=step)


def write(out: Path, record, target: str) -> Path:
    """An export without weights."""
    processor.write_files(out, record, target)
    (out / "config.json").write_text(json.dumps({"model_type": "kosmos-2"}))
    return out


@pytest.fixture(scope="module")
def folder(ours, tmp_path_factory):
    changes = {"model.perception.image.shape": (56, 56, 3), "model.perception.image.tokens": 8}
    return write(tmp_path_factory.mktemp("kosmos2"), record(ours, config=kosmos2, **changes), "hf-kosmos2")


def ids_of(theirs, text):
    return theirs.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", UNUSUAL)
def test_ids_of_unusual_text_are_ours(ours, theirs, kind):
    assert ids_of(theirs, UNUSUAL[kind]) == ours.encode(UNUSUAL[kind])


@pytest.fixture(scope="module")
def normalised(pieces, theirs):
    """Function from a text to SentencePiece's normalisation of it and that of tokenizer.json."""
    # Not the tokenizers themselves: hypothesis prints a test's arguments, all 300 KB of them.
    return lambda text: (
        pieces.normalize(text).replace("\u2581", " ").removeprefix(" "),
        theirs.normalizer.normalize_str(text),
    )


@pytest.fixture(scope="module")
def encoded(ours, pieces):
    """Function from a text, in which nothing is a tag, to SentencePiece's ids of it and those of tokenizer.json."""
    theirs = tokenizer_json.build(ours, kosmos2=False)
    theirs.encode_special_tokens = True
    return lambda text: ([i + 1 if i else 3 for i in pieces.encode(text)], ids_of(theirs, text))


@given(text=UNICODE)
@settings(max_examples=500, deadline=None)
def test_any_text_is_normalised_as_by_sentencepiece(normalised, text):
    expected, found = normalised(text)
    assert found == expected


@given(text=UNICODE)
@settings(max_examples=500, deadline=None)
def test_ids_of_any_text_are_ours_or_equally_likely(pieces, encoded, text):
    # SentencePiece adds the scores of pieces in float32 and `tokenizers` in float64: equal sums, another choice.
    expected, found = encoded(text)
    if found != expected:
        a, b = ([pieces.get_score(i - 1) for i in ids if i > 3] for ids in (expected, found))
        assert pieces.decode([i - 1 for i in expected]) == pieces.decode([i - 1 for i in found])
        assert sum(a) == pytest.approx(sum(b), abs=1e-4)


def test_a_tag_in_a_text_is_the_tag_and_starts_a_word_after_it(ours, theirs):
    text = "<grounding> A photo of<phrase> a snowman </phrase><object><patch_index_0044><patch_index_1023></object>"
    text += ", <mask>"
    ids = {tag: ours.size - len(KOSMOS2_TAGS) + i for i, tag in enumerate(KOSMOS2_TAGS)} | {TAGS[0]: ours.mask}
    expected = [ids["<grounding>"], *ours.encode("A photo of"), ids["<phrase>"], *ours.encode("a snowman")]
    expected += [ids["</phrase>"], ids["<object>"], ids["<patch_index_0044>"], ids["<patch_index_1023>"]]
    expected += [ids["</object>"], *ours.encode(","), ids["<mask>"]]
    assert ids_of(theirs, text) == expected
    assert [theirs.id_to_token(i) for i in range(ours.size)] == [ours.token(i) for i in range(ours.size)]


@pytest.mark.parametrize("lacking", ["", "<", ">", "<>/k"])
def test_text_is_never_a_tag_when_the_caller_says_so(lacking):
    ours = Tokenizer.train([line.translate(dict.fromkeys(map(ord, lacking))) for line in PROSE], vocab_size=400)
    theirs = tokenizer_json.build(ours, kosmos2=False)
    theirs.encode_special_tokens = True
    for text in ["<s>", "a </s> <unk><pad>", "<mask> </line> <image>", "\uff1cs\uff1e", "<s\x01>", "<<s>>"]:
        assert ids_of(theirs, text) == ours.encode(text)


def test_what_stands_around_a_text_is_what_each_processor_counts_on(ours, theirs):
    assert theirs.encode("a").ids == [ours.bos, *ours.encode("a"), ours.eos]
    alone = tokenizer_json.build(ours, kosmos2=False)
    assert alone.encode("a").ids == [ours.bos, *ours.encode("a")]
    tagged = [ours.bos, ours.tag_ids["<image>"], *ours.encode("a dog"), ours.eos]
    assert alone.decode(tagged) == "a dog"
    assert theirs.decode(tagged) == "<image> a dog"


def test_decoding_inverts_encoding(ours, theirs):
    for text in TEXTS:
        ids = ours.encode(text)
        assert theirs.decode(ids) == ours.decode(ids)


def test_the_same_tokenizer_gives_the_same_files(ours, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        processor.write_files(tmp_path / name, record(ours), "hf-remote-code")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == [
        *("README.md", "generation_config.json", "preprocessor_config.json", "sentencepiece.bpe.model"),
        *("tokenizer.json", "tokenizer_config.json"),
    ]
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    assert Tokenizer.load(tmp_path / "a/sentencepiece.bpe.model", True).fingerprint == ours.fingerprint


@pytest.mark.parametrize("name", ["AutoTokenizer", "PreTrainedTokenizerFast", "XLMRobertaTokenizer"])
def test_transformers_loads_every_id(ours, folder, name):
    loaded = getattr(transformers, name).from_pretrained(folder)
    assert loaded.convert_ids_to_tokens(list(range(ours.size))) == [ours.token(i) for i in range(ours.size)]
    assert len(loaded) == ours.size
    special = [loaded.bos_token_id, loaded.pad_token_id, loaded.eos_token_id, loaded.unk_token_id, loaded.mask_token_id]
    assert special == [ours.bos, ours.pad, ours.eos, ours.unk, ours.mask]
    for text in [TEXTS[0], "  a   caf\u00e9\u00a0 "]:
        assert loaded(text, add_special_tokens=False)["input_ids"] == ours.encode(text)


def test_autotokenizer_reads_unusual_text_as_we_do(ours, folder):
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    for text in UNUSUAL.values():
        assert loaded(text, add_special_tokens=False)["input_ids"] == ours.encode(text)


def test_the_remote_code_s_tokenizer_loads_without_it(ours, tmp_path):
    plain = Tokenizer(ours.model_bytes)
    write(tmp_path, record(plain), "hf-remote-code")
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded) == plain.size
    assert loaded("an <image> a", split_special_tokens=True)["input_ids"] == [0, *plain.encode("an <image> a")]
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (config["size"], config["num_image_tokens"]) == (dict(height=224, width=224), 64)


@pytest.fixture(scope="module")
def kosmos2_processor(folder):
    return transformers.AutoProcessor.from_pretrained(folder, backend="pil")


def test_kosmos2_processor_gives_our_prompt(ours, kosmos2_processor):
    image = Image.new("RGB", (20, 30))
    given = dict(images=image, text="A photo of a dog", num_image_tokens=8)
    batch = kosmos2_processor(**given, return_tensors="np")
    ids = [ours.bos, ours.tag_ids["<image>"], *range(4, 12), ours.tag_ids["</image>"], *ours.encode("A photo of a dog")]
    assert batch["input_ids"].tolist() == [ids]
    assert batch["image_embeds_position_mask"].tolist() == [[0, 0, *[1] * 8, 0, *[0] * (len(ids) - 11)]]
    ended = kosmos2_processor(**given, add_eos_token=True)
    assert ended["input_ids"] == [*ids, ours.eos]
    assert len(kosmos2_processor.tokenizer) == ours.size


SIZES = [(1, 1), (3, 500), (500, 3), (1, 90), (56, 56), (37, 20), (300, 517)]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
@pytest.mark.parametrize("size", SIZES)
def test_kosmos2_processor_gives_our_pixels(kosmos2_processor, size, mode):
    if size[1] in (1, 3) and transformers.__version__ < "5.23":
        pytest.skip("read as channels first, or not at all")
    pixels = np.random.default_rng(size).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    expected = squash(image.convert("RGB"), 56).transpose(2, 0, 1)
    bare = kosmos2_processor.image_processor(image, do_rescale=False, do_normalize=False, return_tensors="np")
    np.testing.assert_array_equal(bare["pixel_values"][0], expected)
    mean, std = (np.array(numbers)[:, None, None] for numbers in (processor.PIXEL_MEAN, processor.PIXEL_STD))
    found = kosmos2_processor.image_processor(image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(found, (expected / 255 - mean) / std, atol=1e-6)


def test_generation_config_is_read(folder):
    config = transformers.GenerationConfig.from_pretrained(folder)
    assert (config.bos_token_id, config.pad_token_id, config.eos_token_id) == (0, 1, 2)


def model_of_kind(**kind):
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(PROSE).split("\n")), model_writer=written, minloglevel=2, **kind
    )
    return Tokenizer(written.getvalue())


@pytest.mark.parametrize(
    "kind",
    [
        dict(model_type="bpe"),
        dict(byte_fallback=True, vocab_size=600),
        dict(normalization_rule_name="identity"),
        dict(add_dummy_prefix=False),
        dict(user_defined_symbols=["<x>"]),
    ],
)
def test_a_sentencepiece_model_of_another_kind_is_refused(kind):
    with pytest.raises(UserError, match="only a SentencePiece model as the published one can be written"):
        tokenizer_json.build(model_of_kind(**dict(vocab_size=400) | kind), kosmos2=False)


def test_a_missing_package_says_what_to_install(ours, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 'kosmos_jax\[torch\]'"):
        processor.write_files(tmp_path, record(ours), "torch")


def test_the_card_says_what_was_trained_on_what(ours):
    card = model_card.text(record(Tokenizer(ours.model_bytes)), "hf-kosmos2")
    assert "# kosmos1, step 300" in card
    assert "300 of 300,000 updates of 576 rows of 2,048 tokens (353,894,400 tokens" in card
    assert "| captions | laion400m/images:1.0.0 | 41.7% |" in card
    assert f"ids from {ours.mask + 6:,} on to the tags of grounding" in card
    assert "None by kosmos_jax" in model_card.text(record(ours, step=0), "torch")
    assert "grounding" not in model_card.text(record(ours, config=kosmos2), "hf-kosmos2")


@pytest.mark.parametrize("target", ["hf-kosmos2", pytest.param("hf-remote-code", marks=pytest.mark.slow), "torch"])
def test_the_card_s_code_runs(sinusoidal_run, tmp_path, monkeypatch, capfd, target):
    out = tmp_path / "exported"
    export(sinusoidal_run, target, out)
    program = tmp_path / "program.py"
    program.write_text((out / "README.md").read_text().split("```python\n")[1].split("```")[0])
    monkeypatch.chdir(out)
    if target == "hf-remote-code":  # a process of its own: transformers imports an export's code once, by its name
        environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "code")}
        subprocess.run([sys.executable, program], env=environment, check=True)
    else:
        monkeypatch.syspath_prepend(out)
        monkeypatch.delitem(sys.modules, "kosmos_torch", raising=False)
        runpy.run_path(str(program))
    assert capfd.readouterr().out.strip()


PUBLISHED = Path(kosmos1.get_config().data.tokenizer.path)


@pytest.mark.skipif(not PUBLISHED.is_file(), reason=f"{PUBLISHED}, of unilm's kosmos-2/data, is not in this folder")
def test_the_published_model_has_the_ids_of_the_released_processor():
    """Expected ids: tests/models/kosmos2/test_processing_kosmos2.py of transformers."""
    ours = Tokenizer.load(PUBLISHED, kosmos2_tags=True)
    theirs: Tokenizers = tokenizer_json.build(ours, kosmos2=True)
    assert theirs.get_vocab_size() == 65_037
    assert all(theirs.id_to_token(i) == ours.token(i) for i in range(65_037))
    two_puppies = (
        "<grounding><phrase> Two puppies</phrase><object><patch_index_0079><patch_index_1016>"
        "</delimiter_of_multi_objects/><patch_index_0135><patch_index_1008></object> sit in a field of"
        "<phrase> grass</phrase><object><patch_index_0480><patch_index_1023></object> ."
    )
    expected = [0, 64012, 64007, 1264, 17772, 64008, 64009, 64092, 65029, 64011, 64148, 65021, 64010, 1357, 12, 10, 770]
    expected += [9, 64007, 4464, 64008, 64009, 64493, 65036, 64010, 106, 4, 2]
    assert theirs.encode(two_puppies).ids == expected
    for text in UNUSUAL.values():
        assert ids_of(theirs, text) == ours.encode(text)
