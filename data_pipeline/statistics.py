"""What is in the sources of a mixture, in numbers."""

from typing import Any

import numpy as np

QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
# Lengths are read of so many blocks, evenly over all: of 10^9 documents a million say the same.
BLOCKS = 16


def statistics(mixture) -> dict[str, dict[str, Any]]:
    """Of each source of a `Mixture`, by name.

    Returns:
      documents, tokens, items (by kind), lengths (quantiles of the tokens of a document), histogram (edges and counts),
      skipped (by kind), examples, filters, duplicates, text_fill, item_fill (by kind), rows_an_epoch, rows_a_step (on
      average), epochs (how often it will have been seen when the run ends), epochs_limit (0: none).
    """
    config, found = mixture.config, {}
    steps = config.training.steps
    drawn = mixture.layout.drawn(steps) * mixture.layout.size
    for s, (name, member) in enumerate(zip(mixture.names, mixture.members, strict=True)):
        plan, ledger = member.plan, member.plan.ledger
        lengths = lengths_of(plan)
        counts, edges = np.histogram(
            lengths, np.unique(np.geomspace(1, max(2, lengths.max(initial=2)), 25).astype(int))
        )
        rows = int(plan.bundles.sum()) * plan.size
        found[name] = dict(
            documents=sum(ledger.documents),
            tokens=sum(ledger.tokens),
            items={kind: sum(each.get(kind, 0) for each in ledger.items) for kind in plan.kinds},
            lengths=np.quantile(lengths, QUANTILES).astype(int).tolist() if len(lengths) else [],
            histogram=dict(edges=edges.tolist(), counts=counts.tolist()),
            skipped=plan.skipped,
            examples=ledger.examples,
            filters=ledger.filters,
            duplicates=ledger.duplicates,
            text_fill=plan.fill,
            item_fill={kind: fill for kind, fill in plan.item_fill.items() if fill is not None},
            rows_an_epoch=rows,
            rows_a_step=float(drawn[s] / steps),
            epochs=float(drawn[s] / rows),
            epochs_limit=float(config.data.sources[name].get("epochs", 0)),
        )
    return found


def lengths_of(plan) -> np.ndarray:
    """int64[n], tokens of documents of a source; of many blocks those of `BLOCKS`."""
    count = len(plan.ledger.blocks) - 1
    blocks = np.unique(np.linspace(0, count - 1, min(count, BLOCKS)).astype(int))
    each = [np.diff(shard.first) for block in blocks.tolist() for shard, _, _ in plan.shards(block)]
    return np.concatenate([np.zeros(0, np.int64), *each])


def as_text(found: dict[str, dict[str, Any]]) -> str:
    """A block of lines for each source."""
    lines = []
    for name, each in found.items():
        items = "".join(f", {n:,} of {kind}" for kind, n in each["items"].items() if n)
        lines.append(f"{name}: {each['documents']:,} documents, {each['tokens']:,} tokens{items}")
        least, tenth, median, ninth, most = each["lengths"] or [0] * 5
        lines.append(f"  tokens of a document: {least} to {most:,}, median {median:,}, 80% from {tenth:,} to {ninth:,}")
        fills = [f"text {each['text_fill']:.3f}", *(f"{kind} {fill:.3f}" for kind, fill in each["item_fill"].items())]
        lines.append(
            f"  {each['rows_an_epoch']:,} rows an epoch, {each['rows_a_step']:g} a step; fill: {', '.join(fills)}"
        )
        limit = each["epochs_limit"]
        over = f", OVER ITS LIMIT of {limit:g}" if limit and each["epochs"] > limit else ""
        lines.append(f"  seen {each['epochs']:.2f} times when the run ends{over}")
        lines += [f"  {f['name']}: {f['rejected']:,} rejected, {f['changed']:,} changed" for f in each["filters"]]
        lines += [f"  {each['duplicates']:,} near-duplicates left out"] if each["duplicates"] else []
        for kind, n in each["skipped"].items():
            example = next(iter(each["examples"].get(kind, [])), "")
            lines.append(f"  {n:,} left out ({kind})" + (f", such as {example[:160]}" if example else ""))
    return "\n".join(lines)
