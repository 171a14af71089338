"""One dataclass names every logical sharding; one table gives each parameter exactly one of the names."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from kosmos_jax.errors import UserError
from kosmos_jax.model import stacks
from kosmos_jax.model.layers import unpinned
from kosmos_jax.model.perception import ENCODERS
from kosmos_jax.parallel.mesh import ROWS


@dataclass(frozen=True)
class Shardings:
    """What each kind of array is split over; the suffix names its dimensions (legend: kosmos_jax/model)."""

    # Parameters. Inputs of a matrix go over fsdp and outputs over tensor, or the reverse where its input is split.
    embedding_vd: P = P("tensor", "fsdp")
    widen_df: P = P("fsdp", "tensor")
    narrow_fd: P = P("tensor", "fsdp")
    split_f: P = P("tensor")
    conv_wdf: P = P(None, "fsdp", "tensor")
    replicated: P = P()
    # Activations and batches. A is the axis of gradient accumulation.
    act_btd: P = P(ROWS, "context", None)
    # While tokens and items are looked up, the width is split and not the rows; see kosmos_jax/model/merging.py.
    looked_up_bt: P = P("data", "context")
    embedded_btd: P = P("data", "context", "fsdp")
    items_by_copy_nqd: P = P("data", None, "fsdp")
    embedded_nqd: P = P(None, None, "fsdp")
    heads_bthk: P = P(ROWS, "context", "tensor", None)
    keys_bthk: P = P(ROWS, None, "tensor", None)
    items_npd: P = P(ROWS, None, None)
    # The output head: the table split by vocabulary alone; the gradients of it that each device has by itself, and
    # those that each copy of the state has after the exchange inside it.
    head_vd: P = P("tensor", None)
    partial_rdv: P = P((*ROWS, "context"), None, "tensor")
    copies_cdv: P = P("data", "fsdp", "tensor")
    rows_ab: P = P(None, ROWS)
    rows_abt: P = P(None, ROWS, "context")
    items_an: P = P(None, ROWS)


# A parameter's path and the name of its sharding; a stacked parameter (L first) has the same with L unsplit. What an
# encoder has beyond these it says itself (kosmos_jax/model/perception).
PARAMETER_RULES = (
    (r"embedding", "embedding_vd"),
    (r".*/(query|key|value|fc1)/kernel", "widen_df"),
    (r".*/(out|fc2)/kernel", "narrow_fd"),
    (r".*/(query|key|value|fc1)/bias", "split_f"),
    (r".*/(inner_norm|ffn_inner_norm)/(scale|bias)", "split_f"),
    (r".*/(out|fc2|dense)/bias", "replicated"),
    (r".*/dense/kernel", "widen_df"),
    (r".*/connector/queries", "replicated"),
    (r".*/(attention_norm|ffn_norm|final_norm|features_norm|queries_norm|norm1|norm2)/(scale|bias)", "replicated"),
)
MIB = 2**20


def match_one(path: str, rules, what: str):
    """The value of the one rule whose regular expression matches the entire path.

    Args:
      path: of a parameter.
      rules: pairs of a pattern and a value.
      what: the kind of rule, for the message.

    Raises:
      UserError: no rule matches, or several do.
    """
    found = [(pattern, value) for pattern, value in rules if re.fullmatch(pattern, path)]
    if len(found) != 1:
        matches = ", ".join(repr(pattern) for pattern, _ in found) or "none"
        raise UserError(f"parameter {path} must match exactly one {what} rule and matches: {matches}")
    return found[0][1]


def parameter_rules(model) -> tuple[tuple[str, str], ...]:
    """The rules for the parameters of a `config.model`: the common ones and those of its encoders."""
    own = [
        (f"{name}/encoder/(?:{pattern})", sharding)
        for name, section in model.perception.items()
        for pattern, sharding in ENCODERS[section.encoder.kind].SHARDINGS
    ]
    return (*PARAMETER_RULES, *own)


def parameter_specs(model, shapes: Mapping[str, jax.ShapeDtypeStruct], mesh) -> dict[str, P]:
    """The PartitionSpec of every parameter.

    A dimension that its mesh axis does not divide stays replicated; `assert_sharded` speaks up if that leaves much
    behind.

    Args:
      model: config.model.
      shapes: path -> shape of a parameter.
      mesh: the mesh, or an abstract one.

    Raises:
      UserError: a parameter matches no rule, or several.
    """
    shardings, specs = Shardings(), {}
    rules, stacked = parameter_rules(model), tuple(f"{path}/" for path in stacks(model))
    for path, leaf in shapes.items():
        spec = getattr(shardings, match_one(path, rules, "sharding"))
        spec = (None, *spec) if path.startswith(stacked) else tuple(spec)
        specs[path] = fitting(spec, leaf.shape, mesh)
    return specs


def fitting(spec, shape, mesh) -> P:
    """The spec for a shape, without the axes that do not divide its dimension.

    Args:
      spec: an entry for each leading dimension.
      shape: of the array.
      mesh: has the sizes of the axes.
    """
    spec = (*spec, *(None,) * (len(shape) - len(spec)))
    return P(*(axes if size % ways(axes, mesh) == 0 else None for axes, size in zip(spec, shape, strict=True)))


def ways(axes, mesh) -> int:
    """How many ways a dimension is split by one entry of a PartitionSpec: an axis, several, or None."""
    return math.prod(mesh.shape[axis] for axis in np.atleast_1d(axes)) if axes else 1


def like_parameters(tree, shapes, specs: Mapping[str, P], mesh):
    """Shardings for a tree that holds copies of the parameters (optimizer moments, averages) among other arrays.

    Args:
      tree: of arrays or shapes; dictionaries in it have paths of parameters as keys.
      shapes: path -> shape.
      specs: path -> PartitionSpec.
      mesh: for the shardings.
    """

    def sharding(path, leaf):
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey) and key.key in specs]
        fits = names and shapes[names[-1]].shape == leaf.shape
        return NamedSharding(mesh, specs[names[-1]] if fits else P())

    return jax.tree_util.tree_map_with_path(sharding, tree)


def assert_sharded(tree, shardings, mesh, tolerance=0.02):
    """Stops when arrays that hold more than `tolerance` of all bytes together would be replicated on every device.

    Arrays below a MiB, such as norms and biases, may be replicated, unless one of them alone holds as much.

    Args:
      tree: of arrays or shapes.
      shardings: the same tree of shardings.
      mesh: what they are for.
      tolerance: share of all bytes.

    Raises:
      UserError: naming the largest of the arrays; only where the mesh splits parameters at all.
    """
    if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
        return
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    sizes = [math.prod(leaf.shape) * leaf.dtype.itemsize for _, leaf in leaves]
    counts = min(MIB, tolerance * sum(sizes))
    replicated = [
        (size, f"{jax.tree_util.keystr(path)} {leaf.shape}")
        for (path, leaf), size, sharding in zip(leaves, sizes, jax.tree.leaves(shardings), strict=True)
        if size > counts and sharding.is_fully_replicated
    ]
    if sum(size for size, _ in replicated) > tolerance * sum(sizes):
        largest = sorted(replicated, reverse=True)[:3]
        named = "; ".join(f"{name} ({100 * size / sum(sizes):.1f}% of all bytes)" for size, name in largest)
        more = f", and {len(replicated) - 3} more" if len(replicated) > 3 else ""
        raise UserError(
            f"on mesh {dict(mesh.shape)} these arrays would be replicated on every device: {named}{more}. "
            "Choose mesh.fsdp that divides the model's widths (mesh.data takes the rest of the devices), and "
            "mesh.tensor that divides model.text.vocab_size too"
        )


@dataclass(frozen=True)
class Pinned:
    """The `constrain` of a model on a mesh: pins an activation's sharding by name, e.g. constrain(x_BTD, "act_btd")."""

    mesh: jax.sharding.Mesh

    def __call__(self, x, name: str):
        spec = fitting(getattr(Shardings(), name), x.shape, self.mesh)
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))


def constrain_with(mesh):
    """What pins a model's activations to a mesh; one device needs nothing pinned."""
    return unpinned if mesh.size == 1 else Pinned(mesh)
