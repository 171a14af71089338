"""The compiled search against plain Python over scores of the plain model."""

import itertools

import numpy as np
import pytest

from kosmos_jax.inference.generator import Generator

LIMIT = 4


@pytest.fixture(scope="module")
def few(tokenizer):
    """Three pieces: with </s>, all that may be generated."""
    return tokenizer.encode("The digit is")[:3]


@pytest.fixture(scope="module")
def narrow(config, params, tokenizer, few):
    """A generator of those few tokens, in which </s> is likely enough to end some hypotheses."""
    generator = Generator(config, params, tokenizer)
    ids = np.arange(config.text.vocab_size)
    generator.engine.allowed = np.isin(ids, [*few, tokenizer.eos])
    return generator


def hypotheses(few, eos):
    """Every text of the few tokens that ends with </s> or has LIMIT tokens."""
    for length in range(LIMIT + 1):
        for body in itertools.product(few, repeat=length):
            yield from [[*body, eos]] if length < LIMIT else [list(body)]


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.5, -1.0])
def test_a_wide_search_finds_the_best_of_all_hypotheses(narrow, reference, prompts, few, tokenizer, penalty):
    every = list(hypotheses(few, tokenizer.eos))
    found = narrow.complete(prompts, max_new_tokens=LIMIT, beams=27, length_penalty=penalty)
    for prompt, completion in zip(prompts, found, strict=True):
        best = max(every, key=lambda tokens: reference.score(prompt, tokens) / len(tokens) ** penalty)
        assert completion.tokens + [tokenizer.eos] * (completion.finish == "end") == best


def plain_search(reference, prompt, allowed, eos, width, penalty, limit):
    """Beam search in plain Python, to its very end."""
    beams, best = [((), 0.0)], ((), -np.inf)
    for step in range(1, limit + 1):
        candidates = []
        for tokens, total in beams:
            scores = reference.next_log_probabilities(prompt, tokens)
            best = max(best, ((*tokens, eos), (total + scores[eos]) / step**penalty), key=lambda pair: pair[1])
            candidates += [((*tokens, t), total + scores[t]) for t in allowed if t != eos]
        beams = sorted(candidates, key=lambda pair: -pair[1])[:width]
    tokens, total = beams[0]
    return max(best, (tokens, total / limit**penalty), key=lambda pair: pair[1])[0]


@pytest.mark.parametrize("width, penalty", [(2, 1.0), (3, 0.0)])
def test_a_search_with_few_beams_equals_one_in_plain_python(generator, reference, prompts, tokenizer, width, penalty):
    allowed = [tokenizer.eos, tokenizer.line, *range(tokenizer.unk + 1, tokenizer.mask)]
    for prompt, completion in zip(
        prompts, generator.complete(prompts, max_new_tokens=7, beams=width, length_penalty=penalty), strict=True
    ):
        expected = plain_search(reference, prompt, allowed, tokenizer.eos, width, penalty, limit=7)
        assert (*completion.tokens, *[tokenizer.eos] * (completion.finish == "end")) == expected


def test_a_batch_of_searches_gives_each_row_what_it_gets_alone(generator, prompts):
    options = dict(max_new_tokens=7, beams=3)
    together = generator.complete(prompts, **options)
    for prompt, beside in zip(prompts[:2], together, strict=False):
        (alone,) = generator.complete([prompt], **options)
        assert beside.tokens == alone.tokens and beside.score == pytest.approx(alone.score, abs=1e-5)


def test_one_beam_is_greedy(generator, prompts):
    assert generator.generate(prompts, beams=1, max_new_tokens=7) == generator.generate(prompts, max_new_tokens=7)
