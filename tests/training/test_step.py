import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign.errors import UserError
from jaxalign.objective import Objective
from jaxalign.training.accumulation import CoupledLoss, sums
from jaxalign.training.mesh import make_mesh, put_batch
from jaxalign.training.sharding import DECODER_RULES, Rule, shardings_for, state_shardings
from jaxalign.training.state import abstract_state, create_state
from jaxalign.training.step import make_train_step
from tests.training import toy

P = jax.sharding.PartitionSpec


def start(optimizer=None, params=None):
    return create_state(params or toy.params(), optimizer or toy.optimizer(), jax.random.key(1))


def close(actual, expected, rtol=1e-6, atol=1e-7):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), actual, expected)


def same_bits(actual, expected):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), actual, expected)


def host(tree):
    """A copy that outlives the donation of the state."""
    return jax.tree.map(lambda a: np.array(a), tree)


def test_a_step_is_the_gradient_of_the_weighted_mean():
    """Against the formula written out: clip, then plain gradient descent."""
    optimizer = toy.make_optimizer("sgd", learning_rate=0.5, b1=0.0, max_grad_norm=0.25)
    params, batch = toy.params(), toy.batch()

    def mean(params):
        errors = toy.predictions(params, batch["tokens"]) - batch["targets"]
        return jnp.sum(errors**2 * batch["mask"]) / batch["mask"].sum()

    loss, gradient = jax.value_and_grad(mean)(params)
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(gradient)))
    assert norm > 0.25
    expected = jax.tree.map(lambda p, g: p - 0.5 * g * 0.25 / norm, params, gradient)
    state, metrics = make_train_step(toy.loss_fn, optimizer)(start(optimizer), batch)
    close(state.params, expected, rtol=1e-5, atol=1e-6)
    close(metrics["loss"], loss)
    close(metrics["grad_norm"], norm)
    assert float(metrics["learning_rate"]) == 0.5
    assert int(state.step) == 1


def test_micro_batches_equal_the_whole_batch():
    """Rows of unequal weight: a mean of means would be another number."""
    batch = toy.batch()
    assert len(set(batch["mask"].sum(axis=1))) > 3
    optimizer = toy.make_optimizer("sgd", learning_rate=0.5, b1=0.0)
    whole, whole_metrics = make_train_step(toy.loss_fn, optimizer)(start(optimizer), batch)
    for micro_batches in (2, 4, 8):
        split = make_train_step(toy.loss_fn, optimizer, micro_batches=micro_batches)
        parts, parts_metrics = split(start(optimizer), batch)
        close(parts.params, whole.params, atol=1e-6)
        close(parts_metrics, whole_metrics)


def coupled_objective(outputs, batch, key, extra):
    """Every pair of rows pulls together, weighted; a noise of the whole batch shows whether the key is the same."""
    del extra
    mask = batch["mask"].max(axis=1)
    rows = outputs["mean"] + 0.1 * jax.random.normal(key, outputs["mean"].shape)
    pairs = mask[:, None] * mask[None] * jnp.tanh(rows[:, None] - rows[None]) ** 2
    return Objective(pairs.sum(), mask.sum() ** 2, {"mean": ((rows * mask).sum(), mask.sum())})


def coupled_outputs(params, batch, key, extra):
    del key, extra
    return {"mean": (toy.predictions(params, batch["tokens"]) * batch["mask"]).sum(axis=1)}


def test_rows_that_interact_are_exact_in_micro_batches():
    loss_fn = CoupledLoss(coupled_outputs, coupled_objective)
    batch = toy.batch(rows=8)

    @jax.jit
    def all_ways(params):
        given = params, batch, jax.random.key(3), {}
        in_parts = {parts: [sums(loss, *given, parts) for loss in (loss_fn, loss_fn.__call__)] for parts in (2, 4)}
        return sums(loss_fn, *given), in_parts

    whole, in_parts = all_ways(toy.params())
    for parts, naive in in_parts.values():
        close(parts, whole, rtol=5e-5, atol=1e-5)
        assert abs(float(naive[0].total) - float(whole[0].total)) > 0.1  # without the cut it is another loss


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_loss_follows_what_it_sees_once_per_step(micro_batches):
    """From the outputs before the step, whole; not at all where the step is left out."""

    def outputs(params, batch, key, extra):
        return {"mean": (toy.predictions(params, batch["tokens"]) * batch["mask"]).sum(axis=1)}

    def objective(outputs, batch, key, extra):
        return Objective((outputs["mean"] ** 2).sum() * extra["seen"], batch["mask"].sum(), {})

    def update(outputs, batch, extra):
        return {"seen": extra["seen"] + jnp.abs(outputs["mean"]).sum()}

    optimizer = toy.make_optimizer("sgd", learning_rate=0.5, b1=0.0)
    step = make_train_step(CoupledLoss(outputs, objective, update), optimizer, micro_batches=micro_batches)
    batch = toy.batch(rows=8)
    extra = {"seen": jnp.ones(()), "other": jnp.zeros(())}
    state = create_state(toy.params(), optimizer, jax.random.key(0), extra)
    found = outputs(toy.params(), batch, None, None)["mean"]
    plain, _ = make_train_step(lambda p, b, k, e: objective(outputs(p, b, k, e), b, k, e), optimizer)(
        create_state(toy.params(), optimizer, jax.random.key(0), extra), batch
    )
    state, _ = step(state, batch)
    close(state.params, plain.params, atol=1e-6)
    close(state.extra, {"seen": 1 + jnp.abs(found).sum(), "other": jnp.zeros(())}, rtol=1e-6)
    before = jax.device_get(state.extra)
    state, metrics = step(state, batch | {"mask": np.full_like(batch["mask"], np.nan)})
    assert metrics["skipped"] == 1
    close(state.extra, before, rtol=0)


def test_micro_batches_add_exact_sums():
    """With whole numbers the sums have no rounding, so that whole and split agree to the last bit."""

    def linear(params, batch, key, extra):
        scores = batch["x"] @ params["w"]
        weight = batch["mask"].sum()
        return Objective(jnp.sum(scores * batch["mask"]), weight, {"score": (jnp.sum(scores), scores.size)})

    random = np.random.default_rng(0)
    batch = {
        "x": random.integers(-9, 9, (12, 5)).astype(np.float32),
        "mask": random.integers(0, 4, 12).astype(np.float32),
    }
    optimizer = toy.make_optimizer("sgd", learning_rate=0.5, b1=0.0)
    params = {"w": np.arange(5, dtype=np.float32)}
    gradient = np.float32(1) / batch["mask"].sum() * (batch["mask"] @ batch["x"])
    results = []
    for micro_batches in (1, 2, 3, 12):
        state = start(optimizer, jax.tree.map(jnp.array, params))
        results.append(make_train_step(linear, optimizer, micro_batches=micro_batches)(state, batch))
    for state, metrics in results:
        np.testing.assert_allclose(state.params["w"], params["w"] - 0.5 * gradient, rtol=1e-6)
        same_bits((state.params, metrics), (results[0][0].params, results[0][1]))


def test_one_micro_batch_makes_no_loop_over_micro_batches():
    def loops(micro_batches):
        step = make_train_step(
            lambda p, b, k, e: Objective(jnp.sum(p["w"] * b), jnp.float32(1), {}),
            optax.sgd(0.1),
            micro_batches=micro_batches,
        )
        state = create_state({"w": jnp.ones(3)}, optax.sgd(0.1), jax.random.key(0))
        return str(step.trace(state, jnp.ones((4, 3))).jaxpr).count("scan[")

    assert loops(2) > loops(1) == 0


@pytest.mark.parametrize("place", ["loss", "gradient", "weight"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(place):
    def broken(params, batch, key, extra):
        objective = toy.loss_fn(params, batch, key, extra)
        poison = jnp.where(batch["poison"].sum() > 0, jnp.nan, 0)
        if place == "loss":
            return objective._replace(total=objective.total + jax.lax.stop_gradient(poison))
        if place == "weight":
            return objective._replace(weight=objective.weight + poison)
        # The square root has the value 0 and an infinite slope at 0.
        bad = batch["poison"].sum() > 0
        edge = jnp.sqrt(jnp.where(bad, 0 * params["final_norm"]["scale"].sum(), 1))
        return objective._replace(total=objective.total + edge)

    step = make_train_step(broken, toy.optimizer(), micro_batches=2)
    good = toy.batch() | {"poison": np.zeros(8, np.float32)}
    bad = toy.batch(seed=1) | {"poison": np.ones(8, np.float32)}
    state, metrics = step(start(), good)
    assert int(metrics["skipped"]) == 0
    before = host((state.params, state.opt_state))
    for count in (1, 2):
        state, metrics = step(state, bad)
        assert np.isfinite(metrics["loss"]) == (place == "gradient")
        same_bits((state.params, state.opt_state), before)
        assert int(metrics["skipped"]) == int(metrics["skipped_in_a_row"]) == count
    state, metrics = step(state, good)
    assert int(metrics["skipped_in_a_row"]) == 0
    assert int(metrics["skipped"]) == 2
    assert int(state.step) == 4
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(state.params))
    assert not np.array_equal(before[0]["final_norm"]["scale"], state.params["final_norm"]["scale"])


def test_a_batch_without_weight_has_loss_zero_and_no_gradient():
    batch = toy.batch()
    batch["mask"][:] = 0
    batch["targets"][:] = np.nan
    before = host(toy.params())
    optimizer = toy.make_optimizer("sgd", learning_rate=0.5, b1=0.0)
    state, metrics = make_train_step(toy.loss_fn, optimizer, micro_batches=2)(start(optimizer), batch)
    same_bits(state.params, before)
    assert float(metrics["loss"]) == float(metrics["grad_norm"]) == float(metrics["absolute_error"]) == 0
    assert int(metrics["skipped"]) == 0


def test_the_key_follows_from_the_step_and_differs_between_micro_batches():
    def draw(params, batch, key, extra):
        return Objective(jnp.sum(params["w"]) * 0, jnp.float32(1), {"draw": (jax.random.normal(key), jnp.float32(1))})

    def draws(micro_batches, steps):
        state = create_state({"w": jnp.ones(2)}, optax.sgd(0.1), jax.random.key(7))
        step = make_train_step(draw, optax.sgd(0.1), micro_batches=micro_batches)
        values = []
        for _ in range(steps):
            state, metrics = step(state, jnp.zeros((2, 1)))
            values.append(float(metrics["draw"]))
        return values

    def expected(step, index):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(7), step), index)
        return float(jax.random.normal(key))

    np.testing.assert_allclose(draws(1, 2), [expected(0, 0), expected(1, 0)])
    np.testing.assert_allclose(draws(2, 1), [(expected(0, 0) + expected(0, 1)) / 2], rtol=1e-6)


def large_step(micro_batches=1):
    """About 10 million parameters, compiled from shapes."""
    optimizer = toy.optimizer()
    params = jax.eval_shape(lambda: toy.params(width=640, layers=24, vocabulary=1024))
    state = abstract_state(params, optimizer, jax.random.key(0))
    batch = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, toy.batch(rows=4, length=1)))
    step = make_train_step(toy.loss_fn, optimizer, micro_batches=micro_batches)
    analysis = step.lower(state, batch).compile().memory_analysis()
    size = sum(4 * leaf.size for leaf in jax.tree.leaves(params))
    assert size > 40e6
    return analysis, size


@pytest.mark.optimised
def test_the_state_is_donated_and_the_update_is_in_place():
    """Parameters and two moments alias; beside the gradients hardly anything is needed."""
    analysis, size = large_step()
    assert analysis.alias_size_in_bytes >= 3 * size
    assert analysis.temp_size_in_bytes <= 1.15 * size


@pytest.mark.optimised
def test_accumulation_needs_one_more_set_of_gradients():
    analysis, size = large_step(micro_batches=4)
    assert analysis.temp_size_in_bytes <= 2.15 * size


def test_a_used_state_cannot_be_used_again():
    state = start()
    make_train_step(toy.loss_fn, toy.optimizer())(state, toy.batch())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state)))


@functools.cache
def plain(micro_batches):
    """Metrics of each of three steps on one device, and the parameters after them."""
    state, found = start(), []
    step = make_train_step(toy.noisy_loss_fn, toy.optimizer(), micro_batches=micro_batches)
    for seed in range(3):
        state, metrics = step(state, toy.batch(rows=16, seed=seed))
        found.append(metrics)
    return found, state.params


@pytest.mark.parametrize(
    ("shape", "micro_batches"), [((8, 1, 1), 2), ((1, 8, 1), 1), ((1, 2, 4), 1), ((2, 2, 2), 1), ((2, 2, 2), 2)]
)
def test_sharded_equals_unsharded(shape, micro_batches):
    rules = [Rule(r"layers/mlp/up/kernel", P(None, "fsdp", "tensor"))] + [
        rule for rule in DECODER_RULES if rule.pattern in ("embed/embedding", "final_norm/scale")
        or "(attention|mlp)_norm" in rule.pattern
    ]  # fmt: skip
    mesh = make_mesh(*shape)
    optimizer = toy.optimizer()
    params = toy.params()
    abstract = abstract_state(params, optimizer, jax.random.key(1))
    shardings = state_shardings(abstract, shardings_for(params, rules[::-1], mesh), mesh)
    state = create_state(jax.device_put(params, shardings.params), optimizer, jax.random.key(1), shardings=shardings)
    step = make_train_step(toy.noisy_loss_fn, optimizer, mesh=mesh, shardings=shardings, micro_batches=micro_batches)
    plain_metrics, plain_params = plain(micro_batches)
    for seed in range(3):
        state, metrics = step(state, put_batch(toy.batch(rows=16, seed=seed), mesh))
        close(metrics, plain_metrics[seed], rtol=2e-5, atol=1e-6)
    close(state.params, plain_params, rtol=2e-5, atol=2e-6)
    jax.tree.map(lambda a, s: a.sharding == s or pytest.fail(f"{a.sharding} is not {s}"), state, shardings)


def test_rows_that_do_not_divide_are_named():
    step = make_train_step(toy.loss_fn, toy.optimizer(), micro_batches=3)
    with pytest.raises(UserError, match=r"batch\['mask'\] has 8 rows, which 3 micro-batch"):
        step(start(), toy.batch())
    with pytest.raises(UserError, match="is a scalar"):
        make_train_step(toy.loss_fn, toy.optimizer())(start(), toy.batch() | {"x": jnp.float32(1)})
    with pytest.raises(UserError, match="micro_batches=0"):
        make_train_step(toy.loss_fn, toy.optimizer(), micro_batches=0)(start(), toy.batch())


def test_the_caller_keeps_its_key():
    key = jax.random.key(5)
    state = create_state(toy.params(), toy.optimizer(), key)
    make_train_step(toy.loss_fn, toy.optimizer())(state, toy.batch())
    assert jax.random.key_data(key).shape == (2,)
