"""Data: where examples come from, in which order, and how text becomes token ids."""
