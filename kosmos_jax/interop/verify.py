"""`kosmos export --verify`: the exported folder, loaded in PyTorch, gives the numbers of the checkpoint in JAX."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.special import log_softmax

from kosmos_jax import checkpoint
from kosmos_jax.config import apply_overrides
from kosmos_jax.inference.prompts import EncodedPrompt, encode_prompt
from kosmos_jax.interop.packages import needed
from kosmos_jax.interop.rows import collate
from kosmos_jax.model import abstract_model, with_parameters

# Largest difference of two logits that is allowed, as a share of the largest logit: rounding, of the arithmetic for
# float32, of the stored weights for the other two (the arithmetic is float32 always).
TOLERANCES = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}

# (tokens, slots, media by modality, attention mask) -> logits, all of them tensors; images are normalised [N, 3, H, W].
Theirs = Callable[..., Any]


class Agreement(NamedTuple):
    """How two models agree on one batch, padding left out.

    Attributes:
      case: what the batch was.
      difference: largest absolute difference of two logits.
      relative: the same as a share of the largest absolute logit.
      divergence: mean of KL(ours || theirs) over the tokens, in nats.
      top1: share of the tokens for which both have the same most likely next token.
    """

    case: str
    difference: float
    relative: float
    divergence: float
    top1: float


def verify(path, to: str, out: Path, dtype: str) -> list[Agreement]:
    """Compares the checkpoint `path` with the export `out`, whose weights are `dtype`.

    Args:
      path: of the checkpoint, as `--checkpoint`.
      to: a key of formats.EXPORTS.
      out: the export's folder.
      dtype: of its weights.

    Raises:
      UserError: PyTorch, or what else the target needs, is not installed.
    """
    torch, theirs = needed("torch"), LOADERS[to](Path(out))
    from kosmos_jax.interop.torch_files.kosmos_torch import normalize

    restored = checkpoint.restore(path)
    model = apply_overrides(restored.config, ["model.dtype=float32"]).model
    graph, _ = abstract_model(model)

    @jax.jit
    def logits(params, batch):
        kosmos = with_parameters(graph, params)
        return kosmos.logits(kosmos(*batch))

    named = cases(restored.tokenizer)
    # Here all rows are one batch: one program to compile, and the rows beside a row must not matter.
    batch = collate([row for _, rows in named for row in rows], restored.tokenizer.pad, restored.tokenizer.modalities)
    ours_BTV, real_BT = np.asarray(logits(restored.params, batch)), batch.segments_BT > 0
    agreements, first = [], 0
    for case, rows in named:
        here = slice(first, first + len(rows))
        first += len(rows)
        batch = collate(rows, restored.tokenizer.pad, restored.tokenizer.modalities)
        ids = (batch.tokens_BT, batch.slots_BT, batch.segments_BT)
        tokens, slots, mask = (torch.from_numpy(array).long() for array in ids)
        media = {name: torch.from_numpy(np.copy(items)) for name, items in batch.media.items()}
        media |= {name: normalize(items) for name, items in media.items() if name == "image"}
        with torch.inference_mode():
            found_BTV = theirs(tokens, slots, media, mask).numpy()
        ours, found = ours_BTV[here][real_BT[here]], found_BTV[batch.segments_BT > 0]
        agreements.append(agreement(case, ours, found))
    return agreements


def cases(tokenizer) -> list[tuple[str, list[EncodedPrompt]]]:
    """Batches by name: text, items of each modality, several in a row, rows of different lengths, a prompt in words."""
    draw = np.random.default_rng(0)
    found, first_piece = tokenizer.modalities, tokenizer.unk + 1

    def row(length: int, *places: int) -> EncodedPrompt:
        """`length` random tokens with an item before each of `places`, of each modality in turn."""
        tokens, kinds, starts, media, start = [tokenizer.bos], [], [], {}, 0
        for m, place in enumerate((*places, length)):
            tokens, start = [*tokens, *draw.integers(first_piece, tokenizer.mask, place - start)], place
            if m < len(places):
                modality = found[m % len(found)]
                opening, closing = (tokenizer.tag_ids[tag] for tag in modality.tags)
                kinds.append(modality.name)
                starts.append(len(tokens) + 1)
                tokens += [opening] * (modality.tokens + 1) + [closing]
                most = np.iinfo(modality.dtype).max
                media.setdefault(modality.name, []).append(draw.integers(0, most, modality.shape, modality.dtype))
        return EncodedPrompt(np.array(tokens, np.int32), tuple(kinds), np.array(starts, np.int32), media)

    return [
        ("text", [row(31)]),
        ("one item in a row", [row(20, 7)]),
        ("several items in a row", [row(24, 0, 5, 24)]),
        ("rows of different lengths", [row(9), row(40, 3), row(3, 0, 0), row(22)]),
        ("a prompt in words", [encode_prompt("What is this? It is, and more.", tokenizer)]),
    ]


def agreement(case: str, ours: np.ndarray, theirs: np.ndarray) -> Agreement:
    """How logits float[tokens, V] of two models agree.

    Args:
      case: what the batch was.
      ours, theirs: float[tokens, V].
    """
    difference = float(np.abs(ours - theirs).max())
    p, q = (log_softmax(logits.astype(np.float64), axis=-1) for logits in (ours, theirs))
    return Agreement(
        case,
        difference=difference,
        relative=difference / float(np.abs(ours).max()),
        divergence=float((np.exp(p) * (p - q)).sum(-1).mean()),
        top1=float((ours.argmax(-1) == theirs.argmax(-1)).mean()),
    )


def report(agreements: list[Agreement], dtype: str) -> tuple[str, bool]:
    """A table for people, and whether every case is within the tolerance."""
    lines = [f"{'case':28}{'max |diff|':>12}{'of largest':>12}{'KL, nats':>12}{'same top 1':>12}"]
    for a in agreements:
        lines.append(f"{a.case:28}{a.difference:12.2e}{a.relative:12.2e}{a.divergence:12.2e}{a.top1:12.1%}")
    worst, limit = np.max([a.relative for a in agreements]), TOLERANCES[dtype]  # NaN if one of them is
    good = bool(worst <= limit)
    lines.append(
        f"{'equal' if good else 'NOT EQUAL'}: {worst:.2e} of the largest logit, {dtype} may be {limit:.0e} off"
    )
    return "\n".join(lines), good


def _kosmos2(out: Path) -> Theirs:
    load = needed("transformers").Kosmos2ForConditionalGeneration.from_pretrained
    model = load(out, dtype="float32").eval()

    def logits(tokens, slots, media, mask):
        if not media:  # the complete model refuses to read without an image
            return model.text_model(input_ids=tokens, attention_mask=mask).logits
        images = dict(pixel_values=media["image"], image_embeds_position_mask=(slots >= 0).long())
        return model(input_ids=tokens, attention_mask=mask, **images).logits

    return logits


def _remote_code(out: Path) -> Theirs:
    load = needed("transformers").AutoModelForImageTextToText.from_pretrained
    model = load(out, trust_remote_code=True, dtype="float32").eval()
    inputs = {"image": "pixel_values", "audio": "audio_values"}
    return lambda tokens, slots, media, mask: (
        model(tokens, slots, attention_mask=mask, **{inputs[name]: items for name, items in media.items()}).logits
    )


def _torch(out: Path) -> Theirs:
    return runpy.run_path(str(out / "kosmos_torch.py"))["load"](out).float().eval()


LOADERS = {"hf-kosmos2": _kosmos2, "hf-remote-code": _remote_code, "torch": _torch}
