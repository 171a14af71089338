"""The two models that the benchmarks compare: ours, and transformers' Kosmos-2 in PyTorch, of the same shape.

A function named after some work returns (ours, theirs): two functions without arguments that do the work once.
"""

import time
from typing import Any, NamedTuple

Q, IMAGE = 64, 224


class Shape(NamedTuple):
    """What both have: sizes as in config.model, and the rows that they read, one image in each."""

    vocab: int
    text: dict[str, Any]
    vision: dict[str, Any]
    rows: int
    tokens: int
    dtype: str = "float32"
    remat: str = "none"
    loss_chunk: int = 0
    unroll: int = 1
    attention_dropout: float = 0.1


def our_config(shape: Shape):
    """config.model of our side."""
    from configs import kosmos1
    from kosmos_jax.config import apply_overrides

    config = kosmos1.get_config().model
    config.update(dtype=shape.dtype, remat=shape.remat, scan_unroll=shape.unroll)
    config.text.update(vocab_size=shape.vocab, positions="sinusoidal", **shape.text)
    image = config.perception.image
    config.text.attention_dropout = image.connector.dropout = shape.attention_dropout
    image.update(tokens=Q, shape=(IMAGE, IMAGE, 3))
    image.encoder.update(patch_size=14, **shape.vision)
    image.connector.heads = shape.text["heads"]
    return apply_overrides(config, [])


def their_model(shape: Shape):
    """transformers' model, float32 on CPU, with its default attention (SDPA)."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    ours, eyes = shape.text, shape.vision
    text = dict(vocab_size=shape.vocab, max_position_embeddings=2048, embed_dim=ours["width"], layers=ours["layers"])
    text |= dict(ffn_dim=ours["ffn"], attention_heads=ours["heads"])
    text |= dict(dropout=0.1, attention_dropout=shape.attention_dropout)
    vision = dict(hidden_size=eyes["width"], intermediate_size=eyes["ffn"], num_hidden_layers=eyes["layers"])
    vision |= dict(num_attention_heads=eyes["heads"], image_size=IMAGE, patch_size=14)
    config = transformers.Kosmos2Config(text_config=text, vision_config=vision, latent_query_num=Q)
    return transformers.Kosmos2ForConditionalGeneration(config)


def random_rows(vocab: int, rows: int, tokens: int):
    """Ids int[rows, tokens] with one image after <s>, slots int[rows, tokens], pixels uint8[rows, H, W, 3]."""
    import numpy as np

    draw = np.random.default_rng(0)
    ids, slots = draw.integers(100, vocab - 10, (rows, tokens), np.int32), np.full((rows, tokens), -1, np.int32)
    ids[:, 0], ids[:, 1], ids[:, 2 + Q] = 0, vocab - 2, vocab - 1
    slots[:, 2 : 2 + Q] = np.arange(rows * Q).reshape(rows, Q)
    return ids, slots, draw.integers(0, 256, (rows, IMAGE, IMAGE, 3), np.uint8)


def decode_steps(device, vocabulary: int, rows: int, entries: int, taken: int, steps: int):
    """Decode steps of our engine by themselves.

    Args:
      device: kosmos_jax.inference.device.Device, for dispatches of so many steps.
      vocabulary: ids, all of which may come.
      rows: slots.
      entries, taken: of a slot, in all and when the steps begin.
      steps: of a dispatch.

    Returns:
      (A function that returns the seconds of a step, bytes that a step has to read: weights and all entries.)
    """
    import jax
    import numpy as np

    from kosmos_jax.inference.options import Options
    from kosmos_jax.inference.rules import rules_of

    pool = entries, 1
    device.resize(pool, rows)
    rules = rules_of(Options(max_new_tokens=entries, ignore_eos=True), None, np.ones(vocabulary, bool), 2, 0)

    def run() -> float:
        for b in range(rows):
            device.admit(pool, b, np.full(entries, 5, np.int32), taken, rules)
        jax.block_until_ready(device._pools)
        begin = time.perf_counter()
        device.decode(pool, np.full(rows, steps, np.int32), False)
        return (time.perf_counter() - begin) / steps

    cache = device._pools[pool][0].cache
    read = device._weights["decoder"], device._weights["embedding"], cache.k_BHSK, cache.v_BHSK
    return run, sum(x.nbytes for x in jax.tree.leaves(read))


def their_inputs(ids, slots, pixels):
    import torch

    return dict(
        input_ids=torch.from_numpy(ids).long(),
        pixel_values=torch.randn(len(pixels), 3, IMAGE, IMAGE),
        image_embeds_position_mask=torch.from_numpy(slots >= 0).long(),
        attention_mask=torch.ones(ids.shape, dtype=torch.long),
    )


def train_step(shape: Shape, models):
    """Forward, backward and AdamW with dropout 0.1, everything trained, text tokens supervised; ours clips as well.

    `models.torch` may be None, and so is then the second function.
    """
    import jax
    import numpy as np

    from configs import kosmos1
    from kosmos_jax.config import apply_overrides
    from kosmos_jax.training.optimizer import learning_rate, make_optimizer
    from kosmos_jax.training.state import initial_state
    from kosmos_jax.training.step import make_train_step

    config = kosmos1.get_config()
    config.model = models.config
    config = apply_overrides(config, ["training.frozen=()", f"training.loss_chunk={shape.loss_chunk}"])
    optimizer = make_optimizer(config.training.optimizer, config.training.steps)
    schedule = learning_rate(config.training.optimizer, config.training.steps)
    step = jax.jit(make_train_step(models.graph, optimizer, config, schedule, ("all",)), donate_argnums=0)
    ids, slots, pixels = random_rows(shape.vocab, shape.rows, shape.tokens)
    targets = np.where(slots >= 0, -1, np.roll(ids, -1, axis=1))
    batch = dict(tokens=ids, slots=slots, targets=targets, segment_ids=np.ones_like(ids), media={"image": pixels})
    batch |= dict(positions=np.tile(np.arange(shape.tokens, dtype=np.int32), (shape.rows, 1)))
    batch |= dict(row_source=np.zeros(shape.rows, np.int32))
    batch = jax.device_put(jax.tree.map(lambda array: array[None], batch))
    state = [jax.jit(lambda key: initial_state(config, optimizer, key))(jax.random.key(0))]

    def ours():
        state[0], metrics = step(state[0], batch)
        jax.block_until_ready(metrics)

    if models.torch is None:
        return ours, None
    import torch

    inputs = their_inputs(ids, slots, pixels)
    labels = inputs["input_ids"].masked_fill(inputs["image_embeds_position_mask"].bool(), -100)
    adamw = torch.optim.AdamW(models.torch.parameters(), lr=2e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01)

    def theirs():
        models.torch.train()(**inputs, labels=labels).loss.backward()
        adamw.step()
        adamw.zero_grad(set_to_none=True)

    return ours, theirs
