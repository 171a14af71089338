from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from kosmos_jax.errors import UserError
from kosmos_jax.inference.generator import Generator, _is_one_prompt
from kosmos_jax.inference.prompts import encode_prompt
from kosmos_jax.model import parameters
from kosmos_jax.model.positions import CENTRE
from kosmos_jax.parallel.attention import attend_by_lengths
from kosmos_jax.parallel.mesh import make_mesh
from kosmos_jax.parallel.sharding import parameter_specs
from tests.inference.compiles import compiled
from tests.inference.reference import Reference
from tests.model.tiny import model_config, random_model


def allowed_ids(tokenizer):
    return {tokenizer.eos, tokenizer.line, *range(tokenizer.unk + 1, tokenizer.mask)}


def test_greedy_takes_the_argmax_of_a_full_forward_at_each_step(generator, reference, prompts, tokenizer):
    allowed = sorted(allowed_ids(tokenizer))
    for prompt, completion in zip(prompts, generator.complete(prompts, max_new_tokens=10), strict=True):
        tokens = completion.tokens + [tokenizer.eos] * (completion.finish == "end")
        assert len(tokens) == 10 or completion.finish == "end"
        for i, token in enumerate(tokens):
            logits = reference.logits(prompt, tokens[:i])
            assert token == allowed[int(np.argmax(logits[allowed]))]


def test_a_batch_gives_each_row_what_it_gets_alone(generator, prompts):
    together = generator.complete(prompts, max_new_tokens=10)
    assert together == [generator.complete([prompt], max_new_tokens=10)[0] for prompt in prompts]


def test_drawn_tokens_depend_on_seed_and_place_but_not_on_the_neighbours(generator, prompts):
    draw = lambda prompts, seed: generator.complete(prompts, max_new_tokens=10, temperature=1.5, seed=seed)  # noqa: E731
    assert draw(prompts, 1) == draw(prompts, 1) != draw(prompts, 2)
    assert draw(prompts[:2] + prompts[:1] * 3, 1)[1] == draw(prompts, 1)[1]
    assert len({completion.text for completion in draw(["The digit is"] * 5, 1)}) > 1


def test_results_do_not_depend_on_how_prompts_are_grouped(config, params, tokenizer, generator, prompts):
    in_pairs = Generator(config, params, tokenizer, max_rows=2)
    options = dict(max_new_tokens=10, temperature=0.8, top_k=5, top_p=0.9)
    assert in_pairs.complete(prompts, **options) == generator.complete(prompts, **options)


@pytest.mark.parametrize("options", [dict(temperature=50.0), dict(beams=3)], ids=["drawn", "beams"])
def test_no_tag_is_generated(generator, prompts, tokenizer, options):
    for completion in generator.complete(prompts * 3, max_new_tokens=16, **options):
        assert set(completion.tokens) <= allowed_ids(tokenizer) - {tokenizer.eos}


def test_new_prompts_of_the_same_size_and_new_weights_compile_nothing(config, params, tokenizer, prompts):
    generator = Generator(config, params, tokenizer)
    options = dict(max_new_tokens=9, temperature=0.7)
    with compiled() as programs:
        generator.complete(prompts[:3], stop=["xyz"], **options)
    assert programs
    with compiled() as programs:
        others = [prompts[2], "two", prompts[1]]
        generator.complete(others, max_new_tokens=14, temperature=1.1, top_k=3, top_p=0.5, seed=9, top_logprobs=4)
        generator.update(params)
        generator.complete(others, **options)
    assert not programs


def test_updated_weights_are_the_ones_used(config, params, tokenizer, prompts):
    others = parameters(random_model(config, seed=2))
    generator = Generator(config, params, tokenizer)
    before = generator.generate(prompts[1], max_new_tokens=10)
    generator.update(others)
    first = generator.complete([prompts[1]], max_new_tokens=10)[0].tokens[0]
    logits = Reference(config, others, tokenizer).logits(prompts[1])
    allowed = sorted(allowed_ids(tokenizer))
    assert first == allowed[int(np.argmax(logits[allowed]))]
    generator.update(params)
    assert generator.generate(prompts[1], max_new_tokens=10) == before


def test_scores_equal_those_of_the_plain_model(generator, reference, prompts, tokenizer):
    continuations = ["seven", "four, and", "three", "The digit"]
    scores = generator.score(prompts, continuations)
    for prompt, text, (total, count) in zip(prompts, continuations, scores, strict=True):
        ids = tokenizer.encode(text)
        assert count == len(ids)
        assert total == pytest.approx(reference.score(prompt, ids), abs=1e-4)
    ids = [*tokenizer.encode("seven"), tokenizer.eos]
    assert generator.score(prompts[:1], [ids])[0][0] == pytest.approx(reference.score(prompts[0], ids), abs=1e-4)


def test_a_stop_string_may_begin_and_end_inside_tokens(generator, prompts, tokenizer):
    def across(seed):
        """A draw with two long neighbours after the first look at the text, and what lies across their border."""
        whole = generator.complete(prompts[:1], max_new_tokens=40, temperature=3.0, seed=seed)[0]
        pieces = [tokenizer.decode([token]) for token in whole.tokens]
        for i in range(17, len(pieces) - 1):
            stop = pieces[i][-1:] + pieces[i + 1][:1]
            if len(pieces[i]) > 1 and len(pieces[i + 1]) > 1 and whole.text.count(stop) == 1:
                return seed, whole, i, stop

    seed, whole, place, stop = next(filter(None, map(across, range(50))))
    options = dict(max_new_tokens=40, temperature=3.0, seed=seed)
    cut = generator.complete(prompts[:1], stop=["never there", stop], **options)[0]
    assert cut.finish == "stop"
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.tokens == whole.tokens[: place + 2]


def test_a_stop_string_ends_only_its_own_row(generator, prompts):
    whole = generator.complete(prompts, max_new_tokens=20)
    stop = whole[1].text[3:5]
    assert sum(stop in completion.text for completion in whole) < len(whole)
    for row, before in zip(generator.complete(prompts, max_new_tokens=20, stop=stop), whole, strict=True):
        assert row.text == before.text.partition(stop)[0]
        assert row.finish == ("stop" if stop in before.text else before.finish)


def test_one_prompt_is_told_from_a_list_of_prompts(prompts):
    image = prompts[1][0]
    assert _is_one_prompt("text") and _is_one_prompt([image]) and _is_one_prompt(["text", image])
    assert not _is_one_prompt(["one", "two"]) and not _is_one_prompt([[image, "one"], "two"])


def test_a_list_of_prompts_gives_a_list_of_texts(generator, prompts):
    assert isinstance(generator.generate("The digit is", max_new_tokens=2), str)
    assert [type(text) for text in generator.generate(prompts, max_new_tokens=2)] == [str] * len(prompts)
    assert generator.generate([], max_new_tokens=2) == []


@pytest.mark.parametrize(
    "options, named",
    [
        (dict(max_new_tokens=0), "max_new_tokens is 0"),
        (dict(max_new_tokens=-3), "max_new_tokens is -3"),
        (dict(max_new_tokens=2.5), "max_new_tokens is 2.5"),
        (dict(max_new_tokens=10**12), "max_new_tokens is 1000000000000"),
        (dict(temperature=-1.0), "temperature is -1.0"),
        (dict(temperature=float("nan")), "temperature is nan"),
        (dict(temperature=float("inf")), "temperature is inf"),
        (dict(temperature=1e39), "temperature is 1e.39"),
        (dict(temperature="0"), "temperature is '0'"),
        (dict(top_k=-1), "top_k is -1"),
        (dict(top_p=0.0), "top_p is 0.0"),
        (dict(top_p=float("nan")), "top_p is nan"),
        (dict(beams=0), "beams is 0"),
        (dict(beams=2, temperature=0.5), "beams is 2; it must be 1 when"),
        (dict(length_penalty=float("nan")), "length_penalty is nan"),
        (dict(seed=2**63), "seed is 9223372036854775808; it must be an int64"),
        (dict(stop=[3]), "stop is"),
    ],
)
def test_impossible_options_are_named(generator, options, named):
    with pytest.raises(UserError, match=named):
        generator.generate("The digit is", **options)


@pytest.mark.parametrize("temperature", [1e-30, 1e-40, 1e-60])
def test_a_temperature_that_float32_cannot_hold_is_greedy(generator, prompts, temperature):
    greedy = generator.complete(prompts, max_new_tokens=10)
    assert generator.complete(prompts, max_new_tokens=10, temperature=temperature) == greedy


def test_all_of_an_int64_seed_counts(generator):
    seeds = [0, 1, -1, 2**32, 2**32 + 1, 2**40, 2**63 - 1, -(2**63)]
    texts = [generator.generate("The digit is", max_new_tokens=24, temperature=5.0, seed=seed) for seed in seeds]
    assert len(set(texts)) == len(seeds)
    assert generator.generate("The digit is", max_new_tokens=24, temperature=5.0, seed=np.int64(2**40)) == texts[5]


@pytest.mark.parametrize(
    "ids, named", [([10**6], "token 0 is 1000000"), ([5, -5], "token 1 is -5"), ([2.5], "token 0 is 2.5")]
)
def test_a_token_that_the_model_does_not_have_is_named_with_its_place(generator, prompts, ids, named):
    with pytest.raises(UserError, match=f"continuation 1: its {named}"):
        generator.score(prompts[:2], ["seven", ids])
    encoded = encode_prompt("seven", generator.tokenizer)
    with pytest.raises(UserError, match="prompt 0: its token 0 is -1"):
        generator.complete([encoded._replace(tokens=np.array([-1], np.int32))])


def test_each_continuation_has_its_prompt(generator, prompts):
    with pytest.raises(UserError, match="2 prompts and 1 continuations"):
        generator.score(prompts[:2], ["seven"])


def test_options_at_their_limits_do_what_they_say(generator, prompts):
    greedy = generator.complete(prompts, max_new_tokens=5)
    assert generator.complete(prompts, max_new_tokens=5, temperature=1.0, top_k=1) == greedy
    assert generator.complete(prompts, max_new_tokens=5, temperature=1.0, top_p=1e-50) == greedy
    assert generator.complete(prompts, max_new_tokens=5, stop="") == greedy
    hot = dict(max_new_tokens=5, temperature=1.0)
    assert generator.complete(prompts, top_k=2**40, **hot) == generator.complete(prompts, **hot)
    assert generator.complete([], max_new_tokens=5) == generator.score([], []) == []


def test_xpos_ends_at_the_last_position_that_was_measured(generator):
    with pytest.raises(UserError, match="this model has 32768 positions; shorten the prompt or lower max_new_tokens"):
        generator.generate("The digit is", max_new_tokens=2 * CENTRE)


def test_a_text_that_is_no_unicode_is_refused(generator):
    with pytest.raises(UserError, match="the prompt: text 0 is no Unicode"):
        generator.generate("half a \ud800 pair")
    with pytest.raises(UserError, match="continuation 0: text 0 is no Unicode"):
        generator.score(["one"], ["half a \ud800 pair"])


def test_an_image_alone_is_a_prompt(generator, prompts):
    image = prompts[1][0]
    assert generator.generate(image, max_new_tokens=5) == generator.generate([image], max_new_tokens=5)
    for alone in "The digit is", image:
        with pytest.raises(UserError, match=f"prompts is one {type(alone).__name__}; give a list"):
            generator.complete(alone)


def test_a_text_beyond_the_last_sinusoid_is_refused(tokenizer):
    config = model_config(**{"text.vocab_size": tokenizer.size, "text.positions": "sinusoidal"})
    generator = Generator(config, parameters(random_model(config)), tokenizer)
    with pytest.raises(UserError, match="64 positions"):
        generator.generate("The digit is", max_new_tokens=64)


def test_weights_spread_over_devices_generate_what_they_do_on_one(config, params, tokenizer, generator, prompts):
    mesh = make_mesh(ConfigDict(dict(data=1, fsdp=4, tensor=2, context=1)))
    specs = parameter_specs(config, params, mesh)
    spread = {path: jax.device_put(leaf, NamedSharding(mesh, specs[path])) for path, leaf in params.items()}
    sharded = Generator(config, spread, tokenizer)
    assert sharded.complete(prompts, max_new_tokens=10) == generator.complete(prompts, max_new_tokens=10)
    # The copies made for generation are spread as well.
    kernels = [x for x in jax.tree.leaves(sharded.engine.device._weights) if x.ndim == 2 and x.size >= 32 * 64]
    assert kernels and not any(kernel.sharding.is_fully_replicated for kernel in kernels)


def test_attention_by_lengths_writes_what_attention_by_branches_does(config, params, tokenizer, generator, monkeypatch):
    """As on GPUs, there by cuDNN; searches and samples have several branches and stay as they are."""
    by_lengths = partial(attend_by_lengths, implementation="xla")
    monkeypatch.setattr("kosmos_jax.inference.device.token_attention_for", lambda *_: by_lengths)
    other = Generator(config, params, tokenizer)
    for options in (dict(top_logprobs=0), dict(beams=3), dict(choice=["seven", "four, and"])):
        prompts = ["The digit is", "plus", "A handwritten four, of eight"]
        found, wanted = (g.complete(prompts, max_new_tokens=12, **options) for g in (other, generator))
        assert [f.tokens for f in found] == [w.tokens for w in wanted]
        for f, w in zip(found, wanted, strict=True):
            np.testing.assert_allclose(f.logprobs or [], w.logprobs or [], atol=1e-5)
