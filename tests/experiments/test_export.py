"""A run's checkpoint as a Hugging Face folder: the same logits, whole or not at all, and what goes wrong is named."""

import errno
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import defaults
from experiments import export as command
from experiments.setup import build_model, build_optimizer, build_policy, fresh_state, state_layout
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import UserError
from jaxalign.models import peft_io, safetensors_io
from jaxalign.models.config import DecoderConfig
from jaxalign.training.checkpoints import Checkpointer
from jaxalign.training.stored_checkpoint import StoredCheckpoint
from tests.models import tiny
from tests.models.test_parity import logits_of

SIZES = {
    "llama": dict(tie_embeddings=False),
    "qwen2": dict(qkv_bias=True),
    "qwen3": dict(qk_norm=True, tie_embeddings=False),
    # transformers takes no other scale than the root of an integer
    "gemma3": tiny.ARCHITECTURES["gemma3"] | dict(query_scale=12**-0.5),
}


def model_folder(folder, architecture) -> DecoderConfig:
    """A random model as a user would have it: weights and tokenizer."""
    options = dict(vocab_size=272, max_positions=128) | SIZES[architecture]
    config = tiny.config(**options)
    params = tiny.random_params(tiny.Decoder(config, compute_dtype="float32"))
    safetensors_io.save_folder(folder, config, params, dtype=jnp.float32)
    Tokenizer.bytes().save(folder)
    return config


def finished_run(tmp_path, architecture="qwen3", kind="none", ema_decay=0.0):
    """(workdir, config of the model, the policy's weights) of a run whose parameters have moved."""
    model_config = model_folder(tmp_path / "model", architecture)
    config = defaults.sft("run", steps=1)
    config.model.path, config.model.compute_dtype = str(tmp_path / "model"), "float32"
    config.mesh.data, config.mesh.fsdp = 1, -1
    config.adapter.kind, config.adapter.rank = kind, 4
    config.train.ema_decay = ema_decay
    model = build_model(config)
    policy = build_policy(config, model)
    optimizer = build_optimizer(config)
    layout = state_layout(policy, optimizer)
    workdir = tmp_path / "run"
    with Checkpointer(workdir / "checkpoints", config=config) as checkpointer:
        state = fresh_state(config, policy.begin(model.read(), checkpointer), optimizer, layout)
        rng = np.random.default_rng(1)
        moved = jax.tree.map(
            lambda leaf: np.asarray(leaf) + (0.05 * rng.normal(size=leaf.shape)).astype(leaf.dtype), state.params
        )
        moved = jax.device_put(moved, layout.shardings.params)
        checkpointer.save(7, state.replace(params=moved), {})
    return workdir, model_config, jax.device_get(policy.weights(moved))


TOKENS = np.random.default_rng(3).integers(0, 256, (2, 12)).astype(np.int32)


# An adapter is merged by the same code into all; those of Qwen 3 are exported further down.
@pytest.mark.parametrize(
    ("architecture", "kind"),
    [*((architecture, "none") for architecture in SIZES), ("qwen2", "lora"), ("gemma3", "lora")],
)
def test_an_exported_folder_gives_the_same_logits(architecture, kind, tmp_path):
    workdir, config, weights = finished_run(tmp_path, architecture, kind)
    folder = command.export(workdir, tmp_path / "out" / "model", max_file_bytes=60_000)
    assert (folder / safetensors_io.INDEX).is_file(), "several files"
    found = safetensors_io.read_config(folder)
    assert found == config
    expected = logits_of(config, weights, TOKENS)
    np.testing.assert_allclose(logits_of(found, safetensors_io.load_params(folder), TOKENS), expected, atol=1e-5)
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.eos_ids == (256,)
    assert tokenizer.encode("1+2=") == list(b"1+2=")
    assert json.loads((folder / "generation_config.json").read_text()) == {"eos_token_id": [256], "pad_token_id": 256}
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("architecture", SIZES)
def test_live_transformers(architecture, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    workdir, config, weights = finished_run(tmp_path, architecture, "dora")
    folder = command.export(workdir, tmp_path / "out", max_file_bytes=60_000)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(TOKENS).long(), use_cache=False).logits.numpy()
    np.testing.assert_allclose(logits_of(config, weights, TOKENS), expected, atol=1e-4, rtol=1e-4)
    assert model.generation_config.eos_token_id == [256]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer("1+2=", add_special_tokens=False).input_ids == list(b"1+2=")
    assert tokenizer.eos_token_id == 256


def test_live_peft_takes_the_adapter_alone(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    workdir, config, weights = finished_run(tmp_path, "qwen3", "lora")
    folder = command.export(workdir, tmp_path / "out", adapter_only=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.float32, attn_implementation="eager"
    )
    model = peft.PeftModel.from_pretrained(model, folder).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(TOKENS).long(), use_cache=False).logits.numpy()
    np.testing.assert_allclose(logits_of(config, weights, TOKENS), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapter_alone_is_read_back_bit_for_bit(kind, tmp_path):
    workdir, config, _ = finished_run(tmp_path, "qwen3", kind)
    folder = command.export(workdir, tmp_path / "out", adapter_only=True)
    loaded = peft_io.load(folder, config)
    stored = StoredCheckpoint(workdir / "checkpoints").read({"params": jax.eval_shape(lambda: loaded.adapter)})[
        "params"
    ]
    jax.tree.map(np.testing.assert_array_equal, loaded.adapter, stored)
    assert loaded.settings["base_model_name_or_path"] == str(tmp_path / "model")
    assert not (folder / "config.json").exists()
    assert (folder / "tokenizer.json").is_file()


@pytest.mark.parametrize("kind", ["none", "lora"])
def test_the_average_is_exported_where_it_is_asked_for(kind, tmp_path):
    """The parameters have moved in `finished_run`, and the average has not: it gives the logits of the first model."""
    workdir, config, weights = finished_run(tmp_path, kind=kind, ema_decay=0.9)
    folder = command.export(workdir, tmp_path / "average", average=True)
    found = logits_of(config, safetensors_io.load_params(folder), TOKENS)
    first = logits_of(config, safetensors_io.load_params(tmp_path / "model"), TOKENS)
    np.testing.assert_allclose(found, first, atol=1e-5)
    assert np.abs(found - logits_of(config, weights, TOKENS)).max() > 1e-2
    plain = finished_run(tmp_path / "plain")[0]
    with pytest.raises(UserError, match=r"kept no average \(config.train.ema_decay is 0\)"):
        command.export(plain, tmp_path / "none", average=True)


def test_a_chosen_dtype_is_the_files(tmp_path):
    workdir, _, weights = finished_run(tmp_path)
    folder = command.export(workdir, tmp_path / "out", dtype="bfloat16")
    half = safetensors_io.load_params(folder, dtype=jnp.bfloat16)
    expected = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), weights)
    jax.tree.map(np.testing.assert_array_equal, half, expected)
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"


def files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


def test_what_goes_wrong_is_named_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    workdir, _, _ = finished_run(tmp_path)
    (tmp_path / "there").mkdir()
    before = files(tmp_path)

    def fails(message, *arguments, run=workdir, to="out"):
        code = command.main([f"--checkpoint={run}", f"--to={tmp_path / to}", *arguments])
        error = capsys.readouterr().err
        assert code == 2
        assert error.startswith("experiments.export: error: ")
        assert message in error, error
        assert len(error.splitlines()) == 1
        assert files(tmp_path) == before

    fails("there is no folder", run=tmp_path / "nowhere")
    fails("there are no checkpoints", run=tmp_path / "model")
    fails("there is no checkpoint of step 3", "--step=3")
    fails("exists already", to="there")
    fails("exclude each other", "--merge", "--adapter-only")
    fails("trained all weights and no adapter", "--adapter-only")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    fails("MB are free; make room", to="deep/er/out")
    monkeypatch.undo()

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors_io, "save_file", full)
    fails("No space left on device")
    monkeypatch.undo()
    assert command.main([f"--checkpoint={workdir}", f"--to={tmp_path / 'out'}"]) == 0
    assert "weights of step 7 written to" in capsys.readouterr().out


def change_base(tmp_path):
    config = safetensors_io.read_config(tmp_path / "model")
    params = safetensors_io.load_params(tmp_path / "model")
    up = params["layers"]["mlp"]["up"]
    up["kernel"] = up["kernel"].at[0, 0, 0].add(1e-3)
    safetensors_io.save_folder(tmp_path / "model", config, params, dtype=jnp.float32)


def test_another_base_is_refused(tmp_path):
    workdir, _, _ = finished_run(tmp_path, kind="lora")
    change_base(tmp_path)
    with pytest.raises(UserError, match=r"trained on other base weights .*model' now means the Hugging"):
        command.export(workdir, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    command.export(workdir, tmp_path / "adapter", adapter_only=True)


def test_going_on_over_another_base_is_refused(tmp_path):
    finished_run(tmp_path, kind="lora")
    config = defaults.sft("run", steps=1)
    config.model.path, config.model.compute_dtype = str(tmp_path / "model"), "float32"
    config.mesh.data, config.mesh.fsdp = 1, -1
    config.adapter.kind, config.adapter.rank = "lora", 4

    def resume():
        model = build_model(config)
        policy = build_policy(config, model)
        layout = state_layout(policy, build_optimizer(config))
        with Checkpointer(tmp_path / "run" / "checkpoints", config=config) as checkpointer:
            policy.resume(model.read, checkpointer)
            return checkpointer.restore_latest(layout.abstract)

    assert resume().step == 7
    change_base(tmp_path)
    with pytest.raises(
        UserError, match=r"checkpoint 7 .* stands on other base weights \([0-9a-f]{16} there, [0-9a-f]{16}"
    ):
        resume()


def test_a_run_from_a_peft_folder_starts_with_its_factors(tmp_path):
    workdir, _, weights = finished_run(tmp_path, kind="lora")
    folder = command.export(workdir, tmp_path / "adapter", adapter_only=True)
    run = defaults.sft("run", steps=1)
    run.model.path, run.mesh.data, run.mesh.fsdp = str(tmp_path / "model"), 1, -1
    run.adapter.kind, run.adapter.rank, run.adapter.path = "lora", 4, str(folder)
    model = build_model(run)
    policy = build_policy(run, model)
    found = policy.weights(policy.begin(model.read()))
    jax.tree.map(np.testing.assert_array_equal, found, weights)
    run.adapter.alpha = 32.0
    with pytest.raises(UserError, match=r"holds another adapter than config.adapter asks for"):
        build_policy(run, model).begin(model.read())
