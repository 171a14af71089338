"""All that lies on the device, and the compiled programs that work on it.

Arguments are whole numbers and NumPy arrays of fixed shapes, so that the same call can be made on every process.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kosmos_jax.inference import prefill, slots
from kosmos_jax.model import abstract_model, with_parameters

# Tokens that are appended at once where a choice leaves none.
JUMP = 8


class Device:
    """Weights, vectors of items, pages, blocks and pools of slots.

    Pages are known by their length, pools by (length, branches); both are made when they are first asked for.
    """

    def __init__(self, config, params, *, eos: int, vectors: int, chunk: int, steps: int, blocks: int):
        """Copies the weights into the form that generation wants.

        Args:
          config: config.model.
          params: path -> array, see model.parameters.
          eos: the id of </s>.
          vectors: M, rows of the table of vectors.
          chunk: C, tokens of a piece.
          steps: K, tokens of a dispatch at most.
          blocks: R, pieces that are kept at most.
        """
        self.chunk, self._sizes = chunk, (vectors, blocks)
        graph, shapes = abstract_model(config)
        self._model = nnx.eval_shape(lambda params: prefill.for_generation(with_parameters(graph, params)), shapes)
        own, _ = nnx.split(self._model)
        self._convert = jax.jit(lambda params: nnx.split(prefill.for_generation(with_parameters(graph, params)))[1])
        self.update(params)

        def compiled(function, *names, donated, **fixed):
            return jax.jit(partial(function, **fixed), static_argnames=names, donate_argnames=donated)

        self._perceive = compiled(partial(prefill.perceive, own), "name", donated="table_MD")
        self._read = compiled(partial(prefill.read, own), donated="page")
        self._score = compiled(partial(prefill.score, own), donated="page")
        self._keep = compiled(prefill.keep, donated="blocks", size=chunk)
        self._reuse = compiled(prefill.reuse, donated="page")
        self._admit = compiled(slots.admit, donated=("slots", "rules"))
        self._decode = compiled(partial(slots.decode, own), donated="slots", eos=eos, steps=steps)
        self._jump = compiled(partial(slots.jump, own), donated="slots")
        self._rebias = compiled(slots.rebias, donated="rules")
        self.release()

    def update(self, params):
        """Takes new weights of the same model; what was read with the old ones is forgotten."""
        self._weights = self._convert(dict(params))
        self.release()

    def release(self):
        """Frees all but the weights."""
        self._table = self._blocks = None
        self._pages, self._pools = {}, {}

    def perceive(self, name: str, items: np.ndarray, starts_N: np.ndarray):
        """Encodes items of a modality into the table, see `prefill.perceive`."""
        self._table = self._perceive(self._weights, self._vectors(), name, items, starts_N)

    def _vectors(self):
        if self._table is None:
            self._table = jnp.zeros((self._sizes[0], self._model.config.text.width), self._model.dtype)
        return self._table

    def _page(self, length: int):
        if length not in self._pages:
            self._pages[length] = self._model.decoder.empty_cache(1, length)
        return self._pages[length]

    def read(self, length: int, piece: prefill.Piece, start: int):
        """Reads a piece into the page of a length."""
        page = self._page(length)
        self._pages[length] = self._read(self._weights, self._vectors(), page, piece, np.int32(start))

    def score(self, length: int, piece: prefill.Piece, start: int, targets_C, tells: bool) -> prefill.Scored:
        """As `read`, with the log-probabilities of given tokens."""
        arguments = self._vectors(), self._page(length), piece, np.int32(start), targets_C, np.bool_(tells)
        self._pages[length], scored = self._score(self._weights, *arguments)
        return jax.device_get(scored)

    def keep(self, length: int, r: int, start: int):
        """Copies a piece from a page to block `r`."""
        page = self._page(length)
        if self._blocks is None:
            H, _, K = page.k_BHSK[0].shape[1:]
            shape = (self._sizes[1], H, self.chunk, K)
            make = lambda: tuple(jnp.zeros(shape, page.k_BHSK[0].dtype) for _ in page.k_BHSK)  # noqa: E731
            self._blocks = prefill.Blocks(make(), make())
        self._blocks = self._keep(self._blocks, page, np.int32(r), np.int32(start))

    def reuse(self, length: int, r: int, start: int):
        """Copies block `r` to its place in a page."""
        self._pages[length] = self._reuse(self._blocks, self._page(length), np.int32(r), np.int32(start))

    def resize(self, pool: tuple[int, int], rows: int):
        """Makes a pool of free slots, or adds slots to one.

        Args:
          pool: (length, branches).
          rows: how many slots it shall have.
        """
        length, branches = pool
        old = self._pools.get(pool)
        more = rows - (len(old[0].used_B) if old else 0)
        new = slots.empty(self._model, more, length, branches), slots.no_rules(more, self._model.config.text.vocab_size)
        self._pools[pool] = jax.tree.map(lambda *x: jnp.concatenate(x), old, new) if old else new

    def remove(self, pool: tuple[int, int]):
        """Frees a pool."""
        del self._pools[pool]

    def admit(self, pool: tuple[int, int], b: int, ids_S, length: int, own: slots.Rules):
        """Puts the prompt in the page of the pool's length into slot `b`, see `slots.admit`."""
        arguments = self._page(pool[0]), np.int32(b), ids_S, np.int32(length), own
        self._pools[pool] = self._admit(*self._pools[pool], *arguments)

    def decode(self, pool: tuple[int, int], budget_B, hurry: bool) -> slots.Told:
        """Runs the slots of a pool, see `slots.decode`."""
        own, rules = self._pools[pool]
        own, told = self._decode(self._weights, own, rules, budget_B, np.bool_(hurry))
        self._pools[pool] = own, rules
        return jax.device_get(told)

    def jump(self, pool: tuple[int, int], b: int, tokens_F, count: int):
        """Appends known tokens to the text of slot `b`, see `slots.jump`."""
        own, rules = self._pools[pool]
        self._pools[pool] = self._jump(self._weights, own, np.int32(b), tokens_F, np.int32(count)), rules

    def rebias(self, pool: tuple[int, int], b: int, bias_V):
        """Gives slot `b` other biases."""
        own, rules = self._pools[pool]
        self._pools[pool] = own, self._rebias(rules, np.int32(b), bias_V)

    def hypotheses(self, pool: tuple[int, int], b: int) -> tuple[np.ndarray, np.ndarray]:
        """The best ones of a search that ended: texts int32[W, S] with their prompt, and scores float32[W]."""
        beams = self._pools[pool][0].beams
        return np.asarray(beams.best_BWS[b]), np.asarray(beams.scores_BW[b])
