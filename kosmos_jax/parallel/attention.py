"""Attention by kernels that never write the scores to memory, and which kernel a mesh gets.

Those of packed rows take what the reference takes, `kosmos_jax.model.attention.packed_attention`, and honour
`segments`: a document sees itself alone. What a kernel cannot do it refuses; nothing is left out in silence.
"""

import logging
import math
from functools import cache, partial

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from kosmos_jax.errors import UserError
from kosmos_jax.model.attention import packed_attention
from kosmos_jax.parallel.sharding import Shardings, fitting, ways

log = logging.getLogger(__name__)
# The kernel that "auto" takes on each kind of device, where it can do what is asked.
AUTOMATIC = {"tpu": "splash", "gpu": "triton"}
# Side of the squares in which a kernel works, largest first: the first that divides the rows' length.
BLOCKS = {"splash": (512, 256, 128), "triton": (128, 64, 32)}
# The Triton kernel holds blocks of queries, keys and values in an SM's shared memory.
LARGEST_BYTES = {"triton": 256}


def attention_for(mesh, text):
    """The attention of packed rows for a mesh.

    Args:
      mesh: where the model lives.
      text: `config.model.text`; its `attention` names the kernel: "reference", "splash" (TPU), "triton" (GPU) or
        "auto", which is the kernel of the mesh's devices unless weights are to be dropped out or the rows' length or
        the mesh do not suit it, and then the reference.

    Returns:
      A function like `packed_attention`.

    Raises:
      UserError: the kernel named cannot run on the devices, drop out weights or split the sequence, as is asked.
    """
    platform = mesh.devices.flat[0].platform
    name = AUTOMATIC.get(platform, "reference") if text.attention == "auto" else text.attention
    refusal = _refusal(name, platform, text, mesh)
    if refusal and text.attention != "auto":
        raise UserError(f"model.text.attention={name}: {refusal}; 'reference' can do it, and 'auto' chooses by itself")
    if refusal:
        log.warning("the reference attention is used, which writes all scores to memory; as for %s, %s", name, refusal)
    if refusal or name == "reference":
        return packed_attention
    shardings = Shardings()

    def attention(q_BTHK, k_BTHK, v_BTHK, segments_BT, positions_BT, *, dropout_rate=0.0, key=None):
        length = q_BTHK.shape[1] // mesh.shape["context"]
        largest = LARGEST_BYTES.get(name, math.inf) / q_BTHK.dtype.itemsize
        block = next((size for size in BLOCKS[name] if length % size == 0 and size <= largest), None)
        if block is None:
            if text.attention == "auto":
                return packed_attention(q_BTHK, k_BTHK, v_BTHK, segments_BT, positions_BT)
            raise UserError(
                f"model.text.attention={name} reads rows whose length is a multiple of {BLOCKS[name][-1]} on each "
                f"device, and was given {length}; 'reference' takes any"
            )
        q_spec, k_spec = (fitting(spec, q_BTHK.shape, mesh) for spec in (shardings.heads_bthk, shardings.keys_bthk))
        of_q, of_k = (P(*spec[:2]) for spec in (q_spec, k_spec))
        # check_vma: kernels do not say over which axes their results vary.
        mapped = partial(jax.shard_map, mesh=mesh, out_specs=q_spec, check_vma=False)
        arrays = (q_BTHK, k_BTHK, v_BTHK, segments_BT, segments_BT)
        specs = (q_spec, k_spec, k_spec, of_q, of_k)
        interpret = platform == "cpu"  # slowly, for tests
        if name == "triton":
            return mapped(partial(_triton, block=block, interpret=interpret), in_specs=specs[:4])(*arrays[:4])
        shards = ways(q_spec[2], mesh), ways(q_spec[1], mesh)
        kernel = _splash_kernel(q_BTHK.shape[2], q_BTHK.shape[1], block, *shards, interpret)
        kernel_spec = kernel.manual_sharding_spec(NamedSharding(mesh, P(q_spec[2], q_spec[1])))
        return mapped(_splash, in_specs=(kernel_spec, *specs))(kernel, *arrays)

    return attention


def token_attention_for(mesh, text, dtype, int8_cache: bool):
    """The attention of one new token of each text to a cache, for a mesh.

    XLA reads every entry of a cache once, cuDNN those that are taken.

    Args:
      mesh: where the model lives.
      text: `config.model.text`; its `attention` is "reference" for XLA's everywhere.
      dtype: of the cache.
      int8_cache: whether it is in eight bits.

    Returns:
      A function like `attend_by_lengths`, or None for the reference.
    """
    device = mesh.devices.flat[0]
    if text.attention == "reference" or device.platform != "gpu":
        return None
    if refusal := _refusal_of_cudnn(text, dtype, int8_cache):
        log.info("keys and values are read to the end of their slots; as for cuDNN, %s", refusal)
        return None

    def attention(q_BTHK, k_BHSK, v_BHSK, lengths_B):
        q_spec, k_spec = (
            fitting(("data", *axes), x.shape, mesh) for axes, x in (((None, "tensor"), q_BTHK), (("tensor",), k_BHSK))
        )
        mapped = jax.shard_map(
            partial(attend_by_lengths, implementation="cudnn"),
            mesh=mesh, in_specs=(q_spec, k_spec, k_spec, P(q_spec[0])), out_specs=q_spec, check_vma=False,
        )  # fmt: skip
        return mapped(q_BTHK, k_BHSK, v_BHSK, lengths_B)

    return attention


def _refusal_of_cudnn(text, dtype, int8_cache: bool) -> str:
    """What cuDNN cannot do of that, or ""; where there is no GPU, as where a run is only planned, there is no cuDNN."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn  # JAX says it in no other way

    if int8_cache:
        return "it reads no cache in eight bits"
    if dtype.itemsize != 2:
        return f"it reads 16 bits a number, and this cache has {dtype}"
    head = jax.ShapeDtypeStruct((1, 1, 1, text.width // text.heads), dtype)
    try:
        version = cudnn.check_cudnn_version()
        if not cudnn.check_compute_capability("8.0"):
            return "it wants a GPU of compute capability 8.0"
        layout = cudnn.AttentionLayout.BTNH.value
        cudnn.check_is_flash_attention(head, head, head, layout, version, has_bias=False, is_training=False)
    except (RuntimeError, NotImplementedError) as error:
        return str(error)
    return ""


def attend_by_lengths(q_BTHK, k_BHSK, v_BHSK, lengths_B, implementation):
    """Attention of one token to the first entries of a cache.

    Args:
      q_BTHK: float[B, 1, H, K].
      k_BHSK, v_BHSK: float[B, H, S, K].
      lengths_B: int32[B], entries to look at.
      implementation: of jax.nn.dot_product_attention.

    Returns:
      float[B, 1, H, K].
    """
    B, H, S, K = k_BHSK.shape
    # Each head as a row of one head: entries are then the second dimension, as it has to be, and nothing is moved.
    q, k, v = q_BTHK.reshape(B * H, 1, 1, K), k_BHSK.reshape(B * H, S, 1, K), v_BHSK.reshape(B * H, S, 1, K)
    lengths = jnp.repeat(lengths_B, H)
    found = jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths, implementation=implementation)
    return found.reshape(q_BTHK.shape)


def _refusal(name, platform, text, mesh) -> str:
    """What is asked of a kernel that it cannot do, or ""."""
    if name == "reference":
        return ""
    if platform != "cpu" and AUTOMATIC.get(platform) != name:
        return f"it is not a kernel for {platform}"
    if text.attention_dropout:
        return f"no kernel drops out attention weights, model.text.attention_dropout={text.attention_dropout}"
    if name == "triton" and mesh.shape["context"] > 1:
        return f"it cannot split a sequence, mesh.context={mesh.shape['context']}"
    return ""


@cache
def _splash_kernel(heads, length, block, head_shards, q_seq_shards, interpret):
    """jax.experimental's TPU kernel with a causal mask, for rows of `length` tokens."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    mask = splash.MultiHeadMask([splash.CausalMask((length, length), shard_count=q_seq_shards)] * heads)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    sizes = splash.BlockSizes(**{f"block_{name}": block for name in names})
    with jax.ensure_compile_time_eval():
        return splash.make_splash_mha(
            mask, head_shards=head_shards, q_seq_shards=q_seq_shards, block_sizes=sizes, interpret=interpret
        )


def _splash(kernel, q_BTHK, k_BSHK, v_BSHK, segments_BT, segments_BS):
    """float[B, T, H, K]. T may be a part of the row, S is all of it; the kernel knows which part by its mask."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    heads_first = lambda x: x.swapaxes(1, 2)  # noqa: E731
    q_BHTK = heads_first(q_BTHK * q_BTHK.shape[-1] ** -0.5)
    out_BHTK = jax.vmap(kernel)(
        q_BHTK, heads_first(k_BSHK), heads_first(v_BSHK), splash.SegmentIds(segments_BT, segments_BS)
    )
    return heads_first(out_BHTK)


def _triton(q_BTHK, k_BTHK, v_BTHK, segments_BT, *, block, interpret):
    """float[B, T, H, K]: the kernel of jax.experimental for GPUs."""
    from jax.experimental.pallas.ops.gpu import attention as gpu

    names = ("q", "k", "q_dkv", "kv_dkv", "q_dq", "kv_dq")
    # The backward pass holds more at once, and has less room on an SM for it.
    sizes = gpu.BlockSizes(**{f"block_{name}": block if name in "qk" else min(block, 32) for name in names})
    scale = q_BTHK.shape[-1] ** -0.5
    return gpu.mha(
        q_BTHK, k_BTHK, v_BTHK, segments_BT, sm_scale=scale, causal=True, block_sizes=sizes, interpret=interpret
    )
