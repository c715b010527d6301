"""Federated training, written with remote tensors and nothing below them."""
