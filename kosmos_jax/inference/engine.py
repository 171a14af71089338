"""The engine: prompts wait, are read piece by piece, and continue in slots beside each other.

A turn of the engine (`Engine.step`) reads some pieces of waiting prompts and then lets every pool of slots generate for
one dispatch. So requests enter and leave at every turn, and a long prompt does not hold up the others.
"""

from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from data_pipeline.documents import Document, Text
from kosmos_jax.errors import UserError
from kosmos_jax.inference import trie
from kosmos_jax.inference.device import JUMP, Device
from kosmos_jax.inference.options import MOST_BRANCHES, Completion, Options, Score
from kosmos_jax.inference.prompts import EncodedPrompt, power_of_two
from kosmos_jax.inference.reading import HashedItem, Reader, items_of, piece
from kosmos_jax.inference.requests import Generation, Pool, Request, Scoring, pairs
from kosmos_jax.inference.rules import allowed_ids, bias_of, check_ids, limit_of, rules_of
from kosmos_jax.model.positions import most_positions
from kosmos_jax.parallel.distributed import WAIT_SECONDS, exchange

# Tokens of a piece of a prompt, and of a turn of the engine, unless something else is asked for.
CHUNK, STEPS = 32, 16
# Items of each modality whose vectors are kept, and numbers of items that are encoded together.
PLACES, COUNTS = 64, (1, 2, 4, 8)
# Entries of a pool's cache, at most, where pools are made as they are needed.
POOL_ENTRIES = 32_768
# Tokens of continuations that make a page longer, at most; more are scored one after another.
SCORED_TOGETHER = 512


def device_shapes(modalities, longest: int, chunk: int = CHUNK, steps: int = STEPS) -> dict[str, int]:
    """Sizes of what a `Device` holds.

    Args:
      modalities: of the model.
      longest: the length of the longest pool.
      chunk, steps: see `Engine`.
    """
    vectors = max(1, sum(PLACES * modality.tokens for modality in modalities))
    return dict(vectors=vectors, chunk=chunk, steps=steps, blocks=longest // chunk)


class Engine:
    """Takes requests at any time and moves them all on at every `step`.

    Attributes:
      allowed: ids that may be generated at all.
      waiting: requests that are not being read yet, first come first.
      longest: tokens of the longest slot, where slots are fixed, or of the longest text that the model can have.
      written: tokens that were written so far.
    """

    def __init__(
        self, config, params, tokenizer, *, max_rows=32, pools=None, chunk=CHUNK, steps=STEPS, pieces=None, int8=()
    ):
        """Makes an engine with nothing to do.

        Args:
          config: config.model.
          params: path -> array, see model.parameters.
          tokenizer: data_pipeline.tokenizer.Tokenizer.
          max_rows: texts that are written side by side at most, where pools are made as needed.
          pools: (length, branches) -> slots, if only these shall be there: nothing is then compiled after the first
            request of each kind, and results do not depend on the traffic in any bit. None makes pools as needed.
          chunk: tokens of a piece of a prompt; lengths are multiples of it.
          steps: tokens at most that a turn writes in each branch.
          pieces: of prompts that a turn reads at most, while others write; None for all.
          int8: what is held in eight bits, of "weights" and "cache", see model/int8.py.
        """
        self.config, self.tokenizer, self._chunk, self._pieces = config, tokenizer, chunk, pieces
        self._fixed, self._max_rows, self._most = pools, max_rows, most_positions(config.text)
        if chunk < 2:
            raise UserError(f"chunk is {chunk}; a piece has at least 2 tokens, one alone is a step of generation")
        for length, branches in pools or ():
            if length % chunk or not 1 <= branches <= MOST_BRANCHES:
                raise UserError(
                    f"a pool of length {length} with {branches} branches: a length is a multiple of {chunk}, and "
                    f"branches are 1 to {MOST_BRANCHES}"
                )
        self._pools = {key: Pool(*key) for key in sorted(pools or ())}
        counts, found = COUNTS[2:3] if pools else COUNTS, tokenizer.modalities
        longest = max(length for length, _ in pools) if pools else min(2048, self._most)
        self.longest, self.written = longest if pools else self._most, 0
        shapes = device_shapes(found, longest, chunk, steps)
        self.device = Device(config, params, eos=tokenizer.eos, int8=int8, **shapes)
        self.reader = Reader(self.device, found, PLACES, counts, shapes["blocks"])
        self.waiting: deque[Request] = deque()
        self._current: tuple[Request, Iterator] | None = None
        # Seeds that nobody gave: the same in all processes, which do the same at every turn.
        entropy = str(np.random.SeedSequence().entropy)
        self._random = np.random.default_rng(int(exchange("seeds", entropy, WAIT_SECONDS)[0]))
        self.allowed = allowed_ids(tokenizer, config.text.vocab_size)

    def update(self, params):
        """Takes new weights of the same model; nothing is compiled again.

        Raises:
          UserError: something is being generated.
        """
        if self.busy:
            raise UserError("new weights while texts are being written; finish or cancel them first")
        self.device.update(params)
        self.release()

    def release(self):
        """Frees all memory but that of the weights, once there is nothing to do."""
        self.device.release()
        self.reader.forget()
        self._pools = {key: Pool(*key) for key in sorted(self._fixed or ())}

    def warm_up(self):
        """Compiles all that the fixed pools can need: no request waits for the compiler then."""
        device, C = self.device, self._chunk
        nothing_C = np.full(C, -1, np.int32)
        blank = piece([], nothing_C, 0, [])
        for modality in self.tokenizer.modalities:
            device.perceive(modality.name, *self.reader.blank(modality))
        for length in {length for length, _ in self._fixed}:
            device.read(length, blank, 0)
            device.score(length, blank, 0, nothing_C, True)
            device.keep(length, 0, 0)
            device.reuse(length, 0, 0)
        for pool in self._pools.values():
            self._resize(pool, self._fixed[pool.key])
            device.admit(pool.key, 0, np.full(pool.length, -1, np.int32), 1, self._rules(Options(), None))
            device.decode(pool.key, np.full(len(pool.jobs), -1, np.int32), False)
            if pool.branches > 1:
                device.hypotheses(pool.key, 0)
            else:
                device.jump(pool.key, 0, np.zeros(JUMP, np.int32), 1)
                device.rebias(pool.key, 0, self._bias(Options()))
        self.release()

    @property
    def pools(self) -> list[tuple[int, int]]:
        """The kinds of slots that there are, by (length, branches)."""
        return list(self._pools)

    def taken(self, pool: tuple[int, int]) -> int:
        """How many slots of a kind are taken."""
        return len(self._pools[pool].live)

    @property
    def busy(self) -> bool:
        """Whether some request is not done."""
        return bool(self.waiting or self._current or any(pool.live for pool in self._pools.values()))

    def generate(self, prompt: EncodedPrompt, options: Options) -> Generation:
        """Queues a prompt to continue.

        Raises:
          UserError: it is too long, or an option does not suit the model.
        """
        node, told = None, options.top_logprobs is not None
        check_ids(options, self.allowed, self.tokenizer.eos)
        completions = [Completion("", [], "", *([], []) if told else ()) for _ in range(options.n)]
        written = [[] for _ in range(options.n)]
        if options.choice is not None:
            root = trie.trie(map(self.ids_of, options.choice), self.tokenizer.eos)
            written = [root.way_out()]
            node, prompt = root.after(written[0]), prompt.followed_by(written[0])
        pool = self._pool(len(prompt.tokens), options, node)
        request = Generation(prompt, items_of(prompt), False, options, completions, written, pool, node)
        if node is not None and not node:  # one text alone
            request.show(completions[0], written[0], self.tokenizer)
            request.done = True
        else:
            self.waiting.append(request)
        return request

    def score(self, prompt: EncodedPrompt, continuations: Sequence[np.ndarray], top: int = 0) -> Scoring:
        """Queues a prompt whose given continuations are to be scored.

        Args:
          prompt: what they follow.
          continuations: ids of each.
          top: how many of the most likely tokens to tell at each place.

        Raises:
          UserError: prompt and continuation are too long.
        """
        n, lengths = len(prompt.tokens), [len(continuation) for continuation in continuations]
        self._check_positions(n, max(lengths, default=0))
        begin, wanted = self._rounded(n - 1), [self._rounded(sum(lengths)), self._rounded(max(lengths, default=0))]
        least = max(wanted[1], SCORED_TOGETHER)
        length = self._page(begin + min(wanted[0], least)) or self._page(begin + wanted[1])
        if length is None:
            raise UserError(f"prompt and continuation need {begin + wanted[1]} places; the longest pool has fewer")
        request = Scoring(prompt, items_of(prompt), False, length, list(continuations), top, [])
        self.waiting.append(request)
        return request

    def cancel(self, request: Request):
        """Ends a request; its slot is free at the next turn."""
        request.done = True
        if self._current and self._current[0] is request:
            self._current = None
        if request in self.waiting:
            self.waiting.remove(request)
        for pool in self._pools.values():
            pool.jobs = [None if job is request else job for job in pool.jobs]

    def cancel_all(self):
        """Ends every request, such as after an error in the middle of a turn."""
        current = [self._current[0]] if self._current else []
        for request in [*self.waiting, *current, *(job for pool in self._pools.values() for _, job in pool.live)]:
            self.cancel(request)

    def step(self):
        """One turn: reads pieces of prompts, then every pool writes."""
        writing = any(pool.live for pool in self._pools.values())
        left = self._pieces if writing and self._pieces else None
        while left != 0 and (self._current or self._start()):
            request, work = self._current
            if request.done or next(work, self) is self:
                self._current = None
            elif left:
                left -= 1
        for pool in self._pools.values():
            if any(job.admitted for _, job in pool.live):
                self._write(pool)

    def _start(self) -> bool:
        """Takes the first request that can be read now out of the queue; False if there is none."""
        for request in self.waiting:
            if isinstance(request, Scoring):
                self._current = request, self._scored(request)
            elif (place := self._free_slot(request)) is not None:
                pool, b = place
                pool.jobs[b] = request
                self._current = request, self._admitted(request, pool, b)
            else:
                continue
            self.waiting.remove(request)
            return True
        return False

    def _free_slot(self, request: Generation) -> tuple[Pool, int] | None:
        pool = self._pools.setdefault(request.pool, Pool(*request.pool))
        if self._fixed is not None and not pool.jobs:
            self._resize(pool, self._fixed[pool.key])
        if self._fixed is None:
            same = sum(isinstance(other, Generation) and other.pool == pool.key for other in self.waiting)
            most = min(max(1, self._max_rows // pool.branches), max(1, POOL_ENTRIES // pool.length))
            rows = min(most, power_of_two(len(pool.live) + same))
            if not pool.live and pool.jobs and rows < len(pool.jobs):
                self.device.remove(pool.key)
                pool.jobs = []
            if rows > len(pool.jobs):
                for other in self._pools.values():
                    if other is not pool and other.jobs and not other.live:
                        self.device.remove(other.key)
                        other.jobs = []
                self._resize(pool, rows)
        return (pool, pool.jobs.index(None)) if None in pool.jobs else None

    def _resize(self, pool: Pool, rows: int):
        self.device.resize(pool.key, rows)
        pool.jobs += [None] * (rows - len(pool.jobs))

    def _later(self) -> Iterator[HashedItem]:
        return (item for request in self.waiting for item in request.items)

    def _admitted(self, request: Generation, pool: Pool, b: int) -> Iterator:
        """Reads a prompt and puts it in its slot."""
        prompt, (length, _) = request.prompt, pool.key
        n = len(prompt.tokens)
        yield from self.reader.read(prompt, request.items, n - 1, length, self._later())
        ids_S = np.full(length, -1, np.int32)
        ids_S[:n] = prompt.tokens
        for kind, start in zip(prompt.kinds, prompt.starts, strict=True):
            ids_S[start : start + self.reader.tokens(kind)] = -1
        self.device.admit(pool.key, b, ids_S, n, self._rules(request.options, request.node))
        request.admitted = True

    def _rules(self, options: Options, node: trie.Node | None):
        return rules_of(options, node, self.allowed, self.tokenizer.eos, self._random.integers(2**63))

    def _bias(self, options: Options, node: trie.Node | None = None) -> np.ndarray:
        return bias_of(options, node, self.allowed, self.tokenizer.eos)

    def _write(self, pool: Pool):
        """One dispatch of a pool, and what its texts gain by it."""
        budget = [-1 if job is None else job.budget for job in pool.jobs]
        hurry = any(isinstance(request, Generation) and request.pool == pool.key for request in self.waiting)
        told = self.device.decode(pool.key, np.array(budget, np.int32), hurry)
        self.written += int((told.tokens_KBW >= 0).sum())
        for b, request in pool.live:
            if not request.admitted:
                continue
            if request.options.beams > 1:
                if not told.running_BW[b].any():
                    request.show_best(self.device.hypotheses(pool.key, b), self.tokenizer)
            elif request.node is not None:
                self._choose(request, pool, b, told.tokens_KBW[:, b, 0])
            else:
                for w in range(len(request.completions)):
                    request.grow(w, told, b, self.tokenizer)
            request.done = all(completion.finish for completion in request.completions)
            if request.done:
                pool.jobs[b] = None

    def _choose(self, request: Generation, pool: Pool, b: int, tokens_K: np.ndarray):
        """Follows a choice along its trie; where one token alone is possible, it is not asked for."""
        written, (completion,) = request.written[0], request.completions
        new = tokens_K[tokens_K >= 0].tolist()
        node = request.node.after(new)
        forced = node.way_out()
        written += [*new, *forced]
        request.node = node.after(forced)
        if not request.node:
            return request.show(completion, written, self.tokenizer)
        for at in range(0, len(forced), JUMP):
            part = forced[at : at + JUMP]
            self.device.jump(pool.key, b, np.array(part + [0] * (JUMP - len(part)), np.int32), len(part))
        self.device.rebias(pool.key, b, self._bias(request.options, request.node))

    def _scored(self, request: Scoring) -> Iterator:
        """Reads a prompt, then its continuations side by side: each sees the prompt and itself alone."""
        prompt, C = request.prompt, self._chunk
        n, left = len(prompt.tokens), deque(enumerate(request.continuations))
        yield from self.reader.read(prompt, request.items, n - 1, request.length, self._later())
        begin, found = self._rounded(n - 1), [[] for _ in request.continuations]
        while left:
            wave, room = [], request.length - begin
            while left and len(wave) < MOST_BRANCHES and len(left[0][1]) <= room:
                wave.append(left.popleft())
                room -= len(wave[-1][1])
            # Each continuation begins with the last token of the prompt, whose next one it is.
            rows = [
                (i, token, target, np.uint32(1 << branch), n - 1 + place)
                for branch, (i, ids) in enumerate(wave)
                for place, (token, target) in enumerate(zip([prompt.tokens[-1], *ids[:-1]], ids, strict=False))
            ]
            for at in range(0, len(rows), C):
                of, tokens, targets, branches, positions = zip(*rows[at : at + C], strict=True)
                part = piece(tokens, np.full(C, -1, np.int32), np.array(branches), positions)
                targets_C = piece(targets, part.slots_C, 0, positions).tokens_C
                scored = self.device.score(request.length, part, begin + at, targets_C, request.top > 0)
                for i, *values in zip(of, *scored, strict=False):
                    found[i].append(values)
                yield
        for values in found:
            logprobs = [float(value[0]) for value in values]
            tops = [pairs(ids, numbers, request.top) for _, _, ids, numbers in values] if request.top else []
            greedy = all(bool(value[1]) for value in values)
            request.scores.append(Score(sum(logprobs), len(values), greedy, logprobs, tops))
        request.done = True

    def ids_of(self, words: str, where: str = "a choice") -> np.ndarray:
        """int32[n]: the ids of a text that follows a prompt; `where` names it in messages."""
        return self.tokenizer.encode_document(Document((Text(words),), where).parts).tokens

    def _rounded(self, n: int) -> int:
        return -(-n // self._chunk) * self._chunk

    def _page(self, n: int) -> int | None:
        """The length of the shortest page that holds `n` entries."""
        if self._fixed is not None:
            return next((length for length in sorted({length for length, _ in self._fixed}) if length >= n), None)
        # 64, 96, 128, 192, 256, 384, ...: few lengths to compile, and beyond 64 at most a third is read in vain.
        step = self._rounded(power_of_two(n) // 4) or self._chunk
        return max(2 * self._chunk, -(-n // step) * step)

    def _pool(self, n: int, options: Options, node) -> tuple[int, int]:
        """The kind of slot that a prompt of `n` tokens needs."""
        limit = limit_of(options, node)
        self._check_positions(n, limit)

        def entries(branches: int) -> int:
            return max(n + limit, n - 1 + branches * limit) + (JUMP if node is not None else 0)

        if self._fixed is None:
            branches = power_of_two(options.branches)
            return self._page(entries(branches)), branches
        for branches, length in sorted((branches, length) for length, branches in self._fixed):
            if branches >= options.branches and length >= entries(branches):
                return length, branches
        raise UserError(
            f"prompt and new tokens make {entries(options.branches)}, more than any slot with {options.branches} "
            "branches holds; shorten the prompt, or lower max_new_tokens or the number of texts"
        )

    def room(self, n: int, branches: int) -> int:
        """New tokens that some slot with so many branches holds after a prompt of `n` tokens; below 1 there is none."""
        if self._fixed is None:
            return self._most - n
        return min(
            self._most - n, max((min(L - n, (L - n + 1) // W) for L, W in self._fixed if W >= branches), default=0)
        )

    def _check_positions(self, n: int, more: int):
        if n + more > self._most:
            raise UserError(
                f"prompt and new tokens make {n + more}, and this model has {self._most} positions; shorten the prompt "
                "or lower max_new_tokens"
            )
