"""A model small enough to train in a test, and batches made of random numbers."""

import numpy as np
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

QUERIES, IMAGE = 4, 16


def tiny_config(**overrides):
    config = ConfigDict(
        dict(
            name="tiny",
            seed=0,
            model=dict(
                dtype="float32",
                remat="none",
                scan_unroll=1,
                text=dict(
                    vocab_size=64, width=32, layers=2, heads=4, ffn=64, max_positions=64, positions="xpos",
                    dropout=0.0, attention="auto", attention_dropout=0.0, init="torchscale",
                ),
                perception=dict(
                    image=dict(
                        tokens=QUERIES,
                        shape=(IMAGE, IMAGE, 3),
                        dtype="uint8",
                        encoder=dict(
                            kind="clip", patch_size=8, width=16, layers=2, heads=2, ffn=32, activation="quick_gelu",
                            top_layers=1,
                        ),
                        connector=dict(kind="xconnector", heads=4, layers=1, dropout=0.0),
                    ),
                ),
            ),
            training=dict(
                steps=20, frozen=(), ema_decay=0.0, spike_factor=0.0, loss_chunk=8, max_nonfinite=3,
                optimizer=dict(
                    name="adamw", learning_rate=1e-2, warmup_steps=2, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.01,
                    clip_norm=2.0,
                ),
            ),
            mesh=dict(data=1, fsdp=1, tensor=1, context=1),
        )
    )  # fmt: skip
    config.update_from_flattened_dict(overrides)
    return FrozenConfigDict(config)


def random_batch(microbatches=1, rows=8, length=16, images=8, seed=0, vocab=64):
    """Rows with two documents each and, where `images` allows, one image in the first."""
    rng = np.random.default_rng(seed)
    shape = (microbatches, rows, length)
    tokens = rng.integers(4, vocab, shape).astype(np.int32)
    segments = np.where(np.arange(length) < length // 2 + 2, 1, 2) * np.ones(shape, np.int32)
    positions = np.where(segments == 1, np.arange(length), np.arange(length) - length // 2 - 2).astype(np.int32)
    slots = -np.ones(shape, np.int32)
    for row in range(min(rows, images)):
        slots[:, row, 2 : 2 + QUERIES] = row * QUERIES + np.arange(QUERIES)
    targets = np.roll(tokens, -1, axis=-1)
    targets[:, :, -1] = -1
    targets[:, :, :5] = -1
    targets[segments != np.roll(segments, -1, axis=-1)] = -1
    return dict(
        tokens=tokens,
        targets=targets,
        segment_ids=segments.astype(np.int32),
        positions=positions,
        slots=slots,
        media=dict(image=rng.integers(0, 256, (microbatches, images, IMAGE, IMAGE, 3)).astype(np.uint8)),
        row_source=np.tile(np.arange(rows, dtype=np.int32) % 2, (microbatches, 1)),
    )


@pytest.fixture
def tiny():
    return tiny_config()
