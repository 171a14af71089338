"""What one device of a compiled program does in a step: floating-point operations, and bytes to and from its memory."""

import json
import math
import re

import numpy as np

from kosmos_jax.planning.hlo import Instruction, Program, root_of

Computation = dict[str, Instruction]
# Instructions that move nothing by themselves.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "iota", "opt-barrier", "domain", "async-start", "async-update",
}  # fmt: skip
# Kernels of kosmos_jax.parallel.attention by their names in the program, and the matrix products that each does for a
# head: scores and output; backward scores, their gradient, and those of values, keys or queries.
ATTENTION = {
    "splash_mha_fwd": 2, "splash_mha_dkv": 4, "splash_mha_dq": 3,
    "mha_forward": 2, "mha_preprocess_backward": 0, "mha_backward": 7,
}  # fmt: skip
# Of a collective that fusions of XLA for TPU overlap; its input is read at the start, its output written at the end.
START, END = "AsyncCollectiveStart", "AsyncCollectiveDone"


def flops(program: Program) -> float:
    """Of the matrix products, which are all that counts; what is computed again for the backward pass included.

    An attention kernel counts half a product's work for each of its products, because of the causal mask; any other
    kernel what its own estimate in the program says, see `opaque_kernels`.
    """
    return sum(times * _computation_flops(program, name) for name, times in program.runs.items())


def _computation_flops(program: Program, name: str) -> float:
    total, computation = 0.0, program.computations[name]
    for instruction in computation.values():
        if instruction.opcode == "dot":
            total += _dot(instruction, computation)
        elif instruction.opcode == "convolution":
            total += _convolution(instruction, computation)
        elif instruction.opcode == "custom-call":
            total += _custom_call(instruction, computation)
        elif instruction.opcode in ("fusion", "async-start"):
            total += sum(_computation_flops(program, callee) for callee in instruction.called["calls"])
    return total


def opaque_kernels(program: Program) -> set[str]:
    """Names of kernels whose work the program does not tell."""
    return {_target(i) for i in _kernel_calls(program) if not _attention_kernel(i) and _estimate(i, "flops") is None}


def kernels(program: Program) -> set[str]:
    """Names of all hand-written kernels in the program: "splash_mha_fwd", "__cudnn$fmhaSoftmax", ..."""
    return {_attention_kernel(i) or _target(i) for i in _kernel_calls(program)}


def _kernel_calls(program: Program) -> list[Instruction]:
    named = re.compile(r"tpu_custom_call|__cudnn\$fmha|__gpu\$xla\.gpu\.triton|triton|mosaic_gpu")
    calls = (i for _, _, i in program.instructions() if i.opcode == "custom-call")
    return [call for call in calls if named.match(_target(call))]


def _attention_kernel(call: Instruction) -> str:
    """Which of `ATTENTION` it is, or "": TPU programs call the instruction so, GPU programs say it inside."""
    return next((name for name in ATTENTION if call.name.startswith(name) or f'"{name}"' in call.attributes), "")


def _attention_flops(call: Instruction, computation: Computation, products: int) -> float:
    """Queries and keys are the first two arrays of floats: [..., T, K] on TPU, [B, T, H, K] on GPU.

    A call for one part of a longer row (context sharding) counts the mean over all parts.
    """
    arrays = [array for name in call.operands for array in computation[name].arrays]
    q, k = [array for array in arrays if array.dtype in ("bf16", "f16", "f32") and len(array.dims) > 2][:2]
    length = k.dims[-2] if call.name.startswith("splash") else k.dims[1]
    return 2.0 * products * q.elements * length / 2


def _target(call: Instruction) -> str:
    target = re.search(r'custom_call_target="([^"]*)"', call.attributes)
    return target[1] if target else ""


def _estimate(call: Instruction, key: str) -> float | None:
    """Pallas writes its `cost_estimate` into the call's configuration."""
    known = re.search(r'"cost_estimate":\{([^}]*)\}', call.attributes)
    value = known and json.loads("{" + known[1] + "}").get(key)
    return float(value) if value else None


def _custom_call(call: Instruction, computation: Computation) -> float:
    if "gemm" in _target(call) or "matmul" in _target(call):
        contracted = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', call.attributes)
        return _product(call, computation, contracted[1]) if contracted else 0.0
    if kernel := _attention_kernel(call):
        return _attention_flops(call, computation, ATTENTION[kernel])
    return _estimate(call, "flops") or 0.0


def _dot(dot: Instruction, computation: Computation) -> float:
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.attributes)
    return _product(dot, computation, contracted[1] if contracted else "")


def _product(instruction: Instruction, computation: Computation, contracted: str) -> float:
    """Of a matrix product that sums over the dimensions `contracted`, "1,3", of its first operand."""
    lhs = computation[instruction.operands[0]].arrays[0]
    return 2.0 * instruction.arrays[0].elements * math.prod(lhs.dims[int(d)] for d in re.findall(r"\d+", contracted))


def _convolution(convolution: Instruction, computation: Computation) -> float:
    """XLA's TPU compiler writes every matrix product as a convolution, with batch dimensions as dilated windows.

    So for each spatial dimension the pairs of output place and window place are counted that meet an input at all.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.attributes)
    lhs, rhs = (computation[name].arrays[0].dims for name in convolution.operands[:2])
    out = convolution.arrays[0].dims
    spatial = sorted(c for c in labels[1] if c.isdigit())
    window = _window(convolution.attributes, len(spatial))
    total = 2.0 * out[labels[3].index("b")] * out[labels[3].index("f")] * rhs[labels[2].index("i")]
    for n, dim in enumerate(spatial):
        places = out[labels[3].index(dim)], rhs[labels[2].index(dim)], lhs[labels[1].index(dim)]
        total *= _meetings(*places, *(window[key][n] for key in ("stride", "pad", "lhs_dilate", "rhs_dilate")))
    groups = re.search(r"batch_group_count=(\d+)", convolution.attributes)
    return total / (int(groups[1]) if groups else 1)


def _window(attributes: str, dims: int) -> dict[str, list[int]]:
    """Stride, lower padding and dilations of each spatial dimension."""
    found = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(part.split("=") for part in found[1].split()) if found else {}
    window = {"stride": [1] * dims, "pad": [0] * dims, "lhs_dilate": [1] * dims, "rhs_dilate": [1] * dims}
    given = window.keys() & fields.keys()
    return window | {key: [int(part.split("_")[0]) for part in fields[key].split("x")] for key in given}


def _meetings(out: int, size: int, inputs: int, stride: int, pad: int, lhs_dilate: int, rhs_dilate: int) -> int:
    place = np.arange(out)[:, None] * stride - pad + np.arange(size)[None] * rhs_dilate
    return int(((place >= 0) & (place % lhs_dilate == 0) & (place < inputs * lhs_dilate)).sum())


def memory_traffic(program: Program) -> float:
    """Bytes read from and written to the main memory, each buffer once by every instruction that uses it.

    What lies on chip (TPU's other memory spaces) is free. An instruction that takes one layer out of a stack, or puts
    it in, counts that layer.
    """
    return sum(times * _traffic(i, program.computations[name], program) for times, name, i in program.instructions())


def _traffic(instruction: Instruction, computation: Computation, program: Program) -> float:
    if instruction.opcode in FREE or instruction.opcode.endswith("-done"):
        return 0
    if instruction.opcode == "copy-start":  # its result is (target, source, bookkeeping)
        return sum(array.bytes for array in instruction.arrays[:2] if array.space == 0)
    if instruction.opcode == "slice-start":  # (source, target, bookkeeping); only the slice moves
        source, target = instruction.arrays[:2]
        return target.bytes * ((source.space == 0) + (target.space == 0))
    if instruction.opcode == "dynamic-slice":
        return _in_memory(instruction) + (_in_memory(computation[instruction.operands[0]]) and instruction.bytes)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _in_memory(computation[instruction.operands[1]])
    if instruction.opcode == "fusion":
        return _fusion_traffic(instruction, computation, program)
    read = sum(_in_memory(computation[name]) for name in set(instruction.operands) if name in computation)
    # The result of most collectives that start repeats what they are given.
    repeated = len(instruction.operands) if instruction.opcode.endswith("-start") else 0
    written = instruction.arrays[repeated:] or instruction.arrays
    return read + sum(array.bytes for array in written if array.space == 0)


def _in_memory(instruction: Instruction) -> int:
    return sum(array.bytes for array in instruction.arrays if array.space == 0)


def _in_flight(instruction: Instruction) -> bool:
    """Whether it is one of the copies of a collective that XLA for TPU puts into the fusions which overlap it."""
    return "chain_id=" in instruction.attributes


def _fusion_traffic(fusion: Instruction, computation: Computation, program: Program) -> float:
    """Bytes that a fusion reads and writes. What it only passes on, as a collective in flight, is neither."""
    inner = program.fused(fusion)
    parameters = {int(i.operands[0]): i.name for i in inner.values() if i.opcode == "parameter"}
    total = 0.0
    for number, name in enumerate(fusion.operands):
        operand = computation.get(name)
        if operand is not None and number in parameters:
            total += min(_in_memory(operand), _read(parameters[number], inner, program))
    root = root_of(inner)
    results = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
    written = [_written(result, inner, program) for result in results]
    if _target(root) == START:
        return total
    if len(written) != len(fusion.arrays):  # a result that is a tuple itself
        return total + _in_memory(fusion)
    return total + sum(
        min(array.bytes, size) for array, size in zip(fusion.arrays, written, strict=True) if not array.space
    )


def _read(name: str, computation: Computation, program: Program) -> float:
    """Bytes of a fusion's parameter that are needed: only slices, if it is only sliced."""
    if computation[name].root:
        return computation[name].bytes
    total = 0.0
    for user in computation.values():
        if name not in user.operands or (user.root and user.opcode == "tuple") or _target(user) in (START, END):
            continue
        if _in_flight(user):
            started_here = any(_target(other) == START for other in computation.values())
            total += computation[name].bytes if started_here else 0
        elif user.opcode in ("dynamic-slice", "gather") and user.operands[0] == name:
            total += user.bytes
        elif user.opcode in ("dynamic-update-slice", "scatter") and user.operands[0] == name:
            continue  # written in place
        elif user.opcode == "bitcast":
            total += _read(user.name, computation, program)
        elif user.opcode == "fusion":
            inner = program.fused(user)
            number = user.operands.index(name)
            inside = [i.name for i in inner.values() if i.opcode == "parameter" and int(i.operands[0]) == number]
            total += _read(inside[0], inner, program) if inside else computation[name].bytes
        else:
            return computation[name].bytes
    return total


def _written(result: Instruction, computation: Computation, program: Program) -> float:
    """Bytes of a fusion's result that it writes: of a stack only the layer that is put in, of what passes nothing."""
    while result.opcode == "bitcast" and result.operands[0] in computation:
        result = computation[result.operands[0]]
    if result.opcode == "parameter" or _in_flight(result):
        return 0
    if result.opcode == "dynamic-update-slice":
        return computation[result.operands[1]].bytes
    if result.opcode == "scatter":
        return sum(computation[name].bytes for name in result.operands[-len(result.arrays) :])
    if result.opcode == "fusion":
        inner = program.fused(result)
        return _written(root_of(inner), inner, program)
    return result.bytes
