"""What transformers' users pass to an hf-remote-code export and call of it: honoured, or refused in plain words.

Nothing here depends on the version of transformers, see the Makefile.
"""

import numpy as np
import pytest
import torch

TEXTS = ["<image> plus <image> equals", "The digit is", "<image> A handwritten"]


@pytest.fixture
def batch(processor, images):
    return processor(text=TEXTS, images=images[:3])


@pytest.mark.parametrize(
    "text, count, message",
    [
        (["none", "<image> and <image>"], 1, "text 1 has 2 <image>, and there is 1 image for it"),
        ("<image>", 2, "there are 2 images, and the texts name 1"),
        ("nothing", 1, "there is 1 image, and the texts name 0"),
        ("<image>", 0, "text 0 has 1 <image>, and there are 0 images for it"),
    ],
)
def test_a_wrong_number_of_images_is_refused(processor, images, text, count, message):
    with pytest.raises(ValueError, match=message):
        processor(text=text, images=images[:count])


def test_a_list_of_images_for_each_text_is_the_same_as_one_list(processor, images, batch):
    a, b, c = images[:3]
    for nested in ([[a, b], [], [c]], [(a, b), None, c]):
        found = processor(text=TEXTS, images=nested)
        assert all(torch.equal(found[name], value) for name, value in batch.items())


def test_padding_stands_where_the_tokenizer_says(processor, images, batch, monkeypatch):
    assert batch["input_ids"][1, 0] == processor.tokenizer.pad_token_id
    monkeypatch.setattr(processor.tokenizer, "padding_side", "right")
    right, expected = (processor(images[:3], TEXTS, padding_side=side) for side in (None, "right"))
    assert torch.equal(right["input_ids"], expected["input_ids"])
    assert right["input_ids"][1, -1] == processor.tokenizer.pad_token_id


@pytest.mark.parametrize(
    "counts, message",
    [
        ((1, 0, 2), "text 0 has 2 <image>, and there is 1 image for it: '<image> plus"),
        ((2, 1, 0), "text 1 has 0 <image>, and there is 1 image for it"),
        ((2, 1), "2 lists of images, and 3 texts"),
    ],
)
def test_images_of_another_row_are_refused(processor, images, counts, message):
    left = iter(images)
    with pytest.raises(ValueError, match=message):
        processor(text=TEXTS, images=[[next(left) for _ in range(count)] for count in counts])


@pytest.mark.parametrize("option", [dict(imgs=[]), dict(truncation=True), dict(max_length=5), dict(add_eos_token=True)])
def test_an_option_that_is_not_there_is_refused_by_its_name(processor, model, option):
    (name,) = option
    for call in (processor, processor.image_processor, model):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            call(**option)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(text=None), "text is a str or a list of them, and this is None"),
        (dict(text=[]), "text is a str"),
        (dict(text=["a", 3]), "text is a str"),
        (dict(text="a", padding="max_length"), "padded to the longest"),
        (dict(text="a", padding_side="up"), "left or right"),
    ],
)
def test_arguments_of_another_kind_are_refused(processor, options, message):
    with pytest.raises(ValueError, match=message):
        processor(**options)


@pytest.mark.parametrize(
    "image, found",
    [
        ("photo.jpg", "str 'photo.jpg', .*load_image"),
        (b"GIF89a", "bytes"),
        (None, "NoneType"),
        (np.zeros((3, 20, 30), np.uint8), r"uint8\[3, 20, 30\], not a PIL image or uint8\[H, W, 3\]"),
        (torch.zeros(20, 30, 3), r"float32\[20, 30, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), r"uint8\[0, 4, 3\]"),
        (np.zeros((1, 20, 30, 3), np.uint8), r"uint8\[1, 20, 30, 3\]"),
    ],
)
def test_what_is_no_image_is_refused_and_what_is_one_is_said(processor, images, image, found):
    with pytest.raises(ValueError, match=f"image 1 is {found}"):
        processor(text="<image><image>", images=[images[0], image])


@pytest.mark.parametrize("shape", [(1, 3, 8, 32), (1, 16, 16, 3), (3, 16, 16), (1, 1, 16, 16)])
def test_pixels_of_another_shape_are_refused_with_the_right_one(model, processor, images, shape):
    inputs = processor(text="<image> is", images=images[:1])
    with pytest.raises(ValueError, match=r"this model reads float\[N, 3, 16, 16\], normalised"):
        model(**{**inputs, "pixel_values": torch.zeros(shape)})
    with pytest.raises(ValueError, match=r"images are torch.uint8"):
        model(**{**inputs, "pixel_values": torch.zeros(1, 3, 16, 16, dtype=torch.uint8)})


def test_decode_takes_what_generate_and_lists_of_it_give(processor):
    ids = processor(text="A handwritten nine.")["input_ids"][0]
    for row in (ids, ids.tolist(), list(ids), ids.numpy()):
        assert processor.decode(row) == "A handwritten nine."
        assert processor.batch_decode([row, row[:1]]) == ["A handwritten nine.", ""]


@torch.no_grad()
def test_hidden_states_are_what_each_layer_and_the_head_read(model, batch):
    found = model(**batch, output_hidden_states=True)
    assert len(found.hidden_states) == model.config.num_hidden_layers + 1
    assert torch.equal(model.get_output_embeddings()(found.hidden_states[-1]), found.logits)
    decoder, layers = model.model.decoder, list(model.model.decoder.layers)
    for count, state in enumerate(found.hidden_states[:-1]):
        decoder.layers = torch.nn.ModuleList(layers[:count])
        assert torch.equal(model(**batch).logits, model.model.logits(decoder.final_norm(state)))
    decoder.layers = torch.nn.ModuleList(layers)
    assert model(**batch).hidden_states is None
    options = dict(max_new_tokens=2, do_sample=False, return_dict_in_generate=True, output_hidden_states=True)
    prompt, token = model.generate(**batch, **options).hidden_states
    assert torch.equal(prompt[-1], found.hidden_states[-1]) and token[-1].shape[1] == 1


def test_attention_and_caches_that_are_not_there_are_refused(load_model, model, batch):
    with pytest.raises(ValueError, match="does not keep attention weights"):
        model(**batch, output_attentions=True)
    with pytest.raises(ValueError, match="does not keep attention weights"):
        model.generate(**batch, max_new_tokens=2, output_attentions=True, return_dict_in_generate=True)
    with pytest.raises(ValueError, match="does not support Flash Attention"):
        load_model(attn_implementation="flash_attention_2")
    assert load_model().config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="StaticCache is of a fixed length"):
        model.generate(**batch, max_new_tokens=2, cache_implementation="static")
    with pytest.raises(ValueError, match="without segment_ids"):
        model.generate(**batch, max_new_tokens=2, segment_ids=batch["attention_mask"])


@pytest.mark.parametrize("options", [dict(), dict(use_cache=False), dict(num_beams=3, num_return_sequences=2)])
def test_embedded_tokens_are_as_good_as_their_ids(model, batch, options):
    embedded = dict(batch, inputs_embeds=model.get_input_embeddings()(batch["input_ids"]))
    ids = embedded.pop("input_ids")
    with torch.no_grad():
        assert torch.equal(model(**embedded).logits, model(**batch).logits)
    options = dict(options, max_new_tokens=6, do_sample=False)
    expected = model.generate(**batch, **options)
    assert torch.equal(model.generate(**embedded, **options), expected[:, ids.shape[1] :])
    assert torch.equal(model.generate(ids, **embedded, **options), expected)


@torch.no_grad()
def test_image_features_can_stand_for_the_images(model, batch):
    features = model.get_image_features(batch["pixel_values"])
    assert torch.equal(model(**{**batch, "pixel_values": features.pooler_output}).logits, model(**batch).logits)


@torch.no_grad()
def test_scores_to_keep_are_a_number_of_the_last_or_their_places(model, processor, images):
    batch = processor(text=TEXTS, images=images[:3], padding_side="right")
    every, last = model(**batch).logits, batch["attention_mask"].sum(1) - 1
    expected = {1: every[torch.arange(len(last)), last][:, None], 3: every[:, -3:]}
    expected |= {torch.tensor(places): every[:, places] for places in ([1], [0, 5, 2])}
    for kept, scores in expected.items():
        assert torch.allclose(model(**batch, logits_to_keep=kept).logits, scores, atol=1e-5)


def test_a_resized_vocabulary_has_one_more_score(load_model, batch):
    model = load_model()
    before = model(**batch).logits
    model.resize_token_embeddings(model.config.vocab_size + 1)
    after = model(**batch).logits
    assert torch.allclose(after[..., :-1], before, atol=1e-6) and after.shape[-1] == before.shape[-1] + 1
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def quiet_gradients(model, batch):
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("use_cache", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(trainable, processor, images, use_cache):
    batch = processor(text=TEXTS, images=images[:3], return_labels=True)
    kept = quiet_gradients(trainable, batch)
    trainable.gradient_checkpointing_enable()
    assert trainable.model.decoder.gradient_checkpointing and trainable.model.image.encoder.gradient_checkpointing
    again = quiet_gradients(trainable, dict(batch, use_cache=use_cache))
    assert kept.keys() == again.keys() and len(kept) == len(list(trainable.parameters()))
    assert all(torch.equal(kept[name], again[name]) for name in kept)
