"""Updates: the same on a mesh as on one device, right about what trains, and never poisoned."""

import functools
from dataclasses import replace

import jax
import numpy as np
import pytest

from kosmos_jax.errors import UserError
from kosmos_jax.parallel.mesh import make_mesh
from kosmos_jax.training.feed import batch_shardings
from kosmos_jax.training.loss import layout_on
from kosmos_jax.training.optimizer import learning_rate, make_optimizer, split_frozen
from kosmos_jax.training.state import initial_state, state_shardings
from kosmos_jax.training.step import make_train_step

from .conftest import random_batch, tiny_config

PAPER_FROZEN = (r"image/encoder/trunk/.*", r"image/encoder/(class_token|positions)", r"image/encoder/(patch|ln_pre)/.*")


@functools.cache
def compiled(config, devices=1):
    """(initial state, train step) of a config on the first `devices` devices."""
    mesh = make_mesh(config.mesh, jax.devices()[:devices])
    optimizer = make_optimizer(config.training.optimizer, config.training.steps)
    graph, _, shardings = state_shardings(config, optimizer, mesh)
    state = jax.jit(lambda key: initial_state(config, optimizer, key), out_shardings=shardings)(jax.random.key(0))
    schedule = learning_rate(config.training.optimizer, config.training.steps)
    step = jax.jit(
        make_train_step(graph, optimizer, config, schedule, ("a", "b"), layout_on(mesh)),
        in_shardings=(shardings, batch_shardings(config.model, mesh)),
        out_shardings=(shardings, None),
        compiler_options={"xla_backend_optimization_level": 0},  # compiling takes the time here
    )
    return state, lambda state, batch: step(state, jax.device_put(batch, batch_shardings(config.model, mesh)))


def run(config, batches, devices=1):
    """Trains on the batches; returns final state and the metrics of each step."""
    state, step = compiled(config, devices)
    history = []
    for batch in batches:
        state, metrics = step(state, batch)
        history.append(jax.device_get(metrics))
    return state, history


def losses(history):
    return np.array([metrics["loss"] for metrics in history])


def test_the_loss_falls():
    _, history = run(tiny_config(), [random_batch()] * 12)
    assert losses(history)[-1] < 0.7 * losses(history)[0]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "mesh",
    [dict(fsdp=4, tensor=2), slow(dict(data=2, fsdp=4)), slow(dict(data=2, fsdp=2, context=2))],
    ids=["fsdp=4, tensor=2", "data=2, fsdp=4", "data=2, fsdp=2, context=2"],
)
def test_eight_devices_learn_what_one_learns(mesh):
    batches = [random_batch(seed=seed) for seed in range(4)]
    one, one_history = run(tiny_config(), batches)
    config = tiny_config(**{f"mesh.{axis}": size for axis, size in mesh.items()})
    many, many_history = run(config, batches, devices=8)
    np.testing.assert_allclose(losses(many_history), losses(one_history), rtol=2e-5)
    for path in ("decoder/layers/fc1/kernel", "embedding", "image/encoder/trunk/fc1/kernel"):
        np.testing.assert_allclose(many.trainable[path], one.trainable[path], atol=2e-4)
    kernel = many.trainable["decoder/layers/fc1/kernel"]
    split = mesh.get("fsdp", 1) * mesh.get("tensor", 1)
    assert kernel.addressable_shards[0].data.size * split == kernel.size


@pytest.mark.slow
def test_dropout_does_not_depend_on_the_mesh():
    overrides = {"model.text.dropout": 0.1, "model.text.attention_dropout": 0.1}
    one = run(tiny_config(**overrides), [random_batch()])[1]
    eight = run(tiny_config(**overrides, **{"mesh.fsdp": 4, "mesh.tensor": 2}), [random_batch()], devices=8)[1]
    plain = run(tiny_config(), [random_batch()])[1]
    np.testing.assert_allclose(losses(eight), losses(one), rtol=2e-5)
    assert abs(losses(plain) - losses(one)) > 1e-4


def test_four_microbatches_make_the_update_of_one_batch():
    batch = random_batch(rows=8)
    parts = jax.tree.map(lambda x: x.reshape(4, x.shape[1] // 4, *x.shape[2:]), batch)
    slots = parts["slots"]
    parts["slots"] = np.where(slots >= 0, slots % (2 * 4), slots)  # 2 images of 4 tokens in each microbatch
    one_state, one = run(tiny_config(), [batch])
    four_state, four = run(tiny_config(), [parts])
    np.testing.assert_allclose(losses(four), losses(one), rtol=1e-5)
    np.testing.assert_allclose(four[0]["grad_norm"], one[0]["grad_norm"], rtol=1e-4)
    for path, array in one_state.trainable.items():
        np.testing.assert_allclose(four_state.trainable[path], array, atol=1e-4, err_msg=path)


def test_the_loss_of_each_source_adds_up_to_the_whole():
    batch = random_batch()
    metrics = run(tiny_config(), [batch])[1][0]
    counts = [(batch["targets"][batch["row_source"] == source] >= 0).sum() for source in range(2)]
    mixed = (metrics["loss/a"] * counts[0] + metrics["loss/b"] * counts[1]) / sum(counts)
    np.testing.assert_allclose(mixed, metrics["loss"], rtol=1e-5)
    assert metrics["targets"] == sum(counts)


def test_frozen_parameters_stay_and_have_no_optimizer_state():
    config = tiny_config(**{"training.frozen": PAPER_FROZEN})
    before = run(config, [])[0]
    after, _ = run(config, [random_batch()] * 3)
    assert set(after.frozen) == {p for p in after.parameters if p.startswith("image/encoder/")} - {
        p for p in after.trainable if p.startswith(("image/encoder/top/", "image/encoder/ln_post/"))
    }
    for path, array in after.frozen.items():
        assert (array == before.frozen[path]).all(), path
    assert all((after.trainable[p] != before.trainable[p]).any() for p in after.trainable)
    moments = [leaf for leaf in jax.tree.leaves(after.optimizer) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * sum(leaf.size for leaf in after.trainable.values())


def test_no_backward_pass_goes_through_a_frozen_trunk():
    def products(config):
        optimizer = make_optimizer(config.training.optimizer, 10)
        mesh = make_mesh(config.mesh, jax.devices()[:1])
        graph, state, _ = state_shardings(config, optimizer, mesh)
        step = make_train_step(graph, optimizer, config, lambda _: 0.0, ("a", "b"))
        return str(jax.make_jaxpr(step)(state, random_batch())).count("dot_general")

    assert products(tiny_config(**{"training.frozen": PAPER_FROZEN})) < products(tiny_config())


@pytest.mark.parametrize(
    "patterns, message",
    [
        (("image/encoder/trnk/.*",), "matches no parameter"),
        (("image/encoder/.*", "image/encoder/trunk/.*"), "is matched by"),
        ((".*",), "nothing is left to train"),
    ],
)
def test_rules_for_frozen_parameters_that_make_no_sense_are_errors(patterns, message):
    params = {"image/encoder/trunk/fc1/kernel": 0, "image/encoder/top/fc1/kernel": 0, "embedding": 0}
    with pytest.raises(UserError, match=message):
        split_frozen(params, patterns)


def poisoned(state):
    """Not a number in one weight: what an overflow leaves behind."""
    trainable = dict(state.trainable)
    trainable["embedding"] = trainable["embedding"].at[10, 0].set(np.nan)
    return replace(state, trainable=trainable)


def test_an_update_that_is_not_finite_is_skipped_and_counted():
    state, step = compiled(tiny_config())
    state = poisoned(state)
    for count in (1, 2):
        new, metrics = step(state, random_batch())
        assert metrics["skipped_updates"] == metrics["skipped_in_row"] == count
        assert new.step == count
        parts = [jax.tree.leaves((s.trainable, s.optimizer)) for s in (new, state)]
        for a, b in zip(*parts, strict=True):
            np.testing.assert_array_equal(a, b)
        state = new


def test_a_spike_is_skipped_when_asked_for():
    config = tiny_config(**{"training.spike_factor": 0.5})
    _, history = run(config, [random_batch(seed=seed) for seed in range(8)])
    assert history[-1]["skipped_updates"] > 0
    assert run(tiny_config(), [random_batch(seed=seed) for seed in range(8)])[1][-1]["skipped_updates"] == 0


def test_the_moving_average_follows_the_weights():
    state, _ = run(tiny_config(**{"training.ema_decay": 0.5}), [random_batch()] * 6)
    distance = {p: np.abs(state.average[p] - state.trainable[p]).max() for p in state.trainable}
    assert 0 < max(distance.values()) < 0.1


def test_the_schedule_rises_to_the_peak_and_falls_to_zero():
    config = tiny_config(**{"training.optimizer.warmup_steps": 4}).training.optimizer
    rates = [float(learning_rate(config, 20)(n)) for n in range(21)]
    np.testing.assert_allclose(rates[:4], [0.0025, 0.005, 0.0075, 0.01], rtol=1e-5)
    assert np.argmax(rates) == 3 and rates[19] > 0 and rates[20] == 0
    np.testing.assert_allclose(np.diff(rates[3:]), -0.01 / 17, rtol=1e-4)


def test_a_clip_norm_of_zero_does_not_clip():
    _, free = run(tiny_config(**{"training.optimizer.clip_norm": 0.0}), [random_batch()] * 8)
    assert losses(free)[-1] < losses(free)[0]


@pytest.mark.parametrize("name", [slow("lion"), slow("adafactor"), slow("sgd")])
def test_every_named_optimizer_lowers_the_loss(name):
    rate = {"lion": 1e-3, "adafactor": 1e-2, "sgd": 1e-1}[name]
    config = tiny_config(**{"training.optimizer.name": name, "training.optimizer.learning_rate": rate})
    _, history = run(config, [random_batch()] * 8)
    assert losses(history)[-1] < losses(history)[0]
