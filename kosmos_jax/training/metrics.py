"""Where numbers go: metrics.jsonl and TensorBoard always, Weights & Biases when asked for, and the screen."""

import json
import logging
import math
import sys
from pathlib import Path

import jax
from tqdm import tqdm

log = logging.getLogger(__name__)


class MetricWriter:
    """Writes numbers by name; on the first process only."""

    def __init__(self, workdir, config, first_step: int):
        self.active = jax.process_index() == 0
        if not self.active:
            return
        from tensorboardX import SummaryWriter

        path = Path(workdir) / "metrics.jsonl"
        _drop_from(path, first_step)
        self.file = path.open("a", buffering=1)
        self.board = SummaryWriter(str(Path(workdir) / "tensorboard"), purge_step=first_step, flush_secs=30)
        self.wandb = _start_wandb(workdir, config) if config.training.wandb else None

    def write(self, step: int, numbers: dict) -> None:
        """One line of metrics.jsonl, with null for what is not finite (JSON has no NaN), and the other places."""
        if not self.active:
            return
        clean = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self.file.write(json.dumps({"step": step, **clean}) + "\n")
        for name, value in numbers.items():
            self.board.add_scalar(name, value, step)
        if self.wandb:
            self.wandb.log(numbers, step=step)

    def close(self) -> None:
        if self.active:
            self.file.close()
            self.board.close()
            if self.wandb:
                self.wandb.finish()


def _drop_from(path: Path, step: int) -> None:
    """After a restart the steps from `step` on come again: their old lines, and a last one cut short, go."""
    if path.exists():
        kept = []
        for line in path.read_text().splitlines():
            try:
                if json.loads(line)["step"] < step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                break
        path.write_text("".join(kept))


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
        self.every = every
        self.steps = steps
        show = sys.stderr.isatty() and jax.process_index() == 0
        self.bar = (
            tqdm(total=steps, initial=first_step, desc="train", unit="step", dynamic_ncols=True) if show else None
        )

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
            more = {"images/s": f"{numbers.get('images_per_second', 0):,.0f}", "mfu": f"{numbers.get('mfu', 0):.3f}"}
            log.info("step %d of %d  %s", step, self.steps, "  ".join(f"{k} {v}" for k, v in (parts | more).items()))

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
