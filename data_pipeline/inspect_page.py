"""A page that shows what the model will see: packed rows as they are, and what their sources hold."""

import base64
import html
import io
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.statistics import statistics
from data_pipeline.wav import wav

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --faint: #8a8a8a; --line: #ddd; --pale: 92%;
  --deep: 80% }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #161616; --faint: #888; --line: #3a3a3a; --pale: 18%; --deep: 32% } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 1150px; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
td.n { text-align: right; font-variant-numeric: tabular-nums }
article { border: 1px solid var(--line); border-radius: 6px; padding: .6rem .9rem; margin: 1rem 0 }
article h3 { margin: 0 0 .4rem; font-size: 1rem }
.fill { color: var(--faint); font-weight: normal }
.piece { border-left: 3px solid hsl(var(--hue) 60% 50%); padding-left: .6rem; margin: .5rem 0; overflow-wrap: anywhere }
.piece cite { display: block; font-size: .75rem; color: var(--faint); font-style: normal }
.t { border-radius: 2px; background: hsl(var(--hue) 70% var(--pale)) }
.t.learned { background: hsl(var(--hue) 70% var(--deep)) }
.tag { color: var(--faint); font-size: .8em }
img { height: 84px; image-rendering: auto; vertical-align: middle; border-radius: 3px; margin: 2px }
audio { height: 32px; vertical-align: middle }
.bars { display: flex; align-items: flex-end; height: 48px; gap: 1px; min-width: 160px }
.bars i { flex: 1; background: hsl(var(--hue) 60% 50%); min-height: 1px }
"""


def inspect(mixture, step: int, out: str, rows: int = 8):
    """Writes the page, and beside it a picture of the same rows (`.png`).

    Args:
      mixture: whose batch is shown.
      step: which one.
      out: the page, "page.html".
      rows: of each source, at most.
    """
    arrays, stats = mixture.batch(step)
    shown = chosen_rows(arrays["row_source"][0], rows)
    names = _names(mixture, step)
    articles = [_row(mixture, arrays, names, row) for row in shown]
    title = f"{mixture.config.get('name', 'data')}, {mixture.split}: step {step:,}"
    fills = ", ".join([f"text {stats['text_fill']:.3f}", *(f"{k} {v:.3f}" for k, v in stats["item_fill"].items())])
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>
<h1>{html.escape(title)}</h1>
<p>{len(shown)} of {mixture.rows} rows of {mixture.config.data.seq_len} tokens; fill of the batch: {fills}.
Dark tokens are learned, pale ones are read. A bar at the left is a document, or a piece of one.</p>
<h2>Sources</h2>
{_table(mixture, statistics(mixture))}
<h2>Rows</h2>
{"".join(articles)}
</body></html>
"""
    Path(out).write_text(page, encoding="utf-8")
    picture(mixture, arrays, shown, str(Path(out).with_suffix(".png")))


def chosen_rows(row_source: np.ndarray, most: int) -> list[int]:
    """The first rows of each source, in the order in which they stand in the batch."""
    return sorted(int(row) for s in np.unique(row_source) for row in np.flatnonzero(row_source == s)[:most])


def _names(mixture, step: int) -> dict[tuple[int, int], str]:
    """Names of the documents of a batch by row and segment."""
    everything = mixture.gather(step, 0, range(mixture.rows), {kind: range(n) for kind, n in mixture.items.items()})
    each = zip(everything.row.tolist(), everything.segment.tolist(), everything.shard, everything.document, strict=True)
    return {(row, segment): everything.shards[shard].name(int(d)) for row, segment, shard, d in each}


def _row(mixture, arrays: dict[str, Any], names: dict, row: int) -> str:
    tokens, targets, segments, slots = (arrays[key][0, row] for key in ("tokens", "targets", "segment_ids", "slots"))
    learned = np.concatenate([[False], targets[:-1] >= 0])
    source = int(arrays["row_source"][0, row])
    used = int((segments > 0).sum())
    pieces, bounds = [], np.flatnonzero(np.diff(segments, prepend=-1, append=-1)).tolist()
    for first, stop in zip(bounds, bounds[1:], strict=False):
        if segments[first] > 0:
            body = "".join(_spans(mixture, arrays, tokens[first:stop], learned[first:stop], slots[first:stop]))
            name = names.get((row, int(segments[first])), "")
            pieces.append(f'<div class="piece"><cite>{html.escape(name)}</cite>{body}</div>')
    head = f"row {row}: {html.escape(mixture.names[source])}"
    fill = f'<span class="fill">{used} of {len(tokens)} tokens, {(learned & (segments > 0)).sum()} learned</span>'
    return f'<article style="--hue: {hue(mixture, source)}"><h3>{head} {fill}</h3>{"".join(pieces)}</article>\n'


def hue(mixture, source: int) -> int:
    return round(210 + 360 * source / len(mixture.names)) % 360


def _spans(mixture, arrays, tokens, learned, slots):
    at = 0
    while at < len(tokens):
        if slots[at] >= 0:
            kind, number = _item(mixture, int(slots[at]))
            yield _shown(kind, arrays["media"][kind][0, number])
            at += mixture.modalities[kind].tokens
            continue
        stop = at + 1
        while stop < len(tokens) and learned[stop] == learned[at] and slots[stop] < 0:
            stop += 1
        text = "".join(_token(mixture.tokenizer, int(token)) for token in tokens[at:stop])
        yield f'<span class="t{" learned" if learned[at] else ""}">{text}</span>'
        at = stop


def _token(tokenizer, token: int) -> str:
    if token == tokenizer.line:
        return '<span class="tag">&lt;/line&gt;</span><br>'
    written = tokenizer.token(token)
    if token in (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.unk) or token in tokenizer.tag_ids.values():
        return f'<span class="tag">{html.escape(written)}</span>'
    return html.escape(written.replace("▁", " "))


def _item(mixture, slot: int) -> tuple[str, int]:
    """Kind and number of the item that a slot belongs to."""
    first = mixture.table.first
    kind = max((kind for kind in first if first[kind] <= slot), key=lambda kind: (first[kind], kind))
    return kind, (slot - first[kind]) // mixture.table.tokens[kind]


def _shown(kind: str, item: np.ndarray) -> str:
    if item.ndim == 3 and item.dtype == np.uint8:
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(item).save(file, "JPEG", quality=85)
        return f'<img alt="{kind}" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'
    if item.ndim == 1 and item.dtype == np.int16:
        data = base64.b64encode(wav(item, 16_000)).decode()
        return f'<audio controls src="data:audio/wav;base64,{data}"></audio>'
    return f'<span class="tag">[{html.escape(kind)} {item.shape}]</span>'


def _table(mixture, found: dict[str, dict[str, Any]]) -> str:
    head = (
        "source",
        "documents",
        "tokens",
        "media",
        "tokens of a document",
        "text fill",
        "media fill",
        "rows an epoch",
    )
    head += ("a step", "epochs at the end", "left out")
    rows = []
    for s, (name, each) in enumerate(found.items()):
        counts, most = each["histogram"]["counts"], max(1, *each["histogram"]["counts"])
        bars = "".join(f'<i style="height: {100 * n / most:.0f}%"></i>' for n in counts)
        least, _, median, _, largest = each["lengths"] or [0] * 5
        lengths = f'<div class="bars">{bars}</div>{least} to {largest:,}, median {median:,}'
        out = [f"{n:,} {kind}: {(each['examples'].get(kind) or [''])[0][:120]}" for kind, n in each["skipped"].items()]
        out += [f"{f['rejected']:,} by {f['name']}" for f in each["filters"] if f["rejected"]]
        out += [f"{each['duplicates']:,} near-duplicates"] if each["duplicates"] else []
        limit = f" of {each['epochs_limit']:g}" if each["epochs_limit"] else ""
        cells = [
            f"<th scope=row>{html.escape(name)}</th>",
            *(f"<td class=n>{each[key]:,}</td>" for key in ("documents", "tokens")),
            f"<td class=n>{', '.join(f'{n:,} {kind}' for kind, n in each['items'].items() if n) or '-'}</td>",
            f"<td>{lengths}</td><td class=n>{each['text_fill']:.3f}</td>",
            f"<td class=n>{', '.join(f'{kind} {fill:.3f}' for kind, fill in each['item_fill'].items()) or '-'}</td>",
            f"<td class=n>{each['rows_an_epoch']:,}</td><td class=n>{each['rows_a_step']:g}</td>",
            f"<td class=n>{each['epochs']:.2f}{limit}</td><td>{'<br>'.join(map(html.escape, out)) or '-'}</td>",
        ]
        rows.append(f'<tr style="--hue: {hue(mixture, s)}">{"".join(cells)}</tr>')
    heads = "".join(f"<th scope=col>{each}</th>" for each in head)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def picture(mixture, arrays: dict[str, Any], shown: list[int], out: str):
    """The rows as stripes: padding white, media dark, text in the colour of its source, paler where it is only read."""
    from colorsys import hls_to_rgb

    from PIL import Image

    height, seq_len = 14, mixture.config.data.seq_len
    image = np.full((len(shown) * (height + 4) + 4, seq_len, 3), 255, np.uint8)
    for n, row in enumerate(shown):
        targets, segments, slots = (arrays[key][0, row] for key in ("targets", "segment_ids", "slots"))
        learned = np.concatenate([[False], targets[:-1] >= 0])
        tone = hue(mixture, int(arrays["row_source"][0, row])) / 360
        colours = [tuple(round(255 * c) for c in hls_to_rgb(tone, light, 0.6)) for light in (0.82, 0.55, 0.25)]
        strip = np.array(colours, np.uint8)[np.where(slots >= 0, 2, learned.astype(int))]
        strip[segments == 0] = 245
        strip[np.diff(segments, prepend=segments[:1]) != 0] = 0  # where a document begins
        image[4 + n * (height + 4) : 4 + n * (height + 4) + height] = strip
    scale = max(1, 1024 // seq_len)
    Image.fromarray(image).resize((seq_len * scale, image.shape[0] * 2), Image.Resampling.NEAREST).save(out)
