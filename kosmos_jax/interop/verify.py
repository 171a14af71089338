"""`kosmos export --verify`: the exported folder, loaded in PyTorch, gives the numbers of the checkpoint in JAX."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from kosmos_jax import checkpoint
from kosmos_jax.config import apply_overrides
from kosmos_jax.inference.prompts import Encoded, collate, encode_prompt
from kosmos_jax.interop.packages import needed
from kosmos_jax.interop.tensors import read_json
from kosmos_jax.model import abstract_model, with_parameters
from kosmos_jax.model.vision import normalize_pixels

# Largest difference of two logits that is allowed, as a share of the largest logit: rounding, of the arithmetic for
# float32, of the stored weights for the other two (the arithmetic is float32 always).
TOLERANCES = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}

# (tokens, slots, normalised pixels or None, attention mask) -> logits, all of them tensors; images are [N, 3, H, W].
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

    Raises:
      UserError: PyTorch, or what else the target needs, is not installed.
    """
    torch, theirs = needed("torch"), LOADERS[to](Path(out))
    restored = checkpoint.restore(path)
    model = apply_overrides(restored.config, ["model.dtype=float32"]).model
    graph, _ = abstract_model(model)

    @jax.jit
    def logits(params, batch):
        kosmos = with_parameters(graph, params)
        return kosmos.logits(kosmos(*batch))

    named = cases(model, restored.tokenizer)
    if to == "torchscale":
        named = named[:1]  # the decoder alone, which knows no padding either
    # Here all rows are one batch: one program to compile, and the rows beside a row must not matter.
    batch = collate([row for _, rows in named for row in rows], restored.tokenizer.pad, model.connector.tokens)
    ours_BTV, real_BT = np.asarray(logits(restored.params, batch)), batch.segments_BT > 0
    agreements, first = [], 0
    for case, rows in named:
        here = slice(first, first + len(rows))
        first += len(rows)
        images = sum(len(row.images) for row in rows)
        batch = collate(rows, restored.tokenizer.pad, model.connector.tokens)
        ids = (batch.tokens_BT, batch.slots_BT, batch.segments_BT)
        tokens, slots, mask = (torch.from_numpy(array).long() for array in ids)
        pixels = None
        if images:
            pixels_NCHW = normalize_pixels(batch.images_NHWC[:images]).transpose(0, 3, 1, 2)
            pixels = torch.from_numpy(np.array(pixels_NCHW, order="C"))
        with torch.inference_mode():
            found_BTV = theirs(tokens, slots, pixels, mask).numpy()
        ours, found = ours_BTV[here][real_BT[here]], found_BTV[batch.segments_BT > 0]
        agreements.append(agreement(case, ours, found))
    return agreements


def cases(model, tokenizer) -> list[tuple[str, list[Encoded]]]:
    """Batches by name: text, images, several of them in a row, rows of different lengths, a prompt in words."""
    draw = np.random.default_rng(0)
    size, q = model.vision.image_size, model.connector.tokens
    first_piece = tokenizer.unk + 1

    def row(length: int, *places: int) -> Encoded:
        """`length` random tokens with an image before each of `places`."""
        tokens, slots, start = [tokenizer.bos], [-1], 0
        for m, place in enumerate((*places, length)):
            text = draw.integers(first_piece, tokenizer.mask, place - start)
            tokens, slots, start = [*tokens, *text], [*slots, *[-1] * len(text)], place
            if m < len(places):
                tokens += [tokenizer.image] * (q + 1) + [tokenizer.image_end]
                slots += [-1, *range(m * q, (m + 1) * q), -1]
        pixels = draw.integers(0, 256, (len(places), size, size, 3), np.uint8)
        return Encoded(np.array(tokens, np.int32), np.array(slots, np.int32), pixels)

    shades = np.linspace(0, 255, 90 * 60 * 3).reshape(60, 90, 3).astype(np.uint8)
    prompt = [Image.fromarray(shades), "What is this? It is", Image.fromarray(shades[:, ::-1].copy()), "and more."]
    return [
        ("text", [row(31)]),
        ("one image in a row", [row(20, 7)]),
        ("several images in a row", [row(24, 0, 5, 24)]),
        ("rows of different lengths", [row(9), row(40, 3), row(3, 0, 0), row(22)]),
        ("a prompt in words", [encode_prompt(prompt, tokenizer, model)]),
    ]


def agreement(case: str, ours: np.ndarray, theirs: np.ndarray) -> Agreement:
    """How logits float[tokens, V] of two models agree."""
    difference = float(np.abs(ours - theirs).max())
    p, q = (_log_softmax(logits.astype(np.float64)) for logits in (ours, theirs))
    return Agreement(
        case,
        difference=difference,
        relative=difference / float(np.abs(ours).max()),
        divergence=float((np.exp(p) * (p - q)).sum(-1).mean()),
        top1=float((ours.argmax(-1) == theirs.argmax(-1)).mean()),
    )


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


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

    def logits(tokens, slots, pixels, mask):
        if pixels is None:  # the whole model refuses to read without an image
            return model.text_model(input_ids=tokens, attention_mask=mask).logits
        images = dict(pixel_values=pixels, image_embeds_position_mask=(slots >= 0).long())
        return model(input_ids=tokens, attention_mask=mask, **images).logits

    return logits


def _remote_code(out: Path) -> Theirs:
    load = needed("transformers").AutoModelForImageTextToText.from_pretrained
    model = load(out, trust_remote_code=True, dtype="float32").eval()
    return lambda tokens, slots, pixels, mask: model(tokens, slots, pixels, mask).logits


def _torch(out: Path) -> Theirs:
    spec = importlib.util.spec_from_file_location("kosmos_torch", out / "kosmos_torch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(out).float().eval()


def _torchscale(out: Path) -> Theirs:
    torch = needed("torch")
    load_file, decoder = needed("safetensors.torch").load_file, needed("torchscale.architecture.decoder")
    from torchscale.architecture.config import DecoderConfig

    from kosmos_jax.model.positions import sinusoids

    config = read_json(out / "config.json")
    args = DecoderConfig(**config["decoder"])
    width = args.decoder_embed_dim

    class Sinusoids(torch.nn.Module):
        def forward(self, tokens, incremental_state=None):
            return torch.from_numpy(np.array(sinusoids(np.arange(tokens.shape[1])[None], width)))

    model = decoder.Decoder(
        args,
        embed_tokens=torch.nn.Embedding(args.vocab_size, width),
        embed_positions=None if config["positions"] == "xpos" else Sinusoids(),
    )
    state = {name: tensor for file in sorted(out.glob("*.safetensors")) for name, tensor in load_file(file).items()}
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    model.eval()
    return lambda tokens, *others: model(tokens)[0]


LOADERS = {"hf-kosmos2": _kosmos2, "hf-remote-code": _remote_code, "torch": _torch, "torchscale": _torchscale}
