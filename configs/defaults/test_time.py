"""What recipes of methods at test time start from."""

import ml_collections
from ml_collections import config_dict

from configs.defaults.common import base, options_of
from jaxalign.losses.class_alignment import cafa_loss
from jaxalign.methods import get_method
from jaxalign.models.resnet import NORMALISATION


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
