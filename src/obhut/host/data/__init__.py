"""Data sets: how an owner declares them, and how files become tensors."""
