"""Results as a table for people and as JSON for programs."""

import json
from pathlib import Path


def table(results) -> str:
    """One line a task, columns aligned.

    Args:
      results: name -> tasks.Result.
    """
    rows = [("task", "measure", "value", "guessing", "n")]
    rows += [
        (name, r.measure, _number(r.value, r.measure), _number(r.baseline, r.measure), str(r.n))
        for name, r in results.items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _number(value: float, measure: str) -> str:
    return f"{value:.1%}" if measure == "accuracy" else f"{value:.1f}"


def write_json(results, path: Path, **about):
    """`about`, and for each task value, baseline, n, measure and the wrong answers as [expected, answer]."""
    tasks = {
        name: dict(
            value=r.value,
            baseline=r.baseline,
            n=r.n,
            measure=r.measure,
            wrong=[[e.expected, e.answer] for e in r.examples if not e.right],
        )
        for name, r in results.items()
    }
    path.write_text(json.dumps({**about, "tasks": tasks}, indent=2) + "\n")
