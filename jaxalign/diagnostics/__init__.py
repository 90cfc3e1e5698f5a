"""What we want to know, changing nothing: arrays in, (sum, weight) metrics or arrays out."""
