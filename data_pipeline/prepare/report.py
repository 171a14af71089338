"""What became of a source's documents: report.md and report.png beside the ledger, and report.json for programs.

read -> each filter in its order -> what can be decoded and is not empty -> near-duplicates
"""

import io
import json
import logging
from typing import Any

from data_pipeline.prepare.filters import NearDuplicates
from data_pipeline.prepare.ledger import Ledger, write_bytes, write_text

log = logging.getLogger(__name__)
SHOWN = 5


def write_report(ledger: Ledger, title: str):
    """Writes the files into the ledger's folder; a picture where there are filters and matplotlib is installed.

    Args:
      ledger: of what was prepared.
      title: the source's name and split.
    """
    content = report(ledger, title)
    write_text(ledger.folder, "report.json", json.dumps(content, indent=1))
    picture = bool(ledger.filters) and _write_picture(ledger.folder, content)
    write_text(ledger.folder, "report.md", as_markdown(content, picture))


def report(ledger: Ledger, title: str) -> dict[str, Any]:
    """Numbers and examples, as report.json has them.

    Returns:
      title; `read`, documents that could be read; `left`, after each step, in order; `filters` and `skipped`: what was
      taken, with examples; `documents` that rows are made of; `tokens` and `items` of the shards.
    """
    items = {kind: sum(each.get(kind, 0) for each in ledger.items) for kind, _ in ledger.modalities}
    skipped = {kind: dict(records=n, examples=ledger.examples.get(kind, [])) for kind, n in ledger.skipped.items()}
    return dict(
        title=title,
        read=ledger.read,
        left=_left(ledger),
        filters=ledger.filters,
        skipped=skipped,
        documents=sum(ledger.documents) - ledger.duplicates,
        tokens=sum(ledger.tokens),
        items=items,
    )


def _left(ledger: Ledger) -> dict[str, int]:
    left, found = ledger.read, {"read": ledger.read}
    for each in ledger.filters:
        if each["name"] != NearDuplicates.name:
            left -= each["rejected"]
            found[each["name"]] = left
    prepared = sum(ledger.documents)
    if prepared != left:
        found["can be used"] = prepared
    if any(each["name"] == NearDuplicates.name for each in ledger.filters):
        found[NearDuplicates.name] = prepared - ledger.duplicates
    return found


def as_markdown(content: dict[str, Any], picture: bool = False) -> str:
    """The report as a page.

    Args:
      content: see `report`.
      picture: whether report.png lies beside.
    """
    counts = [f"{content['tokens']:,} tokens", *(f"{n:,} of {kind}" for kind, n in content["items"].items() if n)]
    lines = [f"# {content['title']}", ""]
    lines += [f"{content['documents']:,} documents, of {content['read']:,} that could be read."]
    among = ", those of near-duplicates among them" if NearDuplicates.name in content["left"] else ""
    lines += [f"The shards have {', '.join(counts)}{among}."]
    lines += ["", "![Documents left after each filter](report.png)"] if picture else []
    filters, left = {each["name"]: each for each in content["filters"]}, content["left"]
    if filters:
        lines += ["", "| step | rejected | changed | left | of all |", "|---|---:|---:|---:|---:|"]
        for name, n in left.items():
            each = filters.get(name, dict(rejected="", changed=""))
            numbers = [f"{each[key]:,}" if each[key] != "" else "" for key in ("rejected", "changed")]
            lines.append(f"| {name} | {numbers[0]} | {numbers[1]} | {n:,} | {n / max(1, content['read']):.1%} |")
    for name, each in filters.items():
        lines += _examples(f"Rejected by {name}: {each['rejected']:,}", each["examples"])
    for kind, each in content["skipped"].items():
        lines += _examples(f"Records that cannot be used ({kind}): {each['records']:,}", each["examples"])
    return "\n".join(lines) + "\n"


def _examples(title: str, messages: list[str]) -> list[str]:
    # Indented, so that nothing in them is taken for Markdown.
    shown = ["    " + " ".join(message.split())[:200] for message in messages[:SHOWN]]
    return ["", f"## {title}", "", *shown] if messages else []


def _write_picture(folder: str, content: dict[str, Any]) -> bool:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        log.info("no report.png in %s: pip install 'kosmos_jax[data]'", folder)
        return False
    left = content["left"]
    figure = Figure(figsize=(8, 1 + 0.35 * len(left)), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh(range(len(left)), list(left.values()), color="#3b6ea5")
    labels = [f"{n:,} ({n / max(1, content['read']):.1%})" for n in left.values()]
    axes.bar_label(bars, labels, padding=4)
    axes.set_yticks(range(len(left)), list(left))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max(1, content["read"]))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("documents left")
    axes.set_title(content["title"])
    axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    write_bytes(folder, "report.png", file.getvalue())
    return True
