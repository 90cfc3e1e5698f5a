"""What recipes of encoders start from: contrast, graphs with texts, a replaced text encoder."""

import ml_collections

from configs.defaults.common import base, options_of
from experiments.embedding_losses import LOSSES as LOSSES_OF_EMBEDDINGS
from jaxalign.controllers import modality_gap
from jaxalign.losses.graph_text import graph_text_loss
from jaxalign.losses.proclip import distillation_loss, proclip_loss
from jaxalign.methods import get_method


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
    config.loss = options_of(loss.function, preset, without=("class_axis_name",))  # class vectors are whole here
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
