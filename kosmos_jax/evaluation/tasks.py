"""Tasks: each takes a generator and held-out data and returns a number, what guessing would reach, and the answers.

The digit tasks ask with the words of data_pipeline/builtin.py and spoken.py, which are those of the training documents.
An answer is right when its first word is the right one.
"""

import difflib
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from data_pipeline import builtin
from data_pipeline import spoken as speech
from data_pipeline.documents import Media, RecordError, Text
from data_pipeline.media import host
from data_pipeline.prepare.sources import read
from kosmos_jax.errors import UserError

SEED = 2302  # of the pairs and examples that are sampled
ANSWER_TOKENS = 8
UNIGRAM_DOCUMENTS = 2000  # training documents that the unigram model counts, at most


class Example(NamedTuple):
    """One question: the prompt, the right word and the model's."""

    prompt: tuple[Text | Media, ...]
    expected: str
    answer: str

    @property
    def right(self) -> bool:
        return self.answer == self.expected


class Result(NamedTuple):
    """What a task measured.

    Attributes:
      value: accuracy (0 to 1), or perplexity.
      baseline: the same of the best guess that looks at no item, or of a unigram model.
      n: questions, or tokens.
      measure: "accuracy" or "perplexity".
      examples: the questions, in order.
    """

    value: float
    baseline: float
    n: int
    measure: str = "accuracy"
    examples: tuple[Example, ...] = ()


def caption(generator, config, split: str, examples: int) -> Result:
    """Which digit an image shows: `<image> The digit is`."""
    return _named(generator, "image", builtin.digits(split), builtin.CAPTION_PROMPT, examples)


def spoken(generator, config, split: str, examples: int) -> Result:
    """Which digit is said: `<audio> The digit said is`."""
    return _named(generator, "audio", _clips(config, split), speech.PROMPT, examples)


def digit_sum(generator, config, split: str, examples: int) -> Result:
    """`<image> plus <image> equals`: random pairs, every digit of the split as often on the left as on the right."""
    digits = builtin.digits(split)
    return _added(generator, [("image", digits), ("image", digits)], examples)


def spoken_sum(generator, config, split: str, examples: int) -> Result:
    """`<audio> plus <image> equals`, or the image first: a spoken and a handwritten digit."""
    return _added(generator, [("audio", _clips(config, split)), ("image", builtin.digits(split))], examples, turns=True)


def few_shot(generator, config, split: str, examples: int) -> Result:
    """Two labelled images show in which words to answer; then comes a third."""
    return _in_context(generator, "image", builtin.digits(split), examples)


def spoken_few_shot(generator, config, split: str, examples: int) -> Result:
    """Two labelled clips show in which words to answer; then comes a third."""
    return _in_context(generator, "audio", _clips(config, split), examples)


def _clips(config, split: str):
    """Files and labels of the spoken digits that the config trains on, of a split."""
    for source in config.data.sources.values():
        if source.kind.startswith("spoken_"):
            options = {key: source[key] for key in ("recordings", "held_out") if key in source}
            return speech.spoken_digits(split, **options)[:2]
    raise UserError("tasks on speech need a source of kind spoken_digits or spoken_documents in config.data.sources")


def _named(generator, kind: str, digits, words: str, examples: int) -> Result:
    files, labels = digits
    prompts = [(Media(kind, file), Text(words)) for file in files[:examples]]
    return _ask(generator, prompts, [builtin.WORDS[label] for label in labels[:examples]])


def _added(generator, sides, examples: int, turns: bool = False) -> Result:
    """Sums of one digit of each side; with `turns` every other one has the second side first."""
    draw, prompts, expected = np.random.default_rng(SEED), [], []
    orders = [draw.permutation(len(files)) for _, (files, _) in sides]
    for n, places in enumerate(list(zip(*orders, strict=False))[:examples]):
        pair = [(kind, files[i], labels[i]) for (kind, (files, labels)), i in zip(sides, places, strict=True)]
        (left, a, x), (right, b, y) = pair[::-1] if turns and n % 2 else pair
        prompts.append(builtin.sum_prompt(a, b, kinds=(left, right)))
        expected.append(builtin.WORDS[x + y])
    return _ask(generator, prompts, expected)


def _in_context(generator, kind: str, digits, examples: int) -> Result:
    """The three styles take turns. Guessing knows the style and says its most frequent label."""
    files, labels = digits
    draw = np.random.default_rng(SEED)
    prompts, expected = [], []
    for i in range(min(examples, len(files))):
        style = list(builtin.LABELS)[i % len(builtin.LABELS)]
        others = draw.choice(np.delete(np.arange(len(files)), i), 2, replace=False)
        prompts.append(builtin.list_prompt([(files[j], labels[j]) for j in others], style, files[i], kind))
        expected.append(builtin.LABELS[style](labels[i]))
    styles = len(builtin.LABELS)
    guessed = sum(_most_frequent(expected[style::styles]) for style in range(styles))
    return _ask(generator, prompts, expected)._replace(baseline=guessed / len(expected))


def perplexity(generator, config, split: str, examples: int) -> Result:
    """exp(mean negative log-likelihood per token) of held-out text, document ends included.

    Each document is read in rows as long as in training. The baseline is a unigram model of the training text's tokens,
    one added to every count.
    """
    sources = [source for source in config.data.sources.values() if not any(source.per_row.values())]
    if not sources:
        raise UserError("the task perplexity needs a source of text: one in config.data.sources whose per_row is 0")
    tokenizer = generator.tokenizer
    held_out = _texts(sources, split, examples, tokenizer)
    longest = config.data.seq_len - 1  # and <s>
    rows = [ids[first : first + longest] for ids in held_out for first in range(0, len(ids), longest)]
    counted = _texts(sources, "train", UNIGRAM_DOCUMENTS, tokenizer)
    return _against_unigrams(generator, [""] * len(rows), rows, counted)


def captions(generator, config, split: str, examples: int) -> Result:
    """The same of held-out captions, each given its image or sound; the unigram model counts training captions."""
    sources = [source for source in config.data.sources.values() if any(source.per_row.values())]
    tokenizer = generator.tokenizer
    pairs = _pairs(sources, split, examples)
    if not pairs:
        raise UserError("the task captions needs a source of pairs: documents of one image or sound and a text")
    told = [[*tokenizer.encode(text.text), tokenizer.eos] for _, text in pairs]
    counted = _pairs(sources, "train", UNIGRAM_DOCUMENTS)
    counted = [[*tokenizer.encode(text.text), tokenizer.eos] for _, text in counted]
    return _against_unigrams(generator, [[item] for item, _ in pairs], told, counted)


def _against_unigrams(generator, prompts, held_out: list[list[int]], counted: list[list[int]]) -> Result:
    total, n = map(sum, zip(*generator.score(prompts, held_out), strict=True))
    counts = Counter(token for ids in counted for token in ids)
    everything = counts.total() + generator.tokenizer.size
    unigram = sum(math.log((counts[token] + 1) / everything) for ids in held_out for token in ids)
    return Result(math.exp(-total / n), math.exp(-unigram / n), n, "perplexity")


def _pairs(sources, split, documents) -> list[tuple[Media, Text]]:
    """The first documents of all sources that are an item and a text, without those that prepare leaves out."""
    found = (document.parts for source in sources for document in itertools.islice(read(source, split), documents))
    return [parts for parts in found if [type(part) for part in parts] == [Media, Text] and _can_be_read(parts[0])]


def _can_be_read(item: Media) -> bool:
    try:
        host(item.kind).decode(item.data, item.kind)
    except RecordError:
        return False
    return True


def _texts(sources, split, documents, tokenizer) -> list[list[int]]:
    """Token ids of the first documents of all sources, </s> at the end of each."""
    found = (document for source in sources for document in itertools.islice(read(source, split), documents))
    return [[*tokenizer.encode_document(document.parts).tokens.tolist(), tokenizer.eos] for document in found]


def _ask(generator, prompts, expected) -> Result:
    answers = [first_word(text) for text in generator.generate(prompts, max_new_tokens=ANSWER_TOKENS)]
    examples = tuple(map(Example, prompts, expected, answers))
    n = len(examples)
    return Result(sum(e.right for e in examples) / n, _most_frequent(expected) / n, n, examples=examples)


def first_word(text: str) -> str:
    """What comes before the first space or mark: "seven" of " seven. The"."""
    return re.match(r"\s*(\w*)", text)[1]


def _most_frequent(answers) -> int:
    return max(Counter(answers).values(), default=0)


TASKS: dict[str, Callable] = {
    **{"caption": caption, "sum": digit_sum, "few_shot": few_shot},
    **{"spoken": spoken, "spoken_sum": spoken_sum, "spoken_few_shot": spoken_few_shot},
    "captions": captions,
    "perplexity": perplexity,
}


def run_tasks(generator, config, split: str) -> dict[str, Result]:
    """All of `config.evaluation.tasks`, by name.

    Args:
      generator: inference.generator.Generator.
      config: the complete config; `evaluation.examples` bounds the questions, or documents, of each task.
      split: "train", "validation" or "test".

    Raises:
      UserError: no task of that name, or data that it needs is not there.
    """
    check_names(config.evaluation.tasks)
    return {name: TASKS[name](generator, config, split, config.evaluation.examples) for name in config.evaluation.tasks}


def check_names(names):
    """Raises UserError for a name that is no task's: at the start of a run, not at its first evaluation."""
    for name in names:
        if name not in TASKS:
            nearest = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.0)[0]
            raise UserError(
                f"config.evaluation.tasks: no task {name!r}; did you mean {nearest!r}? all: {', '.join(TASKS)}"
            )


def during_training(split: str = "validation"):
    """What training calls: (graph, params, config, tokenizer) -> {"caption/accuracy": 0.98, ...}.

    One generator serves all calls, so that only the first one compiles.
    """
    generator = None

    def evaluate(graph, params, config, tokenizer) -> dict[str, float]:
        nonlocal generator
        from kosmos_jax.inference.generator import Generator

        # On one device without its mesh, so that `kosmos eval` finds the programs that are compiled here.
        if all(len(leaf.sharding.device_set) == 1 for leaf in params.values()):
            params = {path: leaf.addressable_data(0) for path, leaf in params.items()}
        if generator is None:
            generator = Generator(config.model, params, tokenizer)
        else:
            generator.update(params)
        results = run_tasks(generator, config, split)
        generator.engine.release()  # training has other uses for the memory
        return {f"{name}/{result.measure}": result.value for name, result in results.items()}

    return evaluate
