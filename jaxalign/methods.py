"""The table of all methods: which paper, which pieces with which settings, which config, what is claimed and shown.

The contract tests run over its rows, `python -m experiments.methods` prints it, and configs take their settings
from it. A method is a row here, not a trainer.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from jaxalign.errors import UserError


@dataclasses.dataclass(frozen=True)
class Method:
    name: str  # key of METHODS, in configs and metrics
    title: str
    paper: str  # arXiv id, or ""
    experiment: str  # the module experiments/<experiment>.py that runs it, such as "rl" or "studies/proclip"
    pieces: tuple[str, ...]  # "package.module:function", the loss first
    config: str  # FILE[:ARGUMENT] of `python -m experiments.run --config=...`; of a study, the claim that compares it
    claim: str  # what must be seen for the method to be called working
    status: str  # what has been seen so far, and what has not
    # Keyword options of the loss. "seq-mean-token-scale" without a scale_length means the generation budget
    # (max_new_tokens), which the experiment fills in: a row of this table knows no budget.
    loss: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # `kind` and keyword options of `jaxalign.rewards.advantages.advantages`; empty where nothing is rewarded.
    advantages: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # beta of the k1 penalty in the reward, in units of reward per nat. If it is not 0 the experiment adds
    # `jaxalign.rewards.gae.kl_penalty(old_log_probs, reference_log_probs, mask, kl_in_reward)` to the
    # combined rewards, before advantages are made of them.
    kl_in_reward: float = 0.0
    # Completions of each group that the update leaves out, those of the smallest |advantage|.
    leave_out: int = 0

    @property
    def launch(self) -> str:
        program = "compare" if self.config.startswith("configs/claims/") else "run"
        return f"python -m experiments.{program} --config={self.config}"


_POLICY_LOSS = "jaxalign.losses.policy_gradient:policy_loss"
_GROUP = "jaxalign.rewards.advantages:group_advantages"
_UNTRIED = "Formulas and contracts are tested; what it does to a language model has not been measured."
# By docs/claims/preference.json.
_SEEN_ON_TABLES = {
    "cdpo": "On a table policy with 30 % of labels flipped it ends further from the optimum than dpo, 3 seeds; margins "
    "and language models have not been looked at.",
    "robust_dpo": "Seen on a table policy with 30 % of labels flipped: KL to the optimum 2.5 to 4 times smaller than "
    "dpo's with each of 3 seeds, too few to settle the factor of 1.7; not measured on a language model.",
    "ipo": "Seen on a table policy with labels that never disagree: its margins stand from step 300 to 1,500, dpo's "
    "more than double, 3 seeds; not measured on a language model.",
}


def _pairs(name: str, title: str, paper: str, claim: str, **loss: Any) -> Method:
    """A row of `preference_loss`; its config is the recipe of DPO with the name behind the colon."""
    return Method(
        name=name,
        title=title,
        paper=paper,
        experiment="preference",
        pieces=("jaxalign.losses.preference:preference_loss",),
        config="configs/dpo_smollm.py" if name == "dpo" else f"configs/dpo_smollm.py:{name}",
        claim=claim,
        status=_SEEN_ON_TABLES.get(name, _UNTRIED),
        loss=loss,
    )


def _labels(name: str, title: str, paper: str, claim: str, **loss: Any) -> Method:
    """The same for `unpaired_loss`."""
    row = _pairs(name, title, paper, claim, **loss)
    return dataclasses.replace(row, pieces=("jaxalign.losses.preference_unpaired:unpaired_loss",))


_RISES = "Held-out preference accuracy rises by more than its interval."

# DPO as logic: see docs/symbolic.md.
_DPO_FORMULA = (
    "rejected & reference_chosen -> chosen & reference_rejected"
    " given chosen & reference_rejected | rejected & reference_chosen"
    " also chosen & rejected & reference_chosen & reference_rejected"
)

_PREFERENCE_ROWS = (
    dataclasses.replace(
        _pairs("dpo", "Direct preference optimization", "2305.18290", _RISES, loss="dpo", beta=0.1),
        status="Seen: SmolLM2-135M on 218 pairs of its own samples of short arithmetic (configs/dpo_verifiable.py), "
        "held-out solve rate 17 % to 66 % in 40 steps, one seed; not yet on human judgements.",
    ),
    _pairs(
        "cdpo",
        "Conservative DPO: smoothed labels",
        "2305.18290",
        "Margins stay bounded where dpo's grow.",
        loss="dpo",
        beta=0.1,
        label_smoothing=0.1,
    ),
    _pairs(
        "robust_dpo",
        "Robust DPO: unbiased under flipped labels",
        "2403.00409",
        "With 30 % of labels flipped the policy ends nearer to the optimum than dpo's.",
        loss="robust_dpo",
        beta=0.1,
        label_smoothing=0.1,
    ),
    _pairs(
        "ipo",
        "Identity preference optimization",
        "2310.12036",
        "Margins settle at 1 / (2 beta) under deterministic labels, where dpo's grow without limit.",
        loss="ipo",
        beta=0.1,
    ),
    _pairs("slic", "Sequence likelihood calibration", "2305.10425", _RISES, loss="slic", target_margin=1.0),
    _pairs(
        "simpo",
        "SimPO: mean log-probs and a target margin, no reference",
        "2405.14734",
        "Accuracy rises without a reference, and completions grow less than with dpo.",
        loss="simpo",
        beta=2.0,
        target_margin=0.5,
    ),
    _pairs("alphapo", "AlphaPO: the power reward of SimPO", "2501.03884", _RISES, loss="alphapo", power=0.25),
    _pairs("cpo", "Contrastive preference optimization", "2401.08417", _RISES, loss="cpo", beta=0.1),
    _pairs("orpo", "Odds-ratio preference optimization", "2403.07691", _RISES, loss="orpo", beta=0.1),
    _pairs(
        "rdpo",
        "R-DPO: a penalty on length",
        "2403.19159",
        "Completions grow less than with dpo at equal accuracy.",
        loss="rdpo",
        length_penalty=0.01,
    ),
    _pairs(
        "dpop",
        "DPO-positive",
        "2402.13228",
        "Chosen log-probs do not fall below the reference's, where dpo's do.",
        loss="dpop",
        beta=0.3,
        chosen_penalty=50.0,
    ),
    _pairs("exo", "Efficient exact optimization, of pairs", "2402.00856", _RISES, loss="exo", label_smoothing=1e-3),
    _pairs(
        "nca",
        "Noise contrastive alignment, of pairs",
        "2402.05369",
        "Chosen log-probs fall less than with dpo.",
        loss="nca",
        beta=0.1,
    ),
    _pairs("sppo", "Self-play preference optimization, hard labels", "2405.00675", _RISES, loss="sppo", beta=1e-3),
    _pairs("aot", "Alignment by optimal transport, of pairs", "2406.05882", _RISES, loss="aot", beta=0.1),
    _pairs(
        "aot_unpaired",
        "Alignment by optimal transport, unpaired",
        "2406.05882",
        "Accuracy rises although chosen and rejected completions are not matched.",
        loss="aot_unpaired",
        beta=0.1,
    ),
    _pairs("discopop", "DiscoPOP: a discovered loss", "2406.08414", _RISES, loss="discopop", beta=0.05),
    _pairs(
        "apo_zero",
        "Anchored preference optimization, zero",
        "2408.06266",
        "Chosen log-probs rise and rejected ones fall.",
        loss="apo_zero",
        beta=0.1,
    ),
    _pairs(
        "apo_down",
        "Anchored preference optimization, down",
        "2408.06266",
        "Both log-probs fall, the rejected one more.",
        loss="apo_down",
        beta=0.1,
    ),
    _pairs(
        "f_dpo",
        "f-DPO: other divergences than the reverse KL, here Jensen-Shannon",
        "2309.16240",
        _RISES,
        loss="dpo",
        divergence="js",
    ),
    _pairs("odpo", "DPO with an offset by scores", "2402.10571", _RISES, loss="odpo", beta=0.1),
    _pairs("rrhf", "Rank responses to align, of pairs", "2304.05302", _RISES, loss="rrhf", likelihood_weight=1.0),
    _pairs("mpo", "Mixed preference optimization", "2411.10442", _RISES, loss="mpo", beta=0.1),
    _labels(
        "kto",
        "Kahneman-Tversky optimization of labelled completions",
        "2402.01306",
        "Rewards of desirable and undesirable held-out completions part.",
        loss="kto",
        beta=0.1,
    ),
    dataclasses.replace(
        _labels(
            "bco",
            "Binary classifier optimization of labelled completions",
            "2404.04656",
            "A shift that follows the rewards tightens the bound on the DPO loss and raises the reward; where the "
            "classes have different prompts, weights by density ratio find the direction of the reward.",
            loss="bco",
            beta=0.1,
            reduction="class-balanced",
        ),
        pieces=(
            "jaxalign.losses.preference_unpaired:unpaired_loss",
            "jaxalign.controllers.reward_shift:update",
            "jaxalign.rewards.density_ratio:density_ratio",
        ),
        config="configs/bco.py",
        status="Seen on a log-linear policy, 5 seeds (docs/claims/bco.json): error term halved, gain +20 %, cosine "
        "+0.14 by density ratios; not measured on a language model.",
    ),
    Method(
        name="lcpo",
        title="Latent collective preference optimization (RE-PO): labels that may be wrong",
        paper="2509.24159",
        experiment="preference",
        pieces=(
            "jaxalign.losses.preference_confidence:confidence_loss",
            "jaxalign.controllers.label_confidence:update",
        ),
        config="configs/lcpo.py",
        claim="Under annotators that err at unknown rates, the rates are found and preferences come nearer to the true "
        "ones than with the plain loss and with smoothed labels.",
        status="Seen on linear preferences, 5 seeds (docs/claims/lcpo.json): rates within 0.04, KL an eighth of DPO's, "
        "less over IPO and SimPO too; accuracy +2.3 points, not in every seed; not measured on a language model.",
        loss={"mode": "gibbs"},
    ),
)

_ROWS = (
    Method(
        name="sft",
        title="Supervised fine-tuning",
        paper="",
        experiment="sft",
        pieces=("jaxalign.losses.supervised:supervised_loss",),
        config="configs/sft_arithmetic.py",
        claim="The likelihood of held-out answers and the solve rate rise.",
        status="Seen: SmolLM2-135M on short arithmetic, held-out solve rate 17 % to 84 % in 40 steps (one seed).",
        loss={"aggregation": "token-mean"},
    ),
    Method(
        name="reinforce",
        title="REINFORCE with the batch mean as baseline",
        paper="",
        experiment="rl",
        pieces=(_POLICY_LOSS, "jaxalign.rewards.advantages:batch_mean_advantages"),
        config="configs/grpo_qwen.py:reinforce",
        claim="The reward rises; slower than with GRPO when completions are used for several updates.",
        status=_UNTRIED,
        loss={"ratio": "on-policy", "aggregation": "seq-mean-token-sum"},
        advantages={"kind": "batch_mean"},
    ),
    Method(
        name="rloo",
        title="REINFORCE leave-one-out",
        paper="2402.14740",
        experiment="rl",
        pieces=(
            _POLICY_LOSS,
            "jaxalign.rewards.advantages:leave_one_out_advantages",
            "jaxalign.rewards.gae:kl_penalty",
        ),
        config="configs/grpo_qwen.py:rloo",
        claim="The reward rises, and the gradient is unbiased whatever the group size.",
        status=_UNTRIED,
        loss={
            "ratio": "sequence-sum",
            "clip_low": 0.2,
            "clip_high": 0.2,
            "aggregation": "seq-mean-token-mean",
        },
        advantages={"kind": "leave_one_out"},
        kl_in_reward=0.05,
    ),
    Method(
        name="ppo",
        title="Proximal policy optimization with a value function",
        paper="1707.06347",
        experiment="rl",
        pieces=(
            "jaxalign.losses.ppo:ppo_loss",
            "jaxalign.rewards.gae:gae",
            "jaxalign.rewards.gae:token_rewards",
            "jaxalign.losses.value:value_loss",
        ),
        config="configs/ppo.py",
        claim="The solve rate on held-out questions rises by more than its interval.",
        status=_UNTRIED,
        loss={"value_coefficient": 0.1, "value_clip": 0.2, "clip_low": 0.2, "clip_high": 0.2},
        advantages={"kind": "gae", "discount": 1.0, "trace_decay": 0.95},
        kl_in_reward=0.05,
    ),
    Method(
        name="grpo",
        title="Group relative policy optimization",
        paper="2402.03300",
        experiment="rl",
        pieces=(_POLICY_LOSS, _GROUP),
        config="configs/grpo_qwen.py",
        claim="The solve rate on held-out questions rises by more than its interval.",
        status="Seen: SmolLM2-135M on short arithmetic, held-out solve rate 16 % to 81-87 % in 40 steps, 3 seeds.",
        loss={
            "ratio": "token",
            "clip_low": 0.2,
            "clip_high": 0.2,
            "kl": "k3",
            "kl_coefficient": 0.04,
            "aggregation": "seq-mean-token-mean",
        },
        advantages={"kind": "group", "scale": "group"},
    ),
    Method(
        name="dr_grpo",
        title="GRPO done right: no division by length or spread",
        paper="2503.20783",
        experiment="rl",
        pieces=(_POLICY_LOSS, _GROUP),
        config="configs/grpo_qwen.py:dr_grpo",
        claim="Wrong answers do not grow longer when the reward does not depend on length; with GRPO they do.",
        status="Seen on a table policy (docs/claims/length_bias.json, 4 seeds): from 4.9 tokens GRPO makes wrong "
        "answers 11.8 and right ones 1.0 long, Dr. GRPO leaves both at 4.9; not measured on a language model.",
        loss={"ratio": "token", "clip_low": 0.2, "clip_high": 0.2, "aggregation": "seq-mean-token-scale"},
        advantages={"kind": "group", "scale": "none"},
    ),
    Method(
        name="gspo",
        title="Group sequence policy optimization",
        paper="2507.18071",
        experiment="rl",
        pieces=(_POLICY_LOSS, _GROUP),
        config="configs/grpo_qwen.py:gspo",
        claim="Training is stable where token ratios are noisy (mixtures of experts), without replayed routing.",
        status="Formulas and contracts are tested; the claim is not (there is no mixture of experts here).",
        loss={"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4, "aggregation": "seq-mean-token-mean"},
        advantages={"kind": "group", "scale": "group"},
    ),
    Method(
        name="dapo",
        title="Decoupled clip and dynamic sampling",
        paper="2503.14476",
        experiment="rl",
        pieces=(
            _POLICY_LOSS,
            _GROUP,
            "jaxalign.rewards.advantages:groups_with_signal",
            "jaxalign.rewards.shaping:overlong_penalty",
        ),
        config="configs/dapo.py",
        claim="Reward and entropy stay higher than with GRPO at equal updates.",
        status=_UNTRIED,
        loss={"ratio": "token", "clip_low": 0.2, "clip_high": 0.28, "aggregation": "token-mean"},
        advantages={"kind": "group", "scale": "group"},
    ),
    Method(
        name="mc_grpo",
        title="Median-centred group relative policy optimization",
        paper="2601.22582",
        experiment="rl",
        pieces=(
            _POLICY_LOSS,
            "jaxalign.rewards.median:median_advantages",
            "jaxalign.rewards.groups:kept_completions",
        ),
        config="configs/mc_grpo.py",
        claim="With 2 completions trained on it comes nearer to groups of 8 than GRPO with 2 does.",
        status="On a table policy (docs/claims/mc_grpo.json, 24 seeds) without scaling: 0.012 above the mean of 2 and "
        "0.013 below groups of 8, neither settled against its bound; the mean of as many completions, one left out, "
        "does as well, and the MAD is worse. Not measured on a language model.",
        loss={
            "ratio": "token",
            "clip_low": 0.2,
            "clip_high": 0.2,
            "kl": "k3",
            "kl_coefficient": 0.04,
            "aggregation": "seq-mean-token-mean",
        },
        advantages={"kind": "median", "scale": "mad"},
        leave_out=1,
    ),
    Method(
        name="spo",
        title="Single-stream policy optimization",
        paper="2509.13232",
        experiment="rl",
        pieces=(
            _POLICY_LOSS,
            "jaxalign.rewards.advantages:batch_mean_advantages",
            "jaxalign.controllers.prompt_statistics:update",
            "jaxalign.controllers.policy_drift:retention",
            "jaxalign.controllers.prompt_sampling:sampling_probabilities",
        ),
        config="configs/spo.py",
        claim="At equal completions it learns faster than GRPO; a tracked baseline has less variance than the mean.",
        status="Seen on a table policy (docs/claims/spo.json, 8 seeds): success 0.61, with GRPO 0.48 and REINFORCE "
        "0.51; the tracked baseline takes 57 % of the variance away; not measured on a language model.",
        loss={
            "ratio": "token",
            "clip_low": 0.2,
            "clip_high": 0.28,
            "dual_clip": 10.0,
            "aggregation": "token-mean",
        },
        advantages={"kind": "batch_mean", "whiten": True},
    ),
    Method(
        name="prompt_gdro",
        title="Group distributionally robust weights of prompts",
        paper="2601.19280",
        experiment="rl",
        pieces=(
            _POLICY_LOSS,
            _GROUP,
            "jaxalign.controllers.difficulty_classes:update",
            "jaxalign.controllers.prompt_gdro:update",
        ),
        config="configs/gdro.py",
        claim="Hard prompts are solved more often than with GRPO, and prompts as a whole not less.",
        status="Seen on a table policy (docs/claims/gdro.json, 5 seeds): the hardest tier is solved with 0.97, with "
        "GRPO 0.76, and all prompts not less; not measured on a language model.",
        loss={"ratio": "token", "clip_low": 0.2, "clip_high": 0.28, "aggregation": "token-mean"},
        advantages={"kind": "group", "scale": "group"},
    ),
    Method(
        name="rollout_gdro",
        title="Completions dealt out by difficulty at a fixed mean",
        paper="2601.19280",
        experiment="rl",
        pieces=(
            _POLICY_LOSS,
            _GROUP,
            "jaxalign.controllers.difficulty_classes:update",
            "jaxalign.controllers.rollout_gdro:choose_arms",
        ),
        config="configs/gdro.py:rollout",
        claim="Hard prompts are solved more often than with equal numbers of completions.",
        status="Seen on a table policy (docs/claims/gdro.json, 5 seeds): the hardest tier is solved with 0.94, with "
        "GRPO 0.76; the variance proxy, which should fall by 15 %, rose by 9 %; not measured on a language model.",
        loss={"ratio": "token", "clip_low": 0.2, "clip_high": 0.28, "aggregation": "token-mean"},
        advantages={"kind": "group", "scale": "group"},
    ),
    Method(
        name="infalign",
        title="Inference-aware alignment: calibrated and transformed rewards",
        paper="2412.19792",
        experiment="rl",
        pieces=(
            _POLICY_LOSS,
            _GROUP,
            "jaxalign.rewards.inference_aware:calibrate",
            "jaxalign.rewards.inference_aware:transform",
        ),
        config="configs/infalign.py",
        claim="At equal KL the best-of-N win rate is higher than with the reward as it is.",
        status="The frontier of the transforms is reproduced by quadrature (tests/rewards/test_inference_aware.py); a "
        "learned policy has not been measured.",
        loss={"ratio": "token", "clip_low": 0.2, "clip_high": 0.2, "aggregation": "seq-mean-token-mean"},
        advantages={"kind": "group", "scale": "group"},
    ),
    Method(
        name="grao",
        title="Group relative alignment optimization beside a reference answer",
        paper="2508.07750",
        experiment="rl",
        pieces=("jaxalign.losses.grao:grao_loss", "jaxalign.rewards.reference_answer:reference_advantages"),
        config="configs/grao.py",
        claim="It learns where all completions lose, and gets beyond the reference answer.",
        status="Seen on a table policy (docs/claims/grao.json, 4 seeds), with the weight of the reference kept from "
        "falling below 0: 0.88 where imitation ends at 0.66 and GRPO at 0.06; as in the paper 0.13 of the best value "
        "is lost again; not measured on a language model.",
        loss={"imitation": 0.5, "alignment": 0.6, "clamp_reference": True},
        advantages={"kind": "reference"},
    ),
    Method(
        name="dypo",
        title="Dynamic policy optimization: each prompt routed by its group",
        paper="2604.08926",
        experiment="rl",
        pieces=("jaxalign.losses.dypo:dypo_loss", _GROUP),
        config="configs/dypo.py",
        claim="Prompts that GRPO never solves are learned from teachers, and several teachers beat one.",
        status="Seen on a table policy (docs/claims/dypo.json, 5 seeds): hard prompts 0.96, with GRPO 0.01 and with "
        "one teacher 0.64; what the alignment loss adds is not settled, and gradients vary more with it, not less; not "
        "measured on a language model.",
        loss={"group_weight": 0.5, "beta": 1.0, "teacher_weight": 1.0},
        advantages={"kind": "group", "scale": "group", "epsilon": 1e-6},
    ),
    Method(
        name="symbolic_dpa",
        title="Direct preference losses compiled from formulas of logic",
        paper="2412.17696",
        experiment="preference",
        pieces=("jaxalign.losses.symbolic.compilation:symbolic_loss",),
        config="configs/symbolic_dpa.py",
        claim="Compiled DPO, CPO and ORPO are the losses of those names; any other formula can be trained.",
        status="Equality with the closed forms is tested. Seen on a table policy (docs/claims/symbolic_dpa.json, 3 "
        "seeds): the verdict on 'neither is valid' decides whether the chosen completion rises; not measured on a "
        "language model.",
        loss={"formula": _DPO_FORMULA, "beta": 0.1},
    ),
    Method(
        name="dpo_normalised",
        title="DPO whose chosen and rejected gradients have equal norms",
        paper="2410.13828",
        experiment="preference",
        pieces=(
            "jaxalign.losses.preference:preference_loss",
            "jaxalign.gradients.pair_normalisation:normalised_halves",
            "jaxalign.diagnostics.entanglement:entanglement",
        ),
        config="configs/entanglement.py:normalised",
        claim="The chosen log-prob falls less than under DPO where completions share much.",
        status="Seen on a transformer of two layers (docs/claims/entanglement.json, 3 seeds): the chosen log-prob "
        "keeps 1.8 to 2.9 nats more than under DPO where much is shared, at a smaller margin; not on a language "
        "model. The rule follows from the paper's conditions and is not given there.",
        loss={"loss": "dpo", "beta": 0.1},
    ),
    Method(
        name="dpo_gated",
        title="DPO on the tokens that tell two completions apart",
        paper="2410.13828",
        experiment="preference",
        pieces=(
            "jaxalign.losses.preference:preference_loss",
            "jaxalign.losses.preference_gates:common_token_gates",
            "jaxalign.diagnostics.entanglement:entanglement",
        ),
        config="configs/entanglement.py:gated",
        claim="The chosen log-prob falls less than under DPO where completions share much.",
        status="Gates are tested; what they do to a language model has not been measured.",
        loss={"loss": "dpo", "beta": 0.1},
    ),
)

_ADAPTATION_ROWS = (
    Method(
        name="cafa",
        title="Class-aware feature alignment at test time",
        paper="2206.00205",
        experiment="adapt",
        pieces=(
            "jaxalign.losses.class_alignment:cafa_loss",
            "jaxalign.losses.class_alignment:fit",
            "jaxalign.models.resnet:ResNet",
            "jaxalign.training.test_time:make_adapt_step",
        ),
        config="configs/cafa.py",
        claim="On corrupted pictures it is right more often than batch statistics alone and than aligning all features "
        "together.",
        status="Measured on drawn digits (docs/claims/cafa.json, 3 seeds): the classes end further apart than with "
        "global alignment, but it is not right more often than that, nor surely more often than batch statistics.",
        loss={"inter_weight": 1.0},
    ),
    Method(
        name="ttm",
        title="Test-time matching: learning from one's own matchings of small groups",
        paper="2510.07632",
        experiment="matching",
        pieces=(
            "jaxalign.losses.contrastive:siglip_loss",
            "jaxalign.evaluation.group_matching:best_matching",
            "jaxalign.evaluation.group_matching:select_groups",
            "jaxalign.evaluation.group_matching:threshold_schedule",
        ),
        config="configs/ttm.py",
        claim="GroupScore reaches what GroupMatch was, and falling thresholds go beyond both.",
        status="Seen in a synthetic world (docs/claims/ttm.json, 4 seeds): GroupScore 38 % to 85 % by matching once, "
        "to 92 % by falling thresholds; not on a real benchmark.",
    ),
    Method(
        name="proclip",
        title="ProCLIP: another text encoder for trained towers, distilled first and held on to",
        paper="2510.18795",
        experiment="studies/proclip",
        pieces=(
            "jaxalign.losses.proclip:proclip_loss",
            "jaxalign.losses.proclip:distillation_loss",
            "jaxalign.training.ema:update",
        ),
        config="configs/claims/proclip.py",
        claim="Against direct contrastive tuning, zero-shot accuracy on what fine-tuning never shows falls less and "
        "retrieval is better.",
        status="Seen in a synthetic world (docs/claims/proclip.json, 3 seeds): zero-shot 83 % with direct tuning, 95 % "
        "with both stages, retrieval 77 % and 84 %; not on real images.",
        loss={"regularisation": 4e-4, "kind": "huber", "reduction": "sum"},
    ),
    Method(
        name="llm4gta",
        title="Graph-text alignment that keeps a gap, with a classifier beside it",
        paper="2510.12087",
        experiment="studies/llm4gta",
        pieces=(
            "jaxalign.losses.graph_text:graph_text_loss",
            "jaxalign.losses.graph_text:fused_probabilities",
            "jaxalign.controllers.modality_gap:update",
            "jaxalign.models.graph_encoder:GraphEncoder",
        ),
        config="configs/claims/llm4gta.py",
        claim="What texts do not tell survives alignment, at nearly the zero-shot accuracy of plain contrast.",
        status="Seen on made graphs (docs/claims/llm4gta.json, 3 seeds): a probe of communities falls from 65 % to "
        "15 % with plain contrast and to 46 % with both parts, at 75 % zero-shot instead of 80 %. Formulas are own.",
        loss={"temperature": 0.1, "gap_weight": 50.0, "compensation_weight": 0.5},
    ),
)


def _embeddings(name: str, title: str, paper: str, claim: str, status: str, *pieces: str, **loss: Any) -> Method:
    """A row of a loss of embeddings; its config is the recipe of pairs with the name behind the colon."""
    return Method(
        name=name,
        title=title,
        paper=paper,
        experiment="contrastive",
        pieces=tuple(f"jaxalign.{piece}" for piece in pieces),
        config="configs/contrastive.py" if name == "clip" else f"configs/contrastive.py:{name}",
        claim=claim,
        status=status,
        loss=loss,
    )


def _labelled_embeddings(name: str, *arguments: str, **loss: Any) -> Method:
    """The same for labelled examples."""
    config = "configs/metric_learning.py" if name == "supcon" else f"configs/metric_learning.py:{name}"
    return dataclasses.replace(_embeddings(name, *arguments, **loss), config=config)


_FORMULA_ONLY = "Formulas, gradients and equality over devices are tested; no study of its own."

_CONTRASTIVE_ROWS = (
    _embeddings(
        "info_nce",
        "InfoNCE: each row finds its partner",
        "1807.03748",
        "log B minus the loss bounds the mutual information of the pairs from below.",
        _FORMULA_ONLY,
        "losses.contrastive:info_nce",
    ),
    _embeddings(
        "nt_xent",
        "SimCLR's NT-Xent: two views among 2 B rows",
        "2002.05709",
        "Views of one thing find each other among all other views.",
        _FORMULA_ONLY,
        "losses.contrastive:nt_xent",
    ),
    _embeddings(
        "clip",
        "CLIP: InfoNCE in both directions with a learnable scale",
        "2103.00020",
        "Unseen pairs are found more often with larger batches.",
        "Seen on synthetic pairs (configs/claims/contrastive.py): batches of 256 rows find 92 % of 1,000 unseen pairs, "
        "of 32 rows 62 %, 5 seeds; not trained on images or text.",
        "losses.contrastive:clip_loss",
    ),
    _embeddings(
        "siglip",
        "SigLIP: every pair judged alone by a sigmoid",
        "2303.15343",
        "Better than CLIP at small batches; the start of the bias matters.",
        "Seen on synthetic pairs (configs/claims/contrastive.py): 12 points more than CLIP in batches of 32 rows, 3 "
        "in 256; with bias 0 at the start it finds 3 % in place of 95 %, 5 seeds; not trained on images or text.",
        "losses.contrastive:siglip_loss",
    ),
    _labelled_embeddings(
        "supcon",
        "Supervised contrastive learning",
        "2004.11362",
        "Rows of one label come nearer to each other than to all others.",
        _FORMULA_ONLY,
        "losses.supervised_contrastive:supcon_loss",
    ),
    _labelled_embeddings(
        "triplet",
        "Triplet loss over all triplets of a batch",
        "1503.03832",
        "Rows of one label come nearer to each other than to all others, by a margin.",
        _FORMULA_ONLY,
        "losses.triplet:triplet_loss",
        distance="euclidean",
        reduction="mean",
    ),
    _labelled_embeddings(
        "cosface",
        "CosFace: softmax of cosines with a margin of the cosine",
        "1801.09414",
        "Classes are tighter than with plain softmax.",
        _FORMULA_ONLY,
        "losses.margin_softmax:margin_softmax_loss",
        "losses.margin_softmax:margin_logits",
        scale=64.0,
        margin=0.35,
        kind="cosface",
    ),
    _labelled_embeddings(
        "arcface",
        "ArcFace: softmax of cosines with a margin of the angle",
        "1801.07698",
        "Classes are tighter than with plain softmax.",
        _FORMULA_ONLY,
        "losses.margin_softmax:margin_softmax_loss",
        "losses.margin_softmax:margin_logits",
        scale=64.0,
        margin=0.5,
        kind="arcface",
    ),
    dataclasses.replace(
        _embeddings(
            "m2_encoder",
            "M2-Encoder: contrastive pools of device groups and micro-batches",
            "2401.15896",
            "Small pools learn less; pooling micro-batches in two passes gives back what grouping devices takes.",
            "Seen on synthetic pairs (configs/claims/m2_encoder.py), 5 seeds: pools of 4, 32, 64 and 256 find 58, 81, "
            "86 and 92 % of unseen pairs, and four micro-batches of 64 in two passes the same 92 %; speed has not been "
            "measured.",
            "losses.contrastive:clip_loss",
            "training.coupled:coupled_over_mesh",
            "training.coupled:comm_cost",
        ),
        config="configs/m2_encoder.py",
    ),
)

_METRIC_ROWS = (
    Method(
        name="multi_similarity",
        title="Multi-similarity loss: pairs mined and weighted by three similarities",
        paper="1904.06627",
        experiment="contrastive",
        pieces=(
            "jaxalign.losses.multi_similarity:multi_similarity_loss",
            "jaxalign.losses.pair_weighting:pair_weights",
            "jaxalign.losses.pair_weighting:mine",
        ),
        config="configs/metric_learning.py:multi_similarity",
        claim="Unseen classes are retrieved better than with binomial deviance of the same scales.",
        status="Seen on synthetic classes (configs/claims/multi_similarity.py), 4 seeds: Recall@1 of unseen classes "
        "is 0.49, with binomial deviance 0.36, with all triplets 0.46; without mining it is 0.53. No images "
        "have been trained on.",
        loss={"alpha": 2.0, "beta": 50.0, "threshold": 0.5, "mining_margin": 0.1},
    ),
    Method(
        name="unpg",
        title="Unified negative pair generation: margin softmax with the batch's pairs as negatives",
        paper="2203.11593",
        experiment="contrastive",
        pieces=(
            "jaxalign.losses.unpg:unpg_loss",
            "jaxalign.losses.unpg:whisker_mask",
            "jaxalign.losses.margin_softmax:margin_logits",
        ),
        config="configs/metric_learning.py:unpg",
        claim="Unseen identities are verified better than with ArcFace, and the filter of outliers is needed.",
        status="On 30 synthetic identities (configs/claims/unpg.py), 3 seeds: it needs its filter (0.150 of genuine "
        "pairs accepted, 0.094 without), but a gain over ArcFace (0.148) was not seen. No faces have been trained on.",
        loss={"scale": 64.0, "margin": 0.5, "kind": "arcface", "whisker": 1.5},
    ),
    Method(
        name="group_infonce",
        title="Group-InfoNCE: a query against groups, with all of its own group at one distance",
        paper="2505.12925",
        experiment="contrastive",
        pieces=("jaxalign.losses.group_infonce:group_infonce_loss",),
        config="configs/group_infonce.py",
        claim="Documents of a rare kind are found more often than with each document as a positive of its own.",
        status="Seen on synthetic kinds of documents (configs/claims/group_infonce.py), 4 seeds: the rare kind's "
        "reciprocal rank is 1.7 times that without the penalty, but that with many positives is near, and NDCG@10 "
        "falls.",
        loss={"temperature": 0.07, "penalty_weight": 1.0},
    ),
    Method(
        name="whitened_cse",
        title="WhitenedCSE: views whitened in shuffled groups of channels",
        paper="2305.17746",
        experiment="contrastive",
        pieces=(
            "jaxalign.losses.whitening:whitened_cse_loss",
            "jaxalign.losses.whitening:shuffled_group_whiten",
            "jaxalign.losses.contrastive:info_nce",
        ),
        config="configs/whitened_cse.py",
        claim="Alignment and uniformity are both better than with InfoNCE, and than with groups that stay the same.",
        status="On synthetic features (configs/claims/whitened_cse.py), 3 seeds: alignment is better than with "
        "InfoNCE (0.058, 0.192), uniformity is not (-0.83, -1.03); shuffling improves both. No language data has "
        "been trained on.",
        loss={"groups": 128, "temperature": 0.05},
    ),
)

METHODS: dict[str, Method] = {
    row.name: row for row in (*_ROWS, *_PREFERENCE_ROWS, *_ADAPTATION_ROWS, *_CONTRASTIVE_ROWS, *_METRIC_ROWS)
}


def get_method(name: str) -> Method:
    """The row of that name. UserError, with the nearest names, if there is none."""
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(str(name).lower(), METHODS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(METHODS)}"
    raise UserError(f"method {name!r} is not known; {hint} (python -m experiments.methods lists all)")


def markdown_table() -> str:
    """All methods as a markdown table, with a line break at the end."""
    lines = ["| method | paper | settings | config | claim | status |", "|---|---|---|---|---|---|"]
    for row in METHODS.values():
        paper = f"[{row.paper}](https://arxiv.org/abs/{row.paper})" if row.paper else ""
        cells = (f"`{row.name}`: {row.title}", paper, settings_text(row), f"`{row.config}`", row.claim, row.status)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def settings_text(method: Method) -> str:
    """Options of advantages and loss in one line, for people."""
    options = {"advantages" if key == "kind" else key: value for key, value in method.advantages.items()}
    options |= method.loss
    if method.kl_in_reward:
        options["kl_in_reward"] = method.kl_in_reward
    return ", ".join(f"{key} {value}" for key, value in options.items())
