"""One update: gradients of the mean loss over the global batch, clipped, guarded, applied."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import optax

from kosmos_jax.model import with_parameters
from kosmos_jax.training.loss import ONE_DEVICE, Layout, cross_entropy

# Weight of the newest gradient norm in the moving average that the spike guard compares with.
NORM_MEMORY = 0.02


def loss_sums(graph, params, batch, sources: int, chunk: int, layout: Layout = ONE_DEVICE, key=None):
    """Summed loss of one microbatch, in all and by source.

    Args:
      graph, params: the model.
      batch: arrays without the leading axis of gradient accumulation; see data_pipeline/mixture.py.
      sources: number of sources.
      chunk, layout: see `cross_entropy`.
      key: dropout key, or None.

    Returns:
      (float32[], float32[sources, 2]: loss sum and number of targets of each source).
    """
    model = with_parameters(graph, params)
    hidden_BTD = model(
        batch["tokens"], batch["segment_ids"], batch["positions"], batch["slots"], batch["media"], key=key
    )
    total, nll_BT = cross_entropy(hidden_BTD, model.embedding[...], batch["targets"], chunk, layout)
    row_sums = jnp.stack([nll_BT.sum(1), (batch["targets"] >= 0).sum(1).astype(jnp.float32)], axis=1)
    return total, jax.ops.segment_sum(jax.lax.stop_gradient(row_sums), batch["row_source"], num_segments=sources)


def make_train_step(graph, optimizer, config, schedule, source_names, layout: Layout = ONE_DEVICE):
    """The function that `train` compiles.

    Args:
      graph: the model's structure.
      optimizer: optax's.
      config: the complete config.
      schedule: step -> learning rate.
      source_names: in the order of `row_source`.
      layout: how the mesh splits a batch.

    Returns:
      train_step(state, batch) -> (state, metrics): batch arrays have a leading axis A of microbatches, whose gradients
      are summed before the one update; metrics are float32 scalars by name.
    """
    training, names = config.training, tuple(source_names)

    def train_step(state, batch):
        step_key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        keys = jax.random.split(step_key, batch["tokens"].shape[0])
        # One denominator for the global batch: every supervised token counts the same, wherever it lies.
        targets = jnp.maximum((batch["targets"] >= 0).sum(), 1).astype(jnp.float32)

        def microbatch_loss(trainable, microbatch, key):
            total, by_source = loss_sums(
                graph, trainable | state.frozen, microbatch, len(names), training.loss_chunk, layout, key
            )
            return total / targets, by_source

        def accumulate(sums, inputs):
            microbatch, key = inputs
            differentiate = jax.value_and_grad(microbatch_loss, has_aux=True)
            (loss, by_source), gradients = differentiate(state.trainable, microbatch, key)
            return jax.tree.map(jnp.add, sums, (loss, by_source, gradients)), None

        zeros = (jnp.zeros(()), jnp.zeros((len(names), 2)), jax.tree.map(jnp.zeros_like, state.trainable))
        if batch["tokens"].shape[0] == 1:
            # Without a loop: what is inside one, unrolled or not, XLA on CPU runs half as fast.
            sums, _ = accumulate(zeros, jax.tree.map(lambda x: x[0], (batch, keys)))
        else:
            sums, _ = jax.lax.scan(accumulate, zeros, (batch, keys))
        loss, by_source, gradients = sums

        norm = optax.global_norm(gradients)
        good = jnp.isfinite(loss) & jnp.isfinite(norm)
        if training.spike_factor:
            good &= (state.typical_norm == 0) | (norm < training.spike_factor * state.typical_norm)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        average = optax.incremental_update(trainable, state.average, 1 - training.ema_decay) if state.average else {}
        memory = jnp.where(state.typical_norm == 0, 1.0, NORM_MEMORY)
        updated = replace(
            state,
            trainable=trainable,
            optimizer=optimizer_state,
            average=average,
            skipped_in_row=jnp.zeros_like(state.skipped_in_row),
            typical_norm=(1 - memory) * state.typical_norm + memory * norm,
        )
        kept = replace(state, skipped=state.skipped + 1, skipped_in_row=state.skipped_in_row + 1)
        rate = schedule(state.step - state.skipped)
        state = jax.tree.map(lambda new, old: jnp.where(good, new, old), updated, kept)
        state = replace(state, step=state.step + 1)
        metrics = {
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": rate,
            "targets": targets,
            "skipped_updates": state.skipped,
            "skipped_in_row": state.skipped_in_row,
        }
        for name, (total, count) in zip(names, by_source, strict=True):
            metrics[f"loss/{name}"] = total / count
        return state, metrics

    return train_step
