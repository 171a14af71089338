"""README.md of an export: what it is, code that loads it, what it was trained on, what to know before use."""

from pathlib import Path

from kosmos_jax.modality import KOSMOS2_TAGS
from kosmos_jax.model import abstract_model

CARDS = Path(__file__).parent / "cards"  # one for all, and of each format the code that loads it, then the notes
NO_IMAGE = dict(shape=(0, 0), tokens=0)  # what files say of a model that has none
NO_GROUNDING = """
- `Kosmos2Processor` gives ids from {first:,} on to the tags of grounding, for which this model has no vectors: do not
  write `<grounding>`, `<phrase>`, `<object>` or `<patch_index_...>`."""


def text(record, target: str) -> str:
    """The model card of an export.

    Args:
      record: has `config`, `tokenizer` and `step`, as checkpoint.Record and checkpoint.Restored do.
      target: the format, a key of formats.EXPORTS.
    """
    config, model = record.config, record.config.model
    table = {
        "decoder": f"{model.text.layers} layers of width {model.text.width}, {model.text.heads} heads",
        "positions": model.text.positions,
        "vocabulary": f"{model.text.vocab_size:,} ids",
    }
    for name, section in model.perception.items():
        encoder, connector = section.encoder, section.connector
        shape = " x ".join(map(str, section.shape))
        table[name] = (
            f"{encoder.kind}, {encoder.layers} layers of width {encoder.width}, reads {shape}; "
            f"{connector.kind}, {section.tokens} vectors an item"
        )
    image, own = model.perception.get("image", NO_IMAGE), (CARDS / f"{target}.md").read_text()
    own = own.replace("{tokens}", str(image["tokens"])).replace("{size}", str(image["shape"][0]))
    code, notes = map(str.strip, own.split("\n---\n"))
    if target == "hf-kosmos2" and KOSMOS2_TAGS[0] not in record.tokenizer.tags:
        notes += NO_GROUNDING.format(first=record.tokenizer.size)
    card = (CARDS / "card.md").read_text()
    return card.format(
        library="transformers" if target.startswith("hf-") else "pytorch",
        name=config.name,
        step=record.step,
        modalities=" and ".join(["text", *model.perception]),
        parameters=sum(leaf.size for leaf in abstract_model(model)[1].values()),
        target=target,
        code=code,
        table="\n".join(f"| {name} | {value} |" for name, value in table.items()),
        training=_training(config, record.step),
        notes=notes,
    )


def _training(config, step: int) -> str:
    if not step:
        return "None by kosmos_jax: these are the weights that were imported, or random ones."
    data, training, optimizer = config.data, config.training, config.training.optimizer
    tokens = step * data.batch_rows * data.seq_len
    frozen = ", ".join(f"`{pattern}`" for pattern in training.frozen) or "nothing"
    total = sum(source.share for source in data.sources.values())
    rows = [
        f"| {name} | {source.get('name') or source.kind} | {source.share / total:.1%} |"
        for name, source in sorted(data.sources.items())
    ]
    return "\n".join(
        [
            f"{step:,} of {training.steps:,} updates of {data.batch_rows} rows of {data.seq_len:,} tokens "
            f"({tokens:,} tokens, padding included); {optimizer.name}, learning rate {optimizer.learning_rate:g} after "
            f"{optimizer.warmup_steps:,} updates of warmup, weight decay {optimizer.weight_decay:g}; frozen: {frozen}.",
            "",
            "| data | kind | share of the rows |",
            "|---|---|---|",
            *rows,
        ]
    )
