"""Contrastive losses over eight devices: the numbers of one device, whatever the mesh, the pools and the passes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxalign import objective
from jaxalign.errors import UserError
from jaxalign.losses.alignment_uniformity import uniformity_loss
from jaxalign.losses.contrastive import clip_loss, info_nce, nt_xent, siglip_loss
from jaxalign.losses.margin_softmax import margin_softmax_loss
from jaxalign.losses.supervised_contrastive import supcon_loss
from jaxalign.losses.triplet import triplet_loss
from jaxalign.training import hlo
from jaxalign.training.accumulation import sums
from jaxalign.training.coupled import comm_cost, coupled_over_mesh, over_mesh
from jaxalign.training.mesh import make_mesh, put_batch
from jaxalign.training.state import create_state
from jaxalign.training.step import make_train_step

ROWS, WIDTH = 16, 3


def problem(rows=ROWS, dtype=np.float64):
    random = np.random.default_rng(0)
    arrays = {name: random.normal(size=(rows, WIDTH)).astype(dtype) for name in ("a", "b")}
    valid = np.ones(rows, bool)
    valid[[3, rows - 1]] = False  # devices differ in how many of their rows count
    arrays |= {"valid": valid, "labels": np.arange(rows) % 5, "ids": np.arange(rows) % (rows - 2)}
    return arrays, {"log_scale": dtype(1.5), "bias": dtype(-2)}


def info_nce_with_more(rows, shared, **how):
    extra = rows["b"] - rows["a"]
    return info_nce(rows["a"], rows["b"], 0.3 * shared["log_scale"], ids=rows["ids"], extra_negatives=extra, **how)


def siglip(rows, shared, **how):
    return siglip_loss(rows["a"], rows["b"], shared["log_scale"], shared["bias"], ids=rows["ids"], **how)


LOSSES = {
    "clip": lambda rows, shared, **how: clip_loss(rows["a"], rows["b"], shared["log_scale"], **how),
    "info_nce": info_nce_with_more,
    "siglip": siglip,
    "nt_xent": lambda rows, shared, **how: nt_xent(rows["a"], rows["b"], 0.2 * shared["log_scale"], **how),
    "supcon": lambda rows, shared, **how: supcon_loss(rows["a"] + rows["b"], rows["labels"], 0.4, **how),
    "uniformity": lambda rows, shared, **how: uniformity_loss(rows["a"] - rows["b"], **how),
    "triplet": lambda rows, shared, **how: triplet_loss(rows["a"] * rows["b"], rows["labels"], 0.2, **how),
}


def differentiated(functions, arrays, shared):
    """By name (Objective, gradient of its total) by embeddings and what is shared; the gradient is taken outside."""

    @jax.jit
    def all_of_them(floats, shared):
        def total(floats, shared, function):
            result = function(arrays | floats, shared)
            return result.total, result

        gradient = jax.value_and_grad(total, (0, 1), has_aux=True)
        return {name: gradient(floats, shared, function) for name, function in functions.items()}

    return all_of_them({name: arrays[name] for name in ("a", "b")}, shared)


def close(actual, expected, rtol=1e-10, atol=1e-11):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), actual, expected)


@functools.cache
def on_one_device():
    def alone(function):
        return lambda rows, shared: function(rows, shared, valid=rows["valid"])

    with jax.enable_x64(True):
        return differentiated({name: alone(function) for name, function in LOSSES.items()}, *problem())


# devices on data and fsdp -> how, and which losses
MESHES = {
    (1, 1): ({"ring": True}, ("clip", "siglip")),
    (2, 1): ({}, ("clip", "triplet")),
    (4, 1): ({"ring": True, "chunk": 3}, ("nt_xent", "uniformity")),
    (8, 1): ({"chunk": 1}, ("info_nce", "supcon")),
    (2, 4): ({}, ("siglip", "nt_xent", "uniformity")),
    (4, 2): ({"ring": True}, ("clip", "info_nce", "supcon")),
}


@pytest.mark.parametrize(("data", "fsdp"), MESHES)
def test_any_mesh_gives_what_one_device_gives(data, fsdp):
    scheme, names = MESHES[data, fsdp]
    mesh = make_mesh(data, fsdp, devices=jax.devices()[: data * fsdp])

    def sharded(function):
        def part(rows, shared, axis_name):
            return function(rows, shared, valid=rows["valid"], axis_name=axis_name, **scheme)

        return over_mesh(part, mesh)

    with jax.enable_x64(True):
        found = differentiated({name: sharded(LOSSES[name]) for name in names}, *problem())
    close(found, {name: on_one_device()[name] for name in names})


def test_the_gradient_inside_is_eight_times_too_large():
    """Why it is taken outside: with unchecked replication each device differentiates the sum of all."""
    mesh, arrays = make_mesh(), problem(dtype=np.float32)[0]
    a, b, spec = arrays["a"], arrays["b"], PartitionSpec("data")

    def part(a, b):
        return jax.lax.psum(clip_loss(a, b, 1.5, axis_name="data").total, "data")

    def over(function, out):
        return jax.shard_map(function, mesh=mesh, in_specs=(spec, spec), out_specs=out, check_vma=False)

    @jax.jit
    def three_ways(a, b):
        alone = jax.grad(lambda a: clip_loss(a, b, 1.5).total)(a)
        outside = jax.grad(lambda a: over(part, PartitionSpec())(a, b))(a)
        return alone, outside, over(jax.grad(part), spec)(a, b)

    alone, outside, inside = three_ways(a, b)
    close(outside, alone, 1e-4, 1e-5)
    close(inside, 8 * alone, 1e-4, 1e-5)


def group_mesh(group):
    devices = np.array(jax.devices()[:8]).reshape(8 // group, group)
    return Mesh(devices, ("group", "member"), axis_types=(AxisType.Auto,) * 2)


GROUPED = dict(rows_axes=("group", "member"), pool_axes=("member",))


def clip(rows, shared, axis_name, **scheme):
    return clip_loss(rows["a"], rows["b"], shared["log_scale"], valid=rows.get("valid"), axis_name=axis_name, **scheme)


def pools_of(size):
    """The same on one device: the loss of each pool of consecutive rows, added."""

    def total(rows, shared):
        pools = {name: rows[name].reshape(-1, size, *rows[name].shape[1:]) for name in ("a", "b", "valid")}
        return jax.tree.map(lambda x: x.sum(0), jax.vmap(lambda rows: clip(rows, shared, None))(pools))

    return total


def test_groups_are_pools_of_their_own():
    """Values and gradients of 8 devices in groups of 1, 2, 4, 8. The loss grows with the pool, at fixed embeddings."""
    arrays, shared = problem()
    shared = {"log_scale": shared["log_scale"]}
    groups = (1, 2, 4, 8)
    with jax.enable_x64(True):
        want = differentiated({group: pools_of(group * ROWS // 8) for group in groups}, arrays, shared)
        for group in groups:
            made = over_mesh(clip, group_mesh(group), **GROUPED)
            close(differentiated({group: made}, arrays, shared), {group: want[group]})
    losses = [float(want[group][0][0]) for group in groups]
    assert losses == sorted(losses) and losses[0] < losses[-1]


def towers(params, batch, key, extra):
    """Two linear towers with dropout, so that the two passes must use the same keys."""
    del extra
    kept = jax.random.bernoulli(key, 0.8, batch["x"].shape)
    return {name: jnp.tanh(jnp.where(kept, batch["x"], 0) @ params[name]) for name in ("a", "b")}


def learned(params):
    return {"log_scale": params["log_scale"]}


def tower_problem():
    random = np.random.default_rng(3)
    params = {name: random.normal(size=(5, 4)) for name in ("a", "b")} | {"log_scale": np.float64(1.2)}
    valid = np.ones(32, bool)
    valid[[0, 7, 8, 30]] = False
    return params, {"x": random.normal(size=(32, 5)), "valid": valid}


def test_a_train_step_in_groups_and_micro_batches():
    """Two passes over 4 micro-batches on (data 4, fsdp 2), pools along fsdp: 4 pools of 8 rows, each on two devices.

    Parameters and metrics are those of one device that takes all embeddings, with the keys of their micro-batches, and
    then the loss of each pool of 8 consecutive rows.
    """
    params, batch = jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == np.float64 else x, tower_problem())
    mesh, key, micro_batches = make_mesh(4, 2), jax.random.key(5), 4

    def in_one_go(params, batch, step_key, extra):
        del step_key
        rows = {"a": jnp.zeros((32, 4)), "b": jnp.zeros((32, 4)), "valid": batch["valid"]}
        for m in range(micro_batches):
            part = {"x": batch["x"][m::micro_batches]}
            some = towers(params, part, jax.random.fold_in(jax.random.fold_in(key, 0), m), extra)
            rows |= {name: rows[name].at[m::micro_batches].set(x) for name, x in some.items()}
        return pools_of(8)(rows, learned(params))

    made = coupled_over_mesh(towers, clip, mesh, shared=learned, columns=("valid",), pool_axes=("fsdp",))
    optimizer = optax.sgd(0.1)
    alone = make_train_step(in_one_go, optimizer)(create_state(params, optimizer, key), batch)
    step = make_train_step(made, optimizer, mesh=mesh, micro_batches=micro_batches)
    state, metrics = step(create_state(params, optimizer, key), put_batch(batch, mesh))
    close((state.params, metrics), (alone[0].params, alone[1]), 1e-5, 1e-6)


def test_without_information_the_loss_is_the_log_of_the_pool():
    blind = {"a": jnp.ones((ROWS, WIDTH)), "b": jnp.ones((ROWS, WIDTH))}
    made = jax.jit(over_mesh(clip, group_mesh(2), **GROUPED))
    assert float(objective.loss(made(blind, {"log_scale": 1.5}))) == pytest.approx(math.log(4), rel=1e-6)


@pytest.mark.optimised
def test_gathers_and_memory_stay_within_the_group():
    """As `comm_cost` has it: all-gathers over the members alone, and similarities in proportion to the pool."""
    rows, width = 1024, 16
    memory, costs = {}, {}
    for group in (2, 8):
        mesh = group_mesh(group)
        sharding = NamedSharding(mesh, PartitionSpec(("group", "member")))
        x = jax.ShapeDtypeStruct((rows, width), jnp.float32, sharding=sharding)
        loss_fn = over_mesh(clip, mesh, **GROUPED)
        gradient = jax.grad(lambda a, b, loss_fn=loss_fn: loss_fn({"a": a, "b": b}, {"log_scale": 2.0}).total, (0, 1))
        compiled = jax.jit(gradient).lower(x, x).compile()
        memory[group] = compiled.memory_analysis().temp_size_in_bytes
        costs[group] = comm_cost(8, group, rows // 8, width)
        gathers = [c for c in hlo.collectives(hlo.parse(compiled.as_text())) if c.kind == "all-gather"]
        assert gathers and all(c.group == group for c in gathers)
        assert sum(c.moved * c.runs for c in gathers) >= costs[group]["gather_bytes"]
    ratio = costs[2]["logit_entries"] / costs[8]["logit_entries"]
    assert ratio == 0.25 and memory[2] / memory[8] == pytest.approx(ratio, rel=0.15)


def test_costs_by_hand():
    assert comm_cost(8, 2, 4, 16, micro_batches=3) == {"gather_bytes": 2 * 3 * 4 * 16 * 4, "logit_entries": 2 * 12 * 24}
    assert comm_cost(8, 8, 4, 16)["gather_bytes"] == 7 * comm_cost(8, 2, 4, 16)["gather_bytes"]


def test_impossible_pools():
    x = {"a": jnp.ones((8, 2)), "b": jnp.ones((8, 2))}
    with pytest.raises(UserError, match="8 devices do not divide into groups of 3"):
        comm_cost(8, 3, 4, 16)
    with pytest.raises(UserError, match="pools of 1; at least 2"):
        comm_cost(8, 1, 1, 16)
    with pytest.raises(UserError, match="a pool holds 1 row"):
        over_mesh(clip, group_mesh(1), **GROUPED)(x, {"log_scale": 0.0})
    with pytest.raises(UserError, match="'data' is not"):
        over_mesh(clip, group_mesh(2), rows_axes=("group", "member"), pool_axes=("data",))
    with pytest.raises(UserError, match="6 rows do not divide over the 8 devices"):
        over_mesh(clip, make_mesh())(jax.tree.map(lambda x: x[:6], x), {"log_scale": 0.0})


@pytest.mark.optimised
@pytest.mark.parametrize("micro_batches", [1, 4])
def test_what_is_learned_is_not_copied_for_every_row(micro_batches):
    """512 rows against 500 class vectors of 64 numbers: a copy a row would be 66 MB."""
    size = {"w": (64, 64), "classes": (500, 64), "x": (512, 64)}
    w, classes, x = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in size.values())

    def loss_fn(rows, shared, axis_name):
        del axis_name
        return margin_softmax_loss(rows["a"], shared["classes"], rows["labels"])

    made = coupled_over_mesh(
        lambda params, batch, key, extra: {"a": batch["x"] @ params["w"]},
        loss_fn,
        None,
        shared=lambda params: {"classes": params["classes"]},
        columns=("labels",),
    )
    labels = jax.ShapeDtypeStruct((512,), jnp.int32)
    gradient = jax.jit(lambda p, b: sums(made, p, b, jax.random.key(0), {}, micro_batches)[1])
    lowered = gradient.lower({"w": w, "classes": classes}, {"x": x, "labels": labels})
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 12e6
