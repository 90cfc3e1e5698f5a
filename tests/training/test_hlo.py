"""Counts from the text of programs: small ones for eight CPU devices, and lines as the TPU compiler writes them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.training import hlo
from jaxalign.training.mesh import make_mesh

pytestmark = pytest.mark.optimised

P = jax.sharding.PartitionSpec


def program(function, *shapes, **options):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return hlo.parse(jax.jit(function, **options).lower(*arguments).compile().as_text())


def test_products_count_as_often_as_their_loops_turn():
    """Two multiplications outside, and one in a loop of 5 in a loop of 3."""

    def f(a, b, c):
        def inner(x, _):
            return jnp.sin(x @ b), None

        def outer(x, _):
            return jax.lax.scan(inner, x, None, length=5)[0] + 1, None

        return jax.lax.scan(outer, a @ b, None, length=3)[0] @ c

    found = program(f, (64, 32), (32, 32), (32, 48))
    assert found.open_loops == 0
    assert hlo.product_flops(found) == 2 * 64 * 32 * (32 * (1 + 15) + 48)


def test_a_loop_of_unknown_length_counts_once_and_is_said():
    def f(a, b):
        return jax.lax.while_loop(lambda x: jnp.max(x) < 1e6, lambda x: x @ b + 1, a)

    found = program(f, (64, 32), (32, 32))
    assert found.open_loops == 1
    assert hlo.product_flops(found) == 2 * 64 * 32 * 32


KINDS = {
    # One device has [4, 16] float32 = 256 bytes going in, in groups of 4 (the fsdp axis).
    "all-gather": (lambda x: jax.lax.all_gather(x, "fsdp", tiled=True), 1024, 768),
    "all-reduce": (lambda x: jax.lax.psum(x, "fsdp"), 256, 2 * 192),
    "reduce-scatter": (lambda x: jax.lax.psum_scatter(x, "fsdp", tiled=True), 256, 192),
    "all-to-all": (lambda x: jax.lax.all_to_all(x, "fsdp", 1, 0, tiled=True), 256, 192),
    "collective-permute": (lambda x: jax.lax.ppermute(x, "fsdp", [(i, (i + 1) % 4) for i in range(4)]), 256, 256),
}


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_of_collectives(kind):
    function, size, moved = KINDS[kind]
    mesh = make_mesh(data=2, fsdp=4)

    def three_times(x):
        return jax.lax.scan(lambda total, _: (total + function(x * total[0, 0]).sum(), None), x, None, length=3)[0]

    mapped = jax.shard_map(
        three_times, mesh=mesh, in_specs=P(("data", "fsdp")), out_specs=P(("data", "fsdp")), check_vma=False
    )
    found = [c for c in hlo.collectives(program(mapped, (32, 16))) if c.bytes > 4]
    (only,) = found
    assert (only.kind, only.runs, only.bytes, only.moved) == (kind, 3, size, moved)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", 4),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}", 8),
    ],
)
def test_groups_are_read_however_they_are_written(groups, expected):
    text = (
        "ENTRY %main (p: f32[8]) -> f32[8] {\n  %p = f32[8]{0} parameter(0)\n"
        f"  ROOT %r = f32[8]{{0}} all-reduce(%p), {groups}, to_apply=%add\n}}"
    )
    (found,) = hlo.collectives(hlo.parse(text))
    assert found.group == expected
    assert found.moved == 2 * 32 * (expected - 1) / expected


# As the TPU compiler writes it: a counted loop without a count, a gather that two fusions share, and a
# reduce-scatter that is an all-reduce inside a fusion.
TPU = """HloModule jit_step, is_scheduled=true

%start (a: bf16[4,8]) -> bf16[16,8] {
  %a = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %gather.1 = bf16[16,8]{1,0:T(8,128)(2,1)} all-gather(%a), CHAIN
}

%done (b: bf16[4,8]) -> bf16[16,8] {
  %b = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %gather.2 = bf16[16,8]{1,0:T(8,128)(2,1)} all-gather(%b), CHAIN
}

%all-reduce-scatter.5 (c: f32[16,8]) -> f32[4,8] {
  %c = f32[16,8]{1,0} parameter(0)
  %sum = f32[16,8]{1,0} all-reduce(%c), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %part = f32[4,8]{1,0} slice(%sum), slice={[0:4], [0:8]}
}

%condition (state: (s32[], bf16[4,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(28)
  %state = (s32[]{:T(128)}, /*index=1*/bf16[4,8]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%body (state.1: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %state.1 = (s32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %x = bf16[4,8]{1,0} get-tuple-element(%state.1), index=1
  %one = bf16[16,8]{1,0} fusion(%x), kind=kOutput, calls=%start
  %two = bf16[16,8]{1,0} fusion(%x), kind=kOutput, calls=%done
  %wide = f32[16,8]{1,0} convert(%two)
  %three = f32[4,8]{1,0} fusion(%wide), kind=kCustom, calls=%all-reduce-scatter.5
  ROOT %next = (s32[]{:T(128)}, bf16[4,8]{1,0}) tuple(%i.1, %x)
}

ENTRY %main (p: bf16[4,8]) -> bf16[4,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %init = (s32[]{:T(128)}, bf16[4,8]{1,0}) tuple(%zero, %p)
  %loop = (s32[]{:T(128)}, bf16[4,8]{1,0}) while(%init), condition=%condition, body=%body
  ROOT %out = bf16[4,8]{1,0} get-tuple-element(%loop), index=1
}
""".replace("CHAIN", 'channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}, frontend_attributes={chain_id="3"}')


def test_the_forms_of_the_tpu_compiler():
    found = hlo.parse(TPU)
    assert found.runs["body"] == 28
    assert found.open_loops == 0
    by_kind = {c.kind: c for c in hlo.collectives(found)}
    assert set(by_kind) == {"all-gather", "reduce-scatter"}
    assert (by_kind["all-gather"].runs, by_kind["all-gather"].bytes) == (28, 16 * 8 * 2)
    assert (by_kind["reduce-scatter"].runs, by_kind["reduce-scatter"].moved) == (28, 16 * 8 * 4 * 3 / 4)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilate", [1, 3])
@pytest.mark.parametrize("pad", [0, 2])
def test_convolutions_count_what_is_not_padding(stride, dilate, pad):
    """Against a count of every place of the kernel on every place of the output."""
    size, kernel = 5, 4
    spread = (size - 1) * dilate + 1
    out = (spread + 2 * pad - kernel) // stride + 1
    text = (
        "ENTRY %main (a: f32[2,5,3], b: f32[4,3,7]) -> f32[] {\n"
        f"  %a = f32[2,{size},3]{{2,1,0}} parameter(0)\n"
        f"  %b = f32[{kernel},3,7]{{2,1,0}} parameter(1)\n"
        f"  ROOT %c = f32[2,{out},7]{{2,1,0}} convolution(%a, %b), window={{size={kernel} stride={stride} "
        f"pad={pad}_{pad} lhs_dilate={dilate}}}, dim_labels=b0f_0io->b0f\n}}"
    )
    valid = 0
    for o, k in itertools.product(range(out), range(kernel)):
        position = o * stride + k - pad
        valid += 0 <= position < spread and position % dilate == 0
    assert hlo.product_flops(hlo.parse(text)) == 2 * 2 * 7 * 3 * valid


def test_a_lowered_program_is_read_as_well():
    """Before partitioning, all devices together do what each of eight does an eighth of."""
    mesh = make_mesh(fsdp=1)
    rows = jax.sharding.NamedSharding(mesh, P("data"))

    def f(x, w):
        return jax.lax.scan(lambda x, _: (jnp.sin(x @ w), None), x, None, length=3)[0]

    x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=rows)
    w = jax.ShapeDtypeStruct((32, 32), jnp.float32, sharding=jax.sharding.NamedSharding(mesh, P()))
    lowered = jax.jit(f).lower(x, w)
    whole = hlo.product_flops(hlo.parse(lowered.compiler_ir("hlo").as_hlo_text()))
    assert whole == 3 * 2 * 64 * 32 * 32 == 8 * hlo.product_flops(hlo.parse(lowered.compile().as_text()))


def test_memory_traffic_counts_slices_and_updates_only():
    """Rows of a stack are read and written one after the other: each once, not the whole stack at every turn."""

    def f(stack):
        def body(i, stack):
            row = jax.lax.dynamic_index_in_dim(stack, i, 0, False)
            return jax.lax.dynamic_update_index_in_dim(stack, jnp.sin(row), i, 0)

        return jax.lax.fori_loop(0, 64, body, stack)

    size = 64 * 1000 * 4
    found = hlo.memory_traffic(program(f, (64, 1000), donate_argnums=0))
    assert 2 * size <= found <= 5 * size  # 64 times the stack would be 128


def test_arrays_and_their_bytes():
    assert hlo.Array("bf16", (3, 4)).bytes == 24
    assert hlo.Array("pred", (3,)).bytes == 3
    assert hlo.Array("u32", ()).bytes == 4
    assert hlo.Array("s4", (3,)).bytes == 2
    assert hlo.Array("f8e4m3fn", (3,)).bytes == 3
    assert str(hlo.Array("f32", (2, 5))) == "f32[2,5]"
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("nothing")


def test_every_array_of_the_program_is_found():
    found = hlo.arrays(program(lambda a, b: (a @ b).sum(), (6, 10), (10, 14)))
    assert {array.shape for array in found} >= {(6, 10), (10, 14), (6, 14)}
    assert np.all([array.size >= 0 for array in found])
