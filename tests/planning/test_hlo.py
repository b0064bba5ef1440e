"""Traffic and collectives read from the text of compiled programs: written by hand, and compiled for eight devices."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from vlp_jax.planning import hlo, traffic

ROOT = pathlib.Path(hlo.__file__).parents[2]
MESH = {"replica": 1, "data": 4, "fsdp": 4, "tensor": 1}

# As the TPU compiler writes: groups by a mesh of its own, arrays on the chip (S(1)), a loop whose condition counts.
TEXT = (pathlib.Path(__file__).parent / "loop.hlo").read_text()


def test_collectives_have_their_kind_size_axes_and_how_often_they_run():
    found = {(c.kind, c.axes): c for c in hlo.Program(TEXT, MESH).collectives()}
    gather = found["all-gather", ("fsdp",)]
    assert (gather.bytes, gather.size, gather.times) == (512 * 512 * 4, 4, 6)
    assert gather.source == "jit(step)/while/body/dot_general"
    assert gather.traffic == 512 * 512 * 4 * 3 / 4 * 6
    scatter = found["reduce-scatter", ("fsdp",)]
    assert (scatter.bytes, scatter.times) == (512 * 512 * 4, 6) and scatter.traffic == gather.traffic
    mean = found["all-reduce", ("data",)]
    assert mean.traffic == 2 * 128 * 512 * 4 * 3 / 4 * 6
    loss = found["all-reduce", ("data", "fsdp")]
    assert (loss.size, loss.times, loss.bytes) == (16, 1, 4)
    assert len(found) == 4


def test_memory_traffic_counts_slices_as_slices_and_leaves_out_what_stays_on_the_chip():
    own, part = 128 * 512 * 4, 128 * 512 * 4
    # Each time: the slice is read and written, gathered from memory onto the chip; the gradient's share is written,
    # read and written again. Outside: the loss.
    each = (own + 4 + own) + own + part + 2 * part
    assert traffic.memory_traffic(hlo.Program(TEXT, MESH)) == 6 * each + 8


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[2,3]{1,0}", 24),
        ("bf16[8]", 16),
        ("pred[5]{0}", 5),
        ("(s32[], f32[2,3]{1,0}, u8[4])", 32),
        ("f8e4m3fn[16]", 16),
        ("s4[6]", 3),
        ("f32[]", 4),
        ("token[]", 0),
    ],
)
def test_bytes_of_shapes(shape, size):
    assert hlo.array_bytes(shape) == size


ASYNCHRONOUS = """HloModule jit_step, is_scheduled=true

ENTRY %main (p: f32[128,512]) -> f32[512,512] {
  %p = f32[128,512]{1,0} parameter(0)
  %gather = (f32[128,512]{1,0}, f32[512,512]{1,0}) all-gather-start(%p), replica_groups={{0,1,2,3}}, dimensions={0}
  %sum = f32[128,512]{1,0} all-reduce-start(%p), replica_groups={{0,1,2,3}}, to_apply=%add
  %moved = (f32[128,512]{1,0}, f32[128,512]{1,0}, u32[]) collective-permute-start(%p), source_target_pairs={{0,1}}
  ROOT %done = f32[512,512]{1,0} all-gather-done(%gather)
}
"""


def test_what_starts_a_collective_has_its_results_bytes():
    found = {c.kind: c.bytes for c in hlo.Program(ASYNCHRONOUS, {"data": 4}).collectives()}
    part = 128 * 512 * 4
    assert found == {"all-gather": 4 * part, "all-reduce": part, "collective-permute": part}


def test_what_starts_an_operation_reads_its_input_and_writes_its_result_once():
    part = 128 * 512 * 4
    assert traffic.memory_traffic(hlo.Program(ASYNCHRONOUS, {"data": 4})) == (1 + 4 + 1 + 1 + 1 + 1) * part
    copy = """ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %start = (f32[8]{0}, f32[8]{0}, u32[]) copy-start(%p)
  %other = ((f32[8]{0}), f32[8]{0}, s32[]) async-start(%p), calls=%inner
  ROOT %done = f32[8]{0} copy-done(%start)
}
"""
    inner = """%inner (q: f32[8]) -> f32[8] {
  %q = f32[8]{0} parameter(0)
  ROOT %r = f32[8]{0} negate(%q)
}

"""
    assert traffic.memory_traffic(hlo.Program(inner + copy, {"data": 4})) == (2 + 2) * 32


@pytest.mark.parametrize(
    ("opcode", "made", "sent"),
    [("reduce-scatter", 8, 32 * 4), ("all-to-all", 32, 32 * 4), ("slice", 8, 0)],
)
def test_what_starts_with_its_operands_in_a_tuple_counts_as_the_plain_operation(opcode, made, sent):
    rest = "replica_groups={{0,1,2,3}}" if sent else "slice={[0:8]}"
    text = """ENTRY %main (p: f32[32]) -> f32[{made}] {{
  %p = f32[32]{{0}} parameter(0)
  {body}
}}
"""
    plain = f"ROOT %x = f32[{made}]{{0}} {opcode}(%p), {rest}"
    split = f"""%x = ((f32[32]{{0}}), f32[{made}]{{0}}, u32[]) {opcode}-start(%p), {rest}
  %y = ((f32[32]{{0}}), f32[{made}]{{0}}, u32[]) {opcode}-update(%x)
  ROOT %z = f32[{made}]{{0}} {opcode}-done(%y)"""
    programs = [hlo.Program(text.format(made=made, body=body), {"data": 4}) for body in (plain, split)]
    read = made if opcode == "slice" else 32
    assert [traffic.memory_traffic(p) for p in programs] == [(read + made) * 4] * 2
    assert [[c.bytes for c in p.collectives()] for p in programs] == [[sent] if sent else []] * 2


CHAIN = """HloModule jit_step, is_scheduled=true

%start (a: f32[8], x: f32[100]) -> (f32[100], f32[32], u32[]) {
  %a = f32[8]{0} parameter(0)
  %x = f32[100]{0} parameter(1)
  %y = f32[100]{0} negate(%x)
  %g = f32[32]{0} all-gather(%a), replica_groups={{0,1,2,3}}, dimensions={0}, frontend_attributes={chain_id="5"}
  ROOT %t = (f32[100]{0}, f32[32]{0}, u32[]) custom-call(%y, %g), custom_call_target="AsyncCollectiveStart"
}

%middle (a: f32[8], b: f32[32], x: f32[100]) -> (f32[100], f32[32]) {
  %a = f32[8]{0} parameter(0)
  %b = f32[32]{0} parameter(1)
  %x = f32[100]{0} parameter(2)
  %y = f32[100]{0} negate(%x)
  %g = f32[32]{0} all-gather(%a), replica_groups={{0,1,2,3}}, dimensions={0}, frontend_attributes={chain_id="5"}
  ROOT %t = (f32[100]{0}, f32[32]{0}) tuple(%y, %g)
}

%body (s: (s32[], f32[8], f32[32], f32[100])) -> (s32[], f32[8], f32[32], f32[100]) {
  %s = (s32[], f32[8]{0}, f32[32]{0}, f32[100]{0}) parameter(0)
  %n = s32[] get-tuple-element(%s), index=0
  %a = f32[8]{0} get-tuple-element(%s), index=1
  %b = f32[32]{0} get-tuple-element(%s), index=2
  %x = f32[100]{0} get-tuple-element(%s), index=3
  %f = (f32[100]{0}, f32[32]{0}) fusion(%a, %b, %x), output_to_operand_aliasing={{1}: (1, {})}, calls=%middle
  %y = f32[100]{0} get-tuple-element(%f), index=0
  %c = f32[32]{0} get-tuple-element(%f), index=1
  ROOT %r = (s32[], f32[8]{0}, f32[32]{0}, f32[100]{0}) tuple(%n, %a, %c, %y)
}

%condition (s: (s32[], f32[8], f32[32], f32[100])) -> pred[] {
  %s = (s32[], f32[8]{0}, f32[32]{0}, f32[100]{0}) parameter(0)
  ROOT %p = pred[] constant(true)
}

ENTRY %main (a: f32[8], x: f32[100]) -> f32[32] {
  %a = f32[8]{0} parameter(0)
  %x = f32[100]{0} parameter(1)
  %f = (f32[100]{0}, f32[32]{0}, u32[]) fusion(%a, %x), kind=kOutput, calls=%start
  %y = f32[100]{0} get-tuple-element(%f), index=0
  %b = f32[32]{0} get-tuple-element(%f), index=1
  %n = s32[] constant(0)
  %t = (s32[], f32[8]{0}, f32[32]{0}, f32[100]{0}) tuple(%n, %a, %b, %y)
  %w = (s32[], f32[8]{0}, f32[32]{0}, f32[100]{0}) while(%t), condition=%condition, body=%body, TRIPS
  ROOT %z = f32[32]{0} get-tuple-element(%w), index=2
}
"""


def test_a_collective_that_passes_through_several_fusions_is_one():
    text = CHAIN.replace("TRIPS", 'backend_config={"known_trip_count":{"n":"7"}}')
    (one,) = hlo.Program(text, {"data": 4}).collectives()
    assert (one.kind, one.bytes, one.times) == ("all-gather", 32 * 4, 1)
    # Where it starts: its part, the input and its negative, what is gathered; in each of 7 steps the first three.
    assert traffic.memory_traffic(hlo.Program(text, {"data": 4})) == ((8 + 200 + 32 + 1) + 7 * (8 + 200)) * 4


def test_elements_of_a_tuples_shape():
    assert hlo.elements("(f32[1,2]{1,0:T(8,128)}, (s32[], u8[3]))") == ["f32[1,2]{1,0:T(8,128)}", "(s32[], u8[3])"]


def test_a_loop_that_does_not_count_is_refused():
    with pytest.raises(ValueError, match="cannot tell how often loop loop runs"):
        hlo.Program(TEXT.replace("direction=LT", "direction=NE"), MESH).collectives()


def test_no_program_is_refused():
    with pytest.raises(ValueError, match="no program"):
        hlo.Program("nothing", MESH)


SCRIPT = """
import json
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding as NS, PartitionSpec as P
from vlp_jax.planning import hlo
mesh = jax.make_mesh((1, 2, 4, 1), ("replica", "data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 4)

def step(w, x):
    def layer(x, w):
        return jnp.tanh(x @ jax.lax.with_sharding_constraint(w, P())), None
    return jax.lax.scan(layer, x, w)[0].sum()

w = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32, sharding=NS(mesh, P(None, "fsdp")))
x = jax.ShapeDtypeStruct((32, 64), jnp.float32, sharding=NS(mesh, P(("data", "fsdp"))))
with jax.set_mesh(mesh):
    text = jax.jit(step).lower(w, x).compile().as_text()
found = hlo.Program(text, dict(mesh.shape))
print(json.dumps([[c.kind, c.bytes, c.size, c.axes, c.times] for c in found.collectives()]))
"""


@pytest.mark.slow
def test_a_scanned_layers_parameters_are_gathered_once_for_each_layer(eight_devices):
    environment = {**os.environ, **eight_devices, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [(kind, size, count, tuple(axes), times) for kind, size, count, axes, times in json.loads(done.stdout)]
    gathers = [c for c in found if c[0] == "all-gather"]
    # All five at once before the loop, or one in each of its rounds.
    assert sum(size * times for _, size, _, _, times in gathers) == 5 * 64 * 64 * 4
    assert {c[3] for c in gathers} == {("fsdp",)}
    assert any(c[0] == "all-reduce" and c[1] == 4 and set(c[3]) == {"data", "fsdp"} for c in found)


def test_groups_of_every_notation_are_the_same():
    expected = np.arange(16).reshape(4, 4).T
    for text in (
        "replica_groups={{0,4,8,12},{1,5,9,13},{2,6,10,14},{3,7,11,15}}",
        "replica_groups=[4,4]<=[4,4]T(1,0)",
        "replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=4], device_ids=([4,4]T(1,0)) {'axis_2'}",
    ):
        np.testing.assert_array_equal(hlo._groups(text), expected)
    assert hlo._groups("replica_groups={}, to_apply=%add") is None
