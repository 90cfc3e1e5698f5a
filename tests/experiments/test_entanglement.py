"""Reports on entanglement in the preference experiment: sharded, with an adapter, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import dpo_smollm
from experiments.entanglement import EntanglementMonitor
from experiments.pairs import Collate, Measure
from experiments.preference import check
from experiments.setup import Model, Policy
from experiments.studies import entanglement as study
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import UserError
from jaxalign.models.decoder import Decoder
from jaxalign.models.lora import LoraConfig
from jaxalign.training import report
from jaxalign.training.mesh import make_mesh
from jaxalign.training.sharding import DECODER_RULES, shardings_for
from jaxalign.training.state import create_state
from tests.experiments.test_preference import ROWS
from tests.models import tiny


def monitored(mesh, options=None):
    """(reports, heat maps) of random weights under an adapter that has moved, on that mesh."""
    decoder = Decoder(tiny.config(vocab_size=96, num_layers=1), compute_dtype="float32")
    shardings = shardings_for(decoder.abstract_params(), DECODER_RULES, mesh)
    model = Model(decoder, Tokenizer.bytes(), mesh, shardings, lambda: None, "")
    policy = Policy(model, LoraConfig(rank=2, targets=("layers/attention/query", "layers/mlp/.*")))
    adapter = policy.begin(jax.device_put(tiny.random_params(decoder), shardings))
    adapter = jax.tree.map(lambda leaf: leaf + 0.05 * jnp.cos(jnp.arange(leaf.size).reshape(leaf.shape)), adapter)
    adapter = jax.device_put(adapter, policy.shardings)
    config = dpo_smollm.get_config("tiny")
    config.diagnostics.update(options or {})
    monitor = EntanglementMonitor(config, model, policy, Measure(config), Collate(ROWS, labelled=False), ROWS)
    state = create_state(adapter, optax.sgd(0.1), jax.random.key(0))
    return monitor.metrics(state, policy.base), monitor.heat_maps(adapter)


def test_reports_on_eight_devices_are_those_on_one(tmp_path):
    options = {"pairs": 3, "heat_maps": 1, "heat_map_tokens": 3}
    one = monitored(make_mesh(devices=jax.devices()[:1]), options | {"heat_maps": 0})
    eight = monitored(make_mesh(data=2, fsdp=2, tensor=2), options)
    assert one[0].keys() == eight[0].keys()
    for name, value in one[0].items():
        np.testing.assert_allclose(eight[0][name], value, rtol=2e-3, atol=1e-4, err_msg=name)
    found = one[0]
    assert sum(found[f"entanglement/{case}"] for case in ("ideal", "both_down", "both_up", "reversed")) == 1
    assert found["entanglement/sensitivity_chosen"] == pytest.approx(found["entanglement/sensitivity_rejected"])
    assert found["entanglement/delta_margin"] > 0
    (heat,) = eight[1]
    assert np.abs(heat["values"]).max() <= 1.001
    assert np.shape(heat["values"]) == (len(heat["rows"]), len(heat["columns"])) == (2, 3)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "entanglement/cosine": 0.5}\n')
    report.write_heat_maps(tmp_path, [heat | {"rows": ["<", "b"]}])
    for page in (tmp_path / "entanglement.html", report.write_report(tmp_path)):
        text = page.read_text()
        assert text.count("<rect") >= 6 and "entanglement/cosine" in text and "&lt; / " in text


@pytest.mark.parametrize(
    ("word", "key", "value", "message"),
    [
        ("kto", "diagnostics.entanglement", True, "takes labelled ones"),
        ("kto", "preference.gradient", "normalised", "takes labelled ones"),
        ("dpo", "preference.gate", "diffs", "use identity or diff"),
        ("dpo", "preference.gradient", "norm", "use loss or normalised"),
    ],
)
def test_what_is_refused(word, key, value, message):
    config = dpo_smollm.get_config(f"tiny,{word}")
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=message):
        check(config)


def test_the_study_runs():
    """The token that differs has opposite gradients; what is forecast happens."""
    found = study.run("none_normalised", 0, steps=2, training=20, pairs=4)
    assert found["cosine"] < -0.5
    assert found["signs_foretold"] == found["ideal"] == 1
