"""Small experiments that show the effect of a paper: `SETTINGS`, and `run(setting, seed) -> metrics`.

Each trains a model of a few thousand numbers (a table, a linear scorer, two towers) with the pieces of this library, in
seconds and without a run folder. `python -m experiments.compare --config=configs/claims/NAME.py` compares settings.
"""
