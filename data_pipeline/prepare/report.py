"""What became of a source's documents, for people: how many each filter took, and which.

    files("pages train", merged(reports))  ->  report.json, report.md, report.png

`reports` are those that `job.Worker.do` writes for each shard of a reader.
"""

import io
import itertools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from data_pipeline.prepare.filters import NearDuplicates

# Messages on documents, of all shards together.
EXAMPLES = 10
UNUSABLE = "cannot be used"
NAMES = JSON, MARKDOWN, PICTURE = "report.json", "report.md", "report.png"


class Step(NamedTuple):
    """What one filter did, or what it is that cannot be used.

    Attributes:
      name: of the filter.
      came: documents that came to it.
      rejected, changed: how many of them.
    """

    name: str
    came: int
    rejected: int
    changed: int = 0

    @property
    def left(self) -> int:
        return self.came - self.rejected


def merged(reports: Sequence[dict[str, Any]], duplicates: int = 0) -> dict[str, Any]:
    """One report of several, of shards or of sources with the same recipe.

    Args:
      reports: of shards, or what this function returned.
      duplicates: documents that were left out when all shards were there.

    Returns:
      read, documents (prepared ones, without near-duplicates), filters, skipped, examples (of what was skipped) and
      duplicates; of examples the first of each report stand before the second ones.
    """
    filters = {}
    for name in dict.fromkeys(name for report in reports for name in report["filters"]):
        own = [report["filters"][name] for report in reports if name in report["filters"]]
        filters[name] = {key: sum(each[key] for each in own) for key in ("rejected", "changed")}
        filters[name]["examples"] = _some([each["examples"] for each in own])
    kinds = sorted({kind for report in reports for kind in report["skipped"]})
    return dict(
        read=sum(report["read"] for report in reports),
        documents=sum(map(_documents, reports)) - duplicates,
        filters=filters,
        skipped={kind: sum(report["skipped"].get(kind, 0) for report in reports) for kind in kinds},
        examples={kind: _some([report["examples"].get(kind, []) for report in reports]) for kind in kinds},
        duplicates=duplicates + sum(report.get("duplicates", 0) for report in reports),
    )


def _documents(report: dict[str, Any]) -> int:
    return report["documents"] if "documents" in report else sum(shard["documents"] for shard in report["shards"])


def _some(examples: Sequence[Sequence[str]]) -> list[str]:
    turns = itertools.zip_longest(*examples)
    return [each for turn in turns for each in turn if each is not None][:EXAMPLES]


def steps(report: dict[str, Any]) -> list[Step]:
    """What happened to the documents that were read, in order.

    Args:
      report: see `merged`.
    """
    found, left = [], report["read"]
    for name, own in report["filters"].items():
        if name != NearDuplicates.name:
            found.append(Step(name, left, own["rejected"], own["changed"]))
            left = found[-1].left
    duplicates = report["duplicates"]
    found.append(Step(UNUSABLE, left, left - duplicates - report["documents"]))
    if NearDuplicates.name in report["filters"]:
        found.append(Step(NearDuplicates.name, found[-1].left, duplicates))
    return found


def files(title: str, report: dict[str, Any]) -> dict[str, bytes]:
    """Name and content of the files of a report; without a picture where matplotlib is not installed.

    Args:
      title: the source and the split.
      report: see `merged`.
    """
    own_steps = [step._asdict() | dict(left=step.left) for step in steps(report)]
    try:
        shown = {PICTURE: picture(title, report)}
    except ImportError:
        shown = {}
    return {
        JSON: json.dumps(dict(title=title, steps=own_steps) | report, indent=1, ensure_ascii=False).encode(),
        MARKDOWN: markdown(title, report, PICTURE if shown else "").encode(),
    } | shown


def markdown(title: str, report: dict[str, Any], image: str = "") -> str:
    """The report as a page.

    Args:
      title, report: see `files`.
      image: file of the picture.
    """
    lines = [f"# {title}", "", f"{report['read']:,} documents were read, {report['documents']:,} are left.", ""]
    lines += [f"![documents left after each filter]({image})", ""] if image else []
    lines += ["| | came to it | rejected | | changed | left |", "|---|---:|---:|---:|---:|---:|"]
    for step in steps(report):
        counts = (f"{step.rejected:,}", _percent(step.rejected, step.came), f"{step.changed:,}", f"{step.left:,}")
        lines.append(f"| {step.name} | {step.came:,} | {' | '.join(counts)} |")
    for name, own in report["filters"].items():
        if own["examples"]:
            lines += ["", f"## {name}: {own['rejected']:,} rejected, such as", "", *_code(own["examples"])]
    for kind, n in report["skipped"].items():
        lines += ["", f"## {UNUSABLE} ({kind}): {n:,}, such as", "", *_code(report["examples"][kind])]
    return "\n".join(lines) + "\n"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if whole else ""


def _code(messages: Sequence[str]) -> list[str]:
    # Indented, so that nothing in them is Markdown or HTML.
    return ["    " + " ".join(message.split()) for message in messages]


def picture(title: str, report: dict[str, Any]) -> bytes:
    """A PNG: a bar for each step, as long as what is left after it; what it took is lighter.

    Args:
      title, report: see `files`.
    """
    from matplotlib.figure import Figure

    own = [Step("read", report["read"], 0), *steps(report)]
    figure = Figure((8, 1.2 + 0.4 * len(own)), layout="constrained")
    axes = figure.subplots()
    names, left = [step.name.replace("_", " ") for step in own], [step.left for step in own]
    axes.barh(names, left, color="#3b6ea5")
    axes.barh(names, [step.rejected for step in own], left=left, color="#e3b5a4")
    for n, step in enumerate(own):
        text = f" {step.left:,} ({_percent(step.left, report['read'])})" if report["read"] else " 0"
        text += f", -{step.rejected:,}" if step.rejected else ""
        axes.text(step.came, n, text, va="center")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * max(1, report["read"]))
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title(f"{title}: documents left", loc="left")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
