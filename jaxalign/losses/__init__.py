"""What is minimised: arrays, masks and keyword settings in, an `Objective` out."""
