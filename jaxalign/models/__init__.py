"""Models: what computes hidden states, and where their weights come from."""
