"""The chunked cross-entropy is the plain one, and its memory is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kosmos_jax.training.loss import Layout, _Chunks, chunk_length, cross_entropy


def dense(hidden, table, targets):
    scores = jnp.einsum("btd,vd->btv", hidden, table)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(scores), jnp.maximum(targets, 0)[..., None], -1)[..., 0]
    return jnp.where(targets >= 0, nll, 0.0).sum()


def example(rows=3, length=12, width=8, vocab=50):
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (rows, length, width))
    table = jax.random.normal(keys[1], (vocab, width))
    return hidden, table, jax.random.randint(keys[2], (rows, length), -1, vocab)


@pytest.mark.parametrize("chunk", [0, 1, 12, 15, 36, 300])
def test_chunks_change_neither_loss_nor_gradients(chunk):
    hidden, table, targets = example()
    ours = jax.value_and_grad(lambda h, t: 2.5 * cross_entropy(h, t, targets, chunk)[0], argnums=(0, 1))
    plain = jax.value_and_grad(lambda h, t: 2.5 * dense(h, t, targets), argnums=(0, 1))
    for a, b in zip(jax.tree.leaves(ours(hidden, table)), jax.tree.leaves(plain(hidden, table)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_each_token_has_its_own_loss_and_the_unsupervised_have_none():
    hidden, table, targets = example()
    total, nll = cross_entropy(hidden, table, targets, 4)
    assert (nll[targets < 0] == 0).all() and (nll[targets >= 0] > 0).all()
    np.testing.assert_allclose(total, nll.sum(), rtol=1e-6)


def test_a_batch_without_targets_has_zero_loss_and_zero_gradient():
    hidden, table, targets = example()
    value, gradients = jax.value_and_grad(lambda h, t: cross_entropy(h, t, jnp.full_like(targets, -1), 4)[0], (0, 1))(
        hidden, table
    )
    assert value == 0 and all((g == 0).all() for g in gradients)


@pytest.mark.parametrize("tokens, wanted, length", [(2048, 256, 256), (12, 5, 4), (7, 3, 1), (8, 0, 8), (8, 99, 8)])
def test_a_chunk_divides_the_row(tokens, wanted, length):
    assert chunk_length(tokens, wanted) == length


@pytest.mark.parametrize(
    "rows, tokens, wanted, splits, parts, chunks",
    [
        (8, 64, 128, (1, 4, 1), 1, 1),  # two rows on a device, all of their 64 tokens
        (8, 64, 64, (1, 4, 1), 1, 2),
        (8, 64, 64, (2, 2, 1), 1, 2),
        (8, 64, 64, (1, 4, 2), 2, 1),  # half a row each
        (8, 64, 0, (1, 4, 1), 1, 1),
        (8, 64, 1, (1, 4, 1), 1, 64),  # one token of each row is the least
        (6, 64, 64, (1, 4, 1), 1, 8),  # rows that do not divide are on every device
        (8, 63, 63, (1, 8, 2), 1, 1),  # nor do these tokens
    ],
)
def test_a_chunk_counts_the_tokens_of_a_device(rows, tokens, wanted, splits, parts, chunks):
    cut = _Chunks(rows, tokens, wanted, Layout(*splits))
    x = jnp.arange(rows * tokens).reshape(rows, tokens)
    assert cut.parts == parts
    assert cut.cut(x).shape == (chunks, rows, tokens // chunks)
    np.testing.assert_array_equal(cut.joined(cut.cut(x)), x)


def test_the_compiled_gradient_never_holds_all_scores_of_the_papers_vocabulary():
    """At B = 4, T = 512, V = 64,007 all scores would be 524 MB; the program's temporaries are a part of that."""
    rows, length, width, vocab, chunk = 4, 512, 64, 64_007, 128
    shapes = (
        jax.ShapeDtypeStruct((rows, length, width), jnp.float32),
        jax.ShapeDtypeStruct((vocab, width), jnp.float32),
        jax.ShapeDtypeStruct((rows, length), jnp.int32),
    )
    gradient = jax.grad(lambda h, t, y: cross_entropy(h, t, y, chunk)[0], argnums=(0, 1))
    compiled = jax.jit(gradient).lower(*shapes).compile()
    all_scores = rows * length * vocab * 4
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    print(f"temporaries {temporaries / 1e6:.0f} MB, all scores {all_scores / 1e6:.0f} MB")
    assert temporaries < all_scores / 3
    assert f"[{rows},{length},{vocab}]" not in compiled.as_text()
