"""The plain PyTorch file that an export holds gives the numbers of the JAX model, and generates the same tokens."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kosmos_jax.inference.generator import Generator
from kosmos_jax.inference.prompts import encode_prompt
from kosmos_jax.interop.torch_files import kosmos_torch
from kosmos_jax.model import parameters
from tests.interop.test_import_whisper import with_audio
from tests.interop.torch_side import difference, interleaved_rows, state_dict, to_torch, torch_model
from tests.model.test_parity_whisper import sounds
from tests.model.tiny import model_config, quick_logits_of, random_model

TOLERANCE = 1e-5
MODELS = {
    "xPos, xconnector": {},
    "sinusoidal, xconnector, exact gelu": {
        "text.positions": "sinusoidal",
        "perception.image.encoder.activation": "gelu",
    },
    "both, perceiver": {
        "text.positions": "both",
        "perception.image.connector.kind": "perceiver",
        "perception.image.tokens": 3,
        "perception.image.shape": (20, 20, 3),
        "perception.image.encoder.patch_size": 4,
        "perception.image.encoder.width": 40,
        "perception.image.encoder.heads": 2,
    },
}


@pytest.fixture(scope="module", params=MODELS)
def pair(request):
    """(config, JAX model, PyTorch model) of the same random weights."""
    config = model_config(**MODELS[request.param])
    ours = random_model(config, seed=len(request.param))
    return config, ours, torch_model(config, parameters(ours))


@pytest.fixture(scope="module")
def xpos_pair():
    config = model_config(**{"perception.image.connector.kind": "perceiver", "text.layers": 2})
    ours = random_model(config)
    return config, ours, torch_model(config, parameters(ours))


@torch.no_grad()
def test_interleaved_rows_give_the_logits_of_jax(pair):
    config, ours, theirs = pair
    tokens, segments, positions, slots, images = interleaved_rows(config)
    expected = quick_logits_of(ours, tokens, segments, positions, slots, images)
    assert difference(expected, theirs(*to_torch(tokens, segments, slots, images)), segments > 0) <= TOLERANCE


@torch.no_grad()
def test_documents_in_one_row_do_not_see_each_other(xpos_pair):
    config, ours, theirs = xpos_pair
    tokens, segments, _, slots, images = interleaved_rows(config)
    segments[:, 17:] *= 2
    positions = np.zeros_like(segments)
    for document in (0, 1, 2):
        inside = segments == document
        positions[inside] = (np.cumsum(inside, axis=1) - 1)[inside]
    expected = quick_logits_of(ours, tokens, segments, positions, slots, images)
    tokens, slots, pixels, segment_ids = to_torch(tokens, segments, slots, images)
    assert difference(expected, theirs(tokens, slots, pixels, segment_ids=segment_ids), segments > 0) <= TOLERANCE


@torch.no_grad()
def test_a_cache_changes_nothing_wherever_the_padding_stands(pair):
    config, _, theirs = pair
    tokens, segments, _, slots, images = interleaved_rows(config)
    tokens, slots, pixels, mask = to_torch(tokens, segments, slots, images)
    expected = theirs(tokens, slots, pixels, mask)
    cache, parts = kosmos_torch.Cache(), []
    for start, stop in ((0, 7), (7, 24), (24, 25), (25, 32)):
        now = slice(start, stop)
        parts.append(theirs(tokens[:, now], slots[:, now], pixels, mask[:, :stop], cache=cache))
    assert difference(expected, torch.cat(parts, dim=1), segments > 0) <= TOLERANCE


@torch.no_grad()
def test_images_can_be_encoded_once_and_reused(xpos_pair):
    config, _, theirs = xpos_pair
    tokens, segments, _, slots, images = interleaved_rows(config)
    tokens, slots, pixels, mask = to_torch(tokens, segments, slots, images)
    assert torch.equal(theirs(tokens, slots, pixels, mask), theirs(tokens, slots, theirs.encode(pixels), mask))


def greedy_without_cache(model, tokens, slots, pixels, forbidden, count=64):
    """One row, all of it read anew for each token."""
    start = tokens.shape[1]
    for _ in range(count):
        logits = model(tokens, slots, pixels)[:, -1]
        logits[:, forbidden] = -torch.inf
        best = logits.argmax(-1, keepdim=True)
        tokens, slots = torch.cat([tokens, best], dim=1), torch.cat([slots, torch.full_like(best, -1)], dim=1)
    return tokens[0, start:].tolist()


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_64_greedy_tokens_are_those_of_jax_alone_and_in_a_padded_batch(tokenizer, side):
    # With sinusoids too: xPos alone does not notice when a row's positions are all shifted.
    text = {"text.positions": "both", "text.max_positions": 256, "text.vocab_size": tokenizer.size, "text.layers": 2}
    config = model_config(**text, **{"perception.image.connector.kind": "perceiver"})
    params = parameters(random_model(config, seed=3))
    theirs, generator = torch_model(config, params), Generator(config, params, tokenizer)
    drawn = list(np.random.default_rng(7).integers(0, 256, (3, 24, 20, 3), np.uint8))
    prompts = ["The digit is", [drawn[0], "A handwritten"], [drawn[1], "plus", drawn[2], "equals"]]
    rows = [encode_prompt(prompt, tokenizer) for prompt in prompts]

    length, q, images = max(len(row.tokens) for row in rows), config.perception.image.tokens, 0
    pad = lambda x, value: np.pad(x, (length - len(x), 0)[:: 1 if side == "left" else -1], constant_values=value)  # noqa: E731
    tokens, slots, mask = [], [], []
    for row in rows:
        tokens.append(pad(row.tokens, tokenizer.pad))
        own = np.full(len(row.tokens), -1)
        for start in row.starts:
            own[start : start + q] = images * q + np.arange(q)
            images += 1
        slots.append(pad(own, -1))
        mask.append(pad(np.ones_like(row.tokens), 0))
    drawn = np.stack([item for row in rows for item in row.media.get("image", ())])
    pixels = kosmos_torch.normalize(torch.from_numpy(drawn))
    tokens, slots, _, mask = to_torch(np.stack(tokens), np.stack(mask), np.stack(slots))

    allowed = generator.engine.allowed.copy()
    forbidden = np.flatnonzero(~allowed | (np.arange(len(allowed)) == tokenizer.eos)).tolist()
    generator.engine.allowed[tokenizer.eos] = False
    expected = [completion.tokens for completion in generator.complete(prompts, max_new_tokens=64)]
    assert len(expected[0]) == 64
    assert (
        theirs.generate(tokens, slots, {"image": pixels}, mask, max_new_tokens=64, forbidden=forbidden).tolist()
        == expected
    )
    real = mask[1].bool()
    alone = tokens[1][real][None], slots[1][real][None], {"image": pixels[:1]}
    assert greedy_without_cache(theirs, *alone, forbidden) == expected[1]


def test_a_row_ends_with_eos_and_is_padding_from_there(xpos_pair):
    config, _, model = xpos_pair
    tokens = torch.randint(4, config.text.vocab_size, (3, 9), generator=torch.Generator().manual_seed(0))
    free = model.generate(tokens, max_new_tokens=12)
    eos = int(free[0, 4])
    ended = model.generate(tokens, max_new_tokens=12, eos=eos)
    first = int((free[0] == eos).nonzero()[0])
    assert ended[0].tolist() == free[0, : first + 1].tolist() + [1] * (ended.shape[1] - first - 1)
    for count in (0, 1, 5):
        assert torch.equal(model.generate(tokens, max_new_tokens=count), free[:, :count])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_positions_that_xpos_cannot_tell_apart_are_refused_and_others_are_finite(xpos_pair, dtype):
    config, ours, _ = xpos_pair
    model = torch_model(config, parameters(ours)).to(dtype)
    most = kosmos_torch.xpos_limit(dtype)
    for table in kosmos_torch.xpos_tables(torch.tensor([[0, most - 1]]), 64):
        assert (30 * table).to(dtype).isfinite().all()
    tokens = torch.arange(4, 6)[None]
    assert model(tokens, position_ids=torch.tensor([[0, most - 1]])).isfinite().all()
    for position in (most, 40_000):
        with pytest.raises(ValueError, match=f"position {position}; with xPos in {dtype} the last one is {most - 1}"):
            model(tokens, position_ids=torch.tensor([[0, position]]))


@torch.no_grad()
def test_xpos_counts_each_document_of_a_row_by_itself(xpos_pair):
    config, ours, _ = xpos_pair
    model = torch_model(config, parameters(ours)).half()
    most = kosmos_torch.xpos_limit(torch.float16)
    tokens, documents = torch.full((1, most + 100), 4), torch.arange(1, most + 101)[None] // 1000 + 1
    assert model.read(tokens, segment_ids=documents).isfinite().all()
    assert model.read(tokens, attention_mask=(documents > 1).long()).isfinite().all()
    with pytest.raises(ValueError, match=f"position {most + 99};"):
        model.read(tokens)


def gradients(model, batch):
    model.zero_grad()
    model(*batch).square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_gradient_checkpointing_gives_the_same_gradients(pair):
    config, ours, _ = pair
    model = torch_model(config, parameters(ours)).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(module, kosmos_torch.Attention):
            module.dropout = 0.0
    tokens, segments, _, slots, images = interleaved_rows(config)
    batch = to_torch(tokens, segments, slots, images)
    kept = gradients(model, batch)
    model.decoder.gradient_checkpointing = model.image.encoder.gradient_checkpointing = True
    assert all(gradient.abs().max() > 0 for gradient in kept.values())
    for cache in ([], [None, None, kosmos_torch.Cache()]):
        again = gradients(model, (*batch, *cache))
        assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_dropout_is_there_in_training_alone(xpos_pair):
    config, ours, _ = xpos_pair
    model = torch_model(config, parameters(ours))
    tokens = torch.arange(4, 24)[None]
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


def test_padding_alone_is_finite_and_so_are_its_gradients(xpos_pair):
    _, _, model = xpos_pair
    tokens = torch.tensor([[1, 1, 1, 1], [5, 6, 1, 1]])
    logits = model(tokens, attention_mask=torch.tensor([[0, 0, 0, 0], [1, 1, 0, 0]]))
    model.zero_grad()
    logits.sum().backward()
    assert logits.isfinite().all() and model.embedding.weight.grad.isfinite().all()


def test_a_folder_loads_in_the_dtype_of_its_weights(xpos_pair, tmp_path):
    config, ours, theirs = xpos_pair
    state = state_dict(parameters(ours))
    names = sorted(state)
    save_file({name: state[name].bfloat16() for name in names[:9]}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({name: state[name].bfloat16() for name in names[9:]}, tmp_path / "model-00002-of-00002.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model": config.to_dict()}))
    model = kosmos_torch.load(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16} and not model.training
    assert not list(model.buffers())
    tokens, segments, _, slots, images = interleaved_rows(config)
    batch = to_torch(tokens, segments, slots, images)
    with torch.no_grad():
        assert difference(theirs(*batch), model(*batch).float(), segments > 0) < 0.05


@torch.no_grad()
def test_no_images_are_as_good_as_none_and_no_rows_give_none(xpos_pair):
    _, _, model = xpos_pair
    tokens = torch.arange(4, 24).reshape(2, 10)
    assert torch.equal(model(tokens, torch.full_like(tokens, -1), {"image": torch.zeros(0, 3, 16, 16)}), model(tokens))
    assert model(tokens[:0]).shape == (0, 10, model.config["text"]["vocab_size"])
    assert model.generate(tokens[:0]).shape == (0, 0) and len(model.image(torch.zeros(0, 3, 16, 16))) == 0


def test_images_without_slots_or_slots_without_images_or_a_mask_of_another_length_are_refused(xpos_pair):
    _, _, model = xpos_pair
    tokens = torch.arange(4, 12)[None]
    with pytest.raises(ValueError, match="there are none"):
        model(tokens, slots=torch.arange(8)[None])
    for slots in (torch.arange(9)[None], torch.arange(8), torch.ones(1, 8, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"slots are torch.*, tokens int\[1, 8\]"):
            model(tokens, slots, {"image": torch.zeros(1, 3, 16, 16)})
    with pytest.raises(ValueError, match="no slots"):
        model(tokens, media={"image": torch.zeros(1, 3, 16, 16)})
    with pytest.raises(ValueError, match=r"media are \['audio'\], and this model reads \['image'\]"):
        model(tokens, torch.arange(8)[None], {"audio": torch.zeros(1, 320)})
    with pytest.raises(ValueError, match="there are none"):
        model(tokens, torch.arange(8)[None], {"image": torch.zeros(0, 3, 16, 16)})
    with pytest.raises(ValueError, match=r"\(1, 7\) for 1 rows of 8 tokens"):
        model(tokens, attention_mask=torch.ones(1, 7))


@torch.no_grad()
def test_sound_and_images_in_one_row_give_the_logits_of_jax():
    config = with_audio()
    ours = random_model(config, seed=4)
    theirs = torch_model(config, parameters(ours))
    clips = sounds(1)[:2]
    tokens, segments, positions, slots, media = interleaved_rows(config)
    first, q = 4 * config.perception.image.tokens, config.perception.audio.tokens
    slots[3, 2 : 2 + q], slots[0, 20 : 20 + q] = first + np.arange(q), first + q + np.arange(q)
    expected = quick_logits_of(ours, tokens, segments, positions, slots, media | {"audio": clips})
    ids, ids_slots, pixels, mask = to_torch(tokens, segments, slots, media)
    for samples in (torch.from_numpy(clips), torch.from_numpy(clips / np.float32(32768))):
        found = theirs(ids, ids_slots, pixels | {"audio": samples}, mask)
        assert difference(expected, found, segments > 0) <= 2 * TOLERANCE  # the spectrogram's rounding comes on top
    without = theirs(ids, ids_slots, pixels | {"audio": torch.zeros(2, 16_000)}, mask)
    assert difference(expected, without, segments > 0) > 100 * TOLERANCE
