"""Preference learning: losses of pairs and of labelled completions."""

import dataclasses
from typing import Any

from jaxalign.method_rows.method import UNTRIED, Method

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
        status=_SEEN_ON_TABLES.get(name, UNTRIED),
        loss=loss,
    )


def _labels(name: str, title: str, paper: str, claim: str, **loss: Any) -> Method:
    """The same for `unpaired_loss`."""
    row = _pairs(name, title, paper, claim, **loss)
    return dataclasses.replace(row, pieces=("jaxalign.losses.preference_unpaired:unpaired_loss",))


_RISES = "Held-out preference accuracy rises by more than its interval."


ROWS = (
    dataclasses.replace(
        _pairs("dpo", "Direct preference optimization", "2305.18290", _RISES, loss="dpo", beta=0.1),
        status="Seen: SmolLM2-135M on 218 pairs of its own samples of short arithmetic (configs/dpo_verifiable.py), "
        "held-out solve rate 17 % to 66 % in 40 steps; and on human judgements of harm (configs/dpo_smollm.py), "
        "accuracy on 170 held-out pairs 50 % to 76 % [70, 83] in 100 steps, chosen log-probs falling too; one seed "
        "each.",
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
        name="bco_pair",
        title="Binary classifier optimization of pairs",
        paper="2404.04656",
        experiment="preference",
        pieces=("jaxalign.losses.preference:preference_loss", "jaxalign.controllers.reward_shift:update"),
        config="configs/bco.py:pairs",
        claim="As bco, with chosen as desirable and rejected as undesirable completions of one prompt.",
        status=UNTRIED,
        loss={"loss": "bco_pair", "beta": 0.1},
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
    Method(
        name="raco",
        title="Reward-free alignment for conflicting objectives: gradients combined, clipped by the user's weights",
        paper="2602.02495",
        experiment="preference",
        pieces=(
            "jaxalign.losses.multi_objective:multi_objective_loss",
            "jaxalign.gradients.conflict_averse:conflict_averse",
        ),
        config="configs/raco.py",
        claim="Clipping keeps the weighted loss nearer to that of the weighted sum than CAGrad does, and at a small "
        "radius the objective of small weight improves at little cost to the other.",
        status="Seen on a scorer of 60 parameters, 5 seeds (docs/claims/raco.json): at radius 0.8 the weighted loss "
        "rises by 0.006, CAGrad's by 0.055; at 0.4 the second objective's falls by 0.12 while the first's rises by "
        "0.035; a language model of 0.8 M parameters has taken 60 steps.",
        loss={"beta": 0.1, "difference": "log_ratio"},
    ),
    Method(
        name="dpo_lw",
        title="DPO of several objectives, their losses weighted",
        paper="2602.02495",
        experiment="preference",
        pieces=("jaxalign.losses.multi_objective:multi_objective_loss",),
        config="configs/raco.py:weighted",
        claim="The baseline of raco.",
        status="Seen as the baseline in docs/claims/raco.json, on a scorer of 60 parameters; a language model of 0.8 M "
        "parameters has taken 60 steps.",
        loss={"beta": 0.1, "difference": "log_ratio"},
    ),
    Method(
        name="amopo",
        title="AMoPO as a baseline of RACO: mean log-probs without a reference, weighted",
        paper="2602.02495",
        experiment="preference",
        pieces=("jaxalign.losses.multi_objective:multi_objective_loss",),
        config="configs/raco.py:amopo",
        claim="The baseline of raco; no claim about AMoPO's own paper.",
        status=UNTRIED,
        loss={"beta": 0.1, "difference": "mean_log_prob"},
    ),
)
