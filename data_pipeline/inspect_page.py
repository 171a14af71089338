"""A page that shows what the model will see: packed rows as they are, and what their sources hold."""

import base64
import collections
import io
import itertools
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.inspect_picture import write_picture
from data_pipeline.inspect_rows import Item, Row, Segment, hue, packed_rows
from data_pipeline.media import audio
from data_pipeline.statistics import left_out, over_limit, printable, statistics
from kosmos_jax.modality import FIRST_PIECE

STYLE = Path(__file__).with_suffix(".css")
# Pixels of the longer side of a picture in the page; one that is smaller is shown without loss.
SIDE, SMALL = 160, 64
# Columns of tables that are no numbers.
WORDY = ("Source", "Tokens of a document", "Why", "Such as")
# Of the drawing of a sound.
COLUMNS = 120
WORDS = "<mark>this</mark><mark> is</mark><mark> learned</mark>, <span>this</span><span> is</span><span> read</span>"


def inspect(mixture, step: int, out: str | Path, rows: int = 8):
    """Writes the page, and beside it, where matplotlib is installed, a picture of the same rows (`.png`).

    Args:
      mixture: a `Mixture`, whose batch is shown.
      step: which one.
      out: the page, "page.html"; its folder is made if need be.
      rows: of each source, at most.

    Raises:
      DataError: there is no such step, or nothing to show.
    """
    shown, out = packed_rows(mixture, step, rows), Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(mixture, step, shown), encoding="utf-8")
    write_picture(mixture, title(mixture, step), shown, out.with_suffix(".png"))


def title(mixture, step: int) -> str:
    return f"{mixture.config.get('name') or 'data'}, {mixture.split}: the batch of step {step:,}"


def page(mixture, step: int, shown: Sequence[Row]) -> str:
    """The page as HTML that needs nothing else.

    Args:
      mixture: a `Mixture`.
      step: whose rows these are.
      shown: by source.
    """
    found, seq_len = statistics(mixture), mixture.config.data.seq_len
    head = quoted(title(mixture, step))
    batch = mixture.rows * mixture.microbatches
    sources = "".join(
        f'<h2 class="source" style="--hue: {hue(mixture, s)}">Rows of {quoted(name)}</h2>\n'
        + ("".join(_row(mixture, row) for row in shown if row.source == s) or "<p>It has no row in this step.</p>")
        for s, name in enumerate(mixture.names)
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{head}</title><style>{STYLE.read_text()}</style></head><body>
<h1>{head}</h1>
<p>{len(shown)} of its {batch:,} rows of {seq_len:,} tokens. A box is a document, or a piece of one. The stripe above is
the row in proportion: media in the colour of this text, padding empty.</p>
<p class="text" style="--hue: {hue(mixture, 0)}">Tokens, with their spaces: {WORDS}.</p>
<h2>Sources</h2>
{_numbers(mixture, found)}
{_losses(mixture, found)}
{sources}</body></html>
"""


def quoted(text: str) -> str:
    return escape(printable(text))


def _row(mixture, row: Row) -> str:
    counts = [f"{row.used:,} of {row.seq_len:,} tokens ({row.used / row.seq_len:.1%})", f"{row.learned:,} learned"]
    counts += [f"{n} of {kind}" for kind, n in collections.Counter(item.kind for item in row.items).items()]
    place = f"Row {row.number}" + (f" of microbatch {row.microbatch}" if mixture.microbatches > 1 else "")
    missing = "".join(f'<p class="problem">Left out: {quoted(message)}</p>' for message in row.left_out)
    segments = "".join(_segment(mixture.tokenizer, segment) for segment in row.segments)
    return f"""<article class="row" style="--hue: {hue(mixture, row.source)}">
<h3>{place} <small>{", ".join(counts)}</small></h3>
<div class="ribbon" aria-hidden="true">{_ribbon(row)}</div>{missing}
<div class="segments">{segments}</div></article>
"""


def _ribbon(row: Row) -> str:
    stripes = []
    for segment in row.segments:
        kinds = [
            ("media" if item else "learned" if segment.learned[at] else "read", item.count if item else 1)
            for at, item in segment.parts()
        ]
        runs = [(kind, sum(n for _, n in own)) for kind, own in itertools.groupby(kinds, key=lambda each: each[0])]
        stripes += [(f"{kind} begins" if n == 0 else kind, length) for n, (kind, length) in enumerate(runs)]
    stripes.append(("padding begins", row.seq_len - row.used))
    return "".join(f'<i class="{kind}" style="flex: {length}"></i>' for kind, length in stripes if length)


def _segment(tokenizer, segment: Segment) -> str:
    piece = ""
    if segment.stop - segment.start < segment.length:
        piece = f", tokens {segment.start:,} to {segment.stop:,} of {segment.length:,}"
    parts = (
        _item(item) if item else _token(tokenizer, int(segment.tokens[at]), bool(segment.learned[at]))
        for at, item in segment.parts()
    )
    head = f"<h4>{quoted(segment.name)}{piece}</h4>"
    return f'<section class="segment">{head}<p class="text">{"".join(parts)}</p></section>'


def _token(tokenizer, token: int, learned: bool) -> str:
    written = escape(tokenizer.token(token).replace("▁", " "))
    if token < FIRST_PIECE or token >= tokenizer.mask:
        written = f"<code>{written}</code>"
    shown = f"<mark>{written}</mark>" if learned else f"<span>{written}</span>"
    return shown + ("<br>" if token == tokenizer.line else "")


def _item(item: Item) -> str:
    value, kind = item.value, escape(item.kind)
    if value.ndim == 3 and value.dtype == np.uint8:
        shown = _image(value, kind)
    elif value.ndim == 1 and value.dtype == np.int16:
        shown = _sound(value, kind)
    else:
        shown = f"{kind} of {' x '.join(map(str, value.shape))}"
    # Spans, as a paragraph has no figures.
    return f'<span class="item" role="figure">{shown}<small>{item.count} tokens</small></span>'


def _image(value: np.ndarray, kind: str) -> str:
    from PIL import Image

    image, file = Image.fromarray(value), io.BytesIO()
    small = max(image.size) <= SMALL
    image.thumbnail((SIDE, SIDE))
    form = "png" if small else "jpeg"
    image.save(file, form, quality=80)
    return f'<img alt="{kind}"{" class=small" * small} src="{_url(f"image/{form}", file)}">'


def _sound(value: np.ndarray, kind: str) -> str:
    import soundfile

    heard = value[: int(np.flatnonzero(value)[-1]) + 1] if value.any() else value[:1]
    file = io.BytesIO()
    soundfile.write(file, heard, audio.RATE, format="MP3")
    parts = np.array_split(value.astype(int), min(COLUMNS, len(value)))
    tops = [f"{x},{32 - int(part.max()) // 1024}" for x, part in enumerate(parts)]
    feet = [f"{x},{33 - int(part.min()) // 1024}" for x, part in enumerate(parts)]
    return (
        f'<svg viewBox="0 0 {len(parts) - 1} 65" preserveAspectRatio="none" role="img" aria-label="{kind}">'
        f'<polygon points="{" ".join(tops + feet[::-1])}"/></svg>'
        f'<audio controls preload="none" src="{_url("audio/mpeg", file)}"></audio>'
    )


def _url(form: str, file: io.BytesIO) -> str:
    return f"data:{form};base64,{base64.b64encode(file.getvalue()).decode()}"


def _numbers(mixture, found: dict[str, dict[str, Any]]) -> str:
    heads = ("Source", "Documents", "Tokens", "Media", "Tokens of a document", "Text fill", "Media fill")
    heads += ("Rows an epoch", "Rows a step", f"Epochs in {mixture.config.training.steps:,} steps")
    return _table(heads, [_numbers_of(hue(mixture, s), name, each) for s, (name, each) in enumerate(found.items())])


def _numbers_of(tone: int, name: str, each: dict[str, Any]) -> str:
    counts, most = each["histogram"]["counts"], max(1, *each["histogram"]["counts"])
    bars = "".join(f'<i style="height: {100 * n / most:.0f}%{"; min-height: 1px" * (n > 0)}"></i>' for n in counts)
    lengths = "none"
    if each["lengths"]:
        least, tenth, median, ninth, longest = (f"{n:,}" for n in each["lengths"])
        told = f"{least} to {longest}, median {median},<br>80% from {tenth} to {ninth}"
        lengths = f'<div class="bars" role="img" aria-label="Histogram of lengths">{bars}</div>{told}'
    limit = f"<br>over its limit of {each['epochs_limit']:g}" if over_limit(each) else ""
    items = "<br>".join(f"{n:,} of {escape(kind)}" for kind, n in each["items"].items() if n)
    fills = "<br>".join(f"{escape(kind)} {fill:.3f}" for kind, fill in each["item_fill"].items())
    cells = [f"{each['documents']:,}", f"{each['tokens']:,}", items or "-", lengths, f"{each['text_fill']:.3f}"]
    cells += [fills or "-", f"{each['rows_an_epoch']:,}", f"{each['rows_a_step']:,.4g}", f"{each['epochs']:.2f}{limit}"]
    return _line(tone, name, [f"<td>{cell}</td>" if cell is lengths else _number(cell) for cell in cells])


def _losses(mixture, found: dict[str, dict[str, Any]]) -> str:
    rows = []
    for s, (name, each) in enumerate(found.items()):
        for how, n, examples in left_out(each):
            told = "<br>".join(escape(example) for example in examples) or "-"
            cells = (f"<td>{quoted(how)}</td>", _number(f"{n:,}"), f"<td>{told}</td>")
            rows.append(_line(hue(mixture, s), name, cells))
    table = _table(("Source", "Why", "Documents", "Such as"), rows)
    return "<h2>Left out</h2>\n" + (table if rows else "<p>Nothing is left out.</p>")


def _number(cell: str) -> str:
    return f'<td class="number">{cell}</td>'


def _line(tone: int, name: str, cells: Sequence[str]) -> str:
    return f'<tr style="--hue: {tone}"><th scope="row">{quoted(name)}</th>{"".join(cells)}</tr>'


def _table(heads: Sequence[str], rows: Sequence[str]) -> str:
    number = ["" if head in WORDY else ' class="number"' for head in heads]
    columns = "".join(f'<th scope="col"{own}>{head}</th>' for own, head in zip(number, heads, strict=True))
    body = f"<thead><tr>{columns}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{heads[0]}"><table>{body}</table></div>'
