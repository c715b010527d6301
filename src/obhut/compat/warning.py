"""Warnings at the line of a program that they are about."""

from __future__ import annotations

import warnings

from obhut.client.call_site import CallSite, current_call_site


def warn(text: str, kind: type[Warning] = UserWarning) -> None:
    """Warn at the caller's line, each time that it runs."""
    site = current_call_site() or CallSite("<unknown>", 1)
    warnings.warn_explicit(text, kind, site.file, site.line)
