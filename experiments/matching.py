"""Test-time matching: two towers learn from their own matchings of small groups, first where these are clear.

A step is one iteration: match all groups, keep those whose margin reaches the threshold of that iteration, fine-tune on
their matched pairs, lower the threshold. The truth is never used but to report scores, and the last iteration counts.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.session import Session
from jaxalign.data.order_pairs import Groups, OrderPairs, Pairs
from jaxalign.errors import UserError
from jaxalign.evaluation import group_matching
from jaxalign.losses.contrastive import clip_loss, siglip_loss
from jaxalign.losses.similarity import unit
from jaxalign.models.mlp_encoder import MlpEncoder
from jaxalign.placement import under_mesh
from jaxalign.training.accumulation import CoupledLoss
from jaxalign.training.coupled import coupled_over_mesh
from jaxalign.training.loop import Advance
from jaxalign.training.mesh import batch_shards, gather, make_mesh, replicated, spread
from jaxalign.training.optimizers import decay_mask
from jaxalign.training.state import TrainState, abstract_state, create_state, with_shardings
from jaxalign.training.step import make_train_step

WORLD = "order_pairs"
LOSSES = ("siglip", "clip")


class Towers(NamedTuple):
    """An encoder for images and one for captions, with the scale and the bias of their logits."""

    image: MlpEncoder
    caption: MlpEncoder

    def init(self, key: jax.Array, loss: str) -> dict:
        keys = jax.random.split(key)
        start = {"siglip": (math.log(10), -10.0), "clip": (math.log(1 / 0.07), 0.0)}[loss]
        scalars = {name: jnp.asarray(value, jnp.float32) for name, value in zip(("scale", "bias"), start, strict=True)}
        return {"image": self.image.init(keys[0]), "caption": self.caption.init(keys[1]), "logit": scalars}

    def embed(self, params: dict, images: jax.Array, captions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Embeddings of any leading shape."""

        def of(encoder, params, x):
            found = encoder.embed(params, {"features": x.reshape(-1, x.shape[-1])})
            return found.reshape(*x.shape[:-1], -1)

        return of(self.image, params["image"], images), of(self.caption, params["caption"], captions)

    def similarities(self, params: dict, groups: Groups) -> jax.Array:
        """Logits [G, m, k] of the images and captions of each group."""
        images, captions = (unit(x) for x in self.embed(params, *groups))
        cosines = jnp.einsum("gmd,gkd->gmk", images, captions)
        return jnp.exp(params["logit"]["scale"]) * cosines + params["logit"]["bias"]

    def make_loss(self, loss: str, mesh: jax.sharding.Mesh | None = None) -> CoupledLoss:
        """The loss of a batch {"images", "captions", "valid"} of groups of paired rows [n, m, D], over all devices.

        All other pairs of the batch are negatives. `valid` is of the groups.
        """

        def outputs(params, batch, key, extra):
            del key, extra
            images, captions = self.embed(params, batch["images"], batch["captions"])
            return {"images": images, "captions": captions}

        def part(rows, logit, axis_name):
            pair = [rows[name].reshape(-1, rows[name].shape[-1]) for name in ("images", "captions")]
            options = {"valid": jnp.repeat(rows["valid"], rows["images"].shape[1]), "axis_name": axis_name}
            if loss == "clip":
                return clip_loss(*pair, logit["scale"], **options)
            return siglip_loss(*pair, logit["scale"], logit["bias"], **options)

        spread_over = None if mesh is None or mesh.size == 1 else mesh
        return coupled_over_mesh(outputs, part, spread_over, shared=lambda params: params["logit"], columns=("valid",))


def make_optimizer(options) -> optax.GradientTransformation:
    """AdamW whose learning rate is a number of its state, so that every iteration can start it again."""
    return optax.inject_hyperparams(optax.adamw, static_args=("mask",))(
        learning_rate=options.learning_rate,
        b1=options.b1,
        b2=options.b2,
        eps=options.epsilon,
        weight_decay=options.weight_decay,
        mask=decay_mask,
    )


def pretrain(towers: Towers, config, pairs: Callable[[int], Pairs]) -> dict:
    """Towers trained on pairs (Adam), `pairs(step)` giving a batch."""
    options = config.source
    optimizer = optax.adam(options.learning_rate)
    params = towers.init(jax.random.key(config.seed), config.matching.loss)

    step_fn = make_train_step(towers.make_loss(config.matching.loss), optimizer)
    state = create_state(params, optimizer, jax.random.key(config.seed))
    for step in range(options.steps):
        images, captions = (x[:, None] for x in pairs(step))
        state, _ = step_fn(state, {"images": images, "captions": captions, "valid": np.ones(len(images), bool)})
    return state.params


class Matching:
    """The iterations of a config on groups, spread over the devices of a mesh; the state holds all that changes."""

    def __init__(self, config, towers: Towers, groups: Groups, mesh: jax.sharding.Mesh | None = None):
        if config.matching.loss not in LOSSES:
            raise UserError(f"config.matching.loss={config.matching.loss!r}: use one of {', '.join(LOSSES)}")
        self.config, self.towers, self.groups = config, towers, groups
        self.mesh = make_mesh(data=1, devices=jax.devices()[:1]) if mesh is None else mesh
        self.optimizer = make_optimizer(config.optimizer)
        self._of_groups, self._spread_groups = jax.jit(towers.similarities), spread(groups, self.mesh, fill=True)
        number, _, captions = self.similarities_shape = (*groups.images.shape[:2], groups.captions.shape[1])
        random = np.random.default_rng((config.seed, 3))
        # Ties go to the first matching, which must not be the true one.
        self._order = random.permuted(np.tile(np.arange(captions, dtype=np.int32), (number, 1)), axis=1)
        loss_fn = towers.make_loss(config.matching.loss, self.mesh)
        self._step = make_train_step(loss_fn, self.optimizer, mesh=self.mesh)
        self._fresh = jax.jit(self.optimizer.init, out_shardings=replicated(self.mesh))

    def similarities(self, params: dict) -> np.ndarray:
        """[G, m, k] logits of all groups, on the host."""
        with under_mesh(self.mesh):
            return gather(self._of_groups(params, self._spread_groups))[: len(self.groups.images)]

    def abstract(self, params: dict) -> TrainState:
        """Shapes of the state, from those of the parameters."""
        number = self.similarities_shape[0]
        extra = {
            "thresholds": jax.ShapeDtypeStruct((self.config.matching.iterations,), jnp.float32),
            "first": {name: jax.ShapeDtypeStruct((number,), bool) for name in ("group", "group_match")},
        }
        plain = abstract_state(params, self.optimizer, jax.random.key(0), extra)
        return with_shardings(plain, jax.tree.map(lambda _: replicated(self.mesh), plain))

    def begin(self, params: dict) -> TrainState:
        """The state before the first iteration; thresholds follow from the margins of these parameters."""
        options = self.config.matching
        params = jax.device_put(jax.device_get(params), replicated(self.mesh))
        scores = self.scores(params)
        _, margins = self.match(params)
        finite = margins[np.isfinite(margins)]

        def threshold(given, quantile):
            if given is not None:
                return given
            return float(np.quantile(finite, quantile)) if quantile and len(finite) else 0.0

        thresholds = group_matching.threshold_schedule(
            options.schedule,
            threshold(options.start_threshold, options.start_quantile),
            threshold(options.end_threshold, options.end_quantile),
            options.iterations,
        )
        extra = {
            "thresholds": jnp.asarray(thresholds, jnp.float32),
            "first": {name: jnp.asarray(scores[name]) for name in ("group", "group_match")},
        }
        # A copy: the state is donated, and whoever gave the parameters may begin again with them.
        params = jax.tree.map(jnp.copy, params)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract(params))
        return create_state(params, self.optimizer, jax.random.key(self.config.seed), extra, shardings=shardings)

    def match(self, params: dict) -> tuple[np.ndarray, np.ndarray]:
        """(caption of each image [G, m], margins [G]) by the similarities of `params`, without dropout or crops."""
        shuffled = np.take_along_axis(self.similarities(params), self._order[:, None], 2)
        many = shuffled.shape[2] > group_matching.LARGEST
        found = group_matching.large_matching(shuffled) if many else group_matching.best_matching(jnp.asarray(shuffled))
        return np.take_along_axis(self._order, np.asarray(found.captions), 1), np.asarray(found.margin)

    def scores(self, params: dict) -> dict[str, np.ndarray]:
        """GroupScore and GroupMatch of each group (bool); here alone the truth is looked at."""
        return jax.device_get(group_matching.group_scores(jnp.asarray(self.similarities(params))))

    def advance(self, state: TrainState, iteration: int) -> tuple[TrainState, dict[str, float]]:
        """One iteration; the metrics are of after its training, but for those of the selection."""
        options = self.config.matching
        threshold = float(state.extra["thresholds"][min(iteration, options.iterations - 1)])
        captions, margins = self.match(state.params)
        chosen = np.flatnonzero(group_matching.select_groups(margins, threshold))
        truth = (captions == np.arange(captions.shape[1])).all(1)
        metrics = {
            "threshold": threshold,
            "coverage": len(chosen) / len(margins),
            "matched_rightly": float(truth[chosen].mean()) if len(chosen) else 0.0,
            "groups_with_nan": float(np.isnan(margins).sum()),
        }
        state, losses = self._learn(state, captions, chosen, iteration)
        scores = self.scores(state.params)
        metrics |= {"loss": float(np.mean(losses)) if losses else 0.0}
        metrics |= {"group_score": float(scores["group"].mean()), "group_match": float(scores["group_match"].mean())}
        return state, metrics | {"skipped_in_a_row": float(state.skipped_in_a_row)}

    def _learn(self, state: TrainState, captions: np.ndarray, chosen: np.ndarray, iteration: int):
        """(state, losses) after the epochs of an iteration over the chosen groups; without any, the state as it is."""
        options, size = self.config.matching, self.config.matching.groups_per_batch
        steps = options.epochs * math.ceil(len(chosen) / size)
        peak = self.config.optimizer.learning_rate
        rates = group_matching.restart_cosine(peak, options.rate_ratio, iteration, steps, options.least_rate)
        random = np.random.default_rng((self.config.seed, 4, iteration))
        if options.fresh_moments and len(chosen):
            state = state.replace(opt_state=self._fresh(state.params))
        room = -(-size // batch_shards(self.mesh)) * batch_shards(self.mesh)
        losses: list[float] = []
        for _ in range(options.epochs):
            order = random.permutation(chosen)
            for start in range(0, len(order), size):
                part = order[start : start + size]
                rows = np.resize(part, room)  # always the same shape; what is repeated does not count
                batch = {
                    "images": self.groups.images[rows],
                    "captions": np.take_along_axis(self.groups.captions[rows], captions[rows][..., None], 1),
                    "valid": np.arange(room) < len(part),
                }
                rate = jax.device_put(np.float32(rates[len(losses)]), replicated(self.mesh))
                hyperparams = state.opt_state.hyperparams | {"learning_rate": rate}
                state = state.replace(opt_state=state.opt_state._replace(hyperparams=hyperparams))
                state, metrics = self._step(state, spread(batch, self.mesh))
                losses.append(metrics["loss"])
        return state, losses


def load_groups(spec: str, config) -> Groups:
    """Groups of the built-in world, or an .npz file with images [G, m, D] and captions [G, k, D'].

    Raises UserError: no such file or arrays, more images than captions.
    """
    if spec == WORLD:
        return OrderPairs(config.seed).groups(config.data.groups_number)
    groups = Groups(*(_arrays(spec, 3)))
    if groups.images.shape[0] != groups.captions.shape[0] or groups.images.shape[1] > groups.captions.shape[1]:
        raise UserError(
            f"{spec}: images {groups.images.shape} and captions {groups.captions.shape} are no groups with at least as "
            "many captions as images; swap the two, or correct the file (config.data.groups)"
        )
    return groups


def load_pairs(spec: str, config) -> Callable[[int], Pairs]:
    """Batches of pairs by step: of the built-in world, or of an .npz file with images [N, D] and captions [N, D']."""
    size = config.source.batch_size
    if spec == WORLD:
        world = OrderPairs(config.seed)
        return lambda step: world.pairs(size, step)
    pairs = Pairs(*_arrays(spec, 2))

    def batch(step: int) -> Pairs:
        rows = np.random.default_rng((config.seed, step)).integers(len(pairs.images), size=size)
        return Pairs(pairs.images[rows], pairs.captions[rows])

    return batch


def _arrays(spec: str, rank: int) -> list[np.ndarray]:
    if not Path(spec).is_file():
        raise UserError(f"{spec!r} is no file; give an .npz with images and captions, or {WORLD!r} (config.data)")
    with np.load(spec) as file:
        found = [np.asarray(file[name], np.float32) if name in file else np.zeros(0) for name in ("images", "captions")]
    if any(x.ndim != rank for x in found):
        raise UserError(f"{spec}: 'images' and 'captions' must be arrays of {rank} dimensions")
    return found


def make_towers(config, groups: Groups) -> Towers:
    hidden, out = tuple(config.towers.hidden_dims), config.towers.out_dim
    return Towers(*(MlpEncoder(x.shape[-1], hidden, out) for x in groups))


def run(config, workdir: str) -> None:
    """Matches and learns with `config` in `workdir`; the same call again resumes."""
    with Session(config, workdir) as session:
        groups = load_groups(config.data.groups, config)
        pairs = load_pairs(config.data.pairs, config)
        towers = make_towers(config, groups)
        mesh = make_mesh(**config.mesh)
        matching = Matching(config, towers, groups, mesh)
        number, images, captions = matching.similarities_shape
        session.announce(
            {
                "model": f"{towers.image} and {towers.caption}",
                "data": f"{config.data.groups}: {number} groups of {images} images and {captions} captions",
            },
            mesh,
        )
        start_of = jax.eval_shape(lambda key: towers.init(key, config.matching.loss), jax.random.key(0))
        restored = session.restore(matching.abstract(start_of), lambda position: None)
        state, start = restored or (matching.begin(pretrain(towers, config, pairs)), 0)

        def advance(state, step: int) -> Advance:
            state, metrics = matching.advance(state, step)
            return Advance(state, metrics, [])

        state, done = session.fit(state, advance, start=start, data_state=lambda done: {"iteration": done})
        if not session.stopped:
            after = matching.scores(state.params)
            for name, key in {"GroupScore": "group", "GroupMatch": "group_match"}.items():
                session.record(name, "before", np.asarray(state.extra["first"][key], float))
                session.record(name, "after", np.asarray(after[key], float))
        session.finish(done)
