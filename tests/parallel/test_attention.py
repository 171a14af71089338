"""Kernels against the reference, on packed rows; on CPU they run interpreted."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from kosmos_jax.errors import UserError
from kosmos_jax.model.attention import attend, packed_attention
from kosmos_jax.parallel import attention as kernels
from kosmos_jax.parallel.attention import attention_for
from kosmos_jax.parallel.mesh import make_mesh

ROWS, LENGTH, HEADS, WIDTH = 2, 256, 2, 64
KERNELS = [("splash", {}), ("splash", dict(data=2, tensor=2)), ("splash", dict(context=2)), ("triton", {})]
KERNELS += [("triton", dict(fsdp=2, tensor=2))]


def mesh_of(**sizes):
    sizes = dict(data=1, fsdp=1, tensor=1, context=1) | sizes
    return make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])


def text(**changes):
    return ConfigDict(dict(attention="auto", attention_dropout=0.0) | changes)


def packed_rows(seed=0):
    """Queries, keys, values; documents that end anywhere, with padding in the second row; a gradient."""
    rng = np.random.default_rng(seed)
    q, k, v, gradient = (jnp.asarray(rng.standard_normal((ROWS, LENGTH, HEADS, WIDTH)), jnp.float32) for _ in range(4))
    ends = [(31, 32, 190, LENGTH), (128, 201, 230)]
    segments, positions = np.zeros((2, ROWS, LENGTH), np.int32)
    for row, stops in enumerate(ends):
        for number, (start, stop) in enumerate(zip((0, *stops), stops, strict=False), 1):
            segments[row, start:stop], positions[row, start:stop] = number, np.arange(stop - start)
    positions[1, 230:] = np.arange(LENGTH - 230)
    return (q, k, v), jnp.asarray(segments), jnp.asarray(positions), gradient


def results(attention, qkv, segments, positions, gradient):
    """Output, and gradients of queries, keys and values."""
    out, backward = jax.vjp(lambda *qkv: attention(*qkv, segments, positions), *qkv)
    return jnp.stack([out, *backward(gradient)])


def compare(name, mesh):
    rows = packed_rows()
    attention = attention_for(mesh, text(attention=name))
    assert attention is not packed_attention
    found, wanted = (jax.jit(lambda a=a: results(a, *rows))() for a in (attention, packed_attention))
    np.testing.assert_allclose(found, wanted, atol=2e-5)


@pytest.mark.parametrize("name, sizes", KERNELS, ids=str)
def test_a_kernel_gives_the_reference_s_output_and_gradients(name, sizes):
    compare(name, mesh_of(**sizes))


@pytest.mark.parametrize("name, function", [("splash", "_splash"), ("triton", "_triton")])
def test_a_kernel_that_leaks_between_documents_does_not_pass(name, function, monkeypatch):
    honest = getattr(kernels, function)

    def leaking(*args, **kwargs):
        """Takes every row for one document."""
        return honest(*(jnp.ones_like(x) if getattr(x, "dtype", None) == jnp.int32 else x for x in args), **kwargs)

    monkeypatch.setattr(kernels, function, leaking)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        compare(name, mesh_of())


@pytest.mark.parametrize(
    "changes, sizes, message",
    [
        (dict(attention="splash", attention_dropout=0.1), {}, "drops out attention weights"),
        (dict(attention="triton"), dict(context=2), "cannot split a sequence"),
    ],
)
def test_what_a_kernel_cannot_do_it_refuses(changes, sizes, message):
    with pytest.raises(UserError, match=message):
        attention_for(mesh_of(**sizes), text(**changes))


def test_a_kernel_of_other_devices_is_refused():
    assert "not a kernel for tpu" in kernels._refusal("triton", "tpu", text(), mesh_of())
    assert "not a kernel for gpu" in kernels._refusal("splash", "gpu", text(), mesh_of())


def test_a_kernel_refuses_rows_that_do_not_fit_its_blocks():
    (q, k, v), segments, positions, _ = packed_rows()
    short = [x[:, :100] for x in (q, k, v, segments, positions)]
    with pytest.raises(UserError, match="multiple of 128.*given 100"):
        attention_for(mesh_of(), text(attention="splash"))(*short)


def test_devices_without_a_kernel_and_dropped_out_weights_get_the_reference():
    assert attention_for(mesh_of(), text()) is packed_attention


@pytest.mark.parametrize(
    "platform",
    [pytest.param("tpu", marks=pytest.mark.tpu), pytest.param("gpu", marks=pytest.mark.gpu)],
)
@pytest.mark.parametrize("width", [64, 96, 128])
def test_on_its_own_device_a_kernel_gives_the_reference_s_numbers(platform, width):
    """In bfloat16, as it trains; the reference computes in float32 from the same numbers."""
    try:
        devices = jax.devices(platform)[:1]
    except RuntimeError as error:
        pytest.skip(str(error))
    mesh = make_mesh(dict(data=1, fsdp=1, tensor=1, context=1), devices)
    (q, k, v), segments, positions, gradient = packed_rows()
    rows = [jnp.tile(x, (1, 1, 1, 2))[..., :width].astype(jnp.bfloat16) for x in (q, k, v, gradient)]
    rows = jax.device_put((rows, segments, positions), devices[0])

    def run(attention, dtype):
        (q, k, v, gradient), segments, positions = rows
        cast = [x.astype(dtype) for x in (q, k, v)]
        return jax.jit(lambda: results(attention, cast, segments, positions, gradient.astype(dtype)))()

    kernel = attention_for(mesh, text())
    assert kernel is not packed_attention
    found, wanted = run(kernel, jnp.bfloat16), run(packed_attention, jnp.float32)
    error = jnp.abs(found.astype(jnp.float32) - wanted).max()
    assert error <= 2e-2 * jnp.abs(wanted).max()


def test_one_token_sees_the_entries_that_are_taken_and_no_others():
    rng = np.random.default_rng(1)
    lengths = jnp.array([1, 7, 32, 20])
    q = jnp.asarray(rng.standard_normal((4, 1, 2, 16)), jnp.float32)
    k, v = (jnp.asarray(rng.standard_normal((4, 2, 32, 16)), jnp.float32) for _ in range(2))
    found = kernels.attend_by_lengths(q, k, v, lengths, implementation="xla")
    wanted = attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), (jnp.arange(32) < lengths[:, None])[:, None])
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def with_cudnn(setattr):
    """As if there were an H100 with cuDNN."""
    cudnn = "jax._src.cudnn.fused_attention_stablehlo"
    setattr(f"{cudnn}.check_cudnn_version", lambda: 91200)
    setattr(f"{cudnn}.check_compute_capability", lambda wanted: float(wanted) <= 9)


@pytest.mark.parametrize(
    "changes, dtype, int8, reason",
    [
        ({}, jnp.bfloat16, True, "eight bits"),
        ({}, jnp.float32, False, "16 bits a number"),
        (dict(heads=1, width=264), jnp.bfloat16, False, "head dim must be <= 256"),
    ],
)
def test_what_cudnn_cannot_read_is_left_to_xla_with_the_reason(monkeypatch, caplog, changes, dtype, int8, reason):
    caplog.set_level("INFO")
    with_cudnn(monkeypatch.setattr)
    gpu = SimpleNamespace(devices=np.array([SimpleNamespace(platform="gpu")]))
    asked = text(**dict(width=256, heads=4) | changes)
    assert kernels.token_attention_for(gpu, asked, jnp.dtype(dtype), int8) is None and reason in caplog.text
    assert kernels.token_attention_for(gpu, text(width=256, heads=4), jnp.dtype(jnp.bfloat16), False) is not None
    assert kernels.token_attention_for(mesh_of(), text(width=256, heads=4), jnp.dtype(jnp.bfloat16), False) is None


@pytest.mark.gpu
@pytest.mark.parametrize("heads, width", [(4, 256), (8, 1024)])
def test_on_a_gpu_cudnn_reads_the_entries_that_are_taken_and_no_others(heads, width):
    """In bfloat16; the reference computes in float32 from the same numbers."""
    device = jax.devices("gpu")[0]
    mesh = make_mesh(dict(data=1, fsdp=1, tensor=1, context=1), [device])
    attention = kernels.token_attention_for(mesh, text(width=width, heads=heads), jnp.dtype(jnp.bfloat16), False)
    assert attention is not None
    B, S, K = 6, 256, width // heads
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(B, 1, heads, K), (B, heads, S, K), (B, heads, S, K)]
    q, k, v = (jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, shapes, strict=True))
    lengths = jnp.array([1, 2, 100, 128, 255, 256])
    # What lies behind a text's end is nobody's.
    beyond = jnp.arange(S)[None, None, :, None] >= lengths[:, None, None, None]
    found = jax.jit(attention)(*jax.device_put((q, k, jnp.where(beyond, 1e4, v).astype(v.dtype), lengths), device))
    scores = jnp.einsum("bthk,bhsk->bhts", q, k, precision="highest", preferred_element_type=jnp.float32) * K**-0.5
    weights = jax.nn.softmax(jnp.where(beyond[..., 0][:, :, None], -jnp.inf, scores), axis=-1)
    wanted = jnp.einsum("bhts,bhsk->bthk", weights, v.astype(jnp.float32), precision="highest")
    assert jnp.abs(found.astype(jnp.float32) - wanted).max() <= 2e-2 * jnp.abs(wanted).max()
