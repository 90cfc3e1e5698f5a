import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import placement
from jaxalign.training.mesh import make_mesh

P = jax.sharding.PartitionSpec


def spec(function, shape, mesh):
    """The sharding that `function` gives an array that came in whole."""
    x = jax.device_put(
        np.arange(np.prod(shape), dtype=np.float32).reshape(shape), jax.sharding.NamedSharding(mesh, P())
    )
    with placement.under_mesh_of({"x": x}):
        out = jax.jit(function)(x)
    np.testing.assert_array_equal(out, x)
    return out.sharding.spec


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(8, ("data", "fsdp")), (16, ("data", "fsdp")), (4, "fsdp"), (6, "data"), (12, "fsdp"), (7, None)],
)
def test_rows_lie_over_as_many_devices_as_divide_them(rows, expected):
    mesh = make_mesh(data=2, fsdp=4)
    found = spec(placement.spread_rows, (rows, 3, 8), mesh)
    assert (found[0] if found else None) == expected
    assert not any(found[1:])


def test_the_other_axes_are_whole_or_left_alone():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)

    def chain(x, **options):
        x = jax.lax.with_sharding_constraint(x, P(None, None, "tensor"))
        return placement.spread_rows(x * 1, **options)

    assert spec(lambda x: chain(x, rest=P.UNCONSTRAINED), (8, 3, 8), mesh)[2] == "tensor"
    assert len(spec(chain, (8, 3, 8), mesh)) == 1


@pytest.mark.parametrize(
    ("shape", "expected"), [((4, 5, 8), ("data", None, "fsdp")), ((3, 5, 8), (None, None, "fsdp"))]
)
def test_looked_up_rows_lie_as_the_columns_of_their_table(shape, expected):
    assert spec(placement.spread_looked_up, shape, make_mesh(data=2, fsdp=4)) == P(*expected)


def test_without_a_mesh_nothing_changes():
    jaxpr = jax.make_jaxpr(lambda x: placement.spread_looked_up(placement.spread_rows(x)))(jnp.ones((8, 8)))
    assert not jaxpr.eqns
    with placement.under_mesh_of({"x": jnp.ones(3), "y": np.ones(3)}):
        assert placement.device_count() == jax.device_count()
        assert placement.platform() == "cpu"


def test_a_program_is_traced_for_the_devices_of_its_mesh():
    one = make_mesh(devices=jax.devices()[:1])
    with placement.under_mesh(one):
        assert (placement.device_count(), placement.platform()) == (1, "cpu")
    chip = jax.sharding.AbstractMesh(
        (4, 4), ("data", "fsdp"), abstract_device=type(one.abstract_mesh.abstract_device)("TPU v5 lite", 1, "tpu")
    )
    with jax.sharding.use_abstract_mesh(chip):
        assert (placement.device_count(), placement.platform()) == (16, "tpu")
    assert placement.device_count() == 8
