"""Several objectives in a preference run: one gradient of the whole batch on any mesh, signs, accuracies, the study."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import raco
from experiments.multi_objective import Objectives
from experiments.pairs import Collate, Sums, make_loss
from experiments.preference import HeldOutPairs
from experiments.setup import Model, Policy, state_layout
from experiments.studies import raco as study
from jaxalign.data.preferences import Preference
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.gradients.conflict_averse import conflict_averse
from jaxalign.models.decoder import Decoder
from jaxalign.models.lora import LoraConfig, attach, init_adapter
from jaxalign.objective import Objective
from jaxalign.training.accumulation import CoupledLoss, attached, sums
from jaxalign.training.mesh import make_mesh, spread
from jaxalign.training.sharding import DECODER_RULES, shardings_for
from jaxalign.training.state import create_state
from jaxalign.training.step import make_train_step
from tests.models import tiny

ROWS = [
    Preference(
        [7 + i] * (3 + i % 3), ([1 + i] * (1 + i % 4), [9, 8 + i, 3]), objectives={"correct": (1, -1, 1, 0)[i % 4]}
    )
    for i in range(8)
]


def config_of(**preference):
    config = raco.get_config("tiny")
    config.preference.update(preference)
    return config


def test_signs():
    measure = Objectives(config_of())
    assert measure.objectives == ("brief", "correct")
    batch = Collate(ROWS, labelled=False, objectives=measure.objectives)(ROWS[:3], 4)
    np.testing.assert_array_equal(batch.side, [[1, 1], [1, -1], [0, 1], [0, 0]])
    shape = Collate(ROWS, labelled=False, objectives=measure.objectives).abstract(4, with_reference=False)
    assert shape.side.shape == batch.side.shape


def test_accuracies_are_of_the_pairs_that_are_judged():
    class Scorer:
        def __call__(self, params, rows):
            return params

    recorded = {}

    class Session:
        def has(self, name, when):
            return False

        def print(self, text):
            pass

        def record(self, name, when, values, unit=None):
            recorded[name] = list(values)

    measure = Objectives(config_of(conflict="weighted"))
    held_out = HeldOutPairs(ROWS[:4], Scorer(), measure, Collate(ROWS, labelled=False, objectives=measure.objectives))
    held_out.use_reference(np.zeros((4, 2), np.float32))
    policy = Sums(np.array([[2, 1], [2, 1], [1, 2], [0, 9]], np.float32), np.full((4, 2), 3.0, np.float32))
    held_out.record(Session(), policy, "before")
    assert recorded["held-out accuracy, brief (ties 1/2)"] == [1, 1, 1]  # signs 1, 1, 0, -1
    assert recorded["held-out accuracy, correct (ties 1/2)"] == [1, 0, 0]  # signs 1, -1, 1, 0
    assert "held-out preference accuracy (ties 1/2)" not in recorded
    found = held_out.metrics(policy)
    assert found["pairs/accuracy_correct"] == pytest.approx(1 / 3) and found["pairs/tied_brief"] == 0.25


@pytest.mark.filterwarnings("ignore:.*does not divide over mesh axis")
def test_one_gradient_of_the_whole_batch_on_any_mesh_over_an_adapter():
    """In one micro-batch and in two on eight devices: the step of the two gradients of the whole batch, combined."""
    decoder = Decoder(tiny.config(vocab_size=32, num_layers=1), compute_dtype="float32")
    adapted, optimizer = LoraConfig(rank=2, targets=("layers/attention/query", "layers/mlp/.*")), optax.sgd(0.5)
    base = tiny.random_params(decoder)
    adapter = init_adapter(jax.random.key(0), base, adapted)
    adapter = jax.tree.map(lambda x: np.asarray(x) + 0.1 * np.cos(np.arange(x.size).reshape(x.shape)), adapter)
    measure = Objectives(config_of(conflict="cagrad"))  # both coefficients change
    batch = Collate(ROWS, labelled=False, objectives=measure.objectives)(ROWS)
    batch = batch._replace(reference=np.cos(np.arange(16, dtype=np.float32)).reshape(8, 2) - 12)

    def loss_of(config):
        return make_loss(decoder, config.preference, Objectives(config))

    def gradients(adapter):
        """Each objective's, by itself."""
        found = []
        for number in (0.0, 1.0):
            config = config_of(objectives={"brief": 1 - number, "correct": number}, conflict="weighted")
            loss = attached(loss_of(config), functools.partial(attach, config=adapted), base)
            found.append(sums(loss, adapter, batch, jax.random.key(0), {})[1])
        return found

    wanted, correction = conflict_averse(jax.jit(gradients)(adapter), (0.35, 0.65), 0.4, "cagrad")
    for mesh, parts in ((make_mesh(devices=jax.devices()[:1]), 1), (make_mesh(2, 2, 2), 2)):
        shardings = shardings_for(decoder.abstract_params(), DECODER_RULES, mesh)
        policy = Policy(Model(decoder, Tokenizer.bytes(), mesh, shardings, lambda: {}, ""), adapted)
        policy.resume(lambda shardings=shardings: jax.device_put(base, shardings))
        layout = state_layout(policy, optimizer)
        step = policy.train_step(loss_of(config_of(conflict="cagrad")), optimizer, layout, micro_batches=parts)
        placed = jax.device_put(adapter, policy.shardings)
        state = create_state(placed, optimizer, jax.random.key(0), shardings=layout.shardings)
        state, metrics = step(state, spread(batch, mesh))
        jax.tree.map(
            lambda new, old, g: np.testing.assert_allclose((old - new) / 0.5, g / 8, rtol=2e-3, atol=2e-6),
            jax.device_get(state.params),
            adapter,
            wanted,
        )
        np.testing.assert_allclose(metrics["coefficient_brief"], correction.coefficients[0], rtol=1e-4)
        np.testing.assert_allclose(metrics["cosine_brief_correct"], correction.cosines[0, 1], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(metrics["rho"], correction.rho, rtol=1e-3, atol=1e-5)
        each = 0.35 * metrics["loss_brief"] + 0.65 * metrics["loss_correct"]
        np.testing.assert_allclose(metrics["loss"], each, rtol=1e-5)  # though no gradient is that of the weighted loss


def test_one_objective_that_is_not_finite_leaves_the_step_out():
    def objective(copies, batch, key, extra):
        first, second = copies
        return Objective((first**2).sum() + jnp.sqrt(0 * second).sum(), jnp.ones(()), {})  # 0, and no derivative

    def combine(*gradients):
        gradient, correction = conflict_averse(gradients, (0.9, 0.1), 0.4)
        return gradient, {"rho": (correction.rho, jnp.ones(()))}

    loss = CoupledLoss(lambda params, batch, key, extra: batch * params, objective, combine=combine, copies=2)
    step = make_train_step(loss, optax.sgd(0.1))
    state, metrics = step(create_state(jnp.ones(3), optax.sgd(0.1), jax.random.key(0)), jnp.ones((2, 3)))
    assert metrics["skipped"] == 1 and np.isfinite(metrics["loss"])
    np.testing.assert_array_equal(state.params, 1)


def test_the_study_runs():
    """One of its three trainings, three steps long; what they find is in docs/claims/raco.json."""
    assert "raco, 0.8" in study.SETTINGS
    found = study.train("raco", 0.8, False, jax.random.key(0), 3)
    assert found["losses"].shape == (3, 2) and (found["gain"] >= -study.ROUNDING).all()
