"""Metrics of sampled text, with their uncertainty, and comparisons of two methods."""
