"""One problem and several kinds of solution, one kind rare: which losses find the rare ones (arXiv 2505.12925)?

300 problems to learn from and 100 to be tested, 16 documents each, of kinds with shares 85, 10 and 5 %, at least one of
each. A document shows the 10 dimensions of its problem and 24 of no use through the random map of its kind. Two
networks 64-128-32, batches of 32 problems, temperature 0.1, Adam 1e-3.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.studies.towers import fit, init_tower, tower
from jaxalign.evaluation.retrieval import retrieval_metrics
from jaxalign.losses import group_infonce
from jaxalign.objective import loss

PROBLEMS, TRAINED, DOCUMENTS, BATCH, WIDTH = 400, 300, 16, 32, 64
SIGNAL, NUISANCE, TEMPERATURE = 10, 24, 0.1
SHARES = (0.85, 0.10, 0.05)
PENALTIES = {"group": 1.0, "penalty 0.1": 0.1, "no penalty": 0.0}
SETTINGS = (*PENALTIES, "multi-positive", "single positive")


def _problems(seed: int):
    """Queries [P, 64], documents [P, 16, 64], kinds [P, 16]."""
    random = np.random.default_rng(seed)
    kinds = random.choice(len(SHARES), (PROBLEMS, DOCUMENTS), p=SHARES)
    for kind in range(len(SHARES)):
        kinds[:, kind] = kind  # at least one of each
    signal = random.normal(size=(PROBLEMS, SIGNAL))
    inputs = SIGNAL + NUISANCE
    maps = random.normal(size=(len(SHARES) + 1, inputs, WIDTH)) / (SIGNAL + NUISANCE / 4) ** 0.5  # to a variance of 1

    def latents(*shape):
        seen = signal.reshape(PROBLEMS, *(1,) * (len(shape) - 1), SIGNAL) + 0.3 * random.normal(size=(*shape, SIGNAL))
        return np.concatenate([seen, 0.5 * random.normal(size=(*shape, NUISANCE))], -1)

    documents = np.einsum("pki,pkio->pko", latents(PROBLEMS, DOCUMENTS), maps[kinds])
    queries = latents(PROBLEMS) @ maps[-1]
    return np.tanh(queries).astype(np.float32), np.tanh(documents).astype(np.float32), kinds


def _loss(setting: str):
    def value(params, batch):
        q = tower(params["query"], batch["queries"])
        d = tower(params["document"], batch["documents"])
        mask = jnp.ones(d.shape[:2], bool)
        if setting in PENALTIES:
            options = dict(temperature=TEMPERATURE, penalty_weight=PENALTIES[setting])
            return loss(group_infonce.group_infonce_loss(q, d, mask, **options))
        if setting == "multi-positive":
            return loss(group_infonce.multi_positive_infonce_loss(q, d, mask, temperature=TEMPERATURE))
        one = d[jnp.arange(len(d)), batch["one"]]
        return loss(group_infonce.single_positive_infonce_loss(q, one, mask[:, 0], temperature=TEMPERATURE))

    return value


def _evaluate(q: np.ndarray, d: np.ndarray, kinds: np.ndarray) -> dict[str, float]:
    q = q / np.linalg.norm(q, axis=-1, keepdims=True)
    d = d / np.linalg.norm(d, axis=-1, keepdims=True)
    scores = np.einsum("id,jkd->ijk", q, d)
    number = np.arange(len(q))
    own = scores[number, number]  # [P, 16]
    foreign = np.where((number[:, None] != number)[..., None], scores, -np.inf).reshape(len(q), -1)
    ranks = 1 + (foreign[:, None, :] > own[:, :, None]).sum(-1)
    relevant = np.repeat(number[:, None] == number, DOCUMENTS, axis=1)
    found = {f"reciprocal_rank/kind{kind}": float((1 / ranks)[kinds == kind].mean()) for kind in range(len(SHARES))}
    return found | {
        "variance": float(own.var(axis=-1, ddof=1).mean()),
        "ndcg@10": retrieval_metrics(scores.reshape(len(q), -1), relevant, (10,))["ndcg@10"],
    }


def run(setting: str, seed: int, steps: int = 400) -> dict[str, float]:
    """`reciprocal_rank/kind2` is that of the rarest kind: each own document among those of all other problems."""
    queries, documents, kinds = _problems(seed)
    random = np.random.default_rng(seed + 1)
    rows = np.stack([random.permutation(TRAINED)[:BATCH] for _ in range(steps)])
    ones = random.integers(0, DOCUMENTS, rows.shape)
    keys = jax.random.split(jax.random.key(seed))
    params = {name: init_tower(key, WIDTH, 128, 32) for name, key in zip(("query", "document"), keys, strict=True)}
    all_queries, all_documents = jnp.asarray(queries), jnp.asarray(documents)

    def of_rows(params, chosen):
        rows, one = chosen
        return _loss(setting)(params, {"queries": all_queries[rows], "documents": all_documents[rows], "one": one})

    params, _ = fit(of_rows, params, optax.adam(1e-3), (rows, ones))
    tested = slice(TRAINED, None)
    embedded = (tower(params["query"], queries[tested]), tower(params["document"], documents[tested]))
    return _evaluate(*(np.asarray(x, np.float64) for x in embedded), kinds[tested])
