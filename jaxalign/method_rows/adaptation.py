"""Learning at test time, and towers that are tuned without losing what they knew."""

from jaxalign.method_rows.method import Method

ROWS = (
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
        experiment="text_replacement",
        pieces=(
            "jaxalign.losses.proclip:proclip_loss",
            "jaxalign.losses.proclip:distillation_loss",
            "jaxalign.training.ema:update",
        ),
        config="configs/proclip.py",
        claim="Against direct contrastive tuning, zero-shot accuracy on what fine-tuning never shows falls less and "
        "retrieval is better.",
        status="Seen in a synthetic world (docs/claims/proclip.json, 3 seeds): zero-shot 83 % with direct tuning, 95 % "
        "with both stages, retrieval 77 % and 84 %; runs agree; not on real images.",
        loss={"regularisation": 4e-4, "kind": "huber", "reduction": "sum"},
    ),
    Method(
        name="llm4gta",
        title="Graph-text alignment that keeps a gap, with a classifier beside it",
        paper="2510.12087",
        experiment="graph_text",
        pieces=(
            "jaxalign.losses.graph_text:graph_text_loss",
            "jaxalign.losses.graph_text:fused_probabilities",
            "jaxalign.controllers.modality_gap:update",
            "jaxalign.models.graph_encoder:GraphEncoder",
        ),
        config="configs/llm4gta.py",
        claim="What texts do not tell survives alignment, at nearly the zero-shot accuracy of plain contrast.",
        status="Seen on made graphs (docs/claims/llm4gta.json, 3 seeds): a probe of communities falls from 65 % to "
        "15 % with plain contrast and to 46 % with both parts, at 75 % zero-shot instead of 80 %; runs agree. "
        "Formulas are own.",
        loss={"temperature": 0.1, "gap_weight": 50.0, "compensation_weight": 0.5},
    ),
)
