"""`kosmos train`: from a config to a workdir with checkpoints, and on from where it was stopped."""

import logging
import math
import time
from functools import partial
from pathlib import Path

import jax

from kosmos_jax import checkpoint
from kosmos_jax.errors import EXIT_PREEMPTED, UserError, refuse_address
from kosmos_jax.parallel.distributed import Interrupted, Preemption, main_process_first
from kosmos_jax.parallel.mesh import make_mesh
from kosmos_jax.training.compile import make_step
from kosmos_jax.training.feed import open_feed
from kosmos_jax.training.ledger import Ledger
from kosmos_jax.training.meter import Meter
from kosmos_jax.training.metrics import MetricWriter, Screen
from kosmos_jax.training.profile import Profiler
from kosmos_jax.training.record import write_run_files
from kosmos_jax.training.saver import Saver
from kosmos_jax.training.spool import BOARD, Spool
from kosmos_jax.training.spread import Spread
from kosmos_jax.training.start import claim_workdir, open_data, start_or_resume
from kosmos_jax.training.validation import make_loss_of_batch, validation_losses
from kosmos_jax.training.watchdog import Watchdog

log = logging.getLogger(__name__)


def train(config, workdir, evaluate=None, began=None) -> int:
    """Trains until `training.steps`; started again with the same workdir it resumes from the newest checkpoint.

    Args:
      config: a resolved, validated config.
      workdir: folder for checkpoints, metrics and records, or its address in a bucket; made when missing.
      evaluate: function (graph, params, config, tokenizer) -> name -> number, called with each evaluation; or None.
      began: when the process began, in seconds since 1970, for the ledger; default: now.

    Returns:
      Exit code: 0 when done, `EXIT_PREEMPTED` after SIGTERM.

    Raises:
      UserError: whatever the user can put right.
    """
    with claim_workdir(workdir) as spool:
        training = config.training
        start_seconds = training.wait_seconds + training.hang_seconds
        watchdog = Watchdog(training.hang_seconds, f"process {jax.process_index()}", start_seconds)
        ledger = Ledger(spool.folder, began or time.time(), jax.process_count(), active=jax.process_index() == 0)
        ended = "error"
        try:
            run = Run(config, spool, evaluate, ledger, watchdog)
            with Preemption() as preemption:
                try:
                    ended = run.train(preemption)
                finally:
                    run.close()
        finally:
            watchdog.close()
            ledger.spent("end", ended=ended)
            ledger.close()
    if ended == "preempted":
        log.info("stopped by SIGTERM after step %d, all saved; the same command resumes from there", run.step)
        return EXIT_PREEMPTED
    log.info("done: %d steps, weights in %s", run.step, run.manager.directory)
    return 0


class Run:
    """One start of a run, from an open workdir to its last step.

    Attributes:
      state: TrainState after `step` updates.
      pending: number, metrics and host statistics of a step whose numbers were not read yet; or None.
      waited: seconds of waiting for data since something was last `finished`.
    """

    def __init__(self, config, spool: Spool, evaluate, ledger: Ledger, watchdog: Watchdog):
        training = config.training
        self.config, self.evaluate, self.pending, self.waited = config, evaluate, None, 0.0
        self.spool, self.ledger, self.watchdog = spool, ledger, watchdog
        workdir = spool.workdir
        self.mesh = make_mesh(config.mesh)
        refuse_address("data.cache", config.data.cache)
        cache = Path(config.data.cache or spool.cache)
        data = main_process_first(partial(open_data, config, cache, self.mesh), "index the data", training.wait_seconds)
        self.tokenizer, self.mixture, self.held_out = data
        self.made = make_step(config, self.mesh)
        self.manager = checkpoint.make_manager(workdir, training.keep_last, training.keep_every)
        self.state = start_or_resume(config, workdir, self.manager, self.made, self.mixture.fingerprint)
        self.first_step = self.step = int(self.state.step)
        self.saver = Saver(self.manager, training.max_failed_saves, training.wait_seconds, self.saved)
        write_run_files(workdir, config, self.tokenizer, self.made.abstract, self.mixture, self.mesh)
        self.loss_of_batch = make_loss_of_batch(self.made.graph, config, len(self.mixture.names), self.mesh)
        self.meter = Meter(config, self.made.abstract.trainable, self.mixture, self.mesh)
        self.writer = MetricWriter(spool.folder, config, self.step + 1)
        self.screen = Screen(self.step, training.steps, training.log_every)
        self.profiler = Profiler(spool.folder / BOARD, training.profile, workdir / BOARD)
        self.spread = Spread(training.log_every)
        self.feed = open_feed(self.mixture, self.mesh, self.step, training.steps)
        self.ledger.spent("start", step=self.step)

    def train(self, preemption: Preemption) -> str:
        """Steps, with evaluations and checkpoints when they are due; "done", or "preempted" after SIGTERM."""
        training = self.config.training
        for step, batch, stats in self.feed:
            self.step = step + 1
            self.waited += self.feed.waited
            self.profiler.before(self.step)
            with jax.profiler.StepTraceAnnotation("train", step_num=self.step):
                self.state, metrics = self.made.function(self.state, batch)
            self.profiler.after(self.step, metrics)
            if step == self.first_step:
                self.ledger.spent("compile", self.waited)  # and not `finished`: others may be compiling still
                self.waited = 0.0
            self.report()  # one step behind: reading this step's numbers would wait for it
            self.pending = self.step, metrics, stats
            last = self.step == training.steps
            stop = preemption.requested() and not last
            if training.eval_every and not stop and (last or self.step % training.eval_every == 0):
                stop = not self.validate(preemption)
            if last or stop:
                self.save_last()
                return "done" if last else "preempted"
            if self.step % training.log_every == 0:
                self.saver.poll()
            if self.saver.retry or self.step % training.checkpoint_every == 0:
                self.save()
        return "done"

    def finished(self, kind: str, **facts) -> None:
        """Says that a timed phase has ended, for the ledger and the watchdog."""
        self.ledger.spent(kind, self.waited, **facts)
        self.waited = 0.0
        self.watchdog.alive(f"{kind} (step {self.step})")

    def report(self) -> None:
        """Writes and shows the numbers of the step that is pending, once it is done.

        Raises:
          UserError: too many updates in a row were left out.
        """
        if self.pending is None:
            return
        (step, metrics, stats), self.pending = self.pending, None
        training = self.config.training
        host = self.meter.since_restart()
        numbers = {name: float(value) for name, value in jax.device_get(metrics).items()}
        # Small corpora of text are not in every step.
        numbers = {k: v for k, v in numbers.items() if not (k.startswith("loss/") and math.isnan(v))}
        numbers |= self.meter.rates(stats, self.waited)
        self.spread.add(step, numbers["step_seconds"], host, self.waited)
        loss = numbers["loss"] if math.isfinite(numbers["loss"]) else None  # JSON has no NaN
        self.finished("step", step=step, tokens=round(self.meter.tokens(stats)), loss=loss)
        if numbers["skipped_in_row"] > training.max_nonfinite:
            raise UserError(
                f"step {step}: the last {training.max_nonfinite + 1:.0f} updates were all skipped (loss "
                f"{numbers['loss']:.4g}, gradient norm {numbers['grad_norm']:.4g}). Lower training.optimizer."
                "learning_rate, or look at the records named in the log, and start again: it resumes from the newest "
                "checkpoint"
            )
        self.writer.write(step, numbers)
        self.screen.show(step, numbers)

    def validate(self, preemption: Preemption) -> bool:
        """Losses on held-out data, and what `evaluate` measures; False when SIGTERM cut it short."""
        self.report()
        config, weights = self.config, (self.state.average or self.state.trainable) | self.state.frozen
        try:
            stop = preemption.requested
            numbers = validation_losses(weights, config, self.held_out, self.mesh, self.loss_of_batch, stop)
            if self.evaluate:
                with preemption.interruptible():
                    numbers |= self.evaluate(self.made.graph, weights, config, self.tokenizer)
        except Interrupted:
            log.info("the evaluation after step %d was cut short by SIGTERM", self.step)
            return False
        finally:
            self.finished("evaluation")
            self.meter.restart()
        self.writer.write(self.step, numbers)
        log.info("step %d  %s", self.step, "  ".join(f"{name} {value:.3f}" for name, value in numbers.items()))
        return True

    def save(self) -> None:
        """Starts to write a checkpoint; the numbers of its steps are stored first, so that none is missing with it."""
        self.report()
        self.writer.publish()
        self.spool.publish()
        data_state = {"seed": self.config.seed, "next_step": self.step, "fingerprint": self.mixture.fingerprint}
        self.saver.save(self.state, self.config, self.tokenizer, data_state)
        self.finished("checkpoint")
        self.meter.restart()

    def save_last(self) -> None:
        """Writes a checkpoint and waits until it is complete."""
        self.saver.save_last(self.save)
        self.finished("checkpoint")

    def saved(self, step: int) -> None:
        """A checkpoint is complete."""
        self.ledger.saved(step)
        self.spool.publish()
        self.meter.restart()

    def close(self) -> None:
        """Waits for a checkpoint that is being written, and for the threads of the data."""
        self.saver.close()
        self.finished("checkpoint")
        self.feed.close()
        self.screen.close()
        self.writer.close()
        self.profiler.close()
