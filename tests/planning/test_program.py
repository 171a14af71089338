"""Programs small enough to know the answer, compiled for eight CPU devices; and what TPU and GPU compilers write."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from kosmos_jax.planning import hlo, work
from kosmos_jax.planning.collectives import collectives, replica_groups

OUTER, INNER, WIDTH = 3, 5, 128
GROUP = 8


@pytest.fixture(scope="module")
def nested():
    """An all-reduce in two nested loops, an all-gather in the outer one alone, and a matrix product in the inner."""
    mesh = jax.make_mesh((GROUP,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

    def body(x, w):
        def outer(x, _):
            def inner(x, _):
                return jax.lax.psum(jnp.sin(x @ w), "x") * 1e-3, None

            x, _ = jax.lax.scan(inner, x, None, length=INNER)
            return x + jax.lax.all_gather(x, "x").sum(0) * 1e-3, None

        return jax.lax.scan(outer, x, None, length=OUTER)[0]

    mapped = jax.shard_map(body, mesh=mesh, in_specs=(P("x"), P()), out_specs=P("x"), check_vma=False)
    shapes = [jax.ShapeDtypeStruct((n, WIDTH), jnp.float32) for n in (GROUP * 4, WIDTH)]
    return jax.jit(mapped).lower(*shapes).compile().as_text()


def sums(text, domain_of):
    found = {}
    for one in collectives(hlo.parse(text), domain_of):
        count, size = found.get(one.kind, (0, 0))
        found[one.kind] = count + one.times, size + one.times * one.bytes
    return found


def test_collectives_count_once_for_every_turn_of_every_loop_around_them(nested):
    shard = 4 * WIDTH * 4
    assert sums(nested, np.zeros(GROUP, int)) == {
        "all-reduce": (OUTER * INNER, OUTER * INNER * 2 * shard * (GROUP - 1) / GROUP),
        "all-gather": (OUTER, OUTER * shard * (GROUP - 1)),
    }


def test_loops_are_counted_without_the_compilers_note_too(nested):
    """XLA for TPU writes no trip counts; they are read from the condition."""
    bare = nested.replace("known_trip_count", "forgotten")
    program = hlo.parse(bare)
    assert not program.unknown_loops
    assert program.runs == hlo.parse(nested).runs


def test_computations_end_where_they_end():
    """Not at the lines of a kernel's configuration that begin with a brace; also where a thread is named."""
    text = """HloModule m

%other (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  ROOT %n = f32[2]{0} negate(%p)
}, execution_thread="async"

ENTRY %main (a: f32[2]) -> f32[2] {
  %a = f32[2]{0} parameter(0)
  %k = f32[2]{0} custom-call(%a), custom_call_target="tpu_custom_call", backend_config={"config": {
}}
  ROOT %r = f32[2]{0} negate(%k)
}
"""
    program = hlo.parse(text)
    assert program.entry == "main"
    assert {name: list(inner) for name, inner in program.computations.items()} == {
        "other": ["p", "n"],
        "main": ["a", "k", "r"],
    }


def test_a_loop_of_unknown_length_is_named():
    text = (
        jax.jit(lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, jnp.sin, x)).lower(jnp.ones(4)).compile().as_text()
    )
    program = hlo.parse(text)
    assert len(program.unknown_loops) == 1
    assert max(program.runs.values()) == 1


def test_matrix_products_count_two_for_a_multiply_add(nested):
    assert work.flops(hlo.parse(nested)) == OUTER * INNER * 2 * 4 * WIDTH * WIDTH


def test_a_group_beyond_one_domain_is_on_the_slow_network(nested):
    program = hlo.parse(nested)
    assert not any(one.slow for one in collectives(program, np.zeros(GROUP, int)))
    found = collectives(program, np.arange(GROUP) // 4)
    assert all(one.slow and one.domains == 2 for one in found)


def test_a_layer_taken_out_of_a_stack_is_read_once_for_each_turn():
    layers, width = 16, 256
    stack = jax.ShapeDtypeStruct((layers, width, width), jnp.float32)
    run = jax.jit(lambda x, w: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0])
    text = run.lower(jax.ShapeDtypeStruct((8, width), jnp.float32), stack).compile().as_text()
    weights = layers * width * width * 4
    assert weights <= work.memory_traffic(hlo.parse(text)) < 4 * weights


@pytest.mark.parametrize(
    "text, groups",
    [
        ("replica_groups={{0,1},{2,3}}", [(0, 1), (2, 3)]),
        ("replica_groups={}", [(0, 1, 2, 3)]),
        ("replica_groups=[2,2]<=[4]", [(0, 1), (2, 3)]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['x'=2,'y'=2] {'y'}, dimensions={0}", [(0, 1), (2, 3)]),
        ("replica_groups=mesh['x'=2,'y'=2] {'x'}", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['x'=2,'y'=2], device_ids=([2,2]T(1,0)) {'y'}", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['x'=4] {'x':(2)2}", [(0, 1), (2, 3)]),
        ("replica_groups=mesh['x'=4] {'x':(1)2}", [(0, 2), (1, 3)]),
    ],
)
def test_replica_groups_in_every_notation(text, groups):
    assert replica_groups(text, 4) == groups


TPU = """
%fused.1 (p.1: bf16[8,4]) -> bf16[8,16] {
  %p.1 = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[8,16]{1,0} all-gather(%p.1), replica_groups={{0,1,2,3}}, dimensions={1}, CHAIN
}

%all-reduce-scatter.2 (p.2: f32[16]) -> f32[4] {
  %p.2 = f32[16]{0} parameter(0)
  %all-reduce.3 = f32[16]{0} all-reduce(%p.2), replica_groups={{0,1,2,3}}, to_apply=%add
  %constant.0 = s32[] constant(0)
  ROOT %slice = f32[4]{0} dynamic-slice(%all-reduce.3, %constant.0), dynamic_slice_sizes={4}
}

ENTRY %main (a: bf16[8,4], b: f32[16]) -> f32[4] {
  %a = bf16[8,4]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %b = f32[16]{0} parameter(1)
  %start = bf16[8,16]{1,0:S(1)} fusion(%a), kind=kCustom, calls=%fused.1
  %next = bf16[8,16]{1,0:S(1)} fusion(%a), kind=kCustom, calls=%fused.1
  %send = (f32[16]{0}, u32[], token[]) send(%b), frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %scatter = f32[4]{0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.2
}
""".replace("CHAIN", 'frontend_attributes={chain_id="7"}')


def test_what_the_tpu_compiler_makes_of_collectives():
    """Copies of one chain count once and overlap; a reduce-scatter is a fusion; slices exchange by send."""
    found = collectives(hlo.parse(TPU), np.array([0, 0, 0, 0, 1, 1, 1, 1]))
    assert [(one.kind, one.bytes, one.slow, one.asynchronous) for one in found] == [
        ("all-gather", 64 * 3, False, True),
        ("all-reduce", 2 * 64 / 2, True, True),
        ("reduce-scatter", 64 * 3 / 4, False, False),
    ]


def test_what_lies_on_chip_is_not_memory_traffic():
    program = hlo.parse(TPU)
    fusion = program.computations["main"]["start"]
    assert work._traffic(fusion, program.computations["main"], program) == 0


CHAIN = """
%first (p.1: bf16[8,4]) -> (bf16[8,4], bf16[32,4]) {
  %p.1 = bf16[8,4]{1,0} parameter(0)
  %all-gather.1 = bf16[32,4]{1,0} all-gather(%p.1), replica_groups={{0,1,2,3}}, frontend_attributes={chain_id="7"}
  ROOT %s = (bf16[8,4]{1,0}, bf16[32,4]{1,0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%between (p.2: bf16[8,4], p.3: bf16[32,4], p.4: f32[16]) -> (f32[16], bf16[8,4], bf16[32,4], bf16[32,4]) {
  %p.2 = bf16[8,4]{1,0} parameter(0)
  %p.3 = bf16[32,4]{1,0} parameter(1)
  %p.4 = f32[16]{0} parameter(2)
  %n = f32[16]{0} negate(%p.4)
  %all-gather.2 = bf16[32,4]{1,0} all-gather(%p.2), replica_groups={{0,1,2,3}}, frontend_attributes={chain_id="7"}
  ROOT %t = (f32[16]{0}, bf16[8,4]{1,0}, bf16[32,4]{1,0}, bf16[32,4]{1,0}) tuple(%n, %p.2, %p.3, %all-gather.2)
}

%last (p.5: bf16[8,4], p.6: bf16[32,4]) -> bf16[32,4] {
  %p.5 = bf16[8,4]{1,0} parameter(0)
  %p.6 = bf16[32,4]{1,0} parameter(1)
  %all-gather.3 = bf16[32,4]{1,0} all-gather(%p.5), replica_groups={{0,1,2,3}}, frontend_attributes={chain_id="7"}
  ROOT %d = bf16[32,4]{1,0} custom-call(%p.5, %p.6, %all-gather.3), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (a: bf16[8,4], b: f32[16]) -> bf16[32,4] {
  %a = bf16[8,4]{1,0} parameter(0)
  %b = f32[16]{0} parameter(1)
  %start = (bf16[8,4]{1,0}, bf16[32,4]{1,0}) fusion(%a), kind=kCustom, calls=%first
  %shard = bf16[8,4]{1,0} get-tuple-element(%start), index=0
  %whole = bf16[32,4]{1,0} get-tuple-element(%start), index=1
  %work = (f32[16]{0}, bf16[8,4]{1,0}, bf16[32,4]{1,0}, bf16[32,4]{1,0}) fusion(%shard, %whole, %b), calls=%between
  ROOT %done = bf16[32,4]{1,0} fusion(%shard, %whole), kind=kCustom, calls=%last
}
"""


def test_a_collective_that_fusions_overlap_is_read_once_and_written_once():
    """The shard by the first of them, the whole by the last; the one in between has its own work alone."""
    program = hlo.parse(CHAIN)
    traffic = {name: work._traffic(i, program.computations["main"], program) for name, i in _fusions(program)}
    assert traffic == {"start": 8 * 4 * 2, "work": 2 * 16 * 4, "done": 32 * 4 * 2}


def _fusions(program):
    return [(name, i) for name, i in program.computations["main"].items() if i.opcode == "fusion"]


def test_a_slice_that_is_copied_onto_the_chip_counts_itself_alone():
    text = """
ENTRY %main (a: s8[1024]) -> s8[64] {
  %a = s8[1024]{0} parameter(0)
  %s = ((s8[1024]{0}), s8[64]{0:S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:64]}
  ROOT %d = s8[64]{0:S(1)} slice-done(%s)
}
"""
    assert work.memory_traffic(hlo.parse(text)) == 64


def test_a_batch_written_as_a_dilated_window_counts_once():
    """bf16[4 heads, 8, 16] x [4 heads, 16, 32]: the window of 4 meets one input at each of 4 places."""
    text = """
ENTRY %main (a: bf16[4,8,16], b: bf16[4,16,32]) -> bf16[4,8,32] {
  %a = bf16[4,8,16]{2,1,0} parameter(0)
  %b = bf16[4,16,32]{2,1,0} parameter(1)
  ROOT %c = bf16[4,8,32]{2,1,0} convolution(%a, %b), window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0io->0bf
}
"""
    assert work.flops(hlo.parse(text)) == 2 * 4 * 8 * 16 * 32


def test_what_a_fusion_inside_a_fusion_only_passes_on_is_read():
    text = """
%passes (p: f32[8,8]) -> f32[64] {
  %p = f32[8,8]{1,0} parameter(0)
  ROOT %b = f32[64]{0} bitcast(%p)
}

%fused (q: f32[8,8]) -> f32[64] {
  %q = f32[8,8]{1,0} parameter(0)
  %f = f32[64]{0} fusion(%q), kind=kLoop, calls=%passes
  ROOT %n = f32[64]{0} negate(%f)
}

ENTRY %main (a: f32[8,8]) -> f32[64] {
  %a = f32[8,8]{1,0} parameter(0)
  ROOT %r = f32[64]{0} fusion(%a), kind=kLoop, calls=%fused
}
"""
    assert work.memory_traffic(hlo.parse(text)) == 2 * 64 * 4


def loop(first, step, limit):
    return f"""
%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {{
  %p = (s32[], f32[4]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[4]{{0}} get-tuple-element(%p), index=1
  %k = s32[] constant({step})
  %n = s32[] add(%i, %k)
  ROOT %t = (s32[], f32[4]) tuple(%n, %x)
}}

%condition (p: (s32[], f32[4])) -> pred[] {{
  %p = (s32[], f32[4]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %limit = s32[] constant({limit})
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}}

ENTRY %main (x: f32[4]) -> (s32[], f32[4]) {{
  %x = f32[4]{{0}} parameter(0)
  %first = s32[] constant({first})
  %copy = s32[] copy(%first)
  %start = (s32[], f32[4]) tuple(%copy, %x)
  ROOT %while = (s32[], f32[4]) while(%start), condition=%condition, body=%body
}}
"""


@pytest.mark.parametrize("first, step, limit", [(0, 1, 5), (0, 2, 16), (0, 2, 5), (1, 1, 24), (3, 4, 12), (5, 1, 5)])
def test_a_loop_turns_as_often_as_python_counts(first, step, limit):
    program = hlo.parse(loop(first, step, limit))
    assert program.runs["body"] == len(range(first, limit, step))
