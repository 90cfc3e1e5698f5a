"""Writes report.html of a run again: `python -m experiments.report --workdir=runs/grpo_qwen`."""

import argparse
import sys

from jaxalign.errors import user_message
from jaxalign.training.report import write_report


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description=__doc__)
    parser.add_argument("--workdir", required=True, help="the folder of a run")
    arguments = parser.parse_args(argv)
    try:
        print(write_report(arguments.workdir))
    except (ValueError, OSError) as error:
        message = user_message(error)
        if message is None:
            raise
        print(f"experiments.report: error: {message}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
