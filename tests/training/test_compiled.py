import jax
import jax.numpy as jnp
import pytest

from jaxalign.training import compiled

pytestmark = pytest.mark.optimised


def test_memory_of_a_donating_program():
    """[256, 256] float32 goes in and comes out in its place."""
    x = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    found = compiled.memory(jax.jit(lambda x: x + 1, donate_argnums=0).lower(x).compile())
    assert found.argument == found.output == found.alias == 256 * 256 * 4
    assert found.total == found.argument + found.temporary + found.code


def test_roofline_names_the_longest_term():
    chip = compiled.Chip(memory=1, flops=100.0, memory_bandwidth=10.0, link_bandwidth=2.0)
    memory = compiled.Memory(argument=30, output=10, alias=10, temporary=0, code=0)
    links = {"all-reduce": compiled.Traffic(3, 6, 12.0), "all-gather": compiled.Traffic(1, 2, 2.0)}
    found = compiled.roofline(chip, compiled.Work(500.0, 20.0, links), memory)
    assert found == (5.0, 2.0, 7.0)
    assert (found.seconds, found.limit) == (7.0, "interconnect")
    # Without the program's text: arguments and outputs once.
    assert compiled.roofline(chip, compiled.Work(500.0, None, None), memory) == (5.0, 4.0, 0.0)


def test_work_of_a_product():
    a, b = jax.ShapeDtypeStruct((64, 32), jnp.float32), jax.ShapeDtypeStruct((32, 16), jnp.float32)
    found = compiled.work(jax.jit(lambda a, b: a @ b).lower(a, b).compile().as_text())
    assert found.flops == 2 * 64 * 32 * 16
    assert found.memory_bytes == 4 * (64 * 32 + 32 * 16 + 64 * 16)
    assert found.collectives == {}


def test_the_largest_arrays_come_first():
    a, b = jax.ShapeDtypeStruct((64, 32), jnp.float32), jax.ShapeDtypeStruct((32, 16), jnp.float32)
    text = jax.jit(lambda a, b: a @ b).lower(a, b).compile().as_text()
    assert [array.shape for array in compiled.largest_arrays(text, 2)] == [(64, 32), (64, 16)]


def test_other_complaints_are_not_about_memory():
    assert compiled.out_of_memory("INVALID_ARGUMENT: a shape") is None
    assert compiled.out_of_memory("RESOURCE_EXHAUSTED: E1001: CompileTimeScopedVmemOom") is None


@pytest.mark.parametrize(("text", "count"), [("15.75G", 15.75 * 2**30), ("512K", 2**19), ("7", 7)])
def test_amounts(text, count):
    message = f"RESOURCE_EXHAUSTED: it needs ({text}) exceeds available HBM ({text})."
    assert compiled.out_of_memory(message) == (count, count)
