"""Supervised fine-tuning, policy gradients, and preference losses as formulas."""

from jaxalign.method_rows.method import UNTRIED, Method

_POLICY_LOSS = "jaxalign.losses.policy_gradient:policy_loss"
_GROUP = "jaxalign.rewards.advantages:group_advantages"
_REFERENCE = "jaxalign.rewards.reference_answer:reference_advantages"

# DPO as logic: see docs/symbolic.md.
_DPO_FORMULA = (
    "rejected & reference_chosen -> chosen & reference_rejected"
    " given chosen & reference_rejected | rejected & reference_chosen"
    " also chosen & rejected & reference_chosen & reference_rejected"
)

ROWS = (
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
        status="Seen on a model of 0.8 M parameters, two updates a batch (docs/claims/policy_gradients.json, 3 seeds): "
        "+16 points of held-out sums, GRPO +22; with each completion used once REINFORCE gains as much.",
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
        status="Seen on a model of 0.8 M parameters (docs/claims/policy_gradients.json, 3 seeds): +19 points of "
        "held-out sums [13, 26].",
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
        status="Seen on a model of 0.8 M parameters (docs/claims/policy_gradients.json, 3 seeds): +26 points of "
        "held-out sums [20, 33], the most of its family.",
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
        "answers 11.8 and right ones 1.0 long, Dr. GRPO leaves both at 4.9. "
        "Lengths were not measured on a language model; there (docs/claims/policy_gradients.json, 3 seeds) it "
        "gains 24 points of held-out sums [18, 31].",
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
        status="No mixture of experts here, so that the claim is not tested. Seen on a model of 0.8 M parameters "
        "(docs/claims/policy_gradients.json, 3 seeds): +23 points of held-out sums [16, 30].",
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
        status="Seen on a model of 0.8 M parameters (docs/claims/policy_gradients.json, 3 seeds): +21 points of "
        "held-out sums [14, 27], batches drawn once; entropy was not compared.",
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
        "does as well, and the MAD is worse. On a model of 0.8 M parameters (docs/claims/language_model.json, 3 seeds) "
        "67 % of held-out sums, GRPO with groups of 2 68, with those of 8 66, and the same control 71.",
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
        "0.51; the tracked baseline takes 57 % of the variance away. On a model of 0.8 M parameters "
        "(docs/claims/language_model.json, 3 seeds): 74 % of held-out sums, GRPO 66; REINFORCE with as many different "
        "prompts a step 76.",
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
        "GRPO 0.76, and all prompts not less. No difference seen on a model of 0.8 M parameters "
        "(docs/claims/language_model.json, 3 seeds), with 2.3 visits of a prompt.",
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
        "GRPO 0.76; the variance proxy, which should fall by 15 %, rose by 9 %. On a model of 0.8 M parameters "
        "(docs/claims/language_model.json, 3 seeds) hard sums are not solved more often, and pass@4 is 2 points less.",
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
        status="Seen on a table policy (docs/claims/infalign.json, 3 seeds) at a KL of 0.5 nats: best-of-4 win rate "
        "0.86 with exp, 0.80 calibrated alone, 0.68 raw; worst-of-4 0.93, 0.88, 0.63. Not on a model of "
        "0.8 M parameters with rewards of 0 and 1 (docs/claims/language_model.json, 3 seeds): pass@4 76 %, calibrated "
        "80.",
        loss={"ratio": "token", "clip_low": 0.2, "clip_high": 0.2, "aggregation": "seq-mean-token-mean"},
        advantages={"kind": "group", "scale": "none"},
    ),
    Method(
        name="grao",
        title="Group relative alignment optimization beside a reference answer",
        paper="2508.07750",
        experiment="rl",
        pieces=("jaxalign.losses.grao:grao_loss", _REFERENCE),
        config="configs/grao.py",
        claim="It learns where all completions lose, and gets beyond the reference answer.",
        status="Seen on a table policy (docs/claims/grao.json, 4 seeds), with the weight of the reference kept from "
        "falling below 0: 0.88 where imitation ends at 0.66 and GRPO at 0.06; as in the paper 0.13 of the best value "
        "is lost again. On a model of 0.8 M parameters (docs/claims/language_model.json, 3 seeds): 76 % of held-out "
        "sums, GRPO 66, imitation 60; from a start that solves nearly nothing 7, 2 and 8 (docs/claims/no_signal.json).",
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
        "one teacher 0.64; what the alignment loss adds is not settled, and gradients vary more with it, not less. On "
        "a model of 0.8 M parameters (docs/claims/language_model.json, 3 seeds): 72 % of held-out sums, GRPO 66, "
        "imitation 60; from a start that solves nearly nothing 8, 2 and 8 (docs/claims/no_signal.json).",
        loss={"group_weight": 0.5, "beta": 1.0, "teacher_weight": 1.0},
        advantages={"kind": "group", "scale": "group", "epsilon": 1e-6},
    ),
    # The losses of chains compare rewards; the advantages are only shown beside the completions.
    Method(
        name="aft",
        title="Alignment fine-tuning: right and wrong chains compared under a constraint",
        paper="2309.02144",
        experiment="rl",
        pieces=("jaxalign.losses.chain_alignment:aft_loss", _REFERENCE),
        config="configs/aft.py",
        claim="Right chains become likelier than wrong ones, and the constraint saves what pushing wrong chains down "
        "without end takes from right ones.",
        status="Seen on made chains (docs/claims/aft.json, 5 seeds): assessment accuracy 0.56 to 0.85; without the "
        "constraint right chains lose 0.12 nats per token against it and wrong ones fall 0.73 lower, answers 0.79 "
        "instead of 0.80, not settled; fine-tuning alone gives 0.83. Not measured on a language model.",
        loss={"constraint": "detached", "beta": 0.15},
        advantages={"kind": "reference"},
    ),
    Method(
        name="rrhf_lists",
        title="Rank responses to align human feedback, over lists",
        paper="2304.05302",
        experiment="rl",
        pieces=("jaxalign.losses.chain_alignment:rrhf_loss", _REFERENCE),
        config="configs/aft.py:rrhf",
        claim="Better chains become likelier than worse ones; with AFT's constraint right ones lose less by it.",
        status="Seen on made chains (docs/claims/aft.json, 5 seeds): assessment accuracy 0.56 to 0.84; the constraint "
        "changes nothing that can be seen. Not measured on a language model.",
        loss={"detach_worse": False},
        advantages={"kind": "reference"},
    ),
    Method(
        name="pro",
        title="Preference ranking optimization",
        paper="2306.17492",
        experiment="rl",
        pieces=("jaxalign.losses.chain_alignment:pro_loss", _REFERENCE),
        config="configs/aft.py:pro",
        claim="Better chains become likelier than worse ones, each against all that are worse.",
        status=UNTRIED,
        loss={"detach_worse": False, "score_temperature": 1.0},
        advantages={"kind": "reference"},
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
