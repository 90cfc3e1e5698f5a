"""Orders and splits that follow from what is ordered or split, the same on every machine."""

import hashlib


def digest(seed: int, text: str) -> bytes:
    """To sort by: an order that `seed` picks and that does not change when other rows come or go."""
    return hashlib.sha256(f"{seed}:{text}".encode()).digest()


def share(seed: int, text: str) -> float:
    """Uniform in [0, 1) by text."""
    return int.from_bytes(digest(seed, text)[:6], "big") / 2**48
