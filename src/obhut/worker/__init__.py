"""The worker: a state machine that holds tensors and runs operators on them.

Rule: no I/O. What it needs is an argument, what it wants done is an effect.
"""
