"""Every parameter has one sharding, the mesh is what the config says, and nothing large is copied by accident."""

import jax
import pytest
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from kosmos_jax.errors import UserError
from kosmos_jax.model import abstract_model
from kosmos_jax.parallel import sharding
from kosmos_jax.parallel.mesh import axis_sizes, make_mesh, row_shards
from tests.training.conftest import tiny_config

MODEL = tiny_config().model


def mesh_config(**sizes):
    return ConfigDict(dict(data=1, fsdp=1, tensor=1, context=1) | sizes)


@pytest.mark.parametrize(
    "sizes, found",
    [
        (dict(fsdp=-1), (1, 8, 1, 1)),
        (dict(fsdp=4, tensor=-1), (1, 4, 2, 1)),
        (dict(data=2, fsdp=2, tensor=1, context=2), (2, 2, 1, 2)),
    ],
)
def test_minus_one_is_all_the_devices_that_are_left(sizes, found):
    assert axis_sizes(mesh_config(**sizes), 8) == found


@pytest.mark.parametrize("sizes", [dict(fsdp=3), dict(fsdp=3, tensor=-1), dict(fsdp=-1, tensor=-1), dict(data=0)])
def test_sizes_that_do_not_fit_the_devices_are_errors(sizes):
    with pytest.raises(UserError, match="mesh"):
        axis_sizes(mesh_config(**sizes), 8)


def test_rows_are_split_over_data_and_fsdp():
    assert row_shards(make_mesh(mesh_config(data=2, fsdp=2, tensor=2))) == 4


@pytest.mark.parametrize("connector", ["xconnector", "perceiver"])
@pytest.mark.parametrize("top_layers", [0, 1, 2])
def test_every_parameter_of_every_model_matches_exactly_one_rule(connector, top_layers):
    image = "model.perception.image"
    model = tiny_config(**{f"{image}.connector.kind": connector, f"{image}.encoder.top_layers": top_layers}).model
    shapes = abstract_model(model)[1]
    specs = sharding.parameter_specs(model, shapes, make_mesh(mesh_config(fsdp=4, tensor=2)))
    assert specs.keys() == shapes.keys()
    assert specs["decoder/layers/fc1/kernel"] == P(None, "fsdp", "tensor")
    assert specs["decoder/layers/fc2/kernel"] == P(None, "tensor", "fsdp")
    assert specs["embedding"] == P("tensor", "fsdp")


@pytest.mark.parametrize("rules, found", [((("a/.*", 1),), "none"), ((("b/.*", 1), (".*/c", 2)), "'b/.*', '.*/c'")])
def test_no_rule_and_two_rules_are_both_errors(rules, found):
    with pytest.raises(UserError, match="exactly one") as error:
        sharding.match_one("b/c", rules, "test")
    assert found in str(error.value)


def test_a_dimension_that_its_axis_does_not_divide_stays_replicated():
    shapes = {"embedding": jax.ShapeDtypeStruct((1007, 64), "float32")}
    specs = sharding.parameter_specs(MODEL, shapes, make_mesh(mesh_config(fsdp=4, tensor=2)))
    assert specs["embedding"] == P(None, "fsdp")


def test_a_large_array_that_would_be_whole_everywhere_is_named():
    mesh = make_mesh(mesh_config(fsdp=8))
    shapes = {
        "embedding": jax.ShapeDtypeStruct((1001, 63), "float32"),
        "image/connector/dense/kernel": jax.ShapeDtypeStruct((64, 64), "float32"),
    }
    shardings = sharding.like_parameters(shapes, shapes, sharding.parameter_specs(MODEL, shapes, mesh), mesh)
    with pytest.raises(UserError, match="replicated on every device.*embedding.*93"):
        sharding.assert_sharded(shapes, shardings, mesh)


def test_many_arrays_that_would_be_whole_everywhere_add_up():
    """Each is 1% of all, like the matrices of a vision tower whose width the mesh does not divide."""
    mesh = make_mesh(mesh_config(fsdp=8))
    names = ("query", "key", "value")
    shapes = {
        f"image/encoder/trunk/attention/{name}/kernel": jax.ShapeDtypeStruct((4, 260, 260), "float32") for name in names
    }
    shapes["embedding"] = jax.ShapeDtypeStruct((3300, 8192), "float32")
    shardings = sharding.like_parameters(shapes, shapes, sharding.parameter_specs(MODEL, shapes, mesh), mesh)
    with pytest.raises(UserError, match="value.*1.0% of all bytes.*mesh.data takes the rest"):
        sharding.assert_sharded(shapes, shardings, mesh)
    del shapes["image/encoder/trunk/attention/query/kernel"], shardings["image/encoder/trunk/attention/query/kernel"]
    sharding.assert_sharded(shapes, shardings, mesh)
