"""README.md of an export: what it is, code that loads it, what it was trained on, what to know before use."""

import math

from kosmos_jax.modality import KOSMOS2_TAGS
from kosmos_jax.model import abstract_model

CARD = """\
---
library_name: {library}
pipeline_tag: {task}
tags: [kosmos-1, kosmos_jax]
---
# {name}, step {step:,}

{kind}, {parameters:,} parameters, as written by `kosmos export --to {target}` of kosmos_jax.

## Load

In this folder; from elsewhere, put its path for `"."`.

```python
{code}
```

## Model

| | |
|---|---|
{table}

## Training

{training}

## Before use

{notes}
- No licence is stated here. Choose one, within the terms of the data and of any weights that training began with.
"""

LOADING = {
    "hf-kosmos2": """\
from PIL import Image
from transformers import AutoProcessor, Kosmos2ForConditionalGeneration

model = Kosmos2ForConditionalGeneration.from_pretrained(".")
processor = AutoProcessor.from_pretrained(".")

image = Image.new("RGB", (320, 240), "red")  # or Image.open("photo.jpg")
inputs = processor(images=image, text="A photo of", num_image_tokens={tokens}, return_tensors="pt")
ids = model.generate(**inputs, max_new_tokens=20)
print(processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])""",
    "hf-remote-code": """\
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(".", trust_remote_code=True)
processor = AutoProcessor.from_pretrained(".", trust_remote_code=True)

image = Image.new("RGB", (320, 240), "red")  # or Image.open("photo.jpg")
inputs = processor(text=["<image> A photo of", "<image> and <image> are"], images=[image, image, image])
ids = model.generate(**inputs, max_new_tokens=20)
print(processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :]))""",
    "torch": """\
import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

import kosmos_torch

model = kosmos_torch.load(".")
tokenizer = Tokenizer.from_file("tokenizer.json")

image = Image.new("RGB", (320, 240), "red")  # or Image.open("photo.jpg")
image = image.convert("RGB").resize(({size}, {size}), Image.Resampling.BICUBIC)
pixels = kosmos_torch.normalize(torch.from_numpy(np.array(image)[None]))
opening, closing = map(tokenizer.token_to_id, ("<image>", "</image>"))
text = tokenizer.encode("A photo of", add_special_tokens=False).ids
tokens = torch.tensor([[0] + [opening] * (1 + {tokens}) + [closing] + text])
slots = torch.full_like(tokens, -1)
slots[0, 2 : 2 + {tokens}] = torch.arange({tokens})
ids = model.generate(tokens, slots, {"image": pixels}, max_new_tokens=20)
print(tokenizer.decode(ids[0].tolist()))""",
}

NOTES = {
    "hf-kosmos2": """\
- transformers' own Kosmos-2 has faults that no file here can mend; `kosmos export --to hf-remote-code` has none:
  - Attention by SDPA gave wrong image vectors from 4.52.1 to 5.22.2. `config.json` asks for "eager", which is right in
    all of them: do not override it. A copy that transformers saved does not ask: `attn_implementation="eager"`.
  - In a batch, rows generate other tokens than alone: padded on the left from 4.54 on (5.24 included), unless
    `use_cache=False`; padded on the right always. One prompt at a time is right.
  - Beams, and `num_return_sequences` above 1, mix up the images where a row has several.
  - `generation_config.json` is not read: give lengths, beams and the like to `generate`.
  - The whole model refuses a text without an image; `model.text_model` takes it.
- `Kosmos2Processor` puts one image before the text, and does not remember how many vectors it has: say
  `num_image_tokens={tokens}` at each call. It reads a newline as a space; in training that was `</line>`: write it so.
- With torchvision installed, transformers 5 resizes with that, and pixels differ from training by a few of 255 (by 28
  in noise). `AutoProcessor.from_pretrained(".", backend="pil")` gives the pixels of training. Images 1 or 3 pixels high
  are refused or misread by transformers 4 and 5.0.
- In training images are turned as their EXIF orientation says and transparency is white; the processor here does
  neither: `PIL.ImageOps.exif_transpose`, and paste on white.""",
    "hf-remote-code": """\
- Each `<image>` in a text stands for one image, a newline for `</line>`, as in training. Other tags are read as text.
- `trust_remote_code` runs the code of this folder on your machine: four short files, made to be read.""",
    "torch": """\
- An image is `<image>`, {tokens} slots and `</image>`, as above. Between two lines stands `</line>`.
- In training images are turned as their EXIF orientation says and transparency is white; `convert` does neither.
- `tokenizer.encode` takes a tag in a text for the tag: for text of strangers set `encode_special_tokens = True`.""",
}
NO_GROUNDING = """
- `Kosmos2Processor` gives ids from {first:,} on to the tags of grounding, for which this model has no vectors: do not
  write `<grounding>`, `<phrase>`, `<object>` or `<patch_index_...>`."""


def text(record, target: str) -> str:
    """The model card of an export.

    Args:
      record: has `config`, `tokenizer` and `step`, as checkpoint.Record and checkpoint.Restored do.
      target: a key of formats.TARGETS.
    """
    config, model = record.config, record.config.model
    shapes = {path: leaf.shape for path, leaf in abstract_model(model)[1].items()}
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
    notes = _filled(NOTES[target], model)
    if target == "hf-kosmos2" and KOSMOS2_TAGS[0] not in record.tokenizer.tags:
        notes += NO_GROUNDING.format(first=record.tokenizer.size)
    return CARD.format(
        library="transformers" if target.startswith("hf-") else "pytorch",
        task="image-text-to-text",
        name=config.name,
        step=record.step,
        kind=f"A KOSMOS-1 model that reads {' and '.join(['text', *model.perception])}",
        parameters=sum(map(math.prod, shapes.values())),
        target=target,
        code=loading_code(model, target),
        table="\n".join(f"| {name} | {value} |" for name, value in table.items()),
        training=_training(config, record.step),
        notes=notes,
    )


def loading_code(model, target: str) -> str:
    """A program that loads the export in the current folder and reads something.

    Args:
      model: config.model.
    """
    return _filled(LOADING[target], model)


def _filled(text: str, model) -> str:
    image = model.perception.get("image", {"tokens": 0, "shape": (0,)})
    return text.replace("{tokens}", str(image["tokens"])).replace("{size}", str(image["shape"][0]))


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
