"""Ten updates in PyTorch and in JAX, from the same weights with the same data, end at the same weights."""

import jax
import numpy as np
import pytest
import torch
import transformers

from kosmos_jax.interop.formats import kosmos2
from kosmos_jax.model import abstract_model, parameters
from kosmos_jax.training.optimizer import learning_rate, make_optimizer
from kosmos_jax.training.state import initial_state, replace_parameters
from kosmos_jax.training.step import make_train_step
from tests.interop.torch_side import kosmos_torch, state_dict, torch_model
from tests.model.tiny import random_model
from tests.training.conftest import random_batch, tiny_config

STEPS = 10


def batch_of(step, packed):
    batch = random_batch(images=3, seed=step)
    if not packed:  # transformers knows one document to a row
        batch["segment_ids"] = np.ones_like(batch["segment_ids"])
        batch["positions"] = np.broadcast_to(np.arange(16, dtype=np.int32), batch["positions"].shape)
    return batch


def in_jax(config, params):
    optimizer = make_optimizer(config.training.optimizer, config.training.steps)
    schedule = learning_rate(config.training.optimizer, config.training.steps)
    graph, _ = abstract_model(config.model)
    step = jax.jit(make_train_step(graph, optimizer, config, schedule, ("a", "b")))
    return step, replace_parameters(initial_state(config, optimizer, jax.random.key(0)), params)


def kosmos2_model(config, params):
    described = kosmos2.config(config.model, "float32") | {"_attn_implementation": "eager"}
    model = transformers.Kosmos2ForConditionalGeneration(transformers.Kosmos2Config(**described))
    state = state_dict(params, convolution=True)
    missing, surplus = model.load_state_dict({kosmos2.names(n): t for n, t in state.items()}, strict=False)
    assert missing == ["text_model.lm_head.weight"] and not surplus
    model.tie_weights()
    return model


def logits_of(model, batch, packed):
    """Logits of our PyTorch module, or of transformers'."""
    ids = {name: torch.from_numpy(np.array(array[0])).long() for name, array in batch.items() if name != "media"}
    pixels = kosmos_torch.normalize(torch.from_numpy(batch["media"]["image"][0]))
    if not packed:
        image = dict(pixel_values=pixels, image_embeds_position_mask=(ids["slots"] >= 0).long())
        return model(input_ids=ids["tokens"], attention_mask=torch.ones_like(ids["tokens"]), **image).logits
    places = dict(position_ids=ids["positions"], segment_ids=ids["segment_ids"])
    return model(ids["tokens"], ids["slots"], {"image": pixels}, **places)


@pytest.mark.slow
@pytest.mark.parametrize("packed, changes", [
    (True, {"model.perception.image.connector.kind": "perceiver"}),
    (False, {"model.text.positions": "sinusoidal"}),
])  # fmt: skip
def test_ten_updates(packed, changes):
    """Packed rows in our own module; rows of one document in transformers'."""
    config = tiny_config(**changes)
    params = parameters(random_model(config.model))
    step, state = in_jax(config, params)
    model = (torch_model if packed else kosmos2_model)(config.model if packed else config, params).train()
    o = config.training.optimizer
    adamw = torch.optim.AdamW(model.parameters(), betas=(o.b1, o.b2), eps=o.eps, weight_decay=o.weight_decay)
    rate = learning_rate(o, config.training.steps)
    for i in range(STEPS):
        batch = batch_of(i, packed)
        state, metrics = step(state, batch)

        logits, targets = logits_of(model, batch, packed), torch.from_numpy(batch["targets"][0]).long()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), o.clip_norm)
        adamw.param_groups[0]["lr"] = float(rate(i))
        adamw.step()
        adamw.zero_grad()
        print(f"step {i}: loss {float(metrics['loss']):.6f} and {loss.item():.6f}")
        assert float(metrics["loss"]) == pytest.approx(loss.item(), rel=1e-4)
        assert float(metrics["grad_norm"]) == pytest.approx(norm.item(), rel=1e-3)

    trained = {path: np.asarray(array) for path, array in state.parameters.items()}
    ours, theirs = state_dict(trained, convolution=not packed), model.state_dict()
    for name, tensor in ours.items():
        found = theirs[name if packed else kosmos2.names(name)]
        # Where keys are not rotated, their bias moves all scores of a query alike: its gradient is rounding, of which
        # Adam makes whole steps.
        rounding = config.model.text.positions == "sinusoidal" and name.endswith("key.bias")
        assert (tensor - found).abs().max() < (1e-3 if rounding else 1e-4), name
