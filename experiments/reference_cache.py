"""The reference's summed log-probs of all rows of a preference run, computed once and kept on disk.

A file is named by what its numbers follow from: the reference's weights, the tokens of every row, and how they are
scored. Other weights or other data have another name, so that nothing stale is ever read.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from jaxalign.data.preferences import Preference
from jaxalign.models.fingerprint import fingerprint
from jaxalign.training.mesh import all_processes

Score = Callable[[Sequence[Preference]], np.ndarray]  # rows -> [N, 2], nats


def cache_key(reference, rows: Sequence[Preference], scoring: dict) -> str:
    """32 hex digits; `scoring` is whatever else the numbers depend on. Every process must call."""
    digest = hashlib.sha256(fingerprint(reference).encode())
    digest.update(json.dumps({**scoring, "jax": jax.__version__, "backend": jax.default_backend()}).encode())
    for row in rows:
        digest.update(json.dumps([list(row.prompt_ids), [list(ids) for ids in row.completion_ids]]).encode())
    return digest.hexdigest()[:32]


def reference_log_probs(
    folder: Path, reference, rows: Sequence[Preference], score: Score, scoring: dict, say: Callable[[str], None]
) -> np.ndarray:
    """[N, 2] summed log-probs of `rows`, from the file of their key in `folder` or by `score`, which then makes it."""
    if not rows:
        return np.zeros((0, 2), np.float32)
    path = folder / f"{cache_key(reference, rows, scoring)}.npz"
    found = _read(path, len(rows))
    if all_processes(np.array(found is not None)).all():
        say(f"  log-probs of the reference: {len(rows)} rows from {path}")
        return found
    say(f"  log-probs of the reference: scoring {len(rows)} rows once, to be kept in {path} ...")
    found = np.asarray(score(rows), np.float32)
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.stem}.{os.getpid()}.part")
        with open(unfinished, "wb") as file:
            np.savez(file, log_probs=found)
        unfinished.replace(path)
    return found


def _read(path: Path, rows: int) -> np.ndarray | None:
    """None where there is no whole file."""
    try:
        with np.load(path) as file:
            found = file["log_probs"]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return found if found.shape == (rows, 2) else None
