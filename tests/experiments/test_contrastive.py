"""The contrastive experiment: resumed and spread runs equal straight ones, it learns, and mistakes are named."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from experiments import contrastive
from jaxalign.errors import UserError
from jaxalign.training import configuration
from tests.experiments import runs
from tests.models.test_encoders import sentence_folder

SMALL = (
    "--config.train.steps=3",
    "--config.contrastive.batch_size=32",
    "--config.optimizer.learning_rate=1e-3",
    "--config.data.held_out=",
)


def load(spec, *overrides):
    config = configuration.load_config(spec)
    configuration.apply_overrides(config, overrides)
    return config


@pytest.mark.parametrize(
    "spec",
    [
        "configs/contrastive.py:siglip,runlocal",
        "configs/metric_learning.py:unpg,runlocal",
        "configs/group_infonce.py:runlocal",
        "configs/whitened_cse.py:runlocal",
    ],
)
def test_a_stopped_run_equals_a_straight_one(spec, tmp_path):
    """On a mesh, with the average of the parameters, micro-batches, batches by class, groups, views by dropout."""
    config = load(spec, "--config.train.steps=4", "--config.train.ema_decay=0.5", "--config.train.micro_batches=2")
    config.mesh.data = 2
    config.mesh.fsdp = 4
    config.contrastive.batch_size = 48
    config.contrastive.classes_per_batch = min(config.contrastive.classes_per_batch, 6)
    runs.check_resuming(lambda c, folder: contrastive.run(c, str(folder)), config, tmp_path, stop=2)


def test_adapters_of_text_encoders(tmp_path):
    """Trained over a base that stays, saved alone, resumed bit for bit, refused over another base."""
    words = "abd"
    pairs = [{"first": f"{x} {y}", "second": f"{y}{x} d"} for x in words for y in words]
    config = load("configs/contrastive.py", "--config.adapter.kind=lora", "--config.adapter.rank=2")
    config.data.source = config.data.held_out = rows(tmp_path / "pairs.jsonl", *pairs)
    folder = sentence_folder(tmp_path / "bert")
    config.encoders.first.path, config.encoders.shared = str(folder), True
    config.contrastive.batch_size, config.train.steps, config.mesh.data, config.mesh.fsdp = 8, 4, 4, 2
    config.optimizer.learning_rate = 1e-2
    done = runs.check_resuming(lambda c, folder: contrastive.run(c, str(folder)), config, tmp_path, stop=2)
    params = [name for name in runs.leaves(done, 4) if name.startswith("params/")]
    assert all("lora_" in name or name == "params/loss/log_scale" for name in params) and len(params) > 10
    assert any(found["after"]["value"] != found["before"]["value"] for found in runs.summary(done)["evaluations"])

    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("query.weight"))
    save_file(tensors | {name: tensors[name] + 1}, weights)
    config.train.steps = 6
    with pytest.raises(UserError, match="stands on other base weights"):
        contrastive.run(config, str(done))


def test_linear_maps_have_no_adapters(tmp_path):
    config = load("configs/contrastive.py", "--config.adapter.kind=lora")
    with pytest.raises(UserError, match="target"):
        contrastive.run(config, str(tmp_path))


def metrics(folder):
    return [{k: row[k] for k in ("loss", "grad_norm", "accuracy")} for row in runs.rows(folder)]


def test_devices_processes_and_micro_batches_change_nothing(tmp_path):
    spec = "configs/contrastive.py"
    in_parts = ("--config.train.micro_batches=4", "--config.loss.chunk=5")
    alone = runs.run_in_turn((spec, tmp_path / "one", *SMALL), (spec, tmp_path / "micro", *SMALL, *in_parts))
    two = [(spec, tmp_path / "two", *SMALL, "--config.mesh.fsdp=4")]
    together = runs.run_together(two, two, devices=4)
    for ended in (*alone, *together[0], *together[1]):
        assert ended.code == 0, ended.err
    # And in this process, which has eight devices.
    ring = ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2", "--config.loss.ring=True")
    grouped = ("--config.contrastive.pool=fsdp", "--config.mesh.data=4", "--config.mesh.fsdp=2")
    for name, overrides in {"ring": ring, "grouped": grouped}.items():
        contrastive.run(load(spec, *SMALL, *overrides), str(tmp_path / name))
    expected = metrics(tmp_path / "one")
    for name in ("micro", "two", "ring"):
        for found, row in zip(metrics(tmp_path / name), expected, strict=True):
            assert found == pytest.approx(row, rel=1e-4), name
    # What is grouped is another loss: rows meet fewer rows.
    assert metrics(tmp_path / "grouped")[0]["loss"] < expected[0]["loss"] - 0.5


def rows(path, *examples):
    path.write_text("".join(json.dumps(example) + "\n" for example in examples))
    return str(path)


def test_it_learns_pairs_of_the_users_own(tmp_path):
    random = np.random.default_rng(0)
    signal, turns = random.normal(size=(80, 6)), random.normal(size=(2, 6, 10))
    examples = [{"a": (x @ turns[0]).tolist(), "b": (x @ turns[1]).tolist(), "who": i} for i, x in enumerate(signal)]
    config = load("configs/contrastive.py:info_nce", "--config.train.steps=80", "--config.contrastive.batch_size=32")
    config.data.source = rows(tmp_path / "train.jsonl", *examples[:60])
    config.data.held_out = rows(tmp_path / "held_out.jsonl", *examples[60:])
    config.data.first_field, config.data.second_field, config.data.id_field = "a", "b", "who"
    config.data.similarities = rows(
        tmp_path / "scored.jsonl",
        *(
            {"a": one["a"], "b": other["b"], "score": float(one is other)}  # they need no id
            for one in examples[60:66]
            for other in examples[60:66]
        ),
    )
    contrastive.run(config, str(tmp_path / "run"))
    found = {e["name"]: e for e in runs.summary(tmp_path / "run")["evaluations"]}
    recall = found["held-out recall@1"]
    assert recall["before"]["value"] < 0.3 and recall["after"]["value"] > 0.6
    ranks = found["rank correlation with given similarities"]
    assert ranks["after"]["value"] > 0.2 + ranks["before"]["value"]


MISTAKES = {
    "a loss": ({"contrastive.loss": "clip"}, r"contrastive\.loss='clip' is not known; use one of info_nce"),
    "a pool": ({"contrastive.pool": "tensor"}, r"contrastive\.pool='tensor' is not known; use one of all"),
    "micro-batches": ({"train.micro_batches": 3}, r"batch_size=256 does not divide into .*micro_batches=3"),
    "devices": ({"contrastive.batch_size": 4}, r"4 rows do not divide over the 8 devices"),
    "classes of pairs": ({"contrastive.classes_per_batch": 8}, r"classes_per_batch wants a loss of labelled examples"),
    "a field": ({"data.first_field": "left"}, r"has no field 'left'; its fields are first, second, id"),
    "texts without an encoder": ({"data.source": "number_words"}, r"texts need an encoder: .*encoders\.first\.path"),
    "sizes": ({"encoders.second.out_dim": 8}, r"different sizes: \{'first': 32, 'second': 8\}"),
    "ids": ({"data.id_field": "first"}, r"'first' is '\[.*', not an integer"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake, tmp_path):
    changes, message = MISTAKES[mistake]
    config = load("configs/contrastive.py", *(f"--config.{key}={value}" for key, value in changes.items()))
    with pytest.raises(UserError, match=message):
        contrastive.run(config, str(tmp_path))
    assert not list(tmp_path.glob("checkpoints/[0-9]*"))


def test_alignment_and_uniformity_of_held_out_pairs():
    """The corners of a square, and the same turned by a quarter of a right angle: d^2 is 2 - 2 cos of the angle."""
    turns = np.pi / 2 * np.arange(4)
    first, second = (np.stack([np.cos(a), np.sin(a)], -1) for a in (turns, turns + np.pi / 8))

    def metrics(first, second):
        examples = contrastive.Examples({"first": (first, []), "second": (second, [])}, np.arange(4), None)
        tower = SimpleNamespace(inputs=lambda values, places: values)
        towers = {"first": tower, "second": tower}
        return contrastive.HeldOut(examples, towers, lambda params, side, inputs: inputs).metrics(None)

    found = metrics(first, second)
    assert found["alignment"] == pytest.approx(2 - 2 * np.cos(np.pi / 8))
    square = np.log((4 * np.exp(-4) + 2 * np.exp(-8)) / 6)  # four sides with d^2 = 2, two diagonals with 4
    assert found["uniformity"] == pytest.approx(square, rel=1e-5)
    same = np.tile(first[:1], (4, 1))
    found = metrics(same, second)
    assert found["uniformity"] == pytest.approx(square / 2, rel=1e-5)  # 0 of the first side
    assert found["alignment"] == pytest.approx((2 - 2 * np.cos(turns + np.pi / 8)).mean())


def test_groups_are_filled_up_to_one_size(tmp_path):
    path = rows(tmp_path / "groups.jsonl", {"q": [1.0], "d": [[1.0], [2.0]]}, {"q": [0.0], "d": [[3.0]]})
    data = load("configs/group_infonce.py").data
    data.first_field, data.second_field = "q", "d"
    found = contrastive.read_examples(path, data, "groups")
    assert found.mask.tolist() == [[True, True], [True, False]]
    assert found.values["second"][0] == [[1.0], [2.0], [3.0], [3.0]]
    for wrong in ("text", []):
        path = rows(tmp_path / "wrong.jsonl", {"q": [1.0], "d": [[1.0]]}, {"q": [1.0], "d": wrong})
        with pytest.raises(UserError, match=r"wrong.jsonl:2: its partners must be a list with at least one"):
            contrastive.read_examples(path, data, "groups")
