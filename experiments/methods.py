"""Prints the table of methods.

python -m experiments.methods              all methods, one line each
python -m experiments.methods dr_grpo      one method in full
python -m experiments.methods --markdown   the table for the documentation
"""

import argparse
import sys
from collections.abc import Sequence

from jaxalign.errors import UserError
from jaxalign.methods import METHODS, Method, get_method, markdown_table, settings_text

_PAGE = """# Methods

Written by `python -m experiments.methods --markdown > docs/methods.md` from the table in `jaxalign/methods.py`.
A row is run by `python -m experiments.run --config=<config>`, and by `experiments.compare` where the config is a claim.

"""


def page() -> str:
    """docs/methods.md."""
    return _PAGE + markdown_table()


def overview() -> str:
    """One aligned line per method."""
    rows = [("method", "paper", "config", "title")]
    rows += [(row.name, row.paper or "-", row.config, row.title) for row in METHODS.values()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines) + "\n"


def details(method: Method) -> str:
    fields = {
        "method": f"{method.name}: {method.title}",
        "paper": f"https://arxiv.org/abs/{method.paper}" if method.paper else "-",
        "pieces": "\n".join(method.pieces),
        "settings": settings_text(method),
        "run": method.launch,
        "claim": method.claim,
        "status": method.status,
    }
    width = max(map(len, fields)) + 2
    lines = []
    for key, text in fields.items():
        first, *others = text.split("\n")
        lines += [key.ljust(width) + first, *(" " * width + line for line in others)]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line (without the program's name) and returns the exit code: 0, or 2 for an unknown method."""
    parser = argparse.ArgumentParser(
        prog="experiments.methods", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("method", nargs="?", help="show this one in full")
    parser.add_argument("--markdown", action="store_true", help="write the page of the documentation")
    arguments = parser.parse_args(argv)
    try:
        if arguments.markdown:
            text = page()
        else:
            text = details(get_method(arguments.method)) if arguments.method else overview()
    except UserError as error:
        print(f"experiments.methods: error: {error}", file=sys.stderr)
        return 2
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
