"""Graph-text alignment as a run: it resumes exactly, the controller is obeyed, graphs of the user's own, mistakes."""

import json

import numpy as np
import pytest

from experiments import graph_text
from jaxalign.errors import UserError
from jaxalign.training import configuration
from tests.experiments import runs


def load(spec="configs/llm4gta.py:runlocal", *overrides):
    config = configuration.load_config(spec)
    configuration.apply_overrides(config, overrides)
    return config


def train(config, folder):
    graph_text.run(config, str(folder))


def test_a_stopped_run_equals_a_straight_one_and_the_controller_is_obeyed(tmp_path):
    """On a mesh, in micro-batches, stopped after the warm-up: the reference comes out of the checkpoint."""
    config = load("configs/llm4gta.py:runlocal", "--config.train.steps=6", "--config.train.micro_batches=2")
    config.mesh.data, config.mesh.fsdp, config.gap.decay = 4, 2, 0.5
    done = runs.check_resuming(train, config, tmp_path, stop=3)
    assert {f"extra/gap/{name}" for name in ("average", "reference", "steps")} <= set(runs.leaves(done, 6))
    rows = runs.rows(tmp_path / "straight")
    similarity = np.array([row["similarity"] for row in rows])
    average, reference = similarity[0], similarity[:2].mean()
    for step, row in enumerate(rows):
        if step >= 2:  # weight and band come from the batches before
            assert row["natural_similarity"] == pytest.approx(reference, abs=1e-5)
            high = reference + 0.35 * (1 - reference)
            weight = np.clip(1 - (average - reference) / (high - reference), 0.1, 1)
            assert row["alignment_weight"] == pytest.approx(weight, abs=1e-4)
            band = max(similarity[step] - high, 0) ** 2 + max(reference - 0.1 - similarity[step], 0) ** 2
            assert row["gap_penalty"] == pytest.approx(band, abs=1e-5)
            total = weight * row["alignment"] + 50 * band + 0.5 * row["compensation"]
            assert row["loss"] == pytest.approx(total, rel=1e-4)
        else:
            assert row["alignment_weight"] == 1 and row["gap_penalty"] == 0
        average = 0.5 * average + 0.5 * similarity[step] if step else similarity[0]
    assert rows[-1]["alignment_weight"] < 1


def written(path, *examples):
    path.write_text("".join(json.dumps(example) + "\n" for example in examples))
    return str(path)


def ring(count, wrong=None):
    """A ring of nodes of two classes, of which texts and features tell; some are not known."""
    nodes = []
    for row in range(count):
        kind = row % 2
        near = [f"n{(row + 2) % count}", f"n{(row - 2) % count}"]
        vector = [1.0 - 2 * kind, 0.1 * row]
        node = {"id": f"n{row}", "features": vector, "text": [*vector, 1.0], "neighbours": near}
        nodes.append(node | {"kind": None if row == 3 else kind})
    if wrong:
        nodes[5] |= wrong
    return nodes


def own_graph(folder, wrong=None):
    config = load()
    config.data.source = config.data.held_out = written(folder / "nodes.jsonl", *ring(24, wrong))
    kinds = [{"text": [-1.0, 1.0, 1.0], "kind": 1}, {"text": [1.0, 1.0, 1.0], "kind": 0}]
    config.data.classes = written(folder / "classes.jsonl", *kinds)
    config.data.class_field = config.data.label_field = "kind"
    config.batch_size, config.labelled, config.train.steps = 16, 1.0, 40
    config.optimizer.learning_rate = 1e-2
    return config


def test_it_learns_a_graph_of_the_users_own(tmp_path):
    train(own_graph(tmp_path), tmp_path / "run")
    found = {e["name"]: e["after"] for e in runs.summary(tmp_path / "run")["evaluations"]}
    assert {name: e["count"] for name, e in found.items()} == {
        "zero-shot accuracy": 23,
        "fused accuracy": 23,
        "probe accuracy": 13,
    }
    assert all(e["value"] > 0.9 for e in found.values())


MISTAKES = {
    "an unknown neighbour": (
        {"neighbours": ["n1", "n99"]},
        r"nodes.jsonl:6: its neighbour 'n99' is the id \('id'\)",
    ),
    "no list": ({"neighbours": "n1"}, r"nodes.jsonl:6: 'neighbours' must be a list of ids, not 'n1'"),
    "an id twice": ({"id": "n7"}, r"nodes.jsonl:6: the id 'n7' comes again at .*nodes.jsonl:8"),
    "features": ({"features": [1.0]}, r"nodes.jsonl:1 and others: 'features' are not vectors of one size"),
    "a label": ({"kind": "red"}, r"nodes.jsonl:6: 'kind' is 'red', neither an integer from 0 on nor null"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_a_graph_are_named(mistake, tmp_path):
    wrong, message = MISTAKES[mistake]
    with pytest.raises(UserError, match=message):
        train(own_graph(tmp_path, wrong), tmp_path / "run")


SETTINGS = {
    "batch_size=200": r"batch_size=200 is more than the 160 nodes",
    "batch_size=63": r"63 rows do not divide over the 8 devices",
    "train.micro_batches=5": r"batch_size=64 does not divide into .*micro_batches=5",
    "labelled=2.0": r"config.labelled=2.0 is the share",
    "data.label_field=": r"compensation_weight=0.5 wants labels",
    "data.held_out=view_pairs": r"has no field 'features'",
    "gap.headroom=2.0": r"headroom=2.0.* want .*headroom in \[0, 1\]",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_mistakes_in_settings_are_named(setting, tmp_path):
    with pytest.raises(ValueError, match=SETTINGS[setting]):
        train(load("configs/llm4gta.py:runlocal", f"--config.{setting}"), tmp_path)


def test_class_texts_are_numbered_from_0(tmp_path):
    config = own_graph(tmp_path)
    config.data.classes = written(tmp_path / "classes.jsonl", {"text": [0.0, 0.0, 0.0], "kind": 1})
    with pytest.raises(UserError, match=r"classes.jsonl: 'kind' must be 0, 1, ... 0, each once"):
        train(config, tmp_path / "run")
