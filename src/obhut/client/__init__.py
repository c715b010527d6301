"""The model owner's side: remote tensors, modules and how they travel."""
