"""The operators a worker runs, as rows; no torch is imported here."""

from .table import ROWS, Flag, Kind, Row, row

__all__ = ["ROWS", "Flag", "Kind", "Row", "row"]
