"""Where numbers go: metrics.jsonl and TensorBoard always, Weights & Biases when asked for, and the screen."""

import json
import logging
import math
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import jax
from tqdm import tqdm

from kosmos_jax.training.board import Board
from kosmos_jax.training.lines import Lines, read_lines

log = logging.getLogger(__name__)


class MetricWriter:
    """Writes numbers by name; on the first process only."""

    def __init__(self, workdir, config, first_step: int):
        self.active = jax.process_index() == 0
        if not self.active:
            return
        self.workdir, path = Path(workdir), Path(workdir) / "metrics.jsonl"
        _drop_from(path, first_step)
        self.lines, self.board = Lines(path), None
        self.wandb = _start_wandb(workdir, config) if config.training.wandb else None

    def write(self, step: int, numbers: dict) -> None:
        """One line of metrics.jsonl, with null for what is not finite (JSON has no NaN), and the other places."""
        if not self.active:
            return
        clean = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self.lines.append({"step": step, **clean})
        with self._board_errors(step):
            self.board = self.board or Board(self.workdir / "tensorboard", step)
            self.board.write(step, numbers)
        if self.wandb:
            self.wandb.log(numbers, step=step)

    def publish(self) -> None:
        """Closes what was written so far: a mounted bucket stores a file when it is closed, and not before."""
        if self.active:
            self.lines.publish()
            with self._board_errors("the last ones"):
                self._close_board()

    def _close_board(self) -> None:
        self.board, part = None, self.board
        if part:
            part.close()

    @contextmanager
    def _board_errors(self, step):
        try:
            yield
        except OSError as error:
            with suppress(OSError):
                self._close_board()
            log.error("step %s is missing in %s: %s", step, self.workdir / "tensorboard", error)

    def close(self) -> None:
        if self.active:
            self.publish()
            self.lines.close()
            if self.wandb:
                self.wandb.finish()


def _drop_from(path: Path, step: int) -> None:
    """After a restart the steps from `step` on come again: their old lines, and one that was cut short, go."""
    kept = [json.dumps(line) + "\n" for line in read_lines(path) if line.get("step", step) < step]
    if path.exists():
        temporary = path.with_suffix(".new")
        temporary.write_text("".join(kept))
        temporary.replace(path)


def _start_wandb(workdir, config):
    try:
        import wandb
    except ImportError:
        log.warning("config.training.wandb is set, but wandb is not installed (pip install 'kosmos_jax[wandb]')")
        return None
    return wandb.init(project="kosmos_jax", name=config.name, dir=str(workdir), config=config.to_dict(), resume="allow")


class Screen:
    """A progress bar on a terminal, a plain line every `every` steps elsewhere."""

    def __init__(self, first_step: int, steps: int, every: int):
        self.every, self.steps, self.bar = every, steps, None
        if sys.stderr.isatty() and jax.process_index() == 0:
            self.bar = tqdm(total=steps, initial=first_step, desc="train", unit="step", dynamic_ncols=True)

    def show(self, step: int, numbers: dict) -> None:
        parts = {
            "loss": f"{numbers['loss']:.3f}",
            **{name.split("/")[1]: f"{value:.2f}" for name, value in numbers.items() if name.startswith("loss/")},
            "tok/s": f"{numbers.get('tokens_per_second', 0):,.0f}",
            "wait": f"{100 * numbers.get('data_wait', 0):.0f}%",
        }
        if self.bar is not None:
            self.bar.update(step - self.bar.n)
            self.bar.set_postfix(parts)
        elif step % self.every == 0 or step == self.steps:
            rate = "_items_per_second"
            more = {f"{k.removesuffix(rate)}/s": f"{v:,.0f}" for k, v in numbers.items() if k.endswith(rate)}
            more["mfu"] = f"{numbers.get('mfu', 0):.3f}"
            log.info("step %d of %d  %s", step, self.steps, "  ".join(f"{k} {v}" for k, v in (parts | more).items()))

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
