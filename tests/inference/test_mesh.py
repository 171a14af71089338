"""The engine on a mesh of eight devices, and what its compiled programs do with a cache."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from configs import demo
from kosmos_jax import checkpoint
from kosmos_jax.errors import UserError
from kosmos_jax.inference import load
from kosmos_jax.inference.command import mesh_of
from kosmos_jax.inference.generator import Generator
from kosmos_jax.parallel.mesh import make_mesh
from kosmos_jax.parallel.sharding import parameter_specs

POOLS = {(64, 1): 4, (128, 4): 2}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(dict(data=2, fsdp=2, tensor=2, context=1))


@pytest.fixture(scope="module")
def on_one(config, params, tokenizer):
    return Generator(config, params, tokenizer, pools=POOLS, chunk=16)


@pytest.fixture(scope="module")
def on_mesh(config, params, tokenizer, mesh):
    specs = parameter_specs(config, params, mesh)
    spread = {path: jax.device_put(leaf, NamedSharding(mesh, specs[path])) for path, leaf in params.items()}
    return Generator(config, spread, tokenizer, pools=POOLS, chunk=16)


@pytest.mark.parametrize(
    "options",
    [
        dict(top_logprobs=3),
        dict(temperature=0.7, top_p=0.9, top_logprobs=0, repetition_penalty=1.2),
        dict(beams=3, n=2),
        dict(n=3, temperature=2.0, top_logprobs=0),
        dict(choice=["seven", "seventeen", "four"]),
    ],
    ids=["greedy", "sampled", "beams", "n", "choice"],
)
def test_a_mesh_gives_what_one_device_gives(on_one, on_mesh, prompts, options):
    options = dict(max_new_tokens=8) | options
    pairs = zip(*(generator.complete(prompts, **options) for generator in (on_one, on_mesh)), strict=True)
    for one, other in pairs:
        for a, b in zip(*(x if isinstance(x, list) else [x] for x in (one, other)), strict=True):
            assert a.tokens == b.tokens
            np.testing.assert_allclose(a.logprobs or a.score or 0, b.logprobs or b.score or 0, atol=1e-5)


def test_a_mesh_scores_as_one_device_does(on_one, on_mesh, prompts):
    continuations = [["seven", "four, and", "three"]] * len(prompts)
    for one, other in zip(*(g.score_each(prompts, continuations) for g in (on_one, on_mesh)), strict=True):
        np.testing.assert_allclose([s.logprob for s in one], [s.logprob for s in other], atol=1e-4)


def test_slots_are_split_over_data_and_heads_over_tensor(on_mesh, prompts):
    on_mesh.complete(prompts, max_new_tokens=2)
    slots, rules = on_mesh.engine.device._pools[64, 1]
    assert {k.sharding.spec for k in (*slots.cache.k_BHSK, *slots.cache.v_BHSK)} == {P("data", "tensor")}
    assert slots.ids_BWS.sharding.spec == rules.bias_BV.sharding.spec == P("data")
    assert on_mesh.engine.device._pages[64].k_BHSK[0].sharding.spec == P(None, "tensor")


def decoding(generator):
    """The texts of the compiled programs that generate, with its shapes on a device and in all."""
    device = generator.engine.device
    generator.complete(["The digit is"], max_new_tokens=2)
    generator.complete(["The digit is"], max_new_tokens=2, beams=2)
    for slots, rules in device._pools.values():
        keys, budget = slots.cache.k_BHSK[0], np.zeros(len(slots.used_B), np.int32)
        program = device._decode.lower(device._weights, slots, rules, budget, np.bool_(False)).compile()
        yield program.as_text(), keys.sharding.shard_shape(keys.shape), keys.shape


IN_PLACE = ("parameter", "get-tuple-element", "tuple", "bitcast", "scatter", "dynamic-update-slice", "fusion")


@pytest.mark.parametrize("where", ["on_one", "on_mesh"])
def test_no_step_copies_or_gathers_a_cache(where, request):
    """What has the size of the keys of a layer, in whatever order, is an update of some entries in place."""
    jax.config.update("jax_disable_most_optimizations", False)
    seen = set()
    for program, *shapes in decoding(request.getfixturevalue(where)):
        for line in program.splitlines():
            made = re.match(r"\s*(?:ROOT )?%?\S+ = f32\[(\d+,\d+,\d+,\d+)\](\S*) ([\w-]+)\(", line)
            if made and sorted(map(int, made[1].split(","))) in map(sorted, shapes):
                # A transposition that has its result in another order of dimensions leaves the numbers where they are.
                stays = made[3] == "transpose" and made[2] != "{3,2,1,0}"
                assert stays or made[3] in IN_PLACE, line.strip()[:200]
                seen.add(made[3])
    assert seen & {"scatter", "dynamic-update-slice"}


def test_a_checkpoint_is_read_straight_to_its_shards(config, params, tokenizer, tmp_path, prompts, on_one):
    own = demo.get_config()
    own.model = config
    checkpoint.save_weights(tmp_path, params, own, tokenizer)
    sharded = load(tmp_path, mesh=dict(fsdp=4, tensor=2), pools=POOLS, chunk=16)
    kernels = [x for x in jax.tree.leaves(sharded.engine.device._weights) if x.ndim == 2 and x.size >= 32 * 64]
    assert kernels and not any(kernel.sharding.is_fully_replicated for kernel in kernels)
    assert sharded.complete(prompts, max_new_tokens=6) == on_one.complete(prompts, max_new_tokens=6)
    with pytest.raises(UserError, match="does not fit 8 devices"):
        load(tmp_path, mesh=dict(tensor=3))


def test_flags_of_a_mesh():
    assert mesh_of([]) is None
    assert mesh_of(["--config.mesh.tensor=2", "--config.mesh.data=-1"]) == dict(tensor=2, data=-1)
    with pytest.raises(UserError, match="only --config.mesh.AXIS=N"):
        mesh_of(["--config.model.dtype=float32"])
    with pytest.raises(UserError, match="a size is a whole number"):
        mesh_of(["--config.mesh.tensor=two"])


@pytest.mark.parametrize("together", [1, 10_000, 2**28])
def test_weights_that_come_in_parts_are_all_of_them(config, params, tokenizer, tmp_path, monkeypatch, together):
    own = demo.get_config()
    own.model = config
    checkpoint.save_weights(tmp_path, params, own, tokenizer)
    monkeypatch.setattr(checkpoint, "TOGETHER", together)
    _, weights = checkpoint.open_weights(tmp_path)
    found = dict(weights)
    assert found.keys() == params.keys()
    assert all((found[path] == params[path]).all() for path in params)
