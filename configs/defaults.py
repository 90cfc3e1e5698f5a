"""What every recipe starts from: one function per kind of experiment, groups by concern, a unit or range at each value.

A recipe calls one of these and changes what its paper changes. `arguments` parses the part after the colon of
`--config=configs/<name>.py:<words>`.
"""

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from experiments.embedding_losses import LOSSES as LOSSES_OF_EMBEDDINGS
from jaxalign.controllers import label_confidence, modality_gap, prompt_gdro, reward_shift, rollout_gdro
from jaxalign.controllers.policy_drift import retention
from jaxalign.controllers.prompt_sampling import sampling_probabilities
from jaxalign.errors import UserError
from jaxalign.losses.chain_alignment import aft_loss, pro_loss, rrhf_loss
from jaxalign.losses.class_alignment import cafa_loss
from jaxalign.losses.dypo import dypo_loss
from jaxalign.losses.grao import grao_loss
from jaxalign.losses.graph_text import graph_text_loss
from jaxalign.losses.multi_objective import multi_objective_loss
from jaxalign.losses.policy_gradient import policy_loss
from jaxalign.losses.ppo import ppo_loss
from jaxalign.losses.preference import preference_loss
from jaxalign.losses.preference_unpaired import unpaired_loss
from jaxalign.losses.proclip import distillation_loss, proclip_loss
from jaxalign.losses.supervised import supervised_loss
from jaxalign.losses.symbolic.compilation import symbolic_loss
from jaxalign.methods import get_method
from jaxalign.models.config import HUB_IDS
from jaxalign.models.lora import ALL_LINEAR
from jaxalign.models.resnet import NORMALISATION
from jaxalign.rewards.advantages import ADVANTAGES
from jaxalign.rewards.density_ratio import density_ratio
from jaxalign.rewards.gae import gae
from jaxalign.rewards.inference_aware import transform


def arguments(text: str | None, known: dict[str, str]) -> set[str]:
    """Words of `text` (comma separated); each must be a key of `known` (word -> what it does)."""
    words = {word for word in (text or "").split(",") if word}
    for word in words - set(known):
        meanings = "; ".join(f"{name}: {meaning}" for name, meaning in known.items())
        raise UserError(f"--config=...:{word} is not known here; use one or more of [{meanings}]")
    return words


def one_of(words: set[str], choices: Iterable[str], default: str) -> str:
    """The one word of `choices` that was given, else the default."""
    given = sorted(words & set(choices))
    if len(given) > 1:
        raise UserError(f"--config=...:{','.join(given)}: give one of them, they exclude each other")
    return given[0] if given else default


SIZES = {name: f"weights of {hub_id}" for name, hub_id in HUB_IDS.items()}


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


def questions() -> ml_collections.ConfigDict:
    """Where prompts come from. A source is what `jaxalign.data.sources.load_source` reads."""
    config = ml_collections.ConfigDict()
    # "arithmetic?split=train", "reasoning_gym:chain_sum?split=train", "tfds:name?split=train", a .jsonl or .parquet
    # file (or a pattern of them), or a folder of `datasets.save_to_disk`
    config.source = "arithmetic?split=train"
    config.held_out = "arithmetic?split=held_out"  # the same forms, never trained on; "": no evaluation
    config.prompt_field = "prompt"
    config.answer_fields = ()  # answers of which one joins each group, where an objective learns from given ones
    config.chat = True  # the prompt as a user message in the model's chat template; False: as it stands
    config.system_prompt = ""  # "": what the template itself does without one
    config.template_options = ml_collections.ConfigDict({"enable_thinking": False})  # variables of the chat template
    config.max_prompt_tokens = 64  # a longer prompt is an error
    return config


def reward() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.names = ("last_integer",)  # built-in verifiers, or "module:function" of your own; the first is the verifier
    config.weights = (1.0,)
    config.options = ml_collections.ConfigDict()  # by reward: --config.reward.options.last_number="{'tolerance': 0.1}"
    config.time_limit = 5.0  # seconds for one call of a function of your own
    return config


def evaluation(*budgets: int) -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.max_questions = 256
    config.max_new_tokens = budgets  # one decode of the largest gives the solve rate at each
    config.slots = 64  # rows decoded at once; 0: all
    return config


def packing() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.completion_field = "answer"
    config.row_length = 128  # tokens of a packed row
    config.rows_per_step = 8
    config.too_long = "error"  # error | drop (counted)
    return config


LOSSES = {
    function.__name__: function
    for function in (policy_loss, grao_loss, dypo_loss, aft_loss, rrhf_loss, pro_loss, ppo_loss)
}


def prompts() -> ml_collections.ConfigDict:
    """What is remembered of each prompt of the data set, and what follows from it; all off."""
    config = ml_collections.ConfigDict()
    config.outcome = "mean"  # mean | any (one right completion is enough) of a group's first reward
    config.window = 0  # outcomes of each prompt that its difficulty is read from; 0: all
    config.trials = 0  # completions of every prompt before training, for a baseline that knows something
    config.baseline = False  # rewards are measured against the success rate of their prompt; needs group_size = 1
    config.forgetting = options_of(retention, {})  # of the success rate, by how far the policy has moved
    config.sampling = options_of(sampling_probabilities, {})  # uncertain prompts come more often
    config.sampling.enabled = False
    config.edges = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # success rates between the difficulty classes
    config.hysteresis = 0.03  # beyond an edge before a prompt changes its class
    config.weighting = options_of(prompt_gdro.update, {})  # hard classes weigh more
    config.weighting.enabled = False
    config.weighting.signal = "error"  # error (1 - mean outcome) | surrogate (minus the mean advantage)
    config.allocation = options_of(rollout_gdro.arm_log_probs, {})  # completions are dealt out by class
    config.allocation.enabled = False
    config.allocation.least = 2  # completions of a prompt
    config.allocation.most = 12  # their mean is rollout.group_size, exactly
    config.allocation.utility = "variance_proxy"  # variance_proxy | minus_loss | plus_loss
    config.allocation.price_step = 0.05
    return config


def rl(name: str, method: str = "grpo", *, steps: int) -> ml_collections.ConfigDict:
    """Group-relative policy-gradient training on questions with a checkable answer, with the settings of a method."""
    config = base(name, "rl", steps)
    config.data = questions()

    config.rollout = ml_collections.ConfigDict()
    config.rollout.prompts_per_step = 8
    config.rollout.group_size = 8  # completions per prompt, G
    config.rollout.max_new_tokens = 12
    config.rollout.temperature = 1.0
    config.rollout.top_k = 0  # 0: off
    config.rollout.top_p = 1.0
    config.rollout.min_p = 0.0
    config.rollout.stop_strings = ()
    # Batches of prompts drawn at most in a step until groups whose rewards differ fill it (dynamic sampling); others
    # are left out of the loss. 1: every group is kept.
    config.rollout.max_draws = 1
    config.rollout.slots = 0  # rows decoded at once, refilled as they finish; 0: all

    row = get_method(method)
    config.reward = reward()
    config.reward.combine = "sum"  # sum | normalise_each: normalise every reward within its group first
    config.reward.kl_coefficient = float(row.kl_in_reward)  # of the summed k1 to the reference, taken off the reward

    config.reward.overlong_buffer = 0  # tokens before max_new_tokens over which a penalty grows to -1; 0: none
    # Rewards as quantiles of those of this many completions of each prompt by the first weights, transformed for what
    # decodes the policy; 0: off.
    config.reward.reference_completions = 0
    config.reward.transform = options_of(transform, {})

    config.rl = ml_collections.ConfigDict()
    config.rl.objective = row.pieces[0].rpartition(":")[2]  # the loss of which config.rl.loss are the options
    config.rl.epochs = 1  # passes over each batch of completions
    config.rl.batches_per_epoch = 1  # optimizer updates per pass
    config.rl.old_log_probs = "rollout"  # rollout | scored: of what sampled, with more than one update per batch
    config.rl.report_kl_prompts = 4  # prompts a step whose completions are also scored by the first weights; 0: none
    # Leaves groups of equal rewards out of the update wherever that changes nothing (no KL or entropy term in the loss,
    # one batch per epoch): the same gradient for less work.
    config.rl.drop_silent_groups = True
    config.rl.share_prompt = True  # completions of a group share one row behind their prompt (equal, and cheaper)
    config.rl.mask_truncated = False  # completions cut off by max_new_tokens count nothing in the loss
    config.rl.advantages = ml_collections.ConfigDict({"kind": row.advantages["kind"]})
    options = {key: value for key, value in row.advantages.items() if key != "kind"}
    config.rl.advantages.update(options_of({**ADVANTAGES, "gae": gae}[row.advantages["kind"]], options))
    config.rl.detach_values = True  # the value function's error does not move the policy (objective "ppo_loss")
    config.rl.leave_out = row.leave_out  # completions of each group, those of smallest |advantage|, not trained on
    config.rl.loss = options_of(LOSSES[config.rl.objective], row.loss)
    config.prompts = prompts()

    config.evaluation = evaluation(12, 64)

    config.warm_start = packing()  # supervised steps before RL, for untrained weights
    config.warm_start.steps = 0
    config.warm_start.learning_rate = 1e-3
    return config


def sft(name: str, *, steps: int) -> ml_collections.ConfigDict:
    """Supervised fine-tuning on (prompt, completion) pairs; the loss counts completion tokens only."""
    config = base(name, "sft", steps)
    config.data = questions()
    config.packing = packing()
    config.reward = reward()  # scores the held-out completions
    config.loss = options_of(supervised_loss, get_method("sft").loss)
    config.evaluation = evaluation(12)
    return config


def diagnostics() -> ml_collections.ConfigDict:
    """What is measured of the gradients of pairs while training (docs/methods/gradient_entanglement.md)."""
    config = ml_collections.ConfigDict()
    config.entanglement = False  # logs entanglement/..., and writes entanglement.html
    config.every = 50  # steps between two reports; the last step has one too
    config.pairs = 32  # of the training data, at most
    config.heat_maps = 2  # pairs whose tokens are compared before the last step
    config.heat_map_tokens = 24  # of each completion, at most
    return config


PREFERENCE_LOSSES = {
    function.__name__: function for function in (preference_loss, unpaired_loss, symbolic_loss, multi_objective_loss)
}


def preference(name: str, method: str = "dpo", *, steps: int) -> ml_collections.ConfigDict:
    """Preference training on pairs of completions, or on labelled ones where the method's loss takes those."""
    config = base(name, "preference", steps)
    row = get_method(method)
    loss = PREFERENCE_LOSSES[row.pieces[0].rpartition(":")[2]]
    labelled = loss is unpaired_loss
    config.data = questions()
    config.data.source = "arithmetic_pairs?split=train"  # pairs; or questions, where config.samples makes pairs of them
    config.data.held_out_pairs = "arithmetic_pairs?split=held_out"  # never trained on; "": no evaluation on pairs
    config.data.held_out = ""  # questions for a solve rate; "": none
    config.data.chosen_field = "chosen"
    config.data.rejected_field = "rejected"
    config.data.chosen_score_field = "chosen_score"
    config.data.rejected_score_field = "rejected_score"
    config.data.annotator_field = "annotator"  # who judged, where the source says
    config.data.objectives_field = "objectives"  # {name: 1, -1 or 0}: which completion each objective prefers
    config.data.completion_field = "completion"  # of labelled rows
    config.data.label_field = "label"  # true: desirable
    config.data.max_completion_tokens = 256
    config.data.bad = "error"  # error | skip: rows that make no pair are counted and left out

    config.preference = ml_collections.ConfigDict()
    config.preference.labelled = labelled  # single completions with labels; a pair of the source makes two of them
    config.preference.pairs_per_step = 8  # rows of a batch
    config.preference.share_prompt = True  # both completions behind one copy of their prompt (equal, and cheaper)
    # live: the reference's weights are held and score every batch | cached: they score all rows once, before training;
    # the log-probs are kept in the state and in a file that other runs on the same weights and rows find again
    config.preference.reference = "live"
    config.preference.reference_folder = ""  # of such files; "": reference/ in the workdir
    config.preference.length_desensitisation = 1.0  # LD-DPO's weight of tokens beyond the shorter completion; 1: off
    config.preference.offset_scale = 1.0  # of odpo: the offset is this times the difference of scores
    config.preference.shift = options_of(reward_shift.update, {}, without=("axis_name",))
    config.preference.shift.enabled = False  # of bco: the reward shift follows the rewards of the batches
    config.preference.confidence = options_of(label_confidence.update, {}, without=("axis_name",))
    config.preference.confidence.enabled = False  # labels may be wrong, and annotators differ in how often they are
    config.preference.confidence.start = 0.9  # reliability of every annotator before training
    config.preference.confidence.mode = "gibbs"  # gibbs | weighted-loss
    config.preference.density_ratio = options_of(density_ratio, {})
    config.preference.density_ratio.enabled = False  # undesirable rows weigh as their prompts are among the others
    config.preference.density_ratio.prompts = 1024  # of each class, that the classifier is fitted to
    config.preference.density_ratio.l2 = 1.0
    # Which tokens a completion's log-prob sums: identity (all) | diff (those outside a longest common subsequence of
    # the two completions)
    config.preference.gate = "identity"
    # loss (its gradient) | normalised: the gradients of chosen and of rejected log-probs get equal norms
    config.preference.gradient = "loss"
    # Several objectives, name -> weight, of sum 1; "brief" prefers the shorter completion where a row does not say
    config.preference.objectives = ml_collections.ConfigDict()
    # How their gradients are made into one: raco | cagrad (raco without clipping) | weighted | min_norm (MGDA)
    config.preference.conflict = "raco"
    config.preference.radius = 0.4  # c in [0, 1) of raco and cagrad: size of the correction over that of the gradient

    config.loss = options_of(loss, row.loss)
    config.diagnostics = diagnostics()

    config.samples = ml_collections.ConfigDict()  # pairs of the first policy's own samples on questions
    config.samples.per_question = 0  # completions; 0: data.source holds pairs itself
    config.samples.questions = 0  # how many questions; 0: all
    config.samples.pairs_per_question = 2
    config.samples.max_new_tokens = 12
    config.samples.temperature = 1.0
    config.samples.questions_at_once = 64
    config.samples.slots = 64  # rows decoded at once; 0: all
    config.reward = reward()  # ranks the samples, and scores the held-out completions

    config.evaluation = evaluation(12)
    config.evaluation.max_pairs = 256

    config.warm_start = packing()  # supervised steps first, for untrained weights
    config.warm_start.steps = 0
    config.warm_start.learning_rate = 1e-3
    return config


def contrastive(name: str, method: str = "clip", *, steps: int) -> ml_collections.ConfigDict:
    """Training of encoders by a loss of embeddings, on pairs, groups, views or labelled examples."""
    config = base(name, "contrastive", steps)
    del config.model  # of decoders
    row = get_method(method)
    config.data = ml_collections.ConfigDict()
    config.data.source = "view_pairs?split=train"
    config.data.held_out = "view_pairs?split=held_out"  # "": no retrieval
    config.data.similarities = ""  # pairs with a score of theirs, for a rank correlation; "": none
    config.data.first_field = "first"  # of pairs, and what labelled examples are embedded by
    config.data.second_field = "second"
    config.data.label_field = "label"
    config.data.score_field = "score"
    config.data.id_field = ""  # integers; rows of equal ones are no negatives of each other. "": all differ

    config.encoders = ml_collections.ConfigDict()
    config.encoders.shared = False  # one encoder for both sides
    for side in ("first", "second"):
        encoder = ml_collections.ConfigDict()
        encoder.path = ""  # "auto" (MiniLM), a Hugging Face folder or hub id; "": linear maps for vectors and pictures
        encoder.hidden_dims = (128,)
        encoder.out_dim = 32
        encoder.dropout = 0.0
        encoder.input_dropout = 0.0
        config.encoders[side] = encoder

    config.contrastive = ml_collections.ConfigDict()
    config.contrastive.loss = row.pieces[0].rpartition(":")[2]  # of which config.loss are the options
    config.contrastive.batch_size = 256
    config.contrastive.classes_per_batch = 0  # labelled examples: so many classes in a batch; 0: as they come
    config.contrastive.dropout = False  # of the encoders, while training
    config.contrastive.views = 3  # of each example, for losses of views (their dropout is on)
    config.contrastive.pool = "all"  # all | data | fsdp: axes of the mesh whose rows are each other's negatives
    loss = LOSSES_OF_EMBEDDINGS[config.contrastive.loss]
    preset = {key: value for key, value in row.loss.items() if key not in loss.given}
    config.loss = options_of(loss.function, preset)
    config.loss.update({key: float(row.loss.get(key, value)) for key, value in loss.given.items()})
    config.evaluation = ml_collections.ConfigDict({"batch_size": 256})  # examples embedded at once
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.max_grad_norm = 0.0
    return config


def graph_text(name: str, method: str = "llm4gta", *, steps: int) -> ml_collections.ConfigDict:
    """Alignment of the nodes of a graph with their texts, which keeps a gap between them."""
    config = base(name, "graph_text", steps)
    del config.model, config.adapter  # of decoders
    config.data = ml_collections.ConfigDict()
    config.data.source = "text_graph?split=train"  # nodes of one graph
    config.data.held_out = "text_graph?split=held_out"  # of another one; "": no evaluation
    config.data.classes = "text_graph?split=classes"  # a text and a number of each class; "": no zero-shot accuracy
    config.data.id_field = "id"
    config.data.neighbours_field = "neighbours"  # a list of ids: the nodes that this one reads
    config.data.features_field = "features"  # numbers
    config.data.text_field = "text"  # a text, or its vector
    config.data.class_field = "meaning"  # which of the classes; integers, null where it is not known; "": none
    config.data.label_field = "community"  # what the classifier learns; the same
    config.labelled = 0.1  # share of nodes whose label the classifier is told
    config.batch_size = 256  # nodes

    config.encoders = ml_collections.ConfigDict()
    config.encoders.graph = ml_collections.ConfigDict({"hidden_dims": (64,)})
    config.encoders.text = ml_collections.ConfigDict()
    # "auto" (MiniLM), a Hugging Face folder or hub id; "": linear maps, for texts that are given as vectors
    config.encoders.text.path = ""
    config.encoders.text.hidden_dims = ()
    config.encoders.text.out_dim = 32  # of linear maps; the graph encoder has the size of what reads the texts
    config.encoders.text.dropout = 0.0
    config.encoders.text.input_dropout = 0.0
    # Before the first step: the graph encoder learns to tell edges from other pairs of nodes
    config.pretraining = ml_collections.ConfigDict({"steps": 200, "pairs": 512, "learning_rate": 2e-3})

    config.gap = options_of(modality_gap.update, {})
    config.gap.enabled = True  # False: the pull stays at 1, and there is no band
    config.loss = options_of(
        graph_text_loss, get_method(method).loss, without=("alignment_weight", "low", "high", "axis_name")
    )
    config.evaluation = ml_collections.ConfigDict({"probe_labels": 5})  # of each label, that the probe is told
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.max_grad_norm = 0.0
    return config


def text_replacement(name: str, method: str = "proclip", *, steps: int) -> ml_collections.ConfigDict:
    """Another text encoder for a trained pair of towers: distilled first, then tuned with the image encoder."""
    config = base(name, "text_replacement", steps)  # train.steps counts both stages
    del config.model, config.adapter  # of decoders
    del config.train.ema_decay  # see average_decay
    config.data = ml_collections.ConfigDict()
    config.data.pretraining = "concept_pairs?split=pretraining"  # images and captions, to train the old towers on
    config.data.texts = "concept_pairs?split=texts"  # stage 1: captions and their embeddings
    config.data.source = "concept_pairs?split=train"  # stage 2: images and embeddings of their texts
    config.data.held_out = "concept_pairs?split=held_out"  # images, captions and embeddings; "": no retrieval
    config.data.images = "concept_pairs?split=absent"  # with their concepts; "": no zero-shot accuracy
    config.data.classes = "concept_pairs?split=classes"  # a text of each concept, as caption and as embedding
    config.data.image_field = "image"
    config.data.caption_field = "caption"  # what the old text encoder reads
    config.data.embedding_field = "embedding"  # what the language model said of the text
    config.data.concept_field = "concept"

    config.encoders = ml_collections.ConfigDict()
    for kind in ("image", "text", "adapter"):
        encoder = ml_collections.ConfigDict()
        encoder.path = ""  # a Hugging Face folder or hub id; "": linear maps
        encoder.hidden_dims = (128,)
        encoder.out_dim = 32
        encoder.dropout = 0.0
        encoder.input_dropout = 0.0
        config.encoders[kind] = encoder
    config.scale = 20.0  # of the logits, at the start of stage 2, which learns it

    # Of image and old text encoder, before anything; steps 0: they are trained already
    config.pretraining = ml_collections.ConfigDict({"steps": 800, "batch_size": 256, "learning_rate": 1e-3})
    config.distillation = ml_collections.ConfigDict({"steps": 600, "batch_size": 128, "learning_rate": 1e-3})
    config.distillation.loss = options_of(distillation_loss, {})
    config.batch_size = 128  # of stage 2
    config.average_decay = 0.999  # of the image encoder's moving average, which stage 2 holds on to
    config.loss = options_of(proclip_loss, get_method(method).loss, without=("axis_name",))
    config.evaluation = ml_collections.ConfigDict({"batch_size": 256})  # examples embedded at once
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 5e-4
    config.optimizer.max_grad_norm = 0.0
    return config


def adapt(name: str, method: str = "cafa", *, steps: int) -> ml_collections.ConfigDict:
    """Adaptation of an image classifier to a stream of test batches without labels; a step is one batch."""
    config = base(name, "adapt", steps)
    del config.model, config.adapter  # of decoders
    config.data = ml_collections.ConfigDict()
    config.data.source = "drawn_digits?split=train&size=900"  # clean pictures with labels
    config.data.held_out = "drawn_digits?split=held_out&size=900"  # the stream; their labels only score it
    config.data.image_field = "image"
    config.data.label_field = "label"

    config.network = ml_collections.ConfigDict()  # jaxalign.models.resnet.ResNet
    config.network.widths = (16, 32)
    config.network.blocks = 0  # residual blocks of a stage
    config.network.feature_dim = 32

    config.source = ml_collections.ConfigDict()
    config.source.path = ""  # workdir of an earlier run whose classifier is taken; "": it is trained first
    config.source.steps = 500
    config.source.batch_size = 64
    config.source.learning_rate = 2e-3

    config.stream = ml_collections.ConfigDict()
    config.stream.corruptions = ("noise", "contrast", "blur")  # jaxalign.data.corruptions
    config.stream.batches = 84  # of a corruption, before the next one comes
    config.stream.batch_size = 64
    config.stream.reset = True  # every corruption begins with the source weights

    config.adapt = ml_collections.ConfigDict()
    config.adapt.objective = "cafa"  # cafa | entropy | global
    config.adapt.parameters = NORMALISATION  # regular expression for the paths of what is adapted
    config.adapt.tied = config_dict.placeholder(bool)  # one covariance for all classes; unset: if a class has few rows
    config.adapt.shrinkage = 0.05  # of covariances, times their mean diagonal
    config.loss = options_of(cafa_loss, get_method(method).loss)
    return config


def matching(name: str, *, steps: int) -> ml_collections.ConfigDict:
    """Test-time matching of groups of images and captions by two towers; a step is one iteration."""
    config = base(name, "matching", steps)
    del config.model, config.adapter  # of decoders
    config.data = ml_collections.ConfigDict()
    config.data.groups = "order_pairs"  # the built-in world, or an .npz file with images [G, m, D], captions [G, k, D']
    config.data.groups_number = 300  # of the built-in world
    config.data.pairs = "order_pairs"  # to train the towers on, or an .npz file with images [N, D], captions [N, D']

    config.towers = ml_collections.ConfigDict({"hidden_dims": (128,), "out_dim": 32})
    config.source = ml_collections.ConfigDict()  # the towers before any matching
    config.source.steps = 150
    config.source.batch_size = 128
    config.source.learning_rate = 1e-3

    config.matching = ml_collections.ConfigDict()
    config.matching.loss = "siglip"  # siglip | clip
    config.matching.iterations = steps  # over which the threshold goes from its start to its end
    config.matching.epochs = 10  # of an iteration
    config.matching.groups_per_batch = 25
    config.matching.schedule = "linear"  # linear | cosine | constant: of the threshold
    config.matching.start_threshold = config_dict.placeholder(float)  # margin in logits; unset: by the quantile
    config.matching.start_quantile = 0.8  # of the margins before the first iteration; 0: threshold 0, which takes all
    config.matching.end_threshold = config_dict.placeholder(float)
    config.matching.end_quantile = 0.0
    config.matching.rate_ratio = 0.95  # of the learning rates of two iterations
    config.matching.least_rate = 0.1  # of an iteration's first rate, at its end
    config.matching.fresh_moments = False  # the optimiser starts anew in each iteration

    config.optimizer = ml_collections.ConfigDict()  # AdamW
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.epsilon = 1e-8
    return config


def untrained(config: ml_collections.ConfigDict) -> None:
    """Turns a recipe into its smallest form: a Qwen3 of 0.8 M parameters from nothing, on sums."""
    config.model.path = "random:tiny_qwen3"
    config.model.remat = "none"
    config.data.source = "arithmetic?split=train&operations=+&template={question}="
    config.data.held_out = "arithmetic?split=held_out&operations=+&template={question}="
    config.data.chat = False
    config.evaluation.max_new_tokens = (4,)


def arm(spec: str, *overrides: str) -> ml_collections.ConfigDict:
    """One side of a comparison: FILE[:ARGUMENT] of experiments.run and overrides like "optimizer.learning_rate=0.1"."""
    return ml_collections.ConfigDict({"config": spec, "overrides": overrides})


def study(module: str, setting: str) -> ml_collections.ConfigDict:
    """One side of a comparison made by a study: `run(setting, seed) -> metrics` of a module of experiments/studies."""
    return ml_collections.ConfigDict({"study": module, "setting": setting})


def expectation(metric: str, arm: str, direction: str, against: str, by: float = 0.0) -> ml_collections.ConfigDict:
    """What must be seen: the metric of `arm` is "higher" or "lower" than that of `against` by more than `by`."""
    return ml_collections.ConfigDict(
        {"metric": metric, "arm": arm, "direction": direction, "against": against, "by": by}
    )


def claim(name: str, statement: str, seeds: tuple[int, ...] = (0, 1, 2)) -> ml_collections.ConfigDict:
    """A comparison for experiments.compare; its arms and expectations are added by name."""
    config = ml_collections.ConfigDict()
    config.name = name
    config.statement = statement
    config.seeds = seeds
    config.last_steps = 10  # of a metric that is logged each step, the mean of so many last values is compared
    config.arms = ml_collections.ConfigDict()
    config.expectations = ml_collections.ConfigDict()
    return config
