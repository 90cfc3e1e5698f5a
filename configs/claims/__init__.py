"""Claims: arms and what is expected of them, for `python -m experiments.compare`."""
