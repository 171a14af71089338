"""What a request may say, and what it gets, against the plain model."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kosmos_jax.errors import UserError
from kosmos_jax.inference import text
from kosmos_jax.inference.generator import Generator
from kosmos_jax.inference.prompts import EncodedPrompt, encode_prompt
from kosmos_jax.inference.reading import items_of
from kosmos_jax.inference.sampling import repeat_penalties
from kosmos_jax.model import parameters
from tests.data_pipeline.demo_data import image
from tests.inference.conftest import TEXTS
from tests.inference.test_generation import allowed_ids
from tests.model.tiny import model_config, random_model


@pytest.fixture(scope="module")
def images():
    return list(np.random.default_rng(3).integers(0, 256, (4, 24, 20, 3), np.uint8))


def greedy_steps(reference, prompt, choose, steps):
    """Tokens that `choose` picks from the plain model's logits, step by step."""
    tokens = []
    for _ in range(steps):
        tokens.append(int(choose(reference.logits(prompt, tokens).astype(np.float64), tokens)))
    return tokens


def test_one_text_with_two_images_alone_and_together_gets_its_own_answers(generator, images):
    prompts = [[image, "The digit is"] for image in images[:2]]
    options = dict(max_new_tokens=3, top_logprobs=5)
    a, b = (generator.complete([prompt], **options)[0] for prompt in prompts)
    assert a.top != b.top
    for beside, alone in zip(generator.complete(prompts, **options), (a, b), strict=True):
        assert beside.tokens == alone.tokens
        np.testing.assert_allclose(beside.logprobs, alone.logprobs, atol=1e-5)


def test_bytes_of_other_sides_have_other_keys(tokenizer):
    pixels = np.arange(72, dtype=np.uint8)
    keys = {
        item.key
        for shape in ((4, 6, 3), (6, 4, 3))
        for item in items_of(EncodedPrompt(np.zeros(9), ("image",), np.zeros(1), {"image": [pixels.reshape(shape)]}))
    }
    assert len(keys) == 2 and {len(key) for key in keys} == {32}


def test_rows_with_two_one_and_one_image_in_any_order(generator, images):
    a, b, c, d = images
    prompts = [[a, "plus", b, "equals"], ["seven", c], [d, "A handwritten four"]]
    found = generator.complete(prompts, max_new_tokens=6)
    assert generator.complete(prompts[::-1], max_new_tokens=6) == found[::-1]


def test_samples_and_beams_keep_both_images_of_a_prompt(generator, reference, images):
    a, b = images[:2]
    options = dict(max_new_tokens=5, temperature=1.0, seed=5)
    (two,) = generator.complete([[a, "plus", b]], n=2, **options)
    assert two[0].tokens == generator.complete([[a, "plus", b]], **options)[0].tokens
    (best, second) = generator.complete([[a, "plus", b]], beams=2, n=2, max_new_tokens=5)[0]
    for found in (best, second):
        assert found.score == pytest.approx(reference.score([a, "plus", b], found.tokens) / 5, abs=1e-5)
        assert found.score != pytest.approx(reference.score([b, "plus", a], found.tokens) / 5, abs=1e-5)
    assert best.score > second.score


def test_log_probabilities_are_the_models_own_whatever_the_limits(generator, reference, images, tokenizer):
    prompt = [images[0], "plus"]
    allowed = [9, 20, 31]
    (found,) = generator.complete(
        [prompt], max_new_tokens=5, top_logprobs=5, allowed=allowed, temperature=1.0, repetition_penalty=1.5
    )
    assert set(found.tokens) <= {*allowed, tokenizer.eos}
    for i, (token, logprob, top) in enumerate(zip(found.tokens, found.logprobs, found.top, strict=False)):
        expected = reference.next_log_probabilities(prompt, found.tokens[:i])
        assert logprob == pytest.approx(expected[token], abs=1e-5)
        assert [token for token, _ in top] == np.argsort(-expected, kind="stable")[:5].tolist()
        np.testing.assert_allclose([value for _, value in top], np.sort(expected)[::-1][:5], atol=1e-5)


def test_a_token_among_the_most_likely_has_the_same_float_in_both_places(generator, images):
    (found,) = generator.complete([[images[0], "plus"]], max_new_tokens=6, top_logprobs=3)
    told = found.logprobs, found.top
    assert all(dict(top)[token] == value for token, value, top in zip(found.tokens, *told, strict=False))


def penalized(logits, ids, penalty):
    at = [token for token in set(ids) if token >= 0]
    logits[at] = np.where(logits[at] > 0, logits[at] / penalty, logits[at] * penalty)
    return logits


def test_a_repetition_penalty_counts_text_and_no_slots_of_media(generator, reference, images, tokenizer):
    prompt = [images[0], "plus", images[1], "The digit"]
    ids = [int(t) for t in reference.encode(prompt).tokens]
    slot = tokenizer.tag_ids["<image>"]
    assert ids.count(slot) > 2  # the tag, and the slots that hold its id
    allowed = sorted(allowed_ids(tokenizer))

    def choose(logits, tokens):
        logits = penalized(logits, [*ids, *tokens], 1.3)
        return allowed[int(np.argmax(logits[allowed]))]

    (found,) = generator.complete([prompt], max_new_tokens=6, repetition_penalty=1.3)
    assert found.tokens == greedy_steps(reference, prompt, choose, 6)


forbids = jax.jit(repeat_penalties)


@given(st.lists(st.integers(-1, 4), min_size=1, max_size=14), st.integers(0, 4))
@settings(deadline=None, max_examples=60)
def test_no_ngram_comes_twice(ids, n):
    row = np.full((1, 16), -1, np.int32)
    row[0, : len(ids)] = ids
    lengths, penalty, ngram = np.array([len(ids)]), np.ones(1, np.float32), np.array([n])
    found = forbids(np.zeros((1, 5), np.float32), row, lengths, penalty, ngram)
    ending = ids[len(ids) - n + 1 :] if n > 1 else []
    forbidden = {
        ids[i + n - 1]
        for i in range(len(ids) - n + 1)
        if n and ids[i : i + n - 1] == ending and min(ids[i : i + n]) >= 0
    }
    assert set(np.flatnonzero(np.isneginf(found[0]))) == forbidden


def test_neither_the_end_nor_a_stop_id_comes_too_early(generator, tokenizer):
    options = dict(max_new_tokens=12, bias={tokenizer.eos: 50.0, 9: 49.0}, stop_ids=[9])
    assert generator.complete(["The digit is"], **options)[0].finish == "end"
    early, late = (generator.complete(["The digit is"], min_new_tokens=n, **options)[0] for n in (0, 4))
    assert early.tokens == [] and len(late.tokens) == 4 and late.finish == "end"
    ignoring = generator.complete(["The digit is"], ignore_eos=True, **options)[0]
    assert ignoring.tokens == [] and ignoring.finish == "end"  # the stop id, now
    ignoring = generator.complete(["The digit is"], ignore_eos=True, max_new_tokens=5, bias={tokenizer.eos: 50.0})[0]
    assert len(ignoring.tokens) == 5 and ignoring.finish == "length"


def test_the_token_that_ended_a_text_is_told(generator):
    (free,) = generator.complete(["The digit is"], max_new_tokens=6)
    (ended,) = generator.complete(["The digit is"], max_new_tokens=6, stop_ids=free.tokens[:1])
    assert (ended.tokens, ended.finish, ended.end) == ([], "end", free.tokens[0])
    assert free.finish != "length" or free.end is None


def test_a_choice_is_one_of_the_texts_and_the_model_decides_where_they_part(generator, reference, tokenizer):
    texts = ["seven", "seventeen", "four", "two plus two equals four and words"]
    encoded = [[*tokenizer.encode(text), tokenizer.eos] for text in texts]

    def decide(logits, tokens):
        nexts = sorted({ids[len(tokens)] for ids in encoded if ids[: len(tokens)] == tokens})
        return nexts[int(np.argmax(logits[nexts]))]

    for prompt in ("The digit is", "Whoever reads", ""):
        tokens = []
        while tokens not in encoded:
            tokens.append(int(decide(reference.logits(prompt, tokens), tokens)))
        (found,) = generator.complete([prompt], choice=texts)
        assert found.text == texts[encoded.index(tokens)] and found.finish == "end"
    assert {generator.generate("The", choice=texts, temperature=50.0, seed=seed) for seed in range(30)} == set(texts)
    assert generator.generate("The digit is", choice=["seven"]) == "seven"


def test_a_continuation_without_tokens_is_certain(generator):
    empty, other = generator.score_each(["The digit is"], [["", "seven"]])[0]
    assert (empty.logprob, empty.tokens, empty.greedy) == (0, 0, True)
    assert [other] == generator.score_each(["The digit is"], [["seven"]])[0]
    assert generator.score(["The digit is"], [""]) == [(0, 0)]
    assert generator.score_each(["The digit is"], [[]]) == [[]]


def test_without_a_seed_each_text_is_another(generator):
    options = dict(max_new_tokens=12, temperature=3.0, seed=None)
    assert len({generator.generate("The digit is", **options) for _ in range(4)}) == 4


def test_continuations_of_one_prompt_are_scored_side_by_side_as_each_alone(generator, reference, images, tokenizer):
    prompts = [[images[0], "plus", images[1]], "The digit is"]
    texts = [["seven", "four, and", "three", "w"] * 12, ["four"]]
    found = generator.score_each(prompts, texts, top_logprobs=2)
    for prompt, several, scores in zip(prompts, texts, found, strict=True):
        for words, score in list(zip(several, scores, strict=True))[:5]:
            ids = tokenizer.encode(words)
            assert score.tokens == len(ids) == len(score.logprobs) == len(score.top)
            assert score.logprob == pytest.approx(reference.score(prompt, ids), abs=1e-4)
            best = [np.argmax(reference.next_log_probabilities(prompt, ids[:i])) for i in range(len(ids))]
            assert score.greedy == (best == ids)
    assert found[0][:4] == found[0][4:8] == found[0][-4:]
    greedy = [int(np.argmax(reference.next_log_probabilities("seven")))]
    assert generator.score_each(["seven"], [[greedy]])[0][0].greedy


@pytest.fixture(scope="module")
def in_pieces_and_at_once():
    """The same model with 64 vectors an image, reading 16 tokens at a time, and 256."""
    from data_pipeline.tokenizer import Tokenizer

    own = Tokenizer.train(TEXTS, vocab_size=44, modalities=[image(tokens=64, size=16)])
    config = model_config(
        **{
            "text.vocab_size": own.size,
            "text.layers": 1,
            "perception.image.tokens": 64,
            "perception.image.encoder.layers": 2,
        }
    )
    params = parameters(random_model(config))
    return [Generator(config, params, own, pools={(256, 1): 1}, chunk=chunk) for chunk in (16, 256)]


def test_the_border_of_a_piece_may_be_anywhere_in_an_image(in_pieces_and_at_once, images):
    pieces, at_once = in_pieces_and_at_once
    for before in range(66):
        prompt = encode_prompt([images[0], "seven"], pieces.tokenizer)
        more = np.full(before, 9, np.int32)
        prompt = prompt._replace(tokens=np.insert(prompt.tokens, 1, more), starts=prompt.starts + before)
        one, other = (g.complete([prompt], max_new_tokens=2, top_logprobs=0)[0] for g in (pieces, at_once))
        assert one.tokens == other.tokens
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=2e-5)


@pytest.mark.parametrize("length", [15, 16, 17, 31, 32, 33, 34])
def test_a_prompt_as_long_as_a_piece_or_one_more_or_less(in_pieces_and_at_once, length):
    pieces, at_once = in_pieces_and_at_once
    prompt = EncodedPrompt(np.arange(length, dtype=np.int32) % 40 + 4, (), np.zeros(0, np.int32), {})
    one, other = (g.complete([prompt], max_new_tokens=3, top_logprobs=0)[0] for g in (pieces, at_once))
    assert one.tokens == other.tokens
    np.testing.assert_allclose(one.logprobs, other.logprobs, atol=2e-5)


def test_what_no_slot_holds_is_refused_and_a_full_slot_ends_a_text(in_pieces_and_at_once):
    generator, _ = in_pieces_and_at_once
    most = generator.complete(["seven"], max_new_tokens=250, ignore_eos=True)[0]
    assert len(most.tokens) == 250 and most.finish == "length"
    with pytest.raises(UserError, match="more than any slot with 1 branches holds"):
        generator.complete(["seven"], max_new_tokens=256)
    with pytest.raises(UserError, match="more than any slot with 3 branches holds"):
        generator.complete(["seven"], max_new_tokens=4, n=3)
    with pytest.raises(UserError, match="prompt and continuation need"):
        generator.score(["seven"], [[9] * 300])


def test_words_like_a_tag_before_a_real_image_leave_the_image_where_it_is(tokenizer, images):
    prompt = encode_prompt(["see <image> here", images[0]], tokenizer)
    tag = tokenizer.tag_ids["<image>"]
    (start,) = prompt.starts
    assert prompt.tokens.tolist().index(tag) == start - 1
    assert prompt.tokens[start - 1 :].tolist() == [tag, *[tag] * 4, tokenizer.tag_ids["</image>"]]


def test_a_request_that_is_cancelled_leaves_its_slot_at_the_next_turn(in_pieces_and_at_once):
    generator, _ = in_pieces_and_at_once
    engine, options = generator.engine, dict(max_new_tokens=200, ignore_eos=True)
    from kosmos_jax.inference.options import Options

    prompt = encode_prompt("seven", generator.tokenizer)
    first, second = (engine.generate(prompt, Options(**options)) for _ in range(2))
    engine.step()
    assert first.completions[0].tokens and not second.admitted
    engine.cancel(first)
    engine.step()
    assert second.completions[0].tokens
    engine.cancel(second)
    assert not engine.busy


def test_pieces_of_a_stream_are_the_text_and_a_stop_string_never_shows(generator, prompts):
    options = dict(max_new_tokens=30, temperature=3.0, seed=4)
    whole = generator.generate(prompts[1], **options)
    assert "".join(generator.stream(prompts[1], **options)) == whole
    stop = whole[len(whole) // 2 :][:3]
    shown = ""
    for piece in generator.stream(prompts[1], stop=[stop, "never there"], **options):
        shown += piece
        assert whole.partition(stop)[0].startswith(shown)
    assert shown == whole.partition(stop)[0]


def test_of_stop_strings_that_overlap_the_one_that_is_complete_first_counts(generator, prompts):
    options = dict(max_new_tokens=30, temperature=3.0, seed=4)
    whole = generator.generate(prompts[1], **options)
    early, late = whole[3:5], whole[2:9]
    (alone,) = generator.complete([prompts[1]], stop=early, **options)
    (both,) = generator.complete([prompts[1]], stop=[late, early], **options)
    assert whole.find(late) < len(alone.text) and both == alone


@pytest.mark.parametrize(
    "written, stop, shown",
    [
        ("a brown ow", ("own fox",), "a brown "),
        ("a brown", ("own fox",), "a br"),
        ("a brown f", ("own fox", " f"), "a br"),
        ("\U0001f600 \ufffd\ufffd", (), "\U0001f600 "),
        ("xaba", ("abac",), "x"),
        ("text", (), "text"),
    ],
)
def test_what_more_tokens_may_change_is_held_back(written, stop, shown):
    assert text.settled(written, stop) == shown


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_what_was_shown_once_is_the_beginning_of_the_final_text(whole, stop):
    final = text.cut(whole, tuple(stop))
    final = whole if final is None else final
    for n in range(len(whole) + 1):
        if text.cut(whole[:n], tuple(stop)) is None:
            assert final.startswith(text.settled(whole[:n], tuple(stop)))


@pytest.mark.parametrize(
    "options, named",
    [
        (dict(min_p=1.5), "min_p is 1.5"),
        (dict(repetition_penalty=0.0), "repetition_penalty is 0.0"),
        (dict(no_repeat_ngram=9), "no_repeat_ngram is 9"),
        (dict(n=0), "n is 0"),
        (dict(beams=2, n=3), "n is 3; a search with 2 beams has no more"),
        (dict(top_logprobs=21), "top_logprobs is 21"),
        (dict(stop_ids=[10**6]), "1000000 is no id that this model writes"),
        (dict(allowed=[-1]), "-1 is no id that this model writes"),
        (dict(allowed=[True]), "True is no id that this model writes"),
        (dict(stop_ids=[False]), "False is no id that this model writes"),
        (dict(bias={10**6: 1.0}), "1000000 is no id that this model writes"),
        (dict(bias={9: float("nan")}), "bias is a number from -100 to 100"),
        (dict(bias={9: 1e300}), "bias is a number from -100 to 100"),
        (dict(allowed=[], min_new_tokens=1), "allowed has no id that may come"),
        (dict(allowed=[9], stop_ids=[9], min_new_tokens=1), "allowed has no id that may come"),
        (dict(allowed=[], ignore_eos=True), "allowed has no id that may come"),
        (dict(choice=[]), "choice is"),
        (dict(choice=["a"], n=2), "choice goes with one continuation"),
        (dict(choice=["a", "b"], no_repeat_ngram=1), "choice and no_repeat_ngram"),
        (dict(choice=["a", "ab"], ignore_eos=True), "choice and ignore_eos"),
        (dict(min_new_tokens=9, max_new_tokens=3), "min_new_tokens is more than max_new_tokens"),
    ],
)
def test_other_impossible_options_are_named(generator, options, named):
    with pytest.raises(UserError, match=named):
        generator.generate("The digit is", **options)


def test_a_page_holds_whole_pieces_whatever_their_size(config, params, tokenizer):
    prompts = ["words, some of them twice, and again words, and some more of them", "The digit is"]
    texts = [
        Generator(config, params, tokenizer, chunk=chunk).generate(prompts, max_new_tokens=20) for chunk in (16, 12, 48)
    ]
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize("options", [{}, dict(temperature=1.0), dict(n=2, temperature=1.0)])
def test_a_text_ends_where_nothing_may_come(generator, tokenizer, options):
    few = [i for i in range(tokenizer.unk + 1, tokenizer.mask) if i not in tokenizer.encode("The digit is")][:2]
    limits = dict(allowed=few, ignore_eos=True, no_repeat_ngram=1, max_new_tokens=6)
    found = generator.complete(["The digit is"], **limits, **options)[0]
    for completion in found if isinstance(found, list) else [found]:
        assert sorted(completion.tokens) == few and completion.finish == "length"
