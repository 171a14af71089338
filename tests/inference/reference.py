"""Generation by the plain model, all tokens read anew for each one: slow, and without a cache, padding or batch."""

from functools import partial

import jax
import numpy as np

from kosmos_jax.inference.prompts import encode_prompt
from kosmos_jax.model import abstract_model, with_parameters

PLACES = 64


@partial(jax.jit, static_argnums=0)
def _log_probabilities(config, params, batch):
    model = with_parameters(abstract_model(config)[0], params)
    hidden = model(*batch)
    return jax.nn.log_softmax(model.logits(hidden)), model.logits(hidden)


class Reference:
    """The model read in the plainest way; padding stands on the right, where a causal model does not see it."""

    def __init__(self, config, params, tokenizer):
        self.config, self.params, self.tokenizer = config, params, tokenizer

    def encode(self, prompt, more=()):
        return encode_prompt(prompt, self.tokenizer).followed_by(more)

    def _read(self, row):
        # Every row alone, as a training batch has it: a row of 64, and places for two images.
        n, image = len(row.tokens), self.tokenizer.modalities[0]
        tokens, slots = np.full((2, 1, PLACES), -1, np.int32)
        tokens[0, :n], tokens[0, n:] = row.tokens, self.tokenizer.pad
        media = np.zeros((2, *image.shape), np.uint8)
        for place, (start, pixels) in enumerate(zip(row.starts, row.media.get("image", ()), strict=True)):
            slots[0, start : start + image.tokens] = place * image.tokens + np.arange(image.tokens)
            media[place] = pixels
        places = np.arange(PLACES)[None]
        batch = tokens, np.ones_like(places), places, slots, {"image": media}
        return [np.asarray(x[0, :n]) for x in _log_probabilities(self.config, self.params, batch)]

    def logits(self, prompt, more=()):
        """float32[V] for the token after the prompt and `more`."""
        return self._read(self.encode(prompt, more))[1][-1]

    def score(self, prompt, more):
        """Sum of the log-probabilities of `more` after the prompt."""
        log_probabilities = self._read(self.encode(prompt, more))[0][-len(more) - 1 : -1]
        return float(sum(log_probabilities[i, token] for i, token in enumerate(more)))

    def next_log_probabilities(self, prompt, more=()):
        return self._read(self.encode(prompt, more))[0][-1]
