"""Generation as users see it: prompts of text and media in, text out."""

from collections.abc import Iterator, Sequence
from numbers import Integral

import numpy as np

from data_pipeline.documents import Text
from kosmos_jax.errors import UserError
from kosmos_jax.inference.engine import Engine
from kosmos_jax.inference.options import Options, Score
from kosmos_jax.inference.prompts import EncodedPrompt, Prompt, encode_prompt, is_item


class Generator:
    """A model ready to continue prompts.

        generator = load("out/demo")
        generator.generate([picture, "plus", sound, "equals"])

    Compiled programs are cached for each length and number of texts, so only the first prompts of a new size wait for
    the compiler.

    Attributes:
      engine: which does the work; it may be given requests of its own.
    """

    def __init__(self, config, params, tokenizer, max_rows: int = 32, **engine):
        """Copies the weights into the form that generation wants.

        Args:
          config: config.model.
          params: path -> array, see model.parameters, or an iterator over such pairs.
          tokenizer: data_pipeline.tokenizer.Tokenizer.
          max_rows: texts that are written side by side at most; more wait.
          **engine: see `Engine`.
        """
        self.config, self.tokenizer = config, tokenizer
        self.engine = Engine(config, params, tokenizer, max_rows=max_rows, **engine)

    def update(self, params):
        """Takes new weights of the same model, as training has them; nothing is compiled again."""
        self.engine.update(params)

    def generate(self, prompts: Prompt | Sequence[Prompt], **options) -> str | list:
        """The text that follows a prompt, or each of several.

        Args:
          prompts: a prompt is a str, an item, or a list of texts and items of which at least one is an item; any other
            list is a list of prompts. See `prompts.Part` for the forms of an item.
          **options: see `Options`.

        Returns:
          A str for one prompt, a list of them for a list; with n above 1, a list of n texts in place of each.
        """
        one = _is_one_prompt(prompts)
        found = self.complete([prompts] if one else prompts, **options)
        several = options.get("n", 1) > 1
        texts = [[completion.text for completion in f] if several else f.text for f in found]
        return texts[0] if one else texts

    def complete(self, prompts: Sequence[Prompt | EncodedPrompt], **options) -> list:
        """As `generate`, with tokens and the reason for the end; always a list of prompts.

        Args:
          prompts: as `generate` takes them, or encoded already.
          **options: see `Options`. What is sampled depends on (seed, place in `prompts`), whatever stands in the other
            prompts.

        Returns:
          A `Completion` for each prompt; with n above 1, a list of n.

        Raises:
          UserError: an option or a prompt that cannot be.
        """
        encoded, own = self._encode(prompts), Options(**options)
        requests = []
        try:
            for place, prompt in enumerate(encoded):
                requests.append(self.engine.generate(prompt, Options(**{**options, "place": own.place + place})))
            self._finish(requests)
        finally:
            self._cancel(requests)
        return [request.completions if own.n > 1 else request.completions[0] for request in requests]

    def stream(self, prompt: Prompt | EncodedPrompt, **options) -> Iterator[str]:
        """The text that follows one prompt, in pieces as it is written.

        Args:
          prompt: one prompt.
          **options: see `Options`; n and beams are 1.

        Raises:
          UserError: an option or a prompt that cannot be.
        """
        own = Options(**options)
        if own.branches > 1:
            raise UserError("a stream is one text: n and beams are 1")
        request, told = self.engine.generate(self._encode([prompt])[0], own), ""
        try:
            while not request.done:
                self.engine.step()
                written = request.completions[0].text
                if len(written) > len(told):
                    yield written[len(told) :]
                    told = written
        finally:
            self._cancel([request])

    def score(
        self, prompts: Sequence[Prompt | EncodedPrompt], continuations: Sequence[str | Sequence[int]]
    ) -> list[tuple[float, int]]:
        """How likely the model finds given continuations: for perplexity.

        Args:
          prompts: one for each continuation.
          continuations: texts, or ids, which may hold </s>.

        Returns:
          For each (sum of log-probabilities, number of tokens).

        Raises:
          UserError: a prompt that cannot be, a token that is no id of the model, or too many of them.
        """
        if len(prompts) != len(continuations):
            raise UserError(f"{len(prompts)} prompts and {len(continuations)} continuations; give one for each")
        found = self.score_each(prompts, [[continuation] for continuation in continuations])
        return [(score.logprob, score.tokens) for (score,) in found]

    def score_each(
        self,
        prompts: Sequence[Prompt | EncodedPrompt],
        continuations: Sequence[Sequence[str | Sequence[int]]],
        top_logprobs: int = 0,
    ) -> list[list[Score]]:
        """How likely the model finds each of several continuations of a prompt, which it reads once.

        Args:
          prompts: several.
          continuations: of each prompt, texts or ids, which may hold </s>.
          top_logprobs: how many of the most likely tokens to tell at each place.

        Raises:
          UserError: see `score`.
        """
        encoded = self._encode(prompts)
        if len(encoded) != len(continuations):
            raise UserError(
                f"{len(encoded)} prompts and {len(continuations)} lists of continuations; give one for each"
            )
        names = [[f"continuation {i}" for i, _ in enumerate(several)] for several in continuations]
        if all(len(several) == 1 for several in continuations):
            names = [[f"continuation {i}"] for i, _ in enumerate(continuations)]
        followed = [
            [self._ids(text, name) for text, name in zip(*pair, strict=True)]
            for pair in zip(continuations, names, strict=True)
        ]
        requests = []
        try:
            for pair in zip(encoded, followed, strict=True):
                requests.append(self.engine.score(*pair, top_logprobs))
            self._finish(requests)
        finally:
            self._cancel(requests)
        return [request.scores for request in requests]

    def _finish(self, requests):
        while not all(request.done for request in requests):
            self.engine.step()

    def _cancel(self, requests):
        for request in requests:
            if not request.done:
                self.engine.cancel(request)

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
            return self.engine.ids_of(text, where)
        size = self.config.text.vocab_size
        for place, token in enumerate(ids := list(text)):
            if not isinstance(token, Integral) or not 0 <= token < size:
                raise UserError(f"{where}: its token {place} is {token}; this model has the ids 0 to {size - 1}")
        return np.array(ids, np.int32)


def _is_one_prompt(prompts) -> bool:
    if isinstance(prompts, str | Text) or is_item(prompts):
        return True
    return any(map(is_item, prompts))
