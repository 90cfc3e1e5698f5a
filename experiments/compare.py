"""Runs arms over seeds and says which is better, by how much, and how sure that is.

  python -m experiments.compare --config=configs/claims/NAME.py
  python -m experiments.compare --a=configs/mine.py --b=configs/grpo_qwen.py:tiny --metric=METRIC --seeds=0,1,2

Flags:
  --config=FILE[:ARGUMENT]   a claim: arms, seeds, metrics and what is expected (configs/claims)
  --a=SPEC --b=SPEC          instead: two configs of experiments.run; a against b
  --metric=NAME              with --a and --b: the name of an evaluation, or of a metric in metrics.jsonl
  --seeds=0,1,2              seeds, in place of the claim's
  --workdir=FOLDER           default runs/compare/<name>; finished runs there are not repeated
  --record=FILE.json         also writes the result there (docs/claims keeps those of this project)
  --config.KEY=VALUE         overrides one key of the claim

Every run is `python -m experiments.run` in a process of its own, one after the other. Runs of one seed are paired:
they see the same questions in the same order. An arm may also be a setting of a study: a small experiment of a paper
that needs no run of its own (experiments/studies).
"""

import argparse
import datetime
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.arms import Run, results, study_of
from experiments.comparison_page import strict, table, write_page
from jaxalign.errors import UserError, user_message


def on_unsolved(runs: Sequence[Run], judges: Sequence[Run]) -> list[Run]:
    """The runs as seen on the questions that score 0 in the `judges` of their seeds.

    Raises UserError: the metric has no scores by question, or nothing is unsolved.
    """
    if any(run.scores is None for run in (*runs, *judges)):
        raise UserError("config.expectations: unsolved_by needs a metric with scores by question (an evaluation)")
    if any(all(judge.scores) for judge in judges):
        raise UserError("config.expectations: the arm of unsolved_by solves every question; name a weaker one")
    chosen = [np.flatnonzero(np.equal(judge.scores, 0)) for judge in judges]
    scores = [np.asarray(run.scores)[index] for run, index in zip(runs, chosen, strict=True)]
    same = all(np.array_equal(index, chosen[0]) for index in chosen)  # else no average over seeds by question
    return [Run(float(one.mean()), one.tolist() if same else None) for one in scores]


def judge(expectation, runs: dict[str, list[Run]]) -> dict[str, Any]:
    """The paired difference arm - against over seeds, its interval, and what that says about the expectation.

    The interval (95 %) is a bootstrap over questions, each averaged over seeds, where the metric has scores by question
    and there are at least 3 seeds; else Student's t over seeds. The verdict is "holds" if the whole interval lies on
    the expected side of `by`, "does not hold" if it lies on the other, else "not settled".
    """
    import jax

    from jaxalign.evaluation.comparisons import paired_permutation
    from jaxalign.evaluation.intervals import bootstrap_ci, seed_report

    arm, against = runs[expectation.arm], runs[expectation.against]
    if expectation.unsolved_by:
        arm, against = (on_unsolved(side, runs[expectation.unsolved_by]) for side in (arm, against))
    differences = np.array([a.value - b.value for a, b in zip(arm, against, strict=True)])
    seeds = seed_report(differences)
    low, high, how = seeds.low, seeds.high, f"Student's t over {len(differences)} seed(s)"
    by_question = [(a.scores, b.scores) for a, b in zip(arm, against, strict=True)]
    if len(differences) >= 3 and all(a and b and len(a) == len(b) for a, b in by_question):
        pairs = np.mean([np.subtract(a, b) for a, b in by_question], axis=0)
        interval = bootstrap_ci(jax.random.key(0), pairs)
        low, high = interval.low, interval.high
        how = f"bootstrap over {len(pairs)} questions, averaged over {len(differences)} seeds"
        p_value = paired_permutation(jax.random.key(1), pairs)
    else:
        p_value = paired_permutation(jax.random.key(1), differences)
    sign = {"higher": 1, "lower": -1}[expectation.direction]
    nearest, farthest = sorted(sign * bound for bound in (low, high))
    if np.isnan(nearest):
        verdict = "not settled (one seed)"
    elif nearest > expectation.by:
        verdict = "holds"
    else:
        verdict = "does not hold" if farthest < expectation.by else "not settled"
    return {
        "metric": expectation.metric,
        "expected": f"{expectation.arm} {expectation.direction} than {expectation.against}"
        + (f" by more than {expectation.by:g}" if expectation.by else "")
        + (f", on what {expectation.unsolved_by} does not solve" if expectation.unsolved_by else ""),
        "difference": float(differences.mean()),
        "by_seed": differences.tolist(),
        "low": float(low),
        "high": float(high),
        "interval": how,
        "p_value": p_value,
        "verdict": verdict,
    }


def check(claim) -> None:
    """Refuses a claim that cannot be run, before anything is. Raises UserError."""
    if not claim.seeds or len(set(claim.seeds)) < len(claim.seeds):
        raise UserError(f"config.seeds={claim.seeds} must name at least one seed, each once")
    for name, expectation in claim.expectations.items():
        for key in ("arm", "against", *(("unsolved_by",) if expectation.unsolved_by else ())):
            if expectation[key] not in claim.arms:
                raise UserError(
                    f"config.expectations.{name}.{key}={expectation[key]!r} names no arm; arms are "
                    f"{', '.join(claim.arms)}"
                )
        if expectation.direction not in ("higher", "lower"):
            raise UserError(f"config.expectations.{name}.direction={expectation.direction!r}: use 'higher' or 'lower'")
    from jaxalign.training import configuration

    for name, arm in (*claim.starts.items(), *claim.arms.items()):
        if "study" in arm:
            study_of(arm)
            continue
        if arm.start and (name in claim.starts or arm.start not in claim.starts):
            raise UserError(
                f"config.arms.{name}.start={arm.start!r} names no start; starts are {', '.join(claim.starts) or 'none'}"
            )
        config = configuration.load_config(arm.config)
        configuration.apply_overrides(config, [f"--config.{text}" for text in arm.overrides])


def compare(claim, workdir: Path, command: str) -> dict[str, Any]:
    """Runs what is not there yet and returns the record. Raises UserError."""
    from jaxalign.training.report import environment

    check(claim)
    metrics = dict.fromkeys(expectation.metric for expectation in claim.expectations.values())
    found: dict[str, dict[str, list[Run]]] = {metric: {name: [] for name in claim.arms} for metric in metrics}
    for seed in claim.seeds:
        for name in claim.arms:
            for metric, run in results(claim, name, seed, workdir, metrics).items():
                found[metric][name].append(run)
    return {
        "claim": claim.name,
        "statement": claim.statement,
        "command": command,
        "date": datetime.date.today().isoformat(),
        "seeds": list(claim.seeds),
        "starts": {name: json.loads(start.to_json()) for name, start in claim.starts.items()},
        "arms": {name: json.loads(arm.to_json()) for name, arm in claim.arms.items()},
        "values": {
            metric: {name: [run.value for run in runs] for name, runs in arms.items()} for metric, arms in found.items()
        },
        "results": [judge(expectation, found[expectation.metric]) for expectation in claim.expectations.values()],
        "environment": environment(),
    }


def claim_of(arguments: argparse.Namespace, overrides: Sequence[str]):
    """The claim that the command line names. Raises UserError."""
    from configs import defaults
    from jaxalign.training import configuration

    if arguments.config:
        claim = configuration.load_config(arguments.config)
        if "arms" not in claim:
            raise UserError(f"{arguments.config} is no claim: it has no arms (see configs/claims, or use --a and --b)")
    else:
        if not (arguments.a and arguments.b and arguments.metric):
            raise UserError("give --config=FILE of a claim, or --a=SPEC --b=SPEC --metric=NAME (--help explains)")
        claim = defaults.claim("a_against_b", f"{arguments.a} against {arguments.b}")
        claim.arms.a, claim.arms.b = defaults.arm(arguments.a), defaults.arm(arguments.b)
        claim.expectations.a_higher = defaults.expectation(arguments.metric, "a", "higher", "b")
    configuration.apply_overrides(claim, overrides)
    if arguments.seeds:
        if not all(text.strip().isdigit() for text in arguments.seeds.split(",")):
            raise UserError(f"--seeds={arguments.seeds} must be numbers with commas between, e.g. 0,1,2")
        claim.seeds = tuple(int(text) for text in arguments.seeds.split(","))
    return claim


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="experiments.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for flag in ("config", "a", "b", "metric", "seeds", "workdir", "record"):
        parser.add_argument(f"--{flag}", help=argparse.SUPPRESS)
    overrides = [text for text in argv if text.startswith("--config.")]
    arguments = parser.parse_args([text for text in argv if text not in overrides])
    try:
        claim = claim_of(arguments, overrides)
        workdir = Path(arguments.workdir or f"runs/compare/{claim.name}")
        print(f"{claim.name}: {len(claim.arms)} arms x {len(claim.seeds)} seed(s) in {workdir}", flush=True)
        # Where it was run changes nothing.
        told = [text for text in argv if not text.startswith("--workdir") and text != arguments.workdir]
        record = compare(claim, workdir, shlex.join(["python", "-m", "experiments.compare", *told]))
        for path in filter(None, (workdir / "comparison.json", arguments.record)):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(json.dumps(strict(record), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        write_page(record, workdir / "comparison.html")
    except KeyboardInterrupt:
        print("experiments.compare: interrupted; the same command goes on", file=sys.stderr)
        return 130
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        print(f"experiments.compare: error: {message}", file=sys.stderr)
        return 2
    print()
    print("\n".join(f"  {line}" for line in table(record)))
    print(f"  record: {workdir / 'comparison.json'}, page: {workdir / 'comparison.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
