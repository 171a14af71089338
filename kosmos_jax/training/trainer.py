"""`kosmos train`: from a config to a workdir with checkpoints, and on from where it was stopped."""

import logging
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from data_pipeline.mixture import Mixture
from data_pipeline.pipeline import batches, make_tokenizer
from kosmos_jax import checkpoint
from kosmos_jax.errors import UserError
from kosmos_jax.parallel.distributed import Preemption, main_process_first
from kosmos_jax.parallel.mesh import make_mesh, row_shards
from kosmos_jax.training.compile import Step, make_step
from kosmos_jax.training.feed import Feed, batch_shardings, local_range, place
from kosmos_jax.training.meter import Meter
from kosmos_jax.training.metrics import MetricWriter, Screen
from kosmos_jax.training.record import write_run_files
from kosmos_jax.training.state import initial_state, replace_parameters
from kosmos_jax.training.step import loss_sums

log = logging.getLogger(__name__)
# EX_TEMPFAIL of sysexits.h: stopped by a signal, all saved, run the same command to go on.
EXIT_PREEMPTED = 75


def open_feed(mixture, mesh, first_step: int, last_step: int) -> Feed:
    """A feed of this process's part of the batches first_step .. last_step - 1."""
    shardings, shapes = batch_shardings(mesh), mixture.shapes
    rows = local_range(shardings["tokens"], shapes["tokens"], 1)
    images = local_range(shardings["images"], shapes["images"], 1)
    offsets = {name: images.start if name == "images" else rows.start for name in shapes}
    to_devices = partial(place, shapes=shapes, shardings=shardings, offsets=offsets)
    return Feed(batches(mixture, first_step, last_step, rows=rows, images=images), to_devices)


def validation_losses(params, config, mixture, mesh, loss_of_batch) -> dict[str, float]:
    """Mean loss of each source over `training.eval_batches` held-out batches."""
    sums = np.zeros((len(mixture.names), 2))
    feed = open_feed(mixture, mesh, 0, config.training.eval_batches)
    for _, batch, _ in feed:
        sums += np.asarray(loss_of_batch(params, batch))
    feed.close()
    return {f"val/{name}": total / max(count, 1) for name, (total, count) in zip(mixture.names, sums, strict=True)}


def make_loss_of_batch(graph, config, sources: int, mesh):
    """jit of (params, batch) -> float32[sources, 2], without dropout: the held-out twin of the training loss."""

    def loss_of_batch(params, batch):
        def body(sums, microbatch):
            return sums + loss_sums(graph, params, microbatch, sources, config.training.loss_chunk)[1], None

        return jax.lax.scan(body, jnp.zeros((sources, 2)), batch)[0]

    return jax.jit(loss_of_batch, out_shardings=NamedSharding(mesh, P()))


def _make_workdir(workdir) -> Path:
    if "://" in str(workdir):
        raise UserError(f"--workdir {workdir}: give a folder, such as a mounted bucket; addresses are not understood")
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    return workdir


def open_data(config, cache, mesh):
    """Tokenizer, training mixture and held-out mixture.

    Raises:
      UserError: the model's vocabulary is not the tokenizer's, or data cannot be used.
    """
    tokenizer, wanted = make_tokenizer(config, cache), config.model.text.vocab_size
    if tokenizer.size != wanted:
        raise UserError(
            f"the tokenizer has {tokenizer.size} ids and model.text.vocab_size is {wanted}; "
            f"set --config.model.text.vocab_size={tokenizer.size}"
        )
    return tokenizer, *(Mixture(config, tokenizer, split, cache, row_shards(mesh)) for split in ("train", "validation"))


def given_parameters(config, abstract, shardings) -> dict[str, jax.Array]:
    """What `config.init` names, on the mesh: each process reads only what it holds.

    Raises:
      UserError: it cannot be read or is of another model.
    """
    wanted = jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
        abstract.parameters,
        shardings.parameters,
    )
    given = {}
    if config.init.checkpoint:
        given |= checkpoint.restore_weights(config.init.checkpoint, wanted)
    if config.init.vision:
        from kosmos_jax.interop.importing import vision_parameters

        given |= vision_parameters(config.init.vision, config.model, wanted)
    left = sum(leaf.size for path, leaf in abstract.frozen.items() if path not in given)
    if left:
        log.warning(
            "%d frozen parameters keep random values: --config.init.vision=FILE takes CLIP's, and "
            "--config.training.frozen='()' trains them",
            left,
        )
    return given


def start_or_resume(config, manager, made: Step, fingerprint: str):
    """The newest checkpoint's state, or a fresh one where there is no checkpoint."""
    resumed = checkpoint.resume(manager, made.abstract, made.shardings)
    if not resumed:
        make = jax.jit(partial(initial_state, config, made.optimizer), out_shardings=made.shardings)
        given = given_parameters(config, made.abstract, made.shardings)
        return replace_parameters(make(jax.random.key(config.seed)), given)
    state, run = resumed
    log.info("going on from step %d of %s", int(state.step), manager.directory)
    if run["data"]["fingerprint"] != fingerprint:
        log.warning(
            "THE DATA CHANGED since the checkpoint was written (%s, now %s): the run goes on, but not as it would have "
            "gone without the stop",
            run["data"]["fingerprint"],
            fingerprint,
        )
    return state


def train(config, workdir, evaluate=None) -> int:
    """Trains until `training.steps`; started again with the same workdir it goes on from the newest checkpoint.

    Args:
      config: a resolved, validated config.
      workdir: folder for checkpoints, metrics and records; made when missing.
      evaluate: function (graph, params, config, tokenizer) -> name -> number, called with each evaluation; or None.

    Returns:
      Exit code: 0 when done, `EXIT_PREEMPTED` after SIGTERM.

    Raises:
      UserError: whatever the user can put right.
    """
    workdir = _make_workdir(workdir)
    training = config.training
    mesh = make_mesh(config.mesh)
    cache = Path(config.data.cache or workdir / "cache")
    tokenizer, mixture, held_out = main_process_first(partial(open_data, config, cache, mesh))
    made = make_step(config, mesh)
    graph, abstract = made.graph, made.abstract
    manager = checkpoint.make_manager(workdir, training.keep_last, training.keep_every)
    state = start_or_resume(config, manager, made, mixture.fingerprint)
    first_step = int(state.step)
    write_run_files(workdir, config, tokenizer, abstract, mixture, mesh)

    loss_of_batch = make_loss_of_batch(graph, config, len(mixture.names), mesh)
    meter = Meter(config, abstract.trainable, mixture, mesh)
    writer = MetricWriter(workdir, config, first_step + 1)
    screen = Screen(first_step, training.steps, training.log_every)
    feed = open_feed(mixture, mesh, first_step, training.steps)

    def report(pending):
        if pending is None:
            return
        step, metrics, stats, waited = pending
        numbers = {name: float(value) for name, value in jax.device_get(metrics).items()}
        numbers |= meter.rates(stats, waited)
        if numbers["skipped_in_row"] > training.max_nonfinite:
            raise UserError(
                f"step {step}: the last {training.max_nonfinite + 1:.0f} updates were all skipped (loss "
                f"{numbers['loss']:.4g}, gradient norm {numbers['grad_norm']:.4g}). Lower training.optimizer."
                "learning_rate, or look at the records named in the log, and start again: it goes on from the newest "
                "checkpoint"
            )
        writer.write(step, numbers)
        screen.show(step, numbers)

    def save(step):
        data_state = {"seed": config.seed, "next_step": step, "fingerprint": mixture.fingerprint}
        checkpoint.save(manager, state, checkpoint.run_record(config, tokenizer, abstract, data_state))

    pending, step, stopping = None, first_step, False
    try:
        with Preemption() as preemption:
            for step, batch, stats in feed:
                step += 1
                state, metrics = made.function(state, batch)
                report(pending)  # one step behind: reading this step's numbers would wait for it
                pending = step, metrics, stats, feed.waited
                stopping = preemption.requested(step) and step < training.steps
                if stopping:
                    break
                if training.eval_every and (step % training.eval_every == 0 or step == training.steps):
                    report(pending)
                    pending = None
                    weights = (state.average or state.trainable) | state.frozen
                    numbers = validation_losses(weights, config, held_out, mesh, loss_of_batch)
                    if evaluate and jax.process_count() == 1:  # generation reads weights that one process holds
                        numbers |= evaluate(graph, weights, config, tokenizer)
                    writer.write(step, numbers)
                    log.info("step %d  %s", step, "  ".join(f"{name} {value:.3f}" for name, value in numbers.items()))
                    meter.restart()
                if step % training.checkpoint_every == 0 or step == training.steps:
                    save(step)
            report(pending)
            if stopping and manager.latest_step() != step:
                save(step)
    finally:
        manager.close()  # waits for a save in flight
        feed.close()
        screen.close()
        writer.close()
    if stopping:
        log.info("stopped by SIGTERM after step %d, all saved; the same command goes on from there", step)
        return EXIT_PREEMPTED
    log.info("done: %d steps, weights in %s", step, manager.directory)
    return 0
