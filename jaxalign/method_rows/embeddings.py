"""Contrastive and metric learning."""

import dataclasses
from typing import Any

from jaxalign.method_rows.method import Method


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


_DIGITS = "Seen on scanned digits that were not learnt from (configs/claims/digit_embeddings.py), 5 seeds: "

CONTRASTIVE_ROWS = (
    _embeddings(
        "info_nce",
        "InfoNCE: each row finds its partner",
        "1807.03748",
        "Views of one thing find each other; log B minus the loss bounds their mutual information from below.",
        _DIGITS + "without labels 15 % of views find their other one, 3 % untrained, and MAP@R by class is 0.64, 0.40 "
        "untrained and 0.54 of pixels; recall@1 gains nothing.",
        "losses.contrastive:info_nce",
    ),
    _embeddings(
        "nt_xent",
        "SimCLR's NT-Xent: two views among 2 B rows",
        "2002.05709",
        "Views of one thing find each other among all other views.",
        _DIGITS + "without labels 15 % of views find their other one, 3 % untrained, and MAP@R by class is 0.64, 0.40 "
        "untrained and 0.54 of pixels; recall@1 gains nothing.",
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
        _DIGITS + "MAP@R 0.85, with plain softmax 0.72; recall@1 is 98 % with both, and 99 % of pixels.",
        "losses.supervised_contrastive:supcon_loss",
    ),
    _labelled_embeddings(
        "triplet",
        "Triplet loss over all triplets of a batch",
        "1503.03832",
        "Rows of one label come nearer to each other than to all others, by a margin.",
        _DIGITS + "MAP@R 0.83, with plain softmax 0.72, untrained 0.40.",
        "losses.triplet:triplet_loss",
        distance="euclidean",
        reduction="mean",
    ),
    _labelled_embeddings(
        "cosface",
        "CosFace: softmax of cosines with a margin of the cosine",
        "1801.09414",
        "Classes are tighter than with plain softmax.",
        _DIGITS + "MAP@R 0.80, with plain softmax 0.72, and 0.55 with the same scale and no margin.",
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
        _DIGITS + "MAP@R 0.82, with plain softmax 0.72, and 0.55 with the same scale and no margin; one seed of five "
        "stays at 0.73.",
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

METRIC_ROWS = (
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
