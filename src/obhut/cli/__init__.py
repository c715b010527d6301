"""The command ``obhut``."""
