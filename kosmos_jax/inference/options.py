"""What a request may say about its continuation, and what it gets back."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np

from kosmos_jax.errors import UserError
from kosmos_jax.inference.sampling import LONGEST_NGRAM, TINY

INT32, FLOAT32 = np.iinfo(np.int32).max, float(np.finfo(np.float32).max)
MOST_STOP_IDS = 8  # beside </s>
MOST_TOP_LOGPROBS = 20
BIAS = 100  # as OpenAI has it: enough to force a token, or to rule it out
MOST_BRANCHES = 32  # bits of `Cache.branches_BS`


@dataclass(frozen=True)
class Options:
    """How to continue one prompt.

    Attributes:
      max_new_tokens: at most, </s> included.
      min_new_tokens: before which neither </s> nor a stop id comes.
      temperature: 0 takes the most likely token; above, tokens are sampled.
      top_k, top_p, min_p: limits for sampled tokens, see `sampling.truncate`; 0, 1 and 0 are none.
      repetition_penalty, no_repeat_ngram: see `sampling.repeat_penalties`; 1 and 0 are none.
      seed: of sampled tokens, an int64; None for another one each time.
      place: a second number that sampled tokens depend on: a prompt's place in its batch.
      n: how many continuations; of a beam search, its best ones.
      beams: width of the beam search; 1 is none.
      length_penalty: of the beam search, see beam.py.
      stop: texts before which to end. They may begin and end inside of tokens. A beam search is cut afterwards.
      stop_ids: tokens that end the continuation as </s> does.
      ignore_eos: whether </s> is just a token that cannot come.
      allowed: the only ids that may come, beside </s>; None for all.
      bias: added to the logits of ids.
      choice: the only texts that may come, one of them in full.
      top_logprobs: how many of the most likely tokens to tell at every step, beside the one that came; None tells no
        log-probability at all.
    """

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    seed: int | None = 0
    place: int = 0
    n: int = 1
    beams: int = 1
    length_penalty: float = 1.0
    stop: str | Sequence[str] = ()
    stop_ids: Sequence[int] = ()
    ignore_eos: bool = False
    allowed: Sequence[int] | None = None
    bias: dict[int, float] | None = None
    choice: Sequence[str] | None = None
    top_logprobs: int | None = None

    def __post_init__(self):
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop or ()
        if not isinstance(stop, list | tuple) or not all(isinstance(text, str) for text in stop):
            raise UserError(f"stop is {self.stop!r}; it must be a text or several")
        object.__setattr__(self, "stop", tuple(filter(None, stop)))
        for name, kind, least, most, wanted in LIMITS:
            value = getattr(self, name)
            if not (isinstance(value, kind) and not isinstance(value, bool) and least <= value <= most):
                raise UserError(f"{name} is {value!r}; it must be {wanted}")
        for name, kind, least, most, wanted in (
            ("seed", Integral, -(2**63), 2**63 - 1, "an int64"),
            ("top_logprobs", Integral, 0, MOST_TOP_LOGPROBS, f"0 to {MOST_TOP_LOGPROBS}"),
        ):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, kind) and least <= value <= most):
                raise UserError(f"{name} is {value!r}; it must be {wanted}")
        if self.temperature < TINY:  # what float32 cannot hold
            object.__setattr__(self, "temperature", 0.0)
        if len(self.stop_ids) > MOST_STOP_IDS:
            raise UserError(f"{len(self.stop_ids)} stop_ids; at most {MOST_STOP_IDS} can be there")
        if not all(isinstance(value, Real) and -BIAS <= value <= BIAS for value in (self.bias or {}).values()):
            raise UserError(f"bias is a number from -{BIAS} to {BIAS} for each id")
        if self.choice is not None:
            texts = self.choice if isinstance(self.choice, list | tuple) else ()
            if not texts or not all(isinstance(text, str) and text for text in texts):
                raise UserError(f"choice is {self.choice!r}; it must be a list of texts, none of them empty")
        for refused, message in (
            (self.min_new_tokens > self.max_new_tokens, "min_new_tokens is more than max_new_tokens"),
            (self.beams > 1 and self.temperature, f"beams is {self.beams}; it must be 1 when tokens are sampled"),
            (self.beams > 1 and self.n > self.beams, f"n is {self.n}; a search with {self.beams} beams has no more"),
            (self.beams > 1 and self.stop_ids, "stop_ids and beams do not go together; a search ends with </s> alone"),
            (self.beams > 1 and self.top_logprobs is not None, "a search with beams tells no log-probabilities"),
            (self.choice is not None and self.branches > 1, "choice goes with one continuation: n and beams are 1"),
            (self.choice is not None and self.top_logprobs is not None, "choice tells no log-probabilities"),
            (self.choice is not None and self.no_repeat_ngram, "choice and no_repeat_ngram do not go together"),
            (self.choice is not None and self.ignore_eos, "choice and ignore_eos do not go together: </s> ends a text"),
        ):
            if refused:
                raise UserError(message)

    @property
    def branches(self) -> int:
        """Texts that grow from the prompt at the same time."""
        return max(self.n, self.beams)


LIMITS = (
    ("max_new_tokens", Integral, 1, INT32, "a whole number, at least 1"),
    ("min_new_tokens", Integral, 0, INT32, "a whole number: 0 (no limit) or more"),
    ("temperature", Real, 0, FLOAT32, "0 (the most likely token) or more, and finite"),
    ("top_k", Integral, 0, math.inf, "a whole number: 0 (no limit) or more"),
    ("top_p", Real, math.ulp(0), 1, "above 0 and at most 1 (no limit)"),
    ("min_p", Real, 0, 1, "0 (no limit) to 1"),
    ("repetition_penalty", Real, 1e-3, 1e3, "1 (none), or from 0.001 to 1000"),
    ("no_repeat_ngram", Integral, 0, LONGEST_NGRAM, f"0 (none) to {LONGEST_NGRAM}"),
    ("place", Integral, 0, INT32, "a whole number"),
    ("n", Integral, 1, MOST_BRANCHES, f"a whole number from 1 to {MOST_BRANCHES}"),
    ("beams", Integral, 1, MOST_BRANCHES, f"a whole number from 1 to {MOST_BRANCHES}"),
    ("length_penalty", Real, -FLOAT32, FLOAT32, "finite"),
)


@dataclass
class Completion:
    """What the model wrote after one prompt.

    Attributes:
      text: without the stop string.
      tokens: its ids, </s> excluded; with a stop string, up to the token that completes it.
      finish: "end" (the model wrote </s> or a stop id), "stop" (a stop string), "length", or "" while it is written.
      logprobs: of each token, and of </s> at the end where it came; by the model alone, before temperature, penalties
        and limits. None if nobody asked.
      top: for each of those, the most likely tokens with their log-probabilities.
      score: of a beam search, see beam.py.
      end: the token that ended it, </s> or a stop id, where one did.
    """

    text: str
    tokens: list[int]
    finish: str
    logprobs: list[float] | None = None
    top: list[list[tuple[int, float]]] | None = None
    score: float | None = None
    end: int | None = None


@dataclass(frozen=True)
class Score:
    """How likely the model finds a given continuation.

    Attributes:
      logprob: the sum over its tokens.
      tokens: how many.
      greedy: whether each was the most likely one.
      logprobs: of each token.
      top: for each token, the most likely ones with their log-probabilities; empty if nobody asked.
    """

    logprob: float
    tokens: int
    greedy: bool
    logprobs: list[float]
    top: list[list[tuple[int, float]]]
