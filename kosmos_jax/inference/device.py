"""All that lies on the device, and the compiled programs that work on it.

Arguments are whole numbers and NumPy arrays of fixed shapes, so that the same call can be made on every process.
"""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from kosmos_jax.inference import beam, prefill, slots
from kosmos_jax.inference.weights import inference_model, inference_weights
from kosmos_jax.parallel.attention import token_attention_for
from kosmos_jax.parallel.mesh import AXES
from kosmos_jax.parallel.sharding import fitting

# Compiler options. XLA for GPUs makes one product of those that read the same, and would join the kernels of queries,
# keys and values at every step.
OPTIONS = {"gpu": {"xla_gpu_dot_merger_threshold_mb": 0}}
# Tokens that are appended at once where a choice leaves none.
JUMP = 8


class Device:
    """Weights, vectors of items, pages, blocks and pools of slots.

    Pages are known by their length, pools by (length, branches); both are made when they are first asked for.
    """

    def __init__(self, config, params, *, eos: int, vectors: int, chunk: int, steps: int, blocks: int, int8=()):
        """Copies the weights into the form that generation wants. They stay on their devices, and all else joins them:
        on a mesh, slots are split over its axis `data`, heads over `tensor`.

        Args:
          config: config.model.
          params: path -> array, see model.parameters, or an iterator over such pairs. Shapes with shardings are enough
            to ask for `shapes` and programs.
          eos: the id of </s>.
          vectors: M, rows of the table of vectors.
          chunk: C, tokens of a piece.
          steps: K, tokens of a dispatch at most.
          blocks: R, pieces that are kept at most.
          int8: what is held in eight bits, of "weights" and "cache".
        """
        self.chunk, self._block_count = chunk, blocks
        self._model = model = inference_model(config, "weights" in int8, "cache" in int8)
        self.update(params)
        self._mesh = mesh_of(self._weights)
        model.decoder.token_attention = token_attention_for(self._mesh, config.text, model.dtype, "cache" in int8)
        own, width, self._scores = nnx.split(model)[0], config.text.width, model.embedding.shape[0]
        self._make_table = self._compiled(lambda: jnp.zeros((vectors, width), model.dtype))
        self._perceive = self._compiled(partial(prefill.perceive, own), donated="table_MD", static="name")
        self._make_cache = self._compiled(model.decoder.empty_cache, static=("rows", "entries"))
        self._read = self._compiled(partial(prefill.read, own), donated="page")
        self._score = self._compiled(partial(prefill.score, own), donated="page")
        self._keep = self._compiled(prefill.keep, donated="blocks")
        self._reuse = self._compiled(prefill.reuse, donated="page")
        sizes = ("rows", "entries", "branches")
        self._make_slots = self._compiled(partial(slots.free, model, self._scores), static=sizes, rows="data")
        self._join = self._compiled(slots.joined, rows="data")
        self._admit = self._compiled(slots.admit, donated=("slots", "rules"), rows="data")
        decode = partial(slots.decode, own, eos=eos, steps=steps, split=self._split)
        self._decode = self._compiled(decode, donated="slots", rows="data")
        self._jump = self._compiled(partial(slots.jump, own), donated="slots", rows="data")
        self._rebias = self._compiled(slots.rebias, donated="rules", rows="data")
        self._best = self._compiled(beam.best)

    def _compiled(self, function, *, donated=(), static=(), rows=None):
        """A program whose results lie where the next program wants them.

        Args:
          function: what it does.
          donated, static: names of arguments.
          rows: the axis of the mesh over which the first dimension is split.
        """

        def pin(x):
            return jax.lax.with_sharding_constraint(x, self._place(x, rows))

        def pinned(*args, **kwargs):
            found = function(*args, **kwargs)
            is_told = lambda x: isinstance(x, slots.Told | prefill.Scored | beam.Best)  # noqa: E731
            return jax.tree.map(lambda x: jax.tree.map(replicate, x) if is_told(x) else pin(x), found, is_leaf=is_told)

        def replicate(x):
            return jax.lax.with_sharding_constraint(x, NamedSharding(self._mesh, P()))

        names = dict(donate_argnames=donated, static_argnames=static)
        options = OPTIONS.get(self._mesh.devices.flat[0].platform)
        return jax.jit(functools.wraps(function)(pinned), **names, compiler_options=options)

    def _split(self, scores_BWV):
        spec = fitting(("data", None, "tensor"), scores_BWV.shape, self._mesh)
        return jax.lax.with_sharding_constraint(scores_BWV, NamedSharding(self._mesh, spec))

    def _place(self, x, rows) -> NamedSharding:
        """Keys and values are the arrays of four dimensions, the second of which are heads."""
        spec = fitting((rows, "tensor") if x.ndim == 4 else (rows,), x.shape, self._mesh) if x.ndim else P()
        return NamedSharding(self._mesh, spec)

    def shapes(self, length: int, rows: int) -> dict:
        """What lies on a mesh for a pool of slots with one branch each: shapes and shardings, nothing allocated.

        Args:
          length: S.
          rows: B.

        Returns:
          "weights", "table", "page", "blocks" and "slots" (with their rules), trees of jax.ShapeDtypeStruct.
        """

        def placed(make, over=None, **sizes):
            return jax.tree.map(lambda x: x.update(sharding=self._place(x, over)), make.eval_shape(**sizes))

        return dict(
            weights=self._weights,
            table=placed(self._make_table),
            page=placed(self._make_cache, rows=1, entries=length),
            blocks=placed(self._make_cache, rows=self._block_count, entries=self.chunk),
            slots=placed(self._make_slots, "data", rows=rows, entries=length, branches=1),
        )

    def lowered(self, shapes: dict) -> dict[str, jax.stages.Lowered]:
        """The programs `decode` and `read`, for `shapes`, before the compiler."""
        number, flag = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), bool)
        of_slots = jax.ShapeDtypeStruct(shapes["slots"][0].used_B.shape, jnp.int32)
        piece = (jax.ShapeDtypeStruct((self.chunk,), dtype) for dtype in (jnp.int32, jnp.int32, jnp.uint32, jnp.int32))
        weights, page = shapes["weights"], shapes["page"]
        return dict(
            decode=self._decode.lower(weights, *shapes["slots"], of_slots, flag),
            read=self._read.lower(weights, shapes["table"], page, prefill.Piece(*piece), number),
        )

    def update(self, params):
        """Takes new weights of the same model; what was read with the old ones is forgotten."""
        self._weights = inference_weights(self._model, params.items() if hasattr(params, "items") else params)
        self.release()

    def release(self):
        """Frees all but the weights."""
        self._table = self._blocks = None
        self._pages, self._pools = {}, {}

    def perceive(self, name: str, items: np.ndarray, starts_N: np.ndarray):
        """Encodes items of a modality into the table, see `prefill.perceive`."""
        self._table = self._perceive(self._weights, self._vectors(), name=name, items=items, starts_N=starts_N)

    def _vectors(self):
        if self._table is None:
            self._table = self._make_table()
        return self._table

    def _page(self, length: int):
        if length not in self._pages:
            self._pages[length] = self._make_cache(rows=1, entries=length)
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
        if self._blocks is None:
            self._blocks = self._make_cache(rows=self._block_count, entries=self.chunk)
        self._blocks = self._keep(self._blocks, self._page(length), np.int32(r), np.int32(start))

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
        new = self._make_slots(rows=more, entries=length, branches=branches)
        self._pools[pool] = self._join(old, new) if old else new

    def remove(self, pool: tuple[int, int]):
        """Frees a pool."""
        del self._pools[pool]

    def admit(self, pool: tuple[int, int], b: int, ids_S, length: int, own: slots.Rules):
        """Puts the prompt in the page of the pool's length into slot `b`, see `slots.admit`."""
        own = own._replace(bias_BV=self._filled_up(own.bias_BV))
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
        self._pools[pool] = own, self._rebias(rules, np.int32(b), self._filled_up(bias_V))

    def _filled_up(self, bias_V):
        """As long as the scores, which are -inf for what is no token."""
        return np.pad(bias_V, (0, self._scores - len(bias_V)))

    def hypotheses(self, pool: tuple[int, int], b: int) -> beam.Best:
        """The best ones of a search that ended."""
        return jax.device_get(self._best(self._pools[pool][0].beams, np.int32(b)))


def mesh_of(weights) -> jax.sharding.Mesh:
    """The mesh that weights are on; one device is a mesh too, to which all that is made beside them is committed."""
    sharding = jax.tree.leaves(weights)[0].sharding
    if isinstance(sharding, NamedSharding):
        return sharding.mesh
    (device,) = sharding.device_set
    return jax.sharding.Mesh(np.array([device]).reshape([1] * len(AXES)), AXES)
