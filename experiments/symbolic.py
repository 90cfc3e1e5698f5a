"""Reads preference losses as logic, and logic as preference losses.

python -m experiments.symbolic                        the losses that have names
python -m experiments.symbolic --name=dpo             the formula of a named loss, its ratio, worlds and an example
python -m experiments.symbolic --formula="rejected -> chosen given chosen ^ rejected"
                                                      the same of a formula
python -m experiments.symbolic --ratio="chosen / rejected"
                                                      the same of a ratio of probabilities
python -m experiments.symbolic --name=orpo --reference    the same, given a reference
python -m experiments.symbolic --lattice=lattice.svg  draws the order of the sixteen losses without a reference

A formula is `P given C also A`: of the worlds of C those of P win and the others lose; those of A do both.
Signs, weakest first: <-> -> | ^ & ~, and true, false. Predictions: chosen, rejected, reference_chosen,
reference_rejected; chosen' is a second copy of chosen.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from jaxalign.errors import UserError, user_message
from jaxalign.losses.symbolic import lattice, tables
from jaxalign.losses.symbolic.compilation import Link, compile_structure, symbolic_loss
from jaxalign.losses.symbolic.decompilation import decompile_ratio, ratio, reference_form, structure_of
from jaxalign.losses.symbolic.drawing import hasse_diagram
from jaxalign.losses.symbolic.named import NAMED_LOSSES, SINGLE_MODEL, get_loss, names_of
from jaxalign.losses.symbolic.structures import Preference, Structure, ordered, parse_structure

# Three pairs (log-probs in nats): the policy ranks them rightly, wrongly and rightly far from probability 1.
EXAMPLE = {
    "chosen": (-0.5, -2.0, -40.0),
    "rejected": (-2.0, -0.5, -50.0),
    "reference_chosen": (-1.0, -1.0, -45.0),
    "reference_rejected": (-1.0, -1.0, -45.0),
}


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side, two blanks apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines) + "\n"


def overview() -> str:
    """One line per named loss."""
    rows = [("name", "link", "ratio of probabilities", "formula")]
    rows += [(name, loss.link, ratio(loss.preference), loss.formula) for name, loss in NAMED_LOSSES.items()]
    return aligned([row[:3] for row in rows]) + "\n" + aligned([(row[0], row[3]) for row in rows])


def worlds(preference: Preference) -> str:
    """The truth table with the verdict on each row; of more than two predictions without the rows that are excluded."""
    short = len(preference.variables) > 2
    rows = [(*preference.variables, "")]
    for row, verdict in zip(tables.rows(len(preference.variables)), preference.verdicts, strict=True):
        if not (short and verdict == "excluded"):
            rows.append((*("T" if value else "F" for value in row), verdict))
    left_out = len(preference.verdicts) + 1 - len(rows)
    return aligned(rows) + f"({left_out} more are excluded)\n" * bool(left_out)


def example(structure: Structure, link: Link, beta: float) -> str:
    """The loss of the pairs of `EXAMPLE`, one by one, and its gradient."""
    import jax
    import jax.numpy as jnp

    names = list(dict.fromkeys(name.rstrip("'") for name in ("chosen", "rejected", *structure.variables)))
    arrays = {name: jnp.asarray(EXAMPLE.get(name, (-1.0, -1.0, -1.0))) for name in names}

    def total(arrays: dict[str, Any], row: int) -> tuple[Any, Any]:
        objective = symbolic_loss(formula=structure, mask=jnp.arange(3) == row, link=link, beta=beta, **arrays)
        return objective.total, objective.metrics["margin"][0] / beta

    rows = [(*names, "log-ratio", "loss", "d loss / d chosen", "d loss / d rejected")]
    for row in range(3):
        (loss, rho), gradient = jax.value_and_grad(total, has_aux=True)(arrays, row)
        slopes = gradient["chosen"][row], gradient["rejected"][row]
        numbers = [*(arrays[name][row] for name in names), rho, loss, *slopes]
        rows.append(tuple(f"{float(number):.4g}" for number in numbers))
    return aligned(rows)


def description(title: str, structure: Structure, preference: Preference, link: Link, beta: float, note: str) -> str:
    """Everything there is to say about one loss."""
    canonical = structure_of(preference)
    fields = [("loss", title)] if title else []
    fields.append(("formula", str(structure)))
    if canonical != structure:
        fields.append(("or", str(canonical)))
    fields += [("ratio", ratio(preference)), ("link", f"{link}, beta {beta:g}")]
    same = names_of(preference.over(ordered(("chosen", "rejected", *preference.variables))))
    if same:
        fields.append(("known as", ", ".join(same)))
    if note:
        fields.append(("note", note))
    parts = [aligned(fields), worlds(preference), example(structure, link, beta)]
    return "\n".join(parts)


def draw(path: Path) -> str:
    """Writes the lattice of the sixteen losses and says what is in it."""
    if path.suffix != ".svg":
        raise UserError(f"--lattice={path}: the lattice is drawn as SVG; name the file {path.with_suffix('.svg')}")
    names, preferences = list(SINGLE_MODEL), [loss.preference for loss in SINGLE_MODEL.values()]
    order = lattice.entailment(preferences)
    edges = lattice.cover_edges(order)
    picture = hasse_diagram(
        [(name, ratio(p, ("c", "r"))) for name, p in zip(names, preferences, strict=True)],
        lattice.heights(order),
        edges,
        [lattice.VERDICTS.index(p.verdicts[-1]) for p in preferences],
        [f"neither valid: {verdict}" for verdict in lattice.VERDICTS],
        "Entailment: the loss above is never larger; c and r are the probabilities of chosen and rejected",
    )
    try:
        path.write_text(picture, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    return f"{path}: {len(names)} losses, {len(edges)} cover edges; from {names[0]} (bottom) to {names[-1]} (top)\n"


def describe(arguments: argparse.Namespace) -> str:
    """The description that the flags ask for."""
    title = note = ""
    link, beta = "logistic", 1.0
    if arguments.name is not None:
        loss = get_loss(arguments.name)
        structure, link, beta, note = parse_structure(loss.formula), loss.link, loss.beta, loss.note
        title = f"{arguments.name}: {loss.title}"
    elif arguments.formula is not None:
        structure = parse_structure(arguments.formula)
    else:
        structure = decompile_ratio(arguments.ratio)
    preference = compile_structure(structure)
    if arguments.reference:
        preference = reference_form(preference.over(ordered(("chosen", "rejected", *preference.variables))))
        structure = structure_of(preference)
        title = title and f"{title}, given a reference"
    link = arguments.link or link
    beta = beta if arguments.beta is None else arguments.beta
    return description(title, structure, preference, link, beta, note)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line (without the program's name) and returns the exit code: 0, or 2 for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="experiments.symbolic", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--name", help="a named loss")
    what.add_argument("--formula", help="P given C also A")
    what.add_argument("--ratio", help="top / bottom, polynomials in the predictions")
    what.add_argument("--lattice", metavar="FILE", type=Path, help="where the picture is written (.svg)")
    parser.add_argument("--reference", action="store_true", help="the loss given a reference")
    parser.add_argument("--link", choices=get_args(Link), help="how the log-ratio becomes a loss")
    parser.add_argument("--beta", type=float, help="parameter of the link")
    arguments = parser.parse_args(argv)
    chosen = (arguments.name, arguments.formula, arguments.ratio)
    try:
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always", UserWarning)
            if arguments.lattice is not None:
                text = draw(arguments.lattice)
            else:
                text = overview() if chosen == (None, None, None) else describe(arguments)
    except ValueError as error:
        message = user_message(error)
        if message is None:
            raise
        print(f"experiments.symbolic: error: {message}", file=sys.stderr)
        return 2
    for note in dict.fromkeys(str(warning.message) for warning in noted):
        print(f"experiments.symbolic: note: {note}", file=sys.stderr)
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
