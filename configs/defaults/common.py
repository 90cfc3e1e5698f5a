"""The groups that every experiment has, such as model, optimizer and mesh; and the options of a function as a group."""

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from jaxalign.models.lora import ALL_LINEAR


def model() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    # "auto" (your Qwen where given, else the embedded SmolLM2-135M-Instruct), a Hugging Face folder or hub id,
    # a .gguf file, or "random:<name>" for untrained weights of a named size with a byte tokenizer.
    config.path = "auto"
    config.compute_dtype = "bfloat16"  # operands of matrix products; "float32" is exact and slower
    config.remat = "full"  # none | full | products: what the backward pass recomputes
    config.attention = "auto"  # auto | xla | cudnn | flash_tpu (packed rows on one TPU device)
    return config


def adapter() -> ml_collections.ConfigDict:
    """Low-rank adapters: the weights of the model stay as they are, and are the reference (see docs/lora.md)."""
    config = ml_collections.ConfigDict()
    config.kind = "none"  # none: all weights are trained | lora | dora
    config.rank = 8
    config.alpha = 16.0  # the change is alpha / rank times the product of the factors
    config.rank_scaled = False  # rsLoRA: alpha / sqrt(rank)
    # Regular expressions for whole paths, such as r"layers/attention/(query|value)"; these are all linear layers
    config.targets = ALL_LINEAR
    config.path = ""  # a folder in PEFT's format to go on from; "": the factors start at a change of 0
    return config


def optimizer() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.name = "adamw"
    config.learning_rate = 1e-5  # peak
    config.schedule = "constant"  # constant | linear | cosine | inverse_sqrt
    config.warmup_steps = 0
    config.final_fraction = 0.0  # of the peak, below which a schedule does not fall
    config.weight_decay = 0.0  # not on norms and biases
    config.max_grad_norm = 1.0  # 0: no clipping
    config.b1 = 0.9
    config.b2 = 0.999
    config.epsilon = 1e-8
    config.moment_dtype = "float32"  # of the first moment; "bfloat16" saves 2 bytes a parameter
    return config


def mesh() -> ml_collections.ConfigDict:
    """Devices along each axis; -1 takes what is left."""
    return ml_collections.ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})


def distributed() -> ml_collections.ConfigDict:
    """Several processes: nothing to set on a Cloud TPU slice, under srun or mpirun (docs/pods.md)."""
    config = ml_collections.ConfigDict()
    config.coordinator_address = ""  # "host:port" of the first process
    config.num_processes = config_dict.placeholder(int)
    config.process_id = config_dict.placeholder(int)  # 0 .. num_processes - 1, another for each
    return config


def train(steps: int) -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.steps = steps  # optimizer updates are steps x what the experiment does in one
    config.micro_batches = 1  # split of the batch whose gradients are summed before the update
    config.save_every = 0  # steps between checkpoints; 0: at the end and when stopped
    config.keep = 2  # newest checkpoints kept
    # Checkpoints are written behind the training, which costs a copy of the state; unset: on all backends but the CPU
    config.save_behind = config_dict.placeholder(bool)
    config.evaluate_every = 0  # steps between evaluations; 0: before and after only
    # Of the moving average of what is trained, which is then what is evaluated (and exported by --average); 0: none
    config.ema_decay = 0.0
    config.max_skipped_in_a_row = 5  # non-finite steps in a row that stop the run
    return config


def base(name: str, experiment: str, steps: int) -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.name = name
    config.experiment = experiment  # the module experiments/<experiment>.py that runs this
    config.seed = 0
    config.profile = ""  # steps to trace into <workdir>/profile: "3" or "3-5"
    config.model = model()
    config.adapter = adapter()
    config.optimizer = optimizer()
    config.mesh = mesh()
    config.distributed = distributed()
    config.train = train(steps)
    return config


def options_of(
    function: Callable, preset: Mapping[str, Any], *, without: tuple[str, ...] = ()
) -> ml_collections.ConfigDict:
    """The keyword options of a piece as config keys: its own defaults, changed by `preset`; not those in `without`.

    Only numbers, texts and switches are options; arrays are arguments. An option that is off (None) keeps its type.
    """
    config = ml_collections.ConfigDict()
    hints = typing.get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        kinds = [kind for kind in (bool, int, float, str) if _allows(hints.get(name), kind)]
        if parameter.kind is parameter.KEYWORD_ONLY and kinds and name not in without:
            value = preset.get(name, parameter.default)
            config[name] = config_dict.placeholder(kinds[-1]) if value is None else value
    unknown = set(preset) - set(config)
    if unknown:
        raise TypeError(f"{function.__name__} has no option {min(unknown)!r}")
    return config


def _allows(hint: Any, kind: type) -> bool:
    if typing.get_origin(hint) is typing.Literal:
        return all(type(value) is kind for value in typing.get_args(hint))
    return hint is kind or any(_allows(part, kind) for part in typing.get_args(hint))


def untrained(config: ml_collections.ConfigDict) -> None:
    """Turns a recipe into its smallest form: a Qwen3 of 0.8 M parameters from nothing, on sums."""
    config.model.path = "random:tiny_qwen3"
    config.model.remat = "none"
    config.data.source = "arithmetic?split=train&operations=+&template={question}="
    config.data.held_out = "arithmetic?split=held_out&operations=+&template={question}="
    config.data.chat = False
    config.evaluation.max_new_tokens = (4,)
