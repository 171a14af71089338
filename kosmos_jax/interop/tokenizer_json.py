"""tokenizer.json: the ids of `data_pipeline.tokenizer` by Hugging Face's `tokenizers`, and the way back.

`tokenizers` has SentencePiece's unigram model and reads its normalisation table, but reads it otherwise: character
cluster by cluster where SentencePiece takes the longest entry. By that alone "ệ" in two or three code points, Korean
from a Mac's file names and half-width "ガ" get other ids. Here marks are kept apart while the table is read, so that it
is read character by character, and NFC joins afterwards what SentencePiece would have joined; where it would not, a
character that no text has, a "wall", keeps NFC from it.
"""

import base64
import functools
import itertools
import json
import unicodedata
from pathlib import Path

from data_pipeline.tokenizer import Tokenizer
from kosmos_jax.errors import UserError
from kosmos_jax.interop.packages import needed
from kosmos_jax.modality import KOSMOS2_TAGS, TAGS

WALL, GAP = "\ufdd0", "\ufdd1"  # two of Unicode's noncharacters
DELETED = "\x01-\x08\x0b\x0e-\x1f\x7f\x8f\x9f"  # by the table: control characters
MARKS = r"\p{M}\u200d\uff9e\uff9f"  # what makes one cluster with the character before it
MASK = TAGS[0]
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", MASK)  # they are in the published model's vocabulary; other tags are added
# Shows whether case, width, runs of spaces and the start of a text are treated as SentencePiece treats them.
PROBE = "The \uff21\u200bB  of it, 3 times"
OTHERWISE = "give the SentencePiece model of these weights with --tokenizer FILE"
NEVER = -1000.0  # their scores as pieces: texts such as "＜s＞", which is "<s>" once normalised, must not become them


def build(tokenizer: Tokenizer, kosmos2: bool):
    """The tokenizer as `tokenizers` has it.

    A tag in a text is parsed, unless the caller says `split_special_tokens`, and the text after it starts a new word;
    a newline is a space, as in the released processor.

    Args:
      tokenizer: ours, of a unigram model with the normalisation nmt_nfkc, as the published one and those we train.
      kosmos2: with the habits of the released Kosmos-2, which Kosmos2Processor counts on: `</s>` after each text when
        special tokens are asked for, and tags that decoding does not skip. Otherwise `<s>` only, and all are skipped.

    Returns:
      tokenizers.Tokenizer.

    Raises:
      UserError: a package is missing, or the SentencePiece model is of another kind.
    """
    needed("tokenizers")
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
    from tokenizers import Tokenizer as Tokenizers

    def added(token: str) -> AddedToken:
        special, is_tag = token in SPECIALS or not kosmos2, token in tokenizer.tags
        return AddedToken(token, special=special, lstrip=is_tag, normalized=False)  # a tag takes the spaces before it

    model = _read(tokenizer.model_bytes)
    pieces = [(piece.piece, piece.score) for piece in model.pieces[3:]]
    vocab = [*((special, NEVER) for special in SPECIALS[:-1]), *pieces, (MASK, NEVER)]
    built = Tokenizers(models.Unigram(vocab, unk_id=tokenizer.unk, byte_fallback=False))
    built.normalizer = _normalizer(tokenizer.model_bytes, model.normalizer_spec.precompiled_charsmap, dict(vocab))
    built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    built.decoder = decoders.Metaspace(prepend_scheme="always")
    built.add_tokens([added(token) for token in (*SPECIALS[:-1], *tokenizer.tags)])
    built.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if kosmos2 else "<s> $A",
        pair="<s> $A </s> </s> $B </s>" if kosmos2 else "<s> $A $B",
        special_tokens=[("<s>", tokenizer.bos), ("</s>", tokenizer.eos)],
    )
    return built


def sentencepiece_model(file: Path) -> bytes:
    """The SentencePiece model in a tokenizer.json that `build` or transformers' XLMRobertaTokenizerFast made.

    Raises:
      UserError: a package is missing, or the file is of another kind.
    """
    needed("tokenizers")
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
    from tokenizers import Tokenizer as Tokenizers

    model = sentencepiece_model_pb2.ModelProto()
    kinds = model.SentencePiece
    try:
        text = file.read_text()
        saved = json.loads(text)
        vocab = [(str(piece), float(score)) for piece, score in saved["model"]["vocab"]]
        parts = saved["normalizer"].get("normalizers", [saved["normalizer"]])
        (table,) = (base64.b64decode(part["precompiled_charsmap"]) for part in parts if part["type"] == "Precompiled")
        added = {token["id"]: token["content"] for token in saved["added_tokens"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is not made of a SentencePiece model; {OTHERWISE}") from error
    pieces = [pair for pair in vocab[len(SPECIALS) - 1 :] if pair[0] not in TAGS + KOSMOS2_TAGS]
    expected = [*SPECIALS[:-1], *(piece for piece, _ in pieces), *TAGS, *KOSMOS2_TAGS]
    given = dict(enumerate(piece for piece, _ in vocab)) | added
    other = [f"{i} {token!r}" for i, token in sorted(given.items()) if [token] != expected[i : i + 1]]
    if other:
        raise UserError(f"{file} has other ids than Kosmos-2 (docs/fidelity.md): {', '.join(other[:3])}; {OTHERWISE}")
    first = [("<unk>", 0.0, kinds.UNKNOWN), ("<s>", 0.0, kinds.CONTROL), ("</s>", 0.0, kinds.CONTROL)]
    for piece, score, kind in (*first, *((*pair, kinds.NORMAL) for pair in pieces)):
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.vocab_size = len(model.pieces)
    model.normalizer_spec.precompiled_charsmap = table
    rebuilt, theirs = Tokenizer(model.SerializeToString()), Tokenizers.from_str(text)
    # transformers saves how the last batch was padded and cut.
    theirs.no_padding()
    theirs.no_truncation()
    if rebuilt.encode(PROBE) != theirs.encode(PROBE, add_special_tokens=False).ids:
        raise UserError(f"{file} splits texts otherwise than SentencePiece would by these pieces; {OTHERWISE}")
    # The table is there without its name.
    if SentencePieceProcessor(model_proto=rebuilt.model_bytes).normalize("\uff21\u200bb") == "▁A▁b":
        model.normalizer_spec.name = "nmt_nfkc"
    return model.SerializeToString()


def _read(model_bytes: bytes):
    """The SentencePiece model as its protocol buffer."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(model_bytes)
    trainer, normalizer, piece = model.trainer_spec, model.normalizer_spec, model.SentencePiece
    usual = (
        trainer.model_type == trainer.UNIGRAM
        and normalizer.name == "nmt_nfkc"
        and normalizer.add_dummy_prefix
        and normalizer.remove_extra_whitespaces
        and not trainer.byte_fallback
        and all(p.type == piece.NORMAL for p in model.pieces[3:])
    )
    if not usual:
        raise UserError(
            "only a SentencePiece model as the published one can be written as tokenizer.json: unigram, nmt_nfkc, "
            "no byte fallback, no symbols of the user's"
        )
    return model


def _normalizer(model_bytes: bytes, charsmap: bytes, vocab: dict[str, float]):
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Regex, normalizers

    joining = _joining_pairs(SentencePieceProcessor(model_proto=model_bytes))
    last = {first for first, _ in joining}
    ligatures = "".join(c for c, written_out in _written_out() if written_out[-1] in last)
    joined = "|".join(f"(?<=[{firsts}])[{marks}]" for firsts, marks in _grouped(joining).items())
    # A tag's letter that the model lacks becomes another one that it lacks: two unknown characters, no way to the tag.
    unknown = "".join(c for c in sorted(set("".join(SPECIALS))) if c not in vocab)
    return normalizers.Sequence(
        [
            # After a ligature, and before the one mark that is two, nothing is joined.
            normalizers.Replace(Regex(rf"[{DELETED}]|(?!\A)(?=\u0344)|(?=\p{{M}})(?<=[{ligatures}])"), WALL),
            # Not at the start of the text: `tokenizers` fails there when the mark is replaced later.
            normalizers.Replace(Regex(rf"(?!\A)(?=[{MARKS}])"), GAP),
            normalizers.Precompiled(charsmap),
            normalizers.Replace(GAP, ""),
            normalizers.Replace(Regex(rf"(?!\A)(?=[\p{{M}}\u1161-\u1175\u11a8-\u11c2])(?!{joined})"), WALL),
            normalizers.NFC(),
            normalizers.Replace(WALL, ""),
            normalizers.Replace(Regex(" +"), " "),
            normalizers.Replace(Regex(r"\A | \z"), ""),
            *([normalizers.Replace(Regex(f"[{unknown}]"), WALL)] if unknown else []),
        ]
    )


def _joining_pairs(sentencepiece) -> set[tuple[str, str]]:
    """(a, b) for which some "...ab" is one character to SentencePiece: (e, dot below), (dot below, circumflex), ..."""
    initials, vowels, finals = (
        [chr(first + i) for i in range(count)] for first, count in ((0x1100, 19), (0x1161, 21), (0x11A8, 27))
    )
    pairs = set(itertools.product(initials, vowels)) | set(itertools.product(vowels, finals))
    for parts, whole in _composed():
        if sentencepiece.normalize(parts).lstrip("▁") == whole:
            pairs |= set(itertools.pairwise(parts))
    return pairs


def _grouped(pairs: set[tuple[str, str]]) -> dict[str, str]:
    """First characters -> the second ones that follow all of them."""
    firsts, seconds = {}, {}
    for first, second in sorted(pairs):
        firsts[second] = firsts.get(second, "") + first
    for second, together in firsts.items():
        seconds[together] = seconds.get(together, "") + second
    return seconds


@functools.cache
def _composed() -> list[tuple[str, str]]:
    """(parts, character) of every character but Korean ones that Unicode takes apart, in two and in full."""
    composed = []
    for code in (*range(0xAC00), *range(0xD7A4, 0x110000)):
        character = chr(code)
        two = "".join(chr(int(part, 16)) for part in unicodedata.decomposition(character).split() if part[0] != "<")
        in_full = unicodedata.normalize("NFD", character)
        composed += [(parts, character) for parts in (two, in_full) if len(parts) > 1]
    return composed


@functools.cache
def _written_out() -> list[tuple[str, str]]:
    """(character, several characters): ligatures and the like, by Unicode's compatible form."""
    forms = ((chr(code), unicodedata.normalize("NFKC", chr(code))) for code in range(0x110000))
    return [(character, form) for character, form in forms if len(form) > 1]
