"""The SentencePiece model out of a tokenizer.json, as `kosmos import` takes it from what transformers saved."""

import json

import pytest
from hypothesis import given, settings
from sentencepiece import sentencepiece_model_pb2
from transformers import CLIPImageProcessor, Kosmos2Processor, XLMRobertaTokenizer

from data_pipeline.tokenizer import Tokenizer
from kosmos_jax.errors import UserError
from kosmos_jax.interop import tokenizer_json
from tests.interop.test_processor import PROSE, UNICODE, UNUSUAL


@pytest.fixture(scope="module")
def ours():
    return Tokenizer.train(PROSE, vocab_size=500, kosmos2_tags=True)


@pytest.fixture(scope="module")
def file(ours, tmp_path_factory):
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer_json.build(ours, kosmos2=True).save(str(file))
    return file


@pytest.fixture(scope="module")
def rebuilt(file):
    return Tokenizer(tokenizer_json.sentencepiece_model(file), kosmos2_tags=True)


@settings(max_examples=300, deadline=None)
@given(UNICODE)
def test_the_rebuilt_model_gives_the_same_ids(ours, rebuilt, text):
    assert rebuilt.encode(text) == ours.encode(text)


def test_the_rebuilt_model_is_the_same_model(ours, rebuilt):
    assert [rebuilt.encode(text) for text in UNUSUAL.values()] == [ours.encode(text) for text in UNUSUAL.values()]
    model, other = map(sentencepiece_model_pb2.ModelProto.FromString, (ours.model_bytes, rebuilt.model_bytes))
    written = [[(p.piece, p.score, p.type) for p in m.pieces] for m in (model, other)]
    assert written[0] == written[1]
    assert tokenizer_json.build(rebuilt, kosmos2=True).to_str() == tokenizer_json.build(ours, kosmos2=True).to_str()


def test_what_transformers_own_tokenizer_saves_is_read(ours, rebuilt, tmp_path):
    """The published processor, saved again: the tokenizer is XLMRobertaTokenizer there."""
    model = sentencepiece_model_pb2.ModelProto.FromString(ours.model_bytes)
    specials = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    vocab = [*specials, *((piece.piece, piece.score) for piece in model.pieces[3:]), ("<mask>", 0.0)]
    table = model.normalizer_spec.precompiled_charsmap
    tokenizer = XLMRobertaTokenizer(vocab=vocab, _spm_precompiled_charsmap=table)
    processor = Kosmos2Processor(CLIPImageProcessor(), tokenizer)
    for options in ({}, dict(padding="max_length", max_length=32), dict(truncation=True, max_length=4)):
        tokenizer("A text of the training", **options)
        processor.save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "tokenizer.json").read_text())
        assert "truncation" not in options or saved["truncation"]["max_length"] == 4
        assert "padding" not in options or saved["padding"]["strategy"] == {"Fixed": 32}
        assert tokenizer_json.sentencepiece_model(tmp_path / "tokenizer.json") == rebuilt.model_bytes


@pytest.mark.parametrize("change, message", [
    (lambda saved: saved["model"].update(type="BPE", vocab={"a": 0}), "not made of a SentencePiece model"),
    (lambda saved: saved.update(normalizer=None), "not made of a SentencePiece model"),
    (lambda saved: saved["normalizer"].update(normalizers=[{"type": "NFC"}]), "not made of a SentencePiece model"),
    (lambda saved: saved["normalizer"]["normalizers"].append({"type": "Lowercase"}), "splits texts otherwise"),
    (lambda saved: saved["pre_tokenizer"].update(prepend_scheme="never"), "splits texts otherwise"),
    (lambda saved: saved["model"]["vocab"].insert(0, ["<pad>", 0]), "other ids than Kosmos-2.*"),
    (lambda saved: saved["added_tokens"].append(saved["added_tokens"][-1] | dict(id=1537, content="<new>")), "<new>"),
])  # fmt: skip
def test_a_tokenizer_of_another_kind_is_refused(file, tmp_path, change, message):
    saved = json.loads(file.read_text())
    change(saved)
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match=f"{message}.*--tokenizer FILE"):
        tokenizer_json.sentencepiece_model(tmp_path / "tokenizer.json")
