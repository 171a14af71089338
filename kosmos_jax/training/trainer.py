"""`kosmos train`: from a config to a workdir with checkpoints, and on from where it was stopped."""

import logging
import signal
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.mixture import Mixture
from data_pipeline.pipeline import batches, make_tokenizer
from kosmos_jax import checkpoint
from kosmos_jax.errors import UserError
from kosmos_jax.parallel.mesh import make_mesh, row_shards
from kosmos_jax.training.feed import Feed, batch_shardings, local_range, place
from kosmos_jax.training.meter import Meter
from kosmos_jax.training.metrics import MetricWriter, Screen
from kosmos_jax.training.optimizer import learning_rate, make_optimizer
from kosmos_jax.training.record import write_run_files
from kosmos_jax.training.state import initial_state, state_shardings
from kosmos_jax.training.step import loss_sums, make_train_step

log = logging.getLogger(__name__)
# EX_TEMPFAIL of sysexits.h: stopped by a signal, all saved, run the same command to go on.
EXIT_PREEMPTED = 75


class Preemption:
    """Remembers that SIGTERM came, so that the loop can end between two steps."""

    def __enter__(self):
        self.requested = False
        self._previous = signal.signal(signal.SIGTERM, lambda *_: setattr(self, "requested", True))
        return self

    def __exit__(self, *_):
        signal.signal(signal.SIGTERM, self._previous)


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


def make_loss_of_batch(graph, config, sources: int):
    """jit of (params, batch) -> float32[sources, 2], without dropout: the held-out twin of the training loss."""

    def loss_of_batch(params, batch):
        def body(sums, microbatch):
            return sums + loss_sums(graph, params, microbatch, sources, config.training.loss_chunk)[1], None

        return jax.lax.scan(body, jnp.zeros((sources, 2)), batch)[0]

    return jax.jit(loss_of_batch)


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


def start_or_resume(config, manager, optimizer, abstract, shardings, fingerprint: str):
    """The newest checkpoint's state, or a fresh one where there is no checkpoint."""
    resumed = checkpoint.resume(manager, abstract, shardings)
    if not resumed:
        if abstract.frozen:
            log.warning(
                "%d frozen parameters keep random values, since there is no checkpoint to take them from; "
                "--config.training.frozen='()' trains them",
                sum(leaf.size for leaf in abstract.frozen.values()),
            )
        make = jax.jit(partial(initial_state, config, optimizer), out_shardings=shardings)
        return make(jax.random.key(config.seed))
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
    tokenizer, mixture, held_out = open_data(config, Path(config.data.cache or workdir / "cache"), mesh)
    optimizer = make_optimizer(training.optimizer, training.steps)
    graph, abstract, shardings = state_shardings(config, optimizer, mesh)
    manager = checkpoint.make_manager(workdir, training.keep_last, training.keep_every)
    state = start_or_resume(config, manager, optimizer, abstract, shardings, mixture.fingerprint)
    first_step = int(state.step)
    write_run_files(workdir, config, tokenizer, abstract, mixture, mesh)

    schedule = learning_rate(training.optimizer, training.steps)
    train_step = jax.jit(
        make_train_step(graph, optimizer, config, schedule, mixture.names),
        donate_argnums=0,
        in_shardings=(shardings, batch_shardings(mesh)),
        out_shardings=(shardings, None),
    )
    loss_of_batch = make_loss_of_batch(graph, config, len(mixture.names))
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

    pending, step = None, first_step
    try:
        with Preemption() as preemption:
            for step, batch, stats in feed:
                step += 1
                state, metrics = train_step(state, batch)
                report(pending)  # one step behind: reading this step's numbers would wait for it
                pending = step, metrics, stats, feed.waited
                if preemption.requested and step < training.steps:
                    break
                if training.eval_every and (step % training.eval_every == 0 or step == training.steps):
                    report(pending)
                    pending = None
                    weights = (state.average or state.trainable) | state.frozen
                    numbers = validation_losses(weights, config, held_out, mesh, loss_of_batch)
                    if evaluate:
                        numbers |= evaluate(graph, weights, config, tokenizer)
                    writer.write(step, numbers)
                    log.info("step %d  %s", step, "  ".join(f"{name} {value:.3f}" for name, value in numbers.items()))
                    meter.restart()
                if step % training.checkpoint_every == 0 or step == training.steps:
                    save(step)
            report(pending)
            if preemption.requested and manager.latest_step() != step:
                save(step)
    finally:
        manager.close()  # waits for a save in flight
        feed.close()
        screen.close()
        writer.close()
    if preemption.requested and step < training.steps:
        log.info("stopped by SIGTERM after step %d, all saved; the same command goes on from there", step)
        return EXIT_PREEMPTED
    log.info("done: %d steps, weights in %s", step, manager.directory)
    return 0
