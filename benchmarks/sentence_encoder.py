"""Sentence embeddings of all-MiniLM-L6-v2: sentences a second here, with transformers and with sentence-transformers.

All sides embed the same sentences (of this repository's documentation, again and again until there are enough): token
ids, the encoder, the mean over each sentence's tokens, unit vectors: what sentence-transformers computes. The other
sides sort by length and pad each batch to its longest sentence; ours pads to a few lengths. First the embeddings of 100
sentences are compared, then all are timed in turns. Loading and compilation are not part of the times.
"""

import itertools
import re
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import common

TOLERANCE = 1e-4


def sentences(count: int) -> list[str]:
    """Prose of docs/ in sentences; from the second round on each has its number behind it."""
    texts = [path.read_text() for path in sorted((common.ROOT / "docs").glob("*.md"))]
    found = [one.strip() for text in texts for one in re.split(r"(?<=[.:;?!])\s+|\n\n", text) if len(one.strip()) > 20]
    rounds = (f"{one} {number}" if number else one for number in itertools.count() for one in found)
    return list(itertools.islice(rounds, count))


class Jaxalign:
    def __init__(self, dtype: str = "float32"):
        from jaxalign.models.encoders import EMBEDDED, load_encoder

        self._loaded = load_encoder(EMBEDDED, compute_dtype=dtype)

    def folder(self) -> str:
        from jaxalign.models.encoders import EMBEDDED, open_encoder

        return str(open_encoder(EMBEDDED).read.args[0])

    def embed(self, count: int, batch_tokens: int, path: str | None = None) -> None:
        from jaxalign.models.sentences import embed_texts

        _, params, tokenizer, preprocess, *_ = self._loaded
        found = embed_texts(
            self._loaded.encoder,
            params,
            tokenizer,
            sentences(count),
            max_length=preprocess.max_length,
            batch_tokens=batch_tokens,
        )
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        if path is not None:
            np.save(path, found)


class Transformers:
    def __init__(self, folder: str):
        from transformers import AutoModel, AutoTokenizer

        self._model = AutoModel.from_pretrained(folder).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)

    def embed(self, count: int, rows: int, path: str | None = None) -> None:
        import torch

        texts = sentences(count)
        order = sorted(range(count), key=lambda n: -len(texts[n]))
        out = np.zeros((count, self._model.config.hidden_size), np.float32)
        with torch.inference_mode():
            for start in range(0, count, rows):
                some = order[start : start + rows]
                given = self._tokenizer(
                    [texts[n] for n in some], padding=True, truncation=True, max_length=256, return_tensors="pt"
                )
                mask = given["attention_mask"][..., None]
                mean = (self._model(**given).last_hidden_state * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
                out[some] = torch.nn.functional.normalize(mean, dim=1).numpy()
        if path is not None:
            np.save(path, out)


class SentenceTransformers:
    def __init__(self, folder: str):
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(folder, device="cpu")

    def embed(self, count: int, rows: int, path: str | None = None) -> None:
        out = self._model.encode(sentences(count), batch_size=rows, normalize_embeddings=True, show_progress_bar=False)
        if path is not None:
            np.save(path, out)


PEERS = {
    "transformers": ("Transformers", "transformers"),
    "sentence-transformers": ("SentenceTransformers", "sentence_transformers"),
}


def main() -> None:
    parser = common.parser(__doc__, rounds=3)
    parser.add_argument("--count", type=int, default=1024, help="sentences (default %(default)s)")
    parser.add_argument("--rows", type=int, default=32, help="batch of the other side (default %(default)s, theirs)")
    parser.add_argument("--batch-tokens", type=int, default=2048, help="tokens in our batch (default %(default)s)")
    arguments = parser.parse_args()
    common.print_machine()
    options = dict(priority=arguments.priority)
    given = {
        "jaxalign": dict(batch_tokens=arguments.batch_tokens),
        "jaxalign bfloat16": dict(batch_tokens=arguments.batch_tokens),
        **{name: dict(rows=arguments.rows) for name in PEERS},
    }
    workers = {
        "jaxalign": common.Worker("benchmarks.sentence_encoder:Jaxalign", **options),
        "jaxalign bfloat16": common.Worker("benchmarks.sentence_encoder:Jaxalign", dtype="bfloat16", **options),
    }
    try:
        folder = workers["jaxalign"].call("folder")
        for name, (side, package) in PEERS.items():
            if common.has_peer(arguments.peer_python, "torch", package):
                workers[name] = common.Worker(
                    f"benchmarks.sentence_encoder:{side}", python=arguments.peer_python, folder=folder, **options
                )
        with tempfile.TemporaryDirectory() as folder:
            found = {}
            for name, worker in workers.items():
                path = str(Path(folder) / f"{name}.npy")
                worker.call("embed", count=100, path=path, **given[name])
                found[name] = np.load(path)
        for peer in PEERS:
            if peer not in found:
                continue
            apart = {name: abs(some - found[peer]).max() for name, some in found.items() if name not in PEERS}
            for name, difference in apart.items():
                print(f"  {name}: 100 embeddings, largest difference from {peer} {difference:.1e}")
            if apart["jaxalign"] > TOLERANCE:
                raise SystemExit(f"the embeddings differ by more than {TOLERANCE:g}; times would mean nothing")
        for name, worker in workers.items():  # the warm-up
            worker.call("embed", count=arguments.count, **given[name])
        sides = {
            name: lambda worker=worker, name=name: worker.timed("embed", count=arguments.count, **given[name])
            for name, worker in workers.items()
        }
        summaries = {name: common.summarise(calls) for name, calls in common.in_turns(sides, arguments.rounds).items()}
        rates = {name: arguments.count / summary.seconds for name, summary in summaries.items()}
        common.print_table(
            (*common.TIMING, "sentences/s"),
            [common.timing_row(name, summary, f"{rates[name]:.0f}") for name, summary in summaries.items()],
        )
        for peer in PEERS:
            if peer in rates:
                ratio = rates["jaxalign"] / rates[peer]
                common.print_target(f"float32 against {peer}", ratio, 1.5, "x", at_most=False)
    finally:
        for worker in workers.values():
            worker.close()


if __name__ == "__main__":
    main()
