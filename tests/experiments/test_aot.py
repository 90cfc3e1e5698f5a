"""What the compiled programs of an experiment look like, and the command that reports it.

The programs are compiled for eight simulated CPU devices in place of a TPU slice (the same partitioning of the same
program); with libtpu a small one is compiled for a slice too.
"""

import importlib.util
import json
import re

import jax
import pytest

from experiments import aot, programs
from jaxalign.models.config import NAMED, DecoderConfig
from jaxalign.training import compiled, configuration, hlo

pytestmark = pytest.mark.optimised

TINY = "configs/grpo_qwen.py:tiny"
# The vocabulary alone has the factor 41, rows alone 13.
SMALL = DecoderConfig(
    vocab_size=41 * 400, num_layers=2, embed_dim=64, mlp_dim=128, num_heads=4, num_kv_heads=2, head_dim=16,
    max_positions=1024, qk_norm=True, tie_embeddings=False,
)  # fmt: skip
PROMPTS, PROMPT, GROUP, NEW = 16, 16, 4, 13 * 16


def small_config(**mesh):
    config = configuration.load_config(TINY)
    config.model.path, config.model.remat = "random:small", "full"
    config.mesh.update(mesh)
    config.rollout.update(prompts_per_step=PROMPTS, group_size=GROUP, max_new_tokens=NEW)
    config.data.max_prompt_tokens, config.warm_start.steps, config.rl.share_prompt = PROMPT, 0, False
    return config


@pytest.fixture(scope="module", params=[{"data": 2, "fsdp": 4}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=["4", "2x2"])
def train_step(request):
    """(config, the train step's `Part`, what it was compiled to, its program) on a mesh of eight devices."""
    config = small_config(**request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NAMED, "small", SMALL)
        model = programs.abstract_model(config, jax.devices())
        part = programs.parts(config, model)["train"]
        executable = part.lower().compile()
    return config, part, executable, hlo.parse(executable.as_text())


def shards(config):
    return config.mesh.data * config.mesh.fsdp


def test_no_logits_of_all_tokens_and_no_whole_head(train_step):
    config, _, _, program = train_step
    tokens = PROMPTS * GROUP * NEW // shards(config)
    vocabulary, embed = SMALL.vocab_size // config.mesh.tensor, SMALL.embed_dim
    found = [array for array in hlo.arrays(program) if any(size % 41 == 0 for size in array.shape)]
    assert found
    for array in found:
        assert array.size < tokens * vocabulary / 4, f"{array}: logits"
        # The head of this device's part of the vocabulary, with all columns: gathered over fsdp.
        assert array.size != vocabulary * embed, f"{array}: the head"


def test_every_device_works_on_its_own_rows(train_step):
    config, _, _, program = train_step
    rows, length = PROMPTS * GROUP // shards(config), PROMPT + NEW
    found = {a.shape for a in hlo.arrays(program) if a.shape[-2:] == (length, SMALL.embed_dim) and len(a.shape) > 2}
    assert (rows, length, SMALL.embed_dim) in found
    for shape in found:  # the scan keeps one per layer
        assert shape[-3] == rows, shape


def test_the_state_is_donated_whole(train_step):
    _, part, executable, _ = train_step
    memory = compiled.memory(executable)
    assert memory.alias == part.state
    assert memory.argument >= memory.alias
    # Gradients, and nothing like a second state.
    assert memory.temporary < memory.total


def test_operations_are_those_of_the_model(train_step):
    """Within 3 %: matrices 2 per weight and token, forward, again for rematerialisation, and twice backward."""
    _, _, executable, _ = train_step
    rows, length = PROMPTS * GROUP, PROMPT + NEW
    attention = SMALL.embed_dim * SMALL.head_dim * (2 * SMALL.num_heads + 2 * SMALL.num_kv_heads)
    mlp = 3 * SMALL.embed_dim * SMALL.mlp_dim
    weights = SMALL.num_layers * (attention + mlp)
    scores = SMALL.num_layers * 2 * SMALL.num_heads * SMALL.head_dim * length
    # The last product of a layer is not needed to go backward from it.
    spared = SMALL.num_layers * SMALL.embed_dim * SMALL.mlp_dim
    layers = 2 * rows * length * (4 * (weights + scores) - spared)
    head = 2 * rows * NEW * 4 * SMALL.vocab_size * SMALL.embed_dim
    found = compiled.work(executable.as_text())
    assert found.flops * 8 == pytest.approx(layers + head, rel=0.03)
    assert found.open_loops == 0


def test_what_is_gathered_are_weights_in_half_precision(train_step):
    """A gather of activations would grow with the rows; a device never has more than a few layers' worth coming."""
    config, _, _, program = train_step
    if config.mesh.tensor > 1:
        pytest.skip("with a tensor axis activations are exchanged by design")
    rows, length = PROMPTS * GROUP // shards(config), PROMPT + NEW
    for collective in hlo.collectives(program):
        for array in collective.arrays:
            if collective.kind == "all-gather" and array.size > 8 * SMALL.embed_dim:
                assert array.size < rows * length * SMALL.embed_dim, (array, collective.source)


def command(monkeypatch, capsys, *arguments, spec=TINY, devices=True):
    if devices:
        monkeypatch.setattr(aot, "open_topology", lambda name: jax.devices())
    code = aot.main(["experiments.aot", f"--config={spec}", *arguments])
    return code, capsys.readouterr()


def test_the_report_of_all_programs(monkeypatch, capsys, tmp_path):
    code, shown = command(
        monkeypatch, capsys, "--topology=v5e:2x4", "--config.warm_start.steps=0", "--config.mesh.fsdp=4",
        f"--json={tmp_path}/figures.json",
    )  # fmt: skip
    assert code == 0, shown
    assert "8 devices as 2 data x 4 fsdp x 1 tensor" in shown.out
    for name in ("train step: fits", "scoring step: fits", "decode program: fits"):
        assert name in shown.out
    figures = json.loads((tmp_path / "figures.json").read_text())["programs"]
    assert [entry["name"] for entry in figures] == ["train step", "scoring step", "decode program"]
    train, score, decode = figures
    assert train["memory"]["alias"] == train["state"]
    assert train["work"]["flops"] > score["work"]["flops"] > 0
    assert decode["work"]["open_loops"] == 1
    assert all(entry["roofline"]["limit"] in ("compute", "memory", "interconnect") for entry in figures)


def test_programs_over_an_adapter_hold_the_base_and_train_the_rest():
    """The state is the adapter and its moments; the base is an argument, and there is no reference beside it."""
    config = small_config(data=2, fsdp=4)
    config.adapter.kind, config.rl.loss.kl_coefficient = "dora", 0.1  # LoRA and the magnitudes
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NAMED, "small", SMALL)
        model = programs.abstract_model(config, jax.devices())
        found = programs.parts(config, model)
        memory = compiled.memory(found["train"].lower().compile())
        for name in ("score", "decode"):
            found[name].lower()
        config.adapter.kind = "none"
        whole = programs.parts(config, model)
    assert found["train"].state < 0.2 * whole["train"].state
    assert memory.alias == found["train"].state
    weights = whole["train"].state / 3  # with two moments
    assert found["train"].state + weights <= memory.argument < found["train"].state + 1.1 * weights
    assert found["train"].held == 0 < whole["train"].held


def test_sft_has_a_train_step(monkeypatch, capsys):
    code, shown = command(
        monkeypatch,
        capsys,
        "--topology=v5e:2x4",
        "--config.model.path=random:tiny_qwen3",
        spec="configs/sft_arithmetic.py",
    )
    assert code == 0, shown
    assert "train step: fits" in shown.out


def test_what_does_not_fit_is_an_answer(monkeypatch, capsys):
    """A chip of 4 MiB under a program of 5: the exit code says it, and the report what to change."""
    x = jax.ShapeDtypeStruct((1024, 1024), "float32")
    part = programs.Part("train step", lambda: jax.jit(lambda x: x + 1).lower(x), state=3 * 2**20, held=2**20)
    monkeypatch.setattr(programs, "parts", lambda config, model: {"train": part})
    monkeypatch.setitem(compiled.CHIPS, "v5e", compiled.CHIPS["v5e"]._replace(memory=4 * 2**20))
    code, shown = command(monkeypatch, capsys, "--topology=v5e:2x4", "--programs=train")
    assert code == aot.DOES_NOT_FIT
    assert "train step: DOES NOT FIT" in shown.out
    assert "--config.mesh.fsdp=2" in shown.out
    assert "--config.train.micro_batches=2" in shown.out
    assert re.search(r"large array .*f32\[1024,1024\]", shown.out)


def test_what_the_compiler_refuses_is_an_answer_too(monkeypatch, capsys):
    """Its words for it, as libtpu 0.0.52 says them; the arrays named are those of the whole program."""
    lowered = jax.jit(lambda x: x @ x).lower(jax.ShapeDtypeStruct((1024, 1024), "float32"))

    class Refused:
        compiler_ir = lowered.compiler_ir

        def compile(self):
            raise RuntimeError(
                "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for "
                "HLO temporaries (24.50G) exceeds available HBM (15.75G). HLO module: jit_step."
            )

    part = programs.Part("train step", Refused, state=2**20, held=0)
    monkeypatch.setattr(programs, "parts", lambda config, model: {"train": part})
    code, shown = command(monkeypatch, capsys, "--topology=v5e:2x4", "--programs=train")
    assert code == aot.DOES_NOT_FIT
    assert "24.50 GiB needed of 15.75 GiB" in shown.out
    assert re.search(r"large array +0.5 MiB  f32\[1024,1024\] over 8 devices", shown.out)


def test_a_text_that_cannot_be_read_leaves_the_operations(monkeypatch, capsys):
    lowered = jax.jit(lambda x: x @ x).lower(jax.ShapeDtypeStruct((1024, 1024), "float32"))
    executable = lowered.compile()

    class Unreadable:
        compiler_ir = lowered.compiler_ir
        memory_analysis, cost_analysis = executable.memory_analysis, executable.cost_analysis

        def compile(self):
            return self

        def as_text(self):
            raise RuntimeError("INTERNAL: async-update instruction should have 1 operands but sees 3")

    figures = aot.compile_part(programs.Part("train step", Unreadable, 0, 0), compiled.CHIPS["v5e"], 8)
    assert figures["work"]["flops"] == 2 * 1024**3 / 8
    assert "collectives are not known" in aot.report(figures)
    assert "interconnect unknown ms" in aot.report(figures)


MISTAKES = {
    "no topology": ((), TINY, r"--topology=CHIP:SHAPE is missing"),
    "a mesh": (("--topology=v5e:2x4", "--config.mesh.fsdp=3"), TINY, r"mesh.fsdp=3.* does not fit 8 device"),
    "rows": (
        ("--topology=v5e:2x4", "--config.rollout.prompts_per_step=12"),
        TINY,
        r"12 rows .* 8 devices .* multiple of 8",
    ),
    "a program": (("--topology=v5e:2x4", "--programs=train,serve"), TINY, r"no program 'serve'; it has train, score"),
    "a model": (("--topology=v5e:2x4", "--config.model.path=qwen3"), TINY, r"there is no model 'qwen3'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_answered_in_a_sentence(monkeypatch, capsys, mistake):
    arguments, spec, message = MISTAKES[mistake]
    code, shown = command(monkeypatch, capsys, *arguments, spec=spec)
    assert code == 2
    (line,) = shown.err.strip().splitlines()
    assert re.match(r"experiments.aot: error: .*" + message, line), line


def test_without_the_extra_it_is_named(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "libtpu" else find(name, *rest)
    )
    code, shown = command(monkeypatch, capsys, "--topology=v5e:2x2", devices=False)
    assert code == 2
    assert "jaxalign[tpu-aot]" in shown.err


def test_an_unknown_topology_is_answered_with_names(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: find("jax" if name == "libtpu" else name, *rest)
    )
    for name in ("v5e-8", "v9:2x2", "v5e"):
        code, shown = command(monkeypatch, capsys, f"--topology={name}", devices=False)
        assert code == 2
        assert f"--topology={name!r} is not known" in shown.err
        assert "v6e:{1x1, 2x2" in shown.err


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra tpu-aot")
def test_a_slice_that_is_not_there(capsys, tmp_path):
    """One test for all, since one process at a time has the compiler: three programs, and a shape that is not one."""
    code = aot.main(
        [
            "experiments.aot", f"--config={TINY}", "--topology=v5e:2x2", "--config.warm_start.steps=0",
            "--config.mesh.fsdp=2", f"--json={tmp_path}/figures.json",
        ]
    )  # fmt: skip
    shown = capsys.readouterr()
    assert code == 0, shown
    train, score, decode = json.loads((tmp_path / "figures.json").read_text())["programs"]
    assert train["memory"]["alias"] >= train["state"]  # small arrays are padded to tiles
    assert train["work"]["collectives"]
    assert score["fits"] and decode["fits"]
    assert aot.main(["experiments.aot", f"--config={TINY}", "--topology=v5e:3x3"]) == 2
    assert "does not exist" in capsys.readouterr().err
