"""The options of a request as the numbers that the device reads."""

import numpy as np

from kosmos_jax.errors import UserError
from kosmos_jax.inference import trie
from kosmos_jax.inference.options import MOST_STOP_IDS, Options
from kosmos_jax.inference.slots import Rules


def allowed_ids(tokenizer, size: int) -> np.ndarray:
    """bool[V]: which ids may be generated at all, of a vocabulary of `size`.

    Pieces lie between <unk> and the first tag, <mask>. Of the tags, only the end and a new line are text.
    """
    ids = np.arange(size)
    return (ids > tokenizer.unk) & (ids < tokenizer.mask) | np.isin(ids, [tokenizer.eos, tokenizer.line])


def ends_of(options: Options, eos: int) -> list[int]:
    """The ids that end a text."""
    return [*([] if options.ignore_eos else [eos]), *options.stop_ids]


def limit_of(options: Options, node: trie.Node | None) -> int:
    """Tokens that may come at most: a choice has as many as its longest text."""
    return options.max_new_tokens if node is None else trie.depth(node)


def rules_of(options: Options, node: trie.Node | None, allowed: np.ndarray, eos: int, seed: int) -> Rules:
    """The rules of one slot, without the axis of slots.

    Args:
      options: of the request.
      node: where its choice stands, None for a free text.
      allowed: see `allowed_ids`.
      eos: the id of </s>.
      seed: where the options have none.
    """
    ends = np.full(1 + MOST_STOP_IDS, -1, np.int32)
    ids = ends_of(options, eos)
    ends[: len(ids)] = ids
    seed = int(seed if options.seed is None else options.seed)
    return Rules(
        bias_BV=bias_of(options, node, allowed, eos),
        ends_BE=ends,
        minimum_B=np.int32(options.min_new_tokens if node is None else 0),
        limit_B=np.int32(limit_of(options, node)),
        temperature_B=np.float32(options.temperature),
        top_k_B=np.int32(min(options.top_k, len(allowed))),
        top_p_B=np.float32(options.top_p),
        min_p_B=np.float32(options.min_p),
        repetition_B=np.float32(options.repetition_penalty),
        ngram_B=np.int32(options.no_repeat_ngram),
        seed_B2=np.array(divmod(seed % 2**64, 2**32), np.uint32),
        place_B=np.int32(options.place),
        top_B=np.int32(options.top_logprobs or 0),
        beams_B=np.int32(options.beams if options.beams > 1 else 0),
        length_penalty_B=np.float32(options.length_penalty),
        results_B=np.int32(options.n),
    )


def check_ids(options: Options, allowed: np.ndarray, eos: int):
    """Raises UserError for an id that cannot come, or where none can; `allowed` as `allowed_ids` has it."""
    for token in [*(options.allowed or ()), *(options.bias or ()), *options.stop_ids]:
        is_id = isinstance(token, int | np.integer) and not isinstance(token, bool)  # True would pick a mask
        if not (is_id and 0 <= token < len(allowed) and allowed[token]):
            raise UserError(f"{token} is no id that this model writes: those are pieces of text, not tags")
    if options.allowed is not None:
        barred = {eos} if options.ignore_eos else set()
        barred |= set(ends_of(options, eos)) if options.min_new_tokens else set()
        if not {*options.allowed, eos} - barred:
            raise UserError(
                "allowed has no id that may come: ends are ignored, or come too early, and nothing else is there"
            )


def bias_of(options: Options, node: trie.Node | None, allowed: np.ndarray, eos: int) -> np.ndarray:
    """float32[V]: what is added to the logits, -inf for what must not come.

    Args:
      options, node, allowed, eos: see `rules_of`; the ids passed `check_ids`.
    """
    ids = np.arange(len(allowed))
    if node is not None or options.allowed is not None:
        allowed = allowed & np.isin(ids, list(node) if node is not None else [*options.allowed, eos])
    if options.ignore_eos:
        allowed = allowed & (ids != eos)
    bias_V = np.where(allowed, 0, -np.inf).astype(np.float32)
    for token, value in (options.bias or {}).items():
        bias_V[token] += value
    return bias_V
