"""Generation as users see it: prompts of text and media in, text out."""

import math
from collections.abc import Sequence
from functools import partial
from numbers import Integral, Real
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipeline.documents import Document, Text
from kosmos_jax.errors import UserError
from kosmos_jax.inference import beam, decoding
from kosmos_jax.inference.prompts import EncodedPrompt, Prompt, bucket, collate, encode_prompt, is_item
from kosmos_jax.model import abstract_model, with_parameters
from kosmos_jax.model.positions import most_positions

# Tokens between two looks at the text, when there are stop strings.
STOP_INTERVAL = 16
# Tokens, padding included, that are read together at most: the scores of attention need memory for their squares.
GROUP_TOKENS = 16_384


class Completion(NamedTuple):
    """What the model wrote after one prompt.

    Attributes:
      text: without the stop string.
      tokens: its ids, </s> excluded; with a stop string, up to the token that completes it.
      finish: "end" (the model wrote </s>), "stop" (a stop string) or "length".
    """

    text: str
    tokens: list[int]
    finish: str


class Generator:
    """A model ready to continue prompts.

        generator = load("out/demo")
        generator.generate([picture, "plus", sound, "equals"])

    Compiled programs are cached for each bucket of rows, tokens and items (prompts.py), so only the first prompts of a
    new size wait for the compiler.
    """

    def __init__(self, config, params, tokenizer, max_rows: int = 32):
        """Copies the weights into the form that generation wants.

        Args:
          config: config.model.
          params: path -> array, see model.parameters.
          tokenizer: data_pipeline.tokenizer.Tokenizer.
          max_rows: prompts read together at most; more are taken in groups.
        """
        self.config, self.tokenizer, self.max_rows = config, tokenizer, max_rows
        self._training_graph, _ = abstract_model(config)
        self._convert = nnx.jit(lambda params: decoding.for_generation(with_parameters(self._training_graph, params)))
        self.update(params)
        graph = self._graph
        self._prefill = jax.jit(partial(decoding.prefill, graph), static_argnames="room")
        self._begin = jax.jit(decoding.begin, static_argnames=("room", "greedy"), donate_argnames="cache")
        self._advance = jax.jit(partial(decoding.advance, graph), static_argnames="greedy", donate_argnames="state")
        self._search = jax.jit(partial(beam.beam_search, graph), static_argnames=("width", "room"))
        self._score = jax.jit(partial(decoding.score, graph))
        ids = np.arange(config.text.vocab_size)
        # Pieces lie between <unk> and the first tag, <mask>. Of the tags, only the end and a new line are text.
        is_piece = (ids > tokenizer.unk) & (ids < tokenizer.mask)
        self._allowed_V = jnp.asarray(is_piece | np.isin(ids, [tokenizer.eos, tokenizer.line]))

    def update(self, params):
        """Takes new weights of the same model, as training has them; nothing is compiled again."""
        self._graph, self._weights = nnx.split(self._convert(dict(params)))

    def generate(self, prompts: Prompt | Sequence[Prompt], **options) -> str | list[str]:
        """The text that follows a prompt, or each of several.

        Args:
          prompts: a prompt is a str, an item, or a list of texts and items of which at least one is an item; any other
            list is a list of prompts. See `prompts.Part` for the forms of an item.
          **options: see `complete`.

        Returns:
          A str for one prompt, a list of them for a list.
        """
        if _is_one_prompt(prompts):
            return self.complete([prompts], **options)[0].text
        return [completion.text for completion in self.complete(prompts, **options)]

    def complete(
        self,
        prompts: Sequence[Prompt | EncodedPrompt],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        beams: int = 1,
        length_penalty: float = 1.0,
        stop: str | Sequence[str] = (),
        seed: int = 0,
    ) -> list[Completion]:
        """As `generate`, with tokens and the reason for the end; always a list of prompts.

        Args:
          prompts: as `generate` takes them, or encoded already.
          max_new_tokens: at most, </s> included.
          temperature: 0 takes the most likely token; above, tokens are sampled.
          top_k, top_p: limits for sampled tokens, see `sampling.truncate`; 0 and 1 are none.
          beams: width of the beam search; 1 is none.
          length_penalty: of the beam search, see beam.py.
          stop: texts before which to end. They may begin and end inside of tokens. A beam search is cut afterwards.
          seed: of sampled tokens, an int64: (seed, place in `prompts`) decides, whatever stands in the other prompts.

        Raises:
          UserError: an option or a prompt that cannot be.
        """
        _check_options(max_new_tokens, temperature, top_k, top_p, beams, length_penalty, seed)
        stop = tuple(filter(None, [stop] if isinstance(stop, str) else stop or ()))
        if not all(isinstance(text, str) for text in stop):
            raise UserError(f"stop is {stop!r}; it must be a text or several")
        encoded = self._encode(prompts)
        for row in encoded:
            self._check_length(len(row.tokens) + max_new_tokens)
        halves = np.array(divmod(int(seed) % 2**64, 2**32), np.uint32)
        most = self.config.text.vocab_size
        numbers = (np.float32(temperature), np.int32(min(top_k, most)), np.float32(top_p), halves)
        limit, room, greedy = np.int32(max_new_tokens), bucket(max_new_tokens), temperature == 0

        def complete_group(group, places):
            batch, lengths_B = self._collate(group)
            places_B = np.resize(places.astype(np.int32), len(lengths_B))
            rules = decoding.Rules(self._allowed_V, self.tokenizer.eos, self.tokenizer.pad, *numbers, places_B)
            logits_BV, cache = self._prefill(self._weights, batch, room=room)
            if beams > 1:
                arguments = (logits_BV, cache, lengths_B, rules, limit, np.float32(length_penalty))
                tokens_BG = np.asarray(self._search(self._weights, *arguments, width=beams, room=room))
                return [self._completion(row, stop) for row in tokens_BG[: len(group)]]
            state = self._begin(logits_BV, cache, lengths_B, rules, room=room, greedy=greedy)
            return self._finish(state, rules, len(group), max_new_tokens, greedy, stop)

        return self._in_groups(complete_group, encoded)

    def _finish(self, state, rules, rows, limit, greedy, stop):
        """Runs the loop: at one go, or looking at the text now and then when there are stop strings."""
        interval = STOP_INTERVAL if stop else limit
        for until in [*range(interval, limit, interval), limit]:
            state = self._advance(self._weights, state, rules, np.int32(until), greedy=greedy)
            completions = [self._completion(row, stop) for row in np.asarray(state.tokens_BG[:rows])]
            ended_B = np.array(state.ended_B)
            ended_B[:rows] |= [completion.finish == "stop" for completion in completions]
            if ended_B.all():
                break
            state = state._replace(ended_B=ended_B)
        return completions

    def _completion(self, tokens_G, stop) -> Completion:
        ends = np.flatnonzero(np.isin(tokens_G, [self.tokenizer.eos, self.tokenizer.pad]))
        tokens = tokens_G[: ends[0] if len(ends) else None].tolist()
        finish = "end" if len(ends) and tokens_G[ends[0]] == self.tokenizer.eos else "length"
        text = self.tokenizer.decode(tokens)
        cut = min((place for place in map(text.find, stop) if place >= 0), default=None)
        if cut is None:
            return Completion(text, tokens, finish)
        holds_stop = lambda n: any(s in self.tokenizer.decode(tokens[:n]) for s in stop)  # noqa: E731
        return Completion(text[:cut], tokens[: next(filter(holds_stop, range(len(tokens) + 1)))], "stop")

    def score(
        self, prompts: Sequence[Prompt | EncodedPrompt], continuations: Sequence[str | Sequence[int]]
    ) -> list[tuple[float, int]]:
        """How likely the model finds given continuations: for multiple choice and perplexity.

        Args:
          prompts: one for each continuation.
          continuations: texts, or ids, which may hold </s>.

        Returns:
          For each (sum of log-probabilities, number of tokens).

        Raises:
          UserError: a prompt that cannot be, a token that is no id of the model, or too many of them.
        """
        encoded = self._encode(prompts)
        if len(encoded) != len(continuations):
            raise UserError(f"{len(encoded)} prompts and {len(continuations)} continuations; give one for each")
        followed = []
        for i, (prompt, continuation) in enumerate(zip(encoded, continuations, strict=True)):
            ids = self._ids(continuation, f"continuation {i}")
            followed.append((prompt.followed_by(ids), len(ids)))
            self._check_length(len(prompt.tokens) + len(ids))

        def score_group(group, places):
            batch, _ = self._collate(group)
            targets_BT = np.full_like(batch.tokens_BT, -1)
            for b, place in enumerate(places):
                n = followed[place][1]
                targets_BT[b, -n - 1 : -1] = group[b].tokens[len(group[b].tokens) - n :]
            sums = np.asarray(self._score(self._weights, batch, targets_BT))
            return [(float(sums[b]), followed[place][1]) for b, place in enumerate(places)]

        return self._in_groups(score_group, [row for row, _ in followed])

    def _encode(self, prompts) -> list[EncodedPrompt]:
        if not isinstance(prompts, list | tuple):
            raise UserError(f"prompts is one {type(prompts).__name__}; give a list of prompts, or take generate")
        encoded = [p if isinstance(p, EncodedPrompt) else encode_prompt(p, self.tokenizer) for p in prompts]
        for i, prompt in enumerate(encoded):
            self._ids(prompt.tokens, f"prompt {i}")
        return encoded

    def _ids(self, text: str | Sequence[int], where: str) -> np.ndarray:
        """int32[n]: the ids of a text, or given ones if the model has them; the embedding of others would be NaN."""
        if isinstance(text, str):
            return self.tokenizer.encode_document(Document((Text(text),), where).parts).tokens
        size = self.config.text.vocab_size
        for place, token in enumerate(ids := list(text)):
            if not isinstance(token, Integral) or not 0 <= token < size:
                raise UserError(f"{where}: its token {place} is {token}; this model has the ids 0 to {size - 1}")
        return np.array(ids, np.int32)

    def _in_groups(self, function, encoded: list[EncodedPrompt]) -> list:
        """function(rows, their places) in groups of prompts of similar length; results in the order of the prompts."""
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].tokens))
        results = {}
        while order:
            rows = min(self.max_rows, len(order))
            while rows > 1 and rows * len(encoded[order[rows - 1]].tokens) > GROUP_TOKENS:
                rows -= 1
            places, order = np.array(order[:rows]), order[rows:]
            results.update(zip(places.tolist(), function([encoded[i] for i in places], places), strict=True))
        return [results[i] for i in range(len(encoded))]

    def _collate(self, group: list[EncodedPrompt]):
        batch = collate(group, self.tokenizer.pad, self.tokenizer.modalities)
        return batch, batch.segments_BT.sum(axis=1, dtype=np.int32)

    def _check_length(self, tokens: int):
        most = most_positions(self.config.text)
        if tokens > most:
            raise UserError(
                f"prompt and new tokens make {tokens}, and this model has {most} positions; shorten the prompt or "
                "lower max_new_tokens"
            )


def _is_one_prompt(prompts) -> bool:
    if isinstance(prompts, str | Text) or is_item(prompts):
        return True
    return any(map(is_item, prompts))


def _check_options(max_new_tokens, temperature, top_k, top_p, beams, length_penalty, seed):
    int32, float32 = np.iinfo(np.int32).max, float(np.finfo(np.float32).max)
    for name, value, kind, least, most, wanted in (
        ("max_new_tokens", max_new_tokens, Integral, 1, int32, "a whole number, at least 1"),
        ("temperature", temperature, Real, 0, float32, "0 (the most likely token) or more, and finite"),
        ("top_k", top_k, Integral, 0, math.inf, "a whole number: 0 (no limit) or more"),
        ("top_p", top_p, Real, math.ulp(0), 1, "above 0 and at most 1 (no limit)"),
        ("beams", beams, Integral, 1, int32, "a whole number, at least 1"),
        ("beams", beams, Integral, 1, 1 if temperature else int32, "1 when tokens are sampled (temperature above 0)"),
        ("length_penalty", length_penalty, Real, -float32, float32, "finite"),
        ("seed", seed, Integral, -(2**63), 2**63 - 1, "an int64"),
    ):
        if not (isinstance(value, kind) and least <= value <= most):
            raise UserError(f"{name} is {value!r}; it must be {wanted}")
