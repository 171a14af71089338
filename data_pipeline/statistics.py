"""What is in the sources of a mixture, and what a run makes of it, in numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np

QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
BINS = 24
# Lengths are read of so many blocks, evenly over all: of 10^9 documents a million say the same.
BLOCKS = 16
EXAMPLES = 3
LEVELS = " ▁▂▃▄▅▆▇█"


def statistics(mixture) -> dict[str, dict[str, Any]]:
    """Of each source of a `Mixture`, by name; ready for JSON.

    Returns:
      documents, tokens, items (by kind): prepared, near-duplicates among them. lengths: `QUANTILES` of the tokens of a
      document. histogram: edges (the last one is the longest document's length + 1) and counts. skipped: records left
      out, by kind. examples: messages on them, by kind. filters: what each took. duplicates: documents in no row.
      text_fill, item_fill (by kind): shares of positions and places that are used. rows_an_epoch. rows_a_step: on
      average. epochs: how often it will have been seen when the run ends. epochs_limit: 0 for none.
    """
    config, found = mixture.config, {}
    steps, layout = config.training.steps, mixture.layout
    rows_a_step, epochs = layout.drawn(steps) * layout.size / max(1, steps), mixture.epoch(steps)
    for s, (name, member) in enumerate(zip(mixture.names, mixture.members, strict=True)):
        plan, ledger = member.plan, member.plan.ledger
        lengths = lengths_of(plan)
        counts, edges = np.histogram(lengths, edges_of(lengths))
        found[name] = dict(
            documents=sum(ledger.documents),
            tokens=sum(ledger.tokens),
            items={kind: sum(each.get(kind, 0) for each in ledger.items) for kind in plan.kinds},
            lengths=np.quantile(lengths, QUANTILES).astype(int).tolist() if len(lengths) else [],
            histogram=dict(edges=edges.tolist(), counts=counts.tolist()),
            skipped=plan.skipped,
            examples=_examples(plan),
            filters=ledger.filters,
            duplicates=ledger.duplicates,
            text_fill=plan.fill,
            item_fill={kind: float(fill) for kind, fill in plan.item_fill.items() if fill is not None},
            rows_an_epoch=int(plan.bundles.sum()) * plan.size,
            rows_a_step=float(rows_a_step[s]),
            epochs=epochs[name],
            epochs_limit=float(config.data.sources[name].get("epochs", 0)),
        )
    return found


def lengths_of(plan) -> np.ndarray:
    """int64[n], tokens of documents of a source; of many blocks those of `BLOCKS`."""
    count = len(plan.ledger.blocks) - 1
    blocks = np.unique(np.linspace(0, count - 1, min(count, BLOCKS)).astype(int))
    each = [np.diff(shard.first) for block in blocks.tolist() for shard, _, _ in plan.shards(block)]
    return np.concatenate([np.zeros(0, np.int64), *each])


def edges_of(lengths: np.ndarray) -> np.ndarray:
    """int64[bins + 1], from the shortest to the longest, each bin wider than the one before by the same factor."""
    low, high = lengths.min(initial=2**62), lengths.max(initial=0) + 1
    if low >= high:
        return np.array([0, 1])
    return np.unique(np.round(np.geomspace(max(1, low), max(2, high), BINS + 1)).astype(np.int64))


def _examples(plan) -> dict[str, list[str]]:
    """Messages on what is left out, by kind. What rows cannot hold is found after the ledger is written."""
    found = {kind: messages[:] for kind, messages in plan.ledger.examples.items()}
    for kind in plan.skipped:
        if kind not in found:
            found[kind] = [plan.last_skipped]
    return found


def left_out(each: dict[str, Any]) -> list[tuple[str, int, list[str]]]:
    """What became of a source's other documents: how they were lost, how many, examples; of one of `statistics`."""
    lost = [(kind, n, each["examples"].get(kind, [])) for kind, n in each["skipped"].items()]
    lost += [(each["name"], each["rejected"], each["examples"]) for each in each["filters"] if each["rejected"]]
    return [(how, n, [printable(example) for example in examples[:EXAMPLES]]) for how, n, examples in lost]


def over_limit(each: dict[str, Any]) -> bool:
    """Whether a source will have been seen more often than its config allows."""
    return 0 < each["epochs_limit"] < each["epochs"]


def as_text(found: dict[str, dict[str, Any]]) -> str:
    """Tables for a terminal: what there is, what a run makes of it, what is left out."""
    kinds = list(dict.fromkeys(kind for each in found.values() for kind in each["items"]))
    there = [["source", "documents", "tokens", *kinds, "shortest", "10%", "median", "90%", "longest", ""]]
    run = [["source", "text fill", *(f"{kind} fill" for kind in kinds), "rows an epoch", "rows a step", "epochs", ""]]
    lost = []
    for name, each in found.items():
        counts = (each[key] for key in ("documents", "tokens"))
        items = (each["items"].get(kind, 0) for kind in kinds)
        numbers = [f"{n:,}" for n in (*counts, *items, *(each["lengths"] or [0] * len(QUANTILES)))]
        there.append([name, *numbers, "|" + sparkline(each["histogram"]["counts"]) + "|"])
        fills = [each["text_fill"], *(each["item_fill"].get(kind) for kind in kinds)]
        fills = ["-" if fill is None else f"{fill:.3f}" for fill in fills]
        limit = f"OVER ITS LIMIT of {each['epochs_limit']:g}" if over_limit(each) else ""
        rows = (f"{each['rows_an_epoch']:,}", f"{each['rows_a_step']:,.4g}", f"{each['epochs']:.2f}")
        run.append([name, *fills, *rows, limit])
        for how, n, examples in left_out(each):
            lost.append(f"{name}: {n:,} left out ({how})" + (", such as" if examples else ""))
            lost += [f"    {example[:200]}" for example in examples]
    return "\n".join([*aligned(there), "", *aligned(run), *(["", *lost] if lost else [])])


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, its first and last column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for first, *others, last in table:
        middle = (text.rjust(width) for text, width in zip(others, widths[1:-1], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *middle, last]).rstrip())
    return lines


def sparkline(counts: Sequence[int]) -> str:
    """A histogram in one line; what is not empty shows."""
    most = max(counts)
    return "".join(LEVELS[-(-(len(LEVELS) - 1) * n // most)] if most else " " for n in counts)


def printable(text: str) -> str:
    """One line without what terminals obey, and without what UTF-8 cannot hold: messages quote bad records."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
