"""Recorded programs: their text, their digest, their checks. No torch.

Recording is the client's (``obhut.client.recording``), lowering and replay are the
worker's (``obhut.worker.lowering``).
"""
