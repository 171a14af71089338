"""`kosmos report`: where the time of a run went, as a table and as a picture."""

import importlib.util
from collections import Counter

from kosmos_jax.paths import as_path
from kosmos_jax.training.ledger import KINDS, read

PALETTE = ("#8c8c8c", "#b79ad6", "#e8a33d", "#3b7dd8", "#4fae8b", "#9fc5e8", "#444444", "#d64541")
COLORS = dict(zip(KINDS, PALETTE, strict=True))


def report(args) -> None:
    """Prints the table; where matplotlib is installed, draws WORKDIR/report.png.

    Raises:
      UserError: the workdir has no ledger.
    """
    attempts = read(args.workdir)
    print(table(attempts))
    if importlib.util.find_spec("matplotlib"):
        draw(attempts, as_path(args.workdir) / "report.png")
        print(f"\nwrote {args.workdir.rstrip('/')}/report.png")


def table(attempts) -> str:
    """Seconds and shares by kind over all attempts, then a line for each attempt."""
    seconds = sum((attempt.seconds for attempt in attempts), Counter())
    running = sum(seconds[kind] for kind in KINDS)
    kept = [step for attempt in attempts for step in attempt.steps[: len(attempt.steps) - attempt.lost]]
    tokens, training = sum(step["tokens"] for step in kept), seconds["step"] + seconds["data wait"]
    lines = [f"{'':12}{'seconds':>12}{'%':>8}"]
    lines += [f"{kind:12}{seconds[kind]:12,.1f}{100 * seconds[kind] / max(running, 1e-9):8.1f}" for kind in KINDS]
    lines += [
        f"{'all':12}{running:12,.1f}{100:8.1f}",
        "",
        f"restarts {len(attempts) - 1}, steps {len(kept)}, steps lost {sum(attempt.lost for attempt in attempts)}, "
        f"seconds between the attempts {_pauses(attempts):,.1f}",
        f"tokens/s {tokens / max(running, 1e-9):,.0f} over all, {tokens / max(training, 1e-9):,.0f} while it trained",
        "",
        f"{'attempt':8}{'from step':>10}{'to step':>9}{'lost':>6}{'seconds':>11}  ended",
    ]
    for number, attempt in enumerate(attempts, 1):
        first = "-" if attempt.first_step is None else attempt.first_step
        last = attempt.steps[-1]["step"] if attempt.steps else first
        length = attempt.until - attempt.began
        lines.append(f"{number:<8}{first:>10}{last:>9}{attempt.lost:>6}{length:>11,.1f}  {attempt.ended}")
    return "\n".join(lines)


def _pauses(attempts) -> float:
    return sum(max(after.began - before.until, 0.0) for before, after in zip(attempts, attempts[1:], strict=False))


def draw(attempts, path) -> None:
    """A bar for each attempt, by kind, and the loss of every step, also of those that were done again."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (bars, losses) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    numbers, bottom = range(1, len(attempts) + 1), [0.0] * len(attempts)
    for kind in KINDS:
        heights = [attempt.seconds[kind] for attempt in attempts]
        bars.bar(numbers, heights, bottom=bottom, color=COLORS[kind], label=kind)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    bars.set(xlabel="attempt", ylabel="seconds")
    bars.xaxis.get_major_locator().set_params(integer=True)
    bars.legend(loc="upper left", bbox_to_anchor=(1, 1))
    for attempt in attempts:
        kept = len(attempt.steps) - attempt.lost
        losses.plot(*_curve(attempt.steps[:kept]), color=COLORS["step"])
        lost = attempt.steps[max(kept - 1, 0) :] if attempt.lost else []
        # Wide and below, because the same steps come again with the same losses.
        losses.plot(*_curve(lost), color=COLORS["lost work"], linewidth=6, zorder=1)
    losses.set(xlabel="step", ylabel="loss")
    with path.open("wb") as file:
        figure.savefig(file, dpi=120)
    plt.close(figure)


def _curve(steps) -> tuple[list[int], list[float]]:
    return [step["step"] for step in steps], [step["loss"] for step in steps]
