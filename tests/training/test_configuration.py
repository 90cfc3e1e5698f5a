"""Configs as data: files with arguments, overrides whose types are checked, and what a typing error is told."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import config_dict

from jaxalign.errors import UserError
from jaxalign.training import configuration
from jaxalign.training.configuration import (
    apply_overrides,
    config_hash,
    default_workdir,
    differences,
    flatten,
    from_json,
    load_config,
    nearest_keys,
    to_json,
    to_plain,
)

ROOT = Path(__file__).resolve().parents[2]


def config():
    values = {
        "name": "toy",
        "seed": 0,
        "optimizer": {"name": "adamw", "learning_rate": 1e-5, "warmup_steps": 0},
        "train": {"steps": 40, "save_every": 0},
        "data": {"chat": True, "stop_strings": (), "weights": (1.0, 2.0), "names": ("a",), "sizes": (1, 2)},
        "settings": {},
    }
    found = config_dict.ConfigDict(values)
    found.lock()
    return found


def write(folder, text, name="recipe.py"):
    path = folder / name
    path.write_text(text)
    return str(path)


RECIPE = """
import ml_collections
def get_config(arg=None):
    if arg == "bad":
        raise ValueError("there is no bad recipe; use fast or slow")
    return ml_collections.ConfigDict({"speed": arg or "normal", "steps": 3})
"""


def test_a_file_with_and_without_an_argument(tmp_path):
    path = write(tmp_path, RECIPE)
    assert load_config(path).to_dict() == {"speed": "normal", "steps": 3}
    assert load_config(f"{path}:fast").speed == "fast"
    assert load_config(f"{path}:a:b").speed == "a:b", "the first colon divides"
    with pytest.raises(AttributeError):
        load_config(path).stepps = 4


def test_shipped_configs_are_found_from_any_folder(tmp_path):
    script = "from jaxalign.training.configuration import load_config; print(load_config('configs/grpo_qwen.py').name)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == load_config(str(ROOT / "configs" / "grpo_qwen.py")).name


@pytest.mark.parametrize(
    ("text", "argument", "message"),
    [
        ("x = 1", "", r"recipe.py defines no get_config\(\): a config file must"),
        ("def get_config():\n return 1", "", r"get_config\(\) of .*recipe.py must return an ml_collections ConfigDict"),
        ("def get_config():\n return 1", ":fast", r"recipe.py takes no argument: give --config=.*py without ':fast'"),
        (RECIPE, ":bad", r"--config=.*recipe.py:bad: there is no bad recipe; use fast or slow"),
    ],
)
def test_a_file_that_is_no_config_is_named(text, argument, message, tmp_path):
    with pytest.raises(UserError, match=message):
        load_config(write(tmp_path, text) + argument)


def test_a_missing_file_is_answered_with_its_neighbours(tmp_path, monkeypatch):
    write(tmp_path, RECIPE, "grpo_large.py")
    with pytest.raises(UserError, match=r"config file .*grpo_lage.py does not exist; near it: grpo_large.py"):
        load_config(str(tmp_path / "grpo_lage.py"))
    with pytest.raises(UserError, match=r"config file configs/grpo_qwenn.py does not exist; near it: grpo_qwen.py"):
        load_config("configs/grpo_qwenn.py")
    with pytest.raises(UserError, match=r"--config=grpo is no Python file: give for example configs/grpo_qwen.py"):
        load_config("grpo")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"config file configs/grpo_qwenn.py does not exist; near it: grpo_qwen.py"):
        load_config("configs/grpo_qwenn.py")


def test_overrides_have_the_type_of_the_key():
    found = config()
    changed = apply_overrides(
        found,
        [
            "--config.train.steps=7",
            "--config.optimizer.learning_rate=3e-4",
            "--config.optimizer.learning_rate=1",  # the last one counts
            "--config.name",
            "two words",
            "--config.data.chat=false",
            "--config.data.weights=(3, 0.5)",
            "--config.data.stop_strings=('###',)",
            "--config.data.sizes=(5, 6, 7)",
        ],
    )
    assert changed == {
        "train.steps": 7,
        "optimizer.learning_rate": 1.0,
        "name": "two words",
        "data.chat": False,
        "data.weights": (3, 0.5),
        "data.stop_strings": ("###",),
        "data.sizes": (5, 6, 7),
    }
    assert isinstance(found.optimizer.learning_rate, float)
    assert all(flatten(found)[key] == value for key, value in changed.items())
    assert flatten(found).keys() == flatten(config()).keys()


def test_switches_need_no_value():
    found = config()
    apply_overrides(found, ["--noconfig.data.chat"])
    assert found.data.chat is False
    apply_overrides(found, ["--config.data.chat"])
    assert found.data.chat is True


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "--config.train.steps=0.5",
            r"--config.train.steps=0.5 has the wrong type: int is wanted \(the config has 40\)",
        ),
        ("--config.train.steps=many", "wrong type: int is wanted"),
        ("--config.optimizer.learning_rate=fast", r"wrong type: float is wanted \(the config has 1e-05\)"),
        ("--config.data.chat=perhaps", "wrong type: bool is wanted"),
        ("--config.data.weights=('a',)", r"wrong type: tuple of float is wanted \(the config has \(1.0, 2.0\)\)"),
        ("--config.data.names=(1,)", "wrong type: tuple of str is wanted"),
        ("--config.data.sizes=(1.5,)", "wrong type: tuple of int is wanted"),
        ("--config.train.steps", "--config.train.steps wants a value: --config.train.steps=VALUE"),
        ("--config.train=3", "config key 'train' is a group of keys: set one of train.save_every, train.steps"),
        ("--config.train.step=3", "unknown config key 'train.step'; the nearest known keys are: train.steps"),
        ("--config.lr=3", "unknown config key 'lr'; the nearest known keys are: optimizer.learning_rate"),
        ("--config.learning_rate=3", "unknown config key 'learning_rate'; .*: optimizer.learning_rate"),
        ("--config.=3", "unknown config key ''"),
    ],
)
def test_an_override_that_does_not_fit_changes_nothing(argument, message):
    found = config()
    with pytest.raises(UserError, match=message):
        apply_overrides(found, [argument])
    assert found == config()


def test_a_group_that_is_empty_is_open():
    found = config()
    changed = apply_overrides(
        found,
        [
            "--config.settings.clip=0.2",
            "--config.settings.kind=k3",
            "--config.settings.on=true",
            "--config.settings.t",
            "(1, 2)",
        ],
    )
    assert found.settings.to_dict() == {"clip": 0.2, "kind": "k3", "on": True, "t": (1, 2)}
    assert changed == {f"settings.{key}": value for key, value in found.settings.items()}
    with pytest.raises(UserError, match=r"--config.settings.x wants a value"):
        apply_overrides(config(), ["--config.settings.x"])
    with pytest.raises(UserError, match=r"unknown config key 'settings.x.y'"):
        apply_overrides(config(), ["--config.settings.x.y=1"])


def test_nearest_keys():
    known = ["optimizer.learning_rate", "train.steps", "train.save_every", "optimizer.warmup_steps"]
    assert nearest_keys("lr", known, 1) == ["optimizer.learning_rate"]
    assert nearest_keys("optimizer.steps", known, 1) == ["train.steps"]
    assert nearest_keys("train.saveevery", known, 1) == ["train.save_every"]
    assert len(nearest_keys("x", known)) == 3


def test_the_plain_form_survives_json():
    plain = to_plain(config())
    assert plain["data"]["weights"] == [1.0, 2.0]
    assert from_json(to_json(config())) == plain == json.loads(json.dumps(plain))
    assert flatten({"a": {"b": {"c": 1}, "d": {}}, "e": 2}) == {"a.b.c": 1, "a.d": {}, "e": 2}
    with pytest.raises(UserError, match="a config value must be a number, a text, a bool or a list"):
        to_plain({"x": math.sin})


def test_the_hash_depends_on_values_and_not_on_their_order():
    assert config_hash({"a": 1, "b": {"c": (1, 2)}}) == config_hash({"b": {"c": [1, 2]}, "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 1.5})
    assert len(config_hash(config())) == 12
    changed = config()
    apply_overrides(changed, ["--config.seed=1"])
    assert config_hash(changed) != config_hash(config())


def test_differences_are_named_by_key():
    assert differences(config(), config()) == {}
    first, second = {"a": 1, "g": {"x": (1,), "y": 2}}, {"g": {"x": [1], "y": 3, "z": 0}, "b": {}}
    assert differences(first, second) == {"a": (1, "absent"), "g.y": (2, 3), "g.z": ("absent", 0), "b": ("absent", {})}


def test_the_default_folder_follows_from_the_config():
    assert default_workdir("configs/grpo_qwen.py") == "runs/grpo_qwen"
    assert default_workdir("configs/grpo_qwen.py:tiny,seed=1") == "runs/grpo_qwen-tiny-seed-1"
    assert default_workdir("/a/b/x.py:../../etc") == "runs/x-..-..-etc"


def test_a_launch_command_is_only_told_where_there_is_one():
    assert configuration.launch_command() is None
