import math
from collections import Counter

import pytest

from data_pipeline import builtin
from data_pipeline.documents import Media
from kosmos_jax.config import apply_overrides
from kosmos_jax.errors import UserError
from kosmos_jax.evaluation.tasks import during_training, first_word, run_tasks
from kosmos_jax.inference.generator import Generator


@pytest.fixture(scope="module")
def results(generator, config):
    return run_tasks(generator, config, "test")


def images_of(example):
    return [part.data for part in example.prompt if isinstance(part, Media)]


def label_of(image):
    images, labels = builtin.digits("test")
    return labels[images.index(image)]


def test_questions_are_the_starts_of_documents_as_trained(results):
    for example in results["caption"].examples:
        caption = builtin.CAPTIONS[0].format(example.expected)
        assert caption.startswith(example.prompt[-1].text)
        assert example.expected == builtin.WORDS[label_of(example.prompt[0].data)]
    for example in results["sum"].examples:
        total = sum(map(label_of, images_of(example)))
        assert example.expected == builtin.WORDS[total]
        assert example.prompt == builtin.sum_prompt(*images_of(example))


def test_every_digit_is_added_once_on_each_side(generator, config):
    pairs = [
        images_of(example)
        for example in run_tasks(
            generator, apply_overrides(config, ["evaluation.tasks=sum", "evaluation.examples=300"]), "test"
        )["sum"].examples
    ]
    for side in zip(*pairs, strict=True):
        assert Counter(side) == Counter(builtin.digits("test")[0])


def test_shots_answer_in_the_style_that_is_asked_for_and_never_show_the_query(results):
    styles = Counter()
    for example in results["few_shot"].examples:
        *shown, query = images_of(example)
        style = next(
            style
            for style in builtin.LABELS
            if example.prompt == builtin.list_prompt([(i, label_of(i)) for i in shown], style, query)
        )
        assert example.expected == builtin.LABELS[style](label_of(query))
        assert len(shown) == 2 and query not in shown
        styles[style] += 1
    assert set(styles) == set(builtin.LABELS)


def test_a_baseline_is_what_the_most_frequent_answer_gets(results):
    for name in ("caption", "sum"):
        expected = [example.expected for example in results[name].examples]
        assert results[name].baseline == max(map(expected.count, expected)) / len(expected)


def test_an_accuracy_is_the_share_of_right_first_words(results):
    for name in ("caption", "sum", "few_shot"):
        examples = results[name].examples
        assert results[name].n == len(examples) == 10
        assert results[name].value == sum(e.answer == e.expected for e in examples) / 10


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large(config, params, tokenizer):
    blank = Generator(config.model, params | {"embedding": params["embedding"] * 0}, tokenizer)
    result = run_tasks(blank, apply_overrides(config, ["evaluation.tasks=perplexity"]), "test")["perplexity"]
    assert result.value == pytest.approx(config.model.text.vocab_size, rel=1e-4)
    assert 20 < result.baseline < tokenizer.size  # the unigram model knows which pieces are frequent


def test_perplexity_counts_every_token_of_the_held_out_text_and_its_end(results, tokenizer):
    source = builtin.Pydoc("test")
    held_out = [source[i] for i in range(min(10, len(source)))]
    assert results["perplexity"].n == sum(len(tokenizer.encode(d.parts[0].text)) + 1 for d in held_out)
    assert math.isfinite(results["perplexity"].value)


@pytest.mark.parametrize(
    "text, word",
    [("seven.", "seven"), (" twelve. The", "twelve"), ("7", "7"), ("", ""), (". odd", ""), ("odd\neven", "odd")],
)
def test_the_answer_is_the_first_word(text, word):
    assert first_word(text) == word


def test_an_unknown_task_is_named_with_the_nearest(generator, config):
    with pytest.raises(UserError, match="'capton'; did you mean 'caption'"):
        run_tasks(generator, apply_overrides(config, ["evaluation.tasks=capton"]), "test")


def test_training_gets_one_number_for_each_task(config, params, tokenizer):
    evaluate = during_training("validation")
    few = apply_overrides(config, ["evaluation.tasks=caption,perplexity"])
    numbers = evaluate(None, params, few, tokenizer)
    assert set(numbers) == {"caption/accuracy", "perplexity/perplexity"}
    assert evaluate(None, params, few, tokenizer) == numbers
