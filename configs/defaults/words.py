"""What stands behind the colon of `--config=configs/<name>.py:<words>`."""

from collections.abc import Iterable

from jaxalign.errors import UserError
from jaxalign.models.config import HUB_IDS


def arguments(text: str | None, known: dict[str, str]) -> set[str]:
    """Words of `text` (comma separated); each must be a key of `known` (word -> what it does)."""
    words = {word for word in (text or "").split(",") if word}
    for word in words - set(known):
        meanings = "; ".join(f"{name}: {meaning}" for name, meaning in known.items())
        raise UserError(f"--config=...:{word} is not known here; use one or more of [{meanings}]")
    return words


def one_of(words: set[str], choices: Iterable[str], default: str) -> str:
    """The one word of `choices` that was given, else the default."""
    given = sorted(words & set(choices))
    if len(given) > 1:
        raise UserError(f"--config=...:{','.join(given)}: give one of them, they exclude each other")
    return given[0] if given else default


SIZES = {name: f"weights of {hub_id}" for name, hub_id in HUB_IDS.items()}
