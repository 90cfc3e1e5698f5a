"""What recipes of preferences start from."""

import ml_collections

from configs.defaults.common import base, options_of
from configs.defaults.policy import evaluation, packing, questions, reward
from jaxalign.controllers import label_confidence, reward_shift
from jaxalign.losses.multi_objective import multi_objective_loss
from jaxalign.losses.preference import preference_loss
from jaxalign.losses.preference_unpaired import unpaired_loss
from jaxalign.losses.symbolic.compilation import symbolic_loss
from jaxalign.methods import get_method
from jaxalign.rewards.density_ratio import density_ratio


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
