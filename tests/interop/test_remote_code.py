"""An hf-remote-code export in transformers: the same tokens as in JAX, whatever the padding, the beams and the cache.

Nothing here depends on the version of transformers, see the Makefile.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from data_pipeline.documents import Media, Text
from data_pipeline.media.image import squash
from data_pipeline.rows import NO_TARGET, Pieces, assemble
from kosmos_jax.inference import load
from kosmos_jax.inference.prompts import encode_prompt, open_item
from kosmos_jax.modality import Table

torch.set_num_threads(1)  # matrices this small are not worth a second one, least of all beside JAX's

PROMPTS = [
    ("The digit is", 0),
    ("<image> A handwritten", 1),
    ("<image>plus\n <image>\nequals", 2),
    ("  One\n\n\ttwo <image><image> \n three", 2),
    ("", 0),
    ("\n<image>\n\n", 1),
    ("<image>", 1),
    ("</line> is text, and so are <s>, </s>, <pad>, <unk>, </image>, <mask>, <image >.", 0),
    ("\u200b \u00e9\ufb01 \u4e2d\u6587 \U0001f600", 0),
]
TEXTS = [text for text, _ in PROMPTS]


@pytest.fixture(scope="module")
def generator(xpos_run):
    return load(xpos_run)


def in_parts(text, images):
    """A text with <image> as a prompt of kosmos_jax; takes the images out of the list."""
    first, *rest = text.split("<image>")
    return [first, *(part for words in rest for part in (images.pop(0), words))]


def prompts_in_parts(images):
    left = list(images)
    return [in_parts(text, left) for text in TEXTS]


def row_inputs(processor, images, row, **kwargs):
    """What the processor makes of one of PROMPTS by itself."""
    before = sum(count for _, count in PROMPTS[:row])
    return processor(text=TEXTS[row], images=images[before : before + PROMPTS[row][1]], **kwargs)


def test_ids_slots_and_pixels_are_those_of_kosmos_jax(processor, generator, images):
    batch, first = processor(text=TEXTS, images=images), 0
    for row, prompt in enumerate(prompts_in_parts(images)):
        expected = encode_prompt(prompt, generator.tokenizer)
        real = batch["attention_mask"][row] == 1
        assert batch["input_ids"][row, real].tolist() == expected.tokens.tolist()
        slots, q = np.full(len(expected.tokens), -1), generator.config.perception.image.tokens
        for n, start in enumerate(expected.starts):
            slots[start : start + q] = (first + n) * q + np.arange(q)
        assert batch["image_slots"][row, real].tolist() == slots.tolist()
        assert real.tolist() == sorted(real.tolist()), "padding on the left"
        first += len(expected.starts)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "LA", "1", "CMYK", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (3, 500), (16, 16), (37, 20)])
def test_pixels_are_those_of_kosmos_jax_for_any_image(processor, generator, mode, size):
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(pixels).convert("L" if mode == "I;16" else mode)
    image = image.convert("I").convert("I;16") if mode == "I;16" else image
    expected = squash(
        open_item(image, generator.tokenizer.modalities).decoded, generator.config.perception.image.shape[0]
    )
    assert np.array_equal(processor.image_processor.squash(image), expected)


def unusual_images():
    draw = np.random.default_rng(2)
    colour = Image.fromarray(draw.integers(0, 256, (20, 30, 4), np.uint8))
    turned = colour.convert("RGB")
    turned.getexif()[0x0112] = 6
    palette = colour.convert("RGB").quantize(8)
    palette.info["transparency"] = 3
    deep = Image.fromarray(draw.integers(0, 65536, (20, 30), np.uint16))
    keyed = deep.copy()
    keyed.info["transparency"] = deep.getpixel((3, 4))
    return dict(turned=turned, palette=palette, deep=deep, keyed=keyed, wide=deep.convert("I")) | dict(
        floats=Image.fromarray(draw.random((20, 30), np.float32)), transparent=colour, grey=colour.convert("LA")
    )


@pytest.mark.parametrize("kind", unusual_images())
def test_pixels_of_unusual_images_are_those_of_kosmos_jax(processor, generator, kind):
    image = unusual_images()[kind]
    expected = squash(
        open_item(image, generator.tokenizer.modalities).decoded, generator.config.perception.image.shape[0]
    )
    assert np.array_equal(processor.image_processor.squash(image), expected)


@pytest.fixture(scope="module")
def jax_greedy(generator, images):
    """64 tokens for each prompt; none of them is </s>, so that all are compared."""
    generator.engine.allowed[generator.tokenizer.eos] = False
    completions = generator.complete(prompts_in_parts(images), max_new_tokens=64)
    generator.engine.allowed[generator.tokenizer.eos] = True
    return [completion.tokens for completion in completions]


@pytest.fixture(scope="module")
def tags(generator):
    """Ids that kosmos_jax never writes."""
    return np.flatnonzero(~generator.engine.allowed).tolist()


@pytest.fixture(scope="module")
def without_eos(tags):
    return dict(max_new_tokens=64, do_sample=False, suppress_tokens=[*tags, 2])


@pytest.mark.parametrize("side", ["left", "right"])
def test_64_greedy_tokens_of_a_padded_batch_are_those_of_jax(model, processor, images, jax_greedy, without_eos, side):
    batch = processor(text=TEXTS, images=images, padding_side=side)
    found = model.generate(**batch, **without_eos)[:, batch["input_ids"].shape[1] :]
    assert found.tolist() == jax_greedy


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_row_alone_gets_the_tokens_it_gets_in_a_batch(model, processor, images, jax_greedy, without_eos, use_cache):
    for row in (1, 2):
        inputs = row_inputs(processor, images, row)
        found = model.generate(**inputs, **without_eos, use_cache=use_cache)
        assert found[0, inputs["input_ids"].shape[1] :].tolist() == jax_greedy[row]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_score_of_a_generated_token(model, processor, images, without_eos, side):
    options = {**without_eos, "max_new_tokens": 6, "return_dict_in_generate": True, "output_logits": True}
    together = torch.stack(model.generate(**processor(text=TEXTS, images=images, padding_side=side), **options).logits)
    for row in range(len(TEXTS)):
        alone = torch.stack(model.generate(**row_inputs(processor, images, row), **options).logits)
        assert (together[:, row] - alone[:, 0]).abs().max() < 1e-5 * alone.abs().max()


def test_beams_of_rows_with_several_images_are_those_of_each_row_alone(model, processor, images):
    options = dict(max_new_tokens=6, num_beams=3, num_return_sequences=2, do_sample=False)
    batch = processor(text=TEXTS, images=images)
    together = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
    for row in range(len(TEXTS)):
        inputs = row_inputs(processor, images, row)
        alone = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
        for one, other in zip(alone.tolist(), together[2 * row : 2 * row + 2].tolist(), strict=True):
            assert one == other[: len(one)] and set(other[len(one) :]) <= {1}


def test_beam_search_is_that_of_jax(model, processor, generator, images, tags):
    batch = processor(text=TEXTS, images=images)
    options = dict(max_new_tokens=6, num_beams=3, early_stopping="never", suppress_tokens=tags)
    found = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
    expected = generator.complete(prompts_in_parts(images), max_new_tokens=6, beams=3)
    ends = [row[: row.index(2)] if 2 in row else row for row in found.tolist()]
    assert [[i for i in row if i != 1] for row in ends] == [completion.tokens for completion in expected]


def test_several_samples_of_rows_with_several_images_see_their_own(model, processor, images, without_eos):
    batch = processor(text=TEXTS, images=images)
    options = {**without_eos, "max_new_tokens": 6}
    samples = model.generate(**batch, **{**options, "do_sample": True}, top_k=1, num_return_sequences=2)
    greedy = model.generate(**batch, **options)
    assert samples.tolist() == greedy.repeat_interleave(2, dim=0).tolist()


def test_generation_reads_the_prompt_once_and_then_a_token_at_a_time(model, processor, images, monkeypatch):
    lengths, read = [], model.model.read

    def counted(input_ids, *args, **kwargs):
        lengths.append(input_ids.shape[1])
        return read(input_ids, *args, **kwargs)

    monkeypatch.setattr(model.model, "read", counted)
    prompt = processor(text="<image> is", images=images[:1])
    model.generate(**prompt, do_sample=False, max_new_tokens=4)
    assert lengths == [prompt["input_ids"].shape[1], 1, 1, 1]


def test_a_conversation_continues_from_its_cache_with_one_more_image(model, processor, images):
    options, q = dict(do_sample=False, max_new_tokens=5), processor.image_processor.num_image_tokens
    asked = processor(text="<image> is", images=images[:1])
    answered = model.generate(**asked, **options, return_dict_in_generate=True)
    more = processor(text="<image> is what?", images=images[1:2])
    longer = {"input_ids": torch.cat([answered.sequences, more["input_ids"][:, 1:]], dim=1)}
    slots = more["image_slots"][:, 1:]
    answer = torch.full((1, answered.sequences.shape[1] - asked["input_ids"].shape[1]), -1)
    longer["image_slots"] = torch.cat([asked["image_slots"], answer, torch.where(slots < 0, -1, slots + q)], dim=1)
    longer["pixel_values"] = torch.cat([asked["pixel_values"], more["pixel_values"]])
    anew = model.generate(**longer, **options)
    assert model.generate(**longer, **options, past_key_values=answered.past_key_values).tolist() == anew.tolist()


def test_labels_are_the_targets_of_training(model, processor, generator, images):
    tokenizer = generator.tokenizer
    table = Table(tokenizer.modalities, {"image": len(images)})
    batch = processor(text=TEXTS, images=images, return_labels=True, padding_side="right")
    length, first = batch["labels"].shape[1], 0
    for row, prompt in enumerate(prompts_in_parts(images)):
        parts = [Text(part) if isinstance(part, str) else Media("image", b"") for part in prompt]
        document = tokenizer.encode_document(parts)
        q, n = table.tokens["image"], len(document.media)
        pieces = Pieces(
            row=np.zeros(1, np.int64),
            segment=np.ones(1, np.int64),
            tokens=[document.tokens],
            length=np.array([len(document.tokens)]),
            ends=np.array([True]),
            given=np.zeros((0, 3), np.int64),
            items=np.array([(0, s, q, q * (first + i)) for i, s in enumerate(document.starts)], np.int64).reshape(
                -1, 4
            ),
        )
        expected = {name: rows[0] for name, rows in assemble(pieces, 1, length, tokenizer, True).items()}
        first += n
        assert batch["input_ids"][row].tolist() == expected["tokens"].tolist()
        targets = torch.nn.functional.pad(batch["labels"][row, 1:], (0, 1), value=-100)
        assert targets.tolist() == np.where(expected["targets"] == NO_TARGET, -100, expected["targets"]).tolist()
    with torch.no_grad():
        found = model(**batch)
    probabilities = found.logits[:, :-1].log_softmax(-1)
    labels = batch["labels"][:, 1:]
    nll = -probabilities.gather(-1, labels.clamp(min=0)[..., None])[..., 0][labels != -100]
    assert abs(found.loss - nll.mean()) < 1e-5
    left = processor(text=TEXTS, images=images, return_labels=True)
    assert abs(model(**left).loss - found.loss) < 1e-5


def test_decoding_gives_newlines_for_line_tags_and_nothing_for_others(processor, generator):
    text = "A handwritten nine.\nThe digit is seven."
    ids = processor(text=text, return_labels=True)["input_ids"]
    assert processor.batch_decode(ids) == [text] == [generator.tokenizer.decode(ids[0])]
    assert processor.decode(ids[0]) == text


def test_the_pipeline_for_images_and_text(model, processor, images):
    pipeline = transformers.pipeline("image-text-to-text", model=model, processor=processor)
    options = dict(max_new_tokens=4, return_full_text=False)
    texts, shown = ["<image> plus <image>", "The digit is"], images[:2]
    for text, used in zip(texts, (shown, None), strict=True):
        inputs = processor(text=text, images=used)
        ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        found = pipeline(text=text, images=used, **options)[0]["generated_text"]
        assert found.strip() == processor.decode(ids[0]).strip()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_of_peft_learn_and_the_rest_stays(trainable, processor, images, checkpointing, tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["query", "value", "fc1"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(trainable, config)
    model.enable_input_require_grads()
    if checkpointing:
        model.gradient_checkpointing_enable()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    batch = processor(text=TEXTS, images=images, return_labels=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name in before if "lora_" in name}
    assert any(".image.encoder." in name for name in changed)
    model.eval()
    with torch.no_grad():
        adapted = model(**batch).logits
        merged = model.merge_and_unload()(**batch).logits
    assert (adapted - merged).abs().max() < 1e-4


@pytest.mark.slow
def test_saved_and_loaded_in_another_process_nothing_changes(model, processor, images, tmp_path):
    model.save_pretrained(tmp_path / "again")
    processor.save_pretrained(tmp_path / "again")
    batch = processor(text=TEXTS, images=images)
    with torch.no_grad():
        torch.save((TEXTS, images, dict(batch), model(**batch).logits), tmp_path / "expected.pt")
    code = f"""
import torch, transformers
load = dict(pretrained_model_name_or_path={str(tmp_path / "again")!r}, trust_remote_code=True)
texts, images, batch, logits = torch.load({str(tmp_path / "expected.pt")!r}, weights_only=False)
processor = transformers.AutoProcessor.from_pretrained(**load)
again = processor(text=texts, images=images)
assert all(torch.equal(again[name], value) for name, value in batch.items())
for auto in (transformers.AutoModelForImageTextToText, transformers.AutoModelForCausalLM):
    model = auto.from_pretrained(**load).eval()
    with torch.no_grad():
        assert torch.equal(model(**again).logits, logits)
"""
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=tmp_path)
