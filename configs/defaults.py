"""What every recipe starts from: one function per kind of experiment, groups by concern, a unit or range at each value.

A recipe calls one of these and changes what its paper changes. `arguments` parses the part after the colon of
`--config=configs/<name>.py:<words>`.
"""

import ml_collections

from jaxalign.errors import UserError
from jaxalign.models.config import HUB_IDS


def arguments(text: str | None, known: dict[str, str]) -> set[str]:
    """Words of `text` (comma separated); each must be a key of `known` (word -> what it does)."""
    words = {word for word in (text or "").split(",") if word}
    for word in words - set(known):
        meanings = "; ".join(f"{name}: {meaning}" for name, meaning in known.items())
        raise UserError(f"--config=...:{word} is not known here; use one or more of [{meanings}]")
    return words


SIZES = {name: f"weights of {hub_id}" for name, hub_id in HUB_IDS.items()}


def model() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    # "auto" (your Qwen where given, else the embedded SmolLM2-135M-Instruct), a Hugging Face folder or hub id,
    # a .gguf file, or "random:<name>" for untrained weights of a named size with a byte tokenizer.
    config.path = "auto"
    config.compute_dtype = "bfloat16"  # operands of matrix products; "float32" is exact and slower
    config.remat = "full"  # none | full | products: what the backward pass recomputes
    config.attention = "auto"  # auto | xla | cudnn
    return config


def optimizer() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.name = "adamw"
    config.learning_rate = 1e-5  # peak
    config.schedule = "constant"
    config.warmup_steps = 0
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


def train(steps: int) -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.steps = steps  # optimizer updates are steps x what the experiment does in one
    config.micro_batches = 1  # split of the batch whose gradients are summed before the update
    config.save_every = 0  # steps between checkpoints; 0: at the end and when stopped
    config.keep = 2  # newest checkpoints kept
    config.evaluate_every = 0  # steps between evaluations; 0: before and after only
    config.max_skipped_in_a_row = 5  # non-finite steps in a row that stop the run
    return config


def base(name: str, experiment: str, steps: int) -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.name = name
    config.experiment = experiment  # the module experiments/<experiment>.py that runs this
    config.seed = 0
    config.model = model()
    config.optimizer = optimizer()
    config.mesh = mesh()
    config.train = train(steps)
    return config


def rl(name: str) -> ml_collections.ConfigDict:
    """Group-relative policy-gradient training on questions with a checkable answer."""
    config = base(name, "rl", steps=40)

    config.data = ml_collections.ConfigDict()
    config.data.source = (
        "arithmetic"  # arithmetic | reasoning_gym:<dataset> | tfds:<name> | a .jsonl/.parquet file or folder
    )
    config.data.held_out = "arithmetic:held_out"  # the same forms; never trained on
    config.data.prompt_field = "prompt"
    config.data.chat = True  # wrap the prompt as a user message in the model's chat template
    config.data.system_prompt = ""  # "": what the template itself does without one
    config.data.max_prompt_tokens = 64  # longer prompts are an error

    config.rollout = ml_collections.ConfigDict()
    config.rollout.prompts_per_step = 8
    config.rollout.group_size = 8  # completions per prompt, G
    config.rollout.max_new_tokens = 12
    config.rollout.temperature = 1.0
    config.rollout.top_k = 0  # 0: off
    config.rollout.top_p = 1.0
    config.rollout.min_p = 0.0
    config.rollout.stop_strings = ()
    config.rollout.slots = 0  # rows decoded at once, refilled as they finish; 0: all

    config.reward = ml_collections.ConfigDict()
    config.reward.names = ("last_integer",)  # built-in verifiers, or "module:function" of your own
    config.reward.weights = (1.0,)
    config.reward.time_limit = 5.0  # seconds per call of your own functions

    config.rl = ml_collections.ConfigDict()
    config.rl.method = "grpo"  # a preset of jaxalign.methods; the values below override it where not None
    config.rl.epochs = 1  # passes over each batch of completions
    config.rl.batches_per_epoch = 1  # optimizer updates per pass
    config.rl.kl_coefficient = 0.0  # beta; 0 keeps the reference for reporting only if report_kl
    config.rl.report_kl = True  # holds a reference copy in compute dtype and reports k3 to it
    config.rl.share_prompt = True  # completions of a group share one row behind their prompt
    config.rl.settings = ml_collections.ConfigDict()  # keyword overrides of the preset, see docs/configs.md

    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.max_questions = 256
    config.evaluation.max_new_tokens = 12
    config.evaluation.base_max_new_tokens = 64  # the untrained model is also given this many; 0: no
    config.evaluation.slots = 128

    config.warm_start = ml_collections.ConfigDict()  # supervised steps before RL, for untrained weights
    config.warm_start.steps = 0
    return config


def sft(name: str) -> ml_collections.ConfigDict:
    """Supervised fine-tuning on (prompt, completion) pairs; the loss counts completion tokens only."""
    config = base(name, "sft", steps=100)
    config.data = ml_collections.ConfigDict()
    config.data.source = "arithmetic"
    config.data.held_out = "arithmetic:held_out"
    config.data.prompt_field = "prompt"
    config.data.completion_field = "answer"
    config.data.chat = True
    config.data.system_prompt = ""
    config.data.row_length = 128  # tokens of a packed row
    config.data.rows_per_step = 8
    config.data.too_long = "error"  # error | drop (counted)
    config.sft = ml_collections.ConfigDict()
    config.sft.aggregation = "token-mean"
    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.max_questions = 256
    config.evaluation.max_new_tokens = 12
    config.evaluation.base_max_new_tokens = 0
    config.evaluation.slots = 128
    return config
