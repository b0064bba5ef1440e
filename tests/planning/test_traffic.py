"""Bytes to and from memory, of programs written out by hand and of a training step, against XLA's own count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlp_jax import sharding
from vlp_jax import state as state_lib
from vlp_jax.planning import hlo, program, traffic

STACK, LAYER = 9 * 100 * 4, 100 * 4  # bytes of nine layers' rows, and of one's
HEAD = "param_0: f32[9,100], param_1: f32[3,100], param_2: s32[]"
# Fusions of (stack, rows, layer number) -> the bytes that they read and write of stack and rows; 4 for the number.
FUSIONS = {
    "updates a slice in place": (
        """ROOT %u = f32[9,100]{1,0} dynamic-update-slice(%s, %row, %n, %zero)""",
        "f32[9,100]",
        (0, LAYER, LAYER + 4),
    ),
    "updates a slice under another shape": (
        """%b = f32[9,10,10]{2,1,0} bitcast(%s)
  %c = f32[1,10,10]{2,1,0} bitcast(%row)
  ROOT %u = f32[9,10,10]{2,1,0} dynamic-update-slice(%b, %c, %n, %zero, %zero)""",
        "f32[9,10,10]",
        (0, LAYER, LAYER + 4),
    ),
    "updates a slice and makes the update too": (
        """%v = f32[1,100]{1,0} negate(%row)
  %u = f32[9,100]{1,0} dynamic-update-slice(%s, %v, %n, %zero)
  ROOT %t = (f32[9,100]{1,0}, f32[1,100]{1,0}) tuple(%u, %v)""",
        "(f32[9,100], f32[1,100])",
        (0, LAYER, 2 * LAYER + 4),
    ),
    "updates a slice of what it makes": (
        """%v = f32[9,100]{1,0} negate(%s)
  ROOT %u = f32[9,100]{1,0} dynamic-update-slice(%v, %row, %n, %zero)""",
        "f32[9,100]",
        (STACK, LAYER, STACK + 4),
    ),
    "updates a slice inside a fusion of its own": (
        """%f = f32[9,100]{1,0} fusion(%s, %row, %n), kind=kLoop, calls=%inner
  ROOT %b = f32[9,10,10]{2,1,0} bitcast(%f)""",
        "f32[9,10,10]",
        (0, LAYER, LAYER + 4),
    ),
    "takes a slice of what it makes of the stack": (
        """%h = bf16[9,100]{1,0} convert(%s)
  %d = bf16[1,100]{1,0} dynamic-slice(%h, %n, %zero), dynamic_slice_sizes={1,100}
  %w = f32[1,100]{1,0} convert(%d)
  ROOT %u = f32[1,100]{1,0} add(%w, %row)""",
        "f32[1,100]",
        (LAYER, LAYER, LAYER + 4),
    ),
    "sums the stack": (
        """%total = f32[100]{0} reduce(%s, %zero), dimensions={0}, to_apply=%add
  %one = f32[1,100]{1,0} bitcast(%total)
  ROOT %u = f32[1,100]{1,0} add(%one, %row)""",
        "f32[1,100]",
        (STACK, LAYER, LAYER),
    ),
    "takes two slices of the stack": (
        """%x = f32[1,100]{1,0} slice(%s), slice={[0:1], [0:100]}
  %y = f32[1,100]{1,0} slice(%s), slice={[4:5], [0:100]}
  %z = f32[1,100]{1,0} slice(%s), slice={[4:5], [0:100]}
  %v = f32[1,100]{1,0} add(%x, %y)
  %w = f32[1,100]{1,0} add(%v, %z)
  ROOT %u = f32[1,100]{1,0} add(%w, %row)""",
        "f32[1,100]",
        (2 * LAYER, LAYER, LAYER),
    ),
    "updates a slice and works on the whole": (
        """%v = f32[9,100]{1,0} dynamic-update-slice(%s, %row, %n, %zero)
  ROOT %u = f32[9,100]{1,0} negate(%v)""",
        "f32[9,100]",
        (STACK - LAYER, LAYER, STACK + 4),
    ),
    "updates a slice, and works on the whole too": (
        """%v = f32[9,100]{1,0} dynamic-update-slice(%s, %row, %n, %zero)
  %w = f32[9,100]{1,0} negate(%v)
  ROOT %t = (f32[9,100]{1,0}, f32[9,100]{1,0}) tuple(%v, %w)""",
        "(f32[9,100], f32[9,100])",
        (STACK - LAYER, LAYER, 2 * STACK + 4),
    ),
    "hands the stack on under another shape": (
        """%b = f32[900]{0} bitcast(%s)
  %v = f32[1,100]{1,0} negate(%row)
  ROOT %t = (f32[900]{0}, f32[1,100]{1,0}) tuple(%b, %v)""",
        "(f32[900], f32[1,100])",
        (0, LAYER, LAYER),
    ),
    "hands the stack on": (
        """%v = f32[1,100]{1,0} negate(%row)
  ROOT %t = (f32[9,100]{1,0}, f32[1,100]{1,0}) tuple(%s, %v)""",
        "(f32[9,100], f32[1,100])",
        (0, LAYER, LAYER),
    ),
}
INNER = """%inner (p: f32[9,100], q: f32[1,100], m: s32[]) -> f32[9,100] {
  %p = f32[9,100]{1,0} parameter(0)
  %q = f32[1,100]{1,0} parameter(1)
  %m = s32[] parameter(2)
  %z = s32[] constant(0)
  ROOT %o = f32[9,100]{1,0} dynamic-update-slice(%p, %q, %m, %z)
}

"""


def bytes_of(body: str, result: str) -> int:
    text = f"""{INNER}%fused ({HEAD}) -> {result} {{
  %s = f32[9,100]{{1,0}} parameter(0)
  %rows = f32[3,100]{{1,0}} parameter(1)
  %n = s32[] parameter(2)
  %zero = s32[] constant(0)
  %row = f32[1,100]{{1,0}} slice(%rows), slice={{[1:2], [0:100]}}
  {body}
}}

ENTRY %main ({HEAD}) -> {result} {{
  %a = f32[9,100]{{1,0}} parameter(0)
  %b = f32[3,100]{{1,0}} parameter(1)
  %c = s32[] parameter(2)
  ROOT %f = {result} fusion(%a, %b, %c), kind=kLoop, calls=%fused
}}
"""
    return traffic.memory_traffic(hlo.Program(text, {"data": 1}))


@pytest.mark.parametrize("name", FUSIONS)
def test_a_fusion_reads_what_it_needs_of_each_operand_and_writes_what_it_changes(name):
    body, result, parts = FUSIONS[name]
    assert bytes_of(body, result) == sum(parts)


def test_what_is_kept_on_the_chip_does_not_count():
    body, result, _ = FUSIONS["sums the stack"]
    text = bytes_of(body, result), bytes_of(body, result.replace("]", "]{1,0:T(8,128)S(1)}"))
    assert text[0] - text[1] == LAYER


def test_room_that_is_set_aside_costs_nothing():
    text = """ENTRY %main () -> f32[8] {
  ROOT %r = f32[8]{0} custom-call(), custom_call_target="AllocateBuffer"
}
"""
    assert traffic.memory_traffic(hlo.Program(text, {"data": 1})) == 0


def test_scratch_memory_of_a_library_does_not_count():
    text = """ENTRY %main (a: bf16[8,4], b: bf16[4,16]) -> bf16[8,16] {
  %a = bf16[8,4]{1,0} parameter(0)
  %b = bf16[4,16]{1,0} parameter(1)
  %c = (bf16[8,16]{1,0}, s8[4194304]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul"
  ROOT %r = bf16[8,16]{1,0} get-tuple-element(%c), index=0
}
"""
    assert traffic.memory_traffic(hlo.Program(text, {"data": 1})) == 2 * (8 * 4 + 4 * 16 + 8 * 16)


def test_branches_of_a_conditional_are_all_counted():
    def step(which, x):
        return jax.lax.switch(which, [lambda x: jnp.tanh(x @ x), lambda x: jnp.cos(x @ x), lambda x: x], x)

    x = jax.ShapeDtypeStruct((64, 64), np.float32)
    text = jax.jit(step).lower(jax.ShapeDtypeStruct((), np.int32), x).compile().as_text()
    found = hlo.Program(text, {"data": 1})
    opcodes = [visit.instruction.opcode for visit in found.walk()]
    assert "conditional" in opcodes and opcodes.count("dot") + opcodes.count("custom-call") == 2
    assert traffic.memory_traffic(found) >= 2 * 3 * 64 * 64 * 4


def test_a_step_without_loops_moves_what_xla_counts(tiny_config, fake_tokenizer):
    config = tiny_config({"model.unroll": True})
    mesh = sharding.make_mesh(config, jax.devices()[:1])
    run = state_lib.setup(config, fake_tokenizer, mesh, 10)
    batch, good = program.abstract_batch(config, mesh, config.input.frames), jax.ShapeDtypeStruct((), np.bool_)
    with sharding.use_mesh(mesh):
        step = state_lib.train_step(run).lower(run.abstract, batch, good).compile()
    ours = traffic.memory_traffic(hlo.Program(step.as_text(), {"data": 1}))
    assert 0.85 < ours / step.cost_analysis()["bytes accessed"] < 1.1
