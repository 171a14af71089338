"""What is asked of the engine, and how far it is."""

from dataclasses import dataclass, field

import numpy as np

from kosmos_jax.inference import text, trie
from kosmos_jax.inference.options import INT32, Completion, Options, Score
from kosmos_jax.inference.prompts import EncodedPrompt
from kosmos_jax.inference.reading import HashedItem
from kosmos_jax.inference.rules import ends_of


@dataclass(eq=False)
class Request:
    """A prompt on its way; `done` once nothing more comes.

    Attributes:
      prompt: what is read.
      items: its media.
    """

    prompt: EncodedPrompt
    items: list[HashedItem]
    done: bool


@dataclass(eq=False)
class Generation(Request):
    """A prompt with the texts that follow it, which grow at every turn of the engine.

    Attributes:
      options: how it continues.
      completions: as far as they are; n of them.
      written: of each, all tokens so far, with the one that ends it.
      pool: the kind of slot that it needs.
      node: where a choice stands in its trie, None for a free text.
      admitted: whether it is in its slot.
    """

    options: Options
    completions: list[Completion]
    written: list[list[int]]
    pool: tuple[int, int]
    node: trie.Node | None
    admitted: bool = False

    @property
    def budget(self) -> int:
        """Tokens that a dispatch may write: a choice looks at each."""
        if not self.admitted:
            return 0
        return INT32 if self.node is None else 1

    def grow(self, w: int, told, b: int, tokenizer):
        """Adds what branch `w` wrote in slot `b` to its text.

        Args:
          w: the branch.
          told: `slots.Told`.
          b: the slot.
          tokenizer: decodes.
        """
        completion = self.completions[w]
        if completion.finish:
            return
        new = told.tokens_KBW[:, b, w] >= 0
        self.written[w] += told.tokens_KBW[new, b, w].tolist()
        if completion.logprobs is not None:
            completion.logprobs += told.logprobs_KBW[new, b, w].tolist()
            top = told.top_ids_KBWE[new, b, w], told.top_logprobs_KBWE[new, b, w]
            completion.top += [pairs(*step, self.options.top_logprobs) for step in zip(*top, strict=True)]
        self.show(completion, self.written[w], tokenizer, running=bool(told.running_BW[b, w]))

    def show(self, completion: Completion, tokens: list[int], tokenizer, running: bool = False):
        """Sets text, tokens and the reason for the end of a completion by all that was written.

        Args:
          completion: one of this request's.
          tokens: all of its tokens so far.
          tokenizer: decodes.
          running: whether more may come.
        """
        options, decode = self.options, tokenizer.decode
        ended = bool(tokens) and tokens[-1] in ends_of(options, tokenizer.eos)
        completion.tokens, completion.end = (tokens[:-1], tokens[-1]) if ended else (list(tokens), None)
        whole = decode(completion.tokens)
        if text.cut(whole, options.stop) is not None:
            # As if the tokens had come one by one: later ones may complete a stop string that begins earlier.
            completion.tokens, completion.end = text.first_tokens_with(decode, completion.tokens, options.stop), None
            completion.text, completion.finish = text.cut(decode(completion.tokens), options.stop), "stop"
            if completion.logprobs is not None:
                del completion.logprobs[len(completion.tokens) :], completion.top[len(completion.tokens) :]
        elif running:
            completion.text = text.settled(whole, options.stop)
        else:
            completion.text, completion.finish = whole, "end" if ended else "length"

    def show_best(self, best, tokenizer):
        """Takes the results of a search that ended, see `beam.Best`."""
        n = len(self.prompt.tokens)
        for completion, text_S, score in zip(self.completions, best.texts_WS, best.scores_W, strict=False):
            completion.score = float(score)
            self.show(completion, text_S[n:][text_S[n:] >= 0].tolist(), tokenizer)


@dataclass(eq=False)
class Scoring(Request):
    """A prompt with given continuations and, once done, their scores.

    Attributes:
      length: of the page that it is read in.
      continuations: int32[n] each.
      top: how many of the most likely tokens to tell.
      scores: in the order of the continuations.
    """

    length: int
    continuations: list[np.ndarray]
    top: int
    scores: list[Score]


@dataclass(eq=False)
class Pool:
    """The slots of one length and number of branches, and who is in them."""

    length: int
    branches: int
    jobs: list[Generation | None] = field(default_factory=list)

    @property
    def key(self) -> tuple[int, int]:
        return self.length, self.branches

    @property
    def live(self) -> list[tuple[int, Generation]]:
        """The slots that are taken."""
        return [(b, job) for b, job in enumerate(self.jobs) if job is not None]


def pairs(ids_E, logprobs_E, count: int) -> list[tuple[int, float]]:
    """The first `count` ids with their log-probabilities."""
    return list(zip(ids_E[:count].tolist(), logprobs_E[:count].tolist(), strict=True))
