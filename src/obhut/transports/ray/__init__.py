"""Simulated clients on Ray: many workers an actor, on one machine or a cluster.

It needs the extra ``obhut[ray]``.

Rule: Ray pickles, and whoever reaches its processes runs code in them. It is one
researcher's own cluster, for open workers; no wall stands in it.
"""

from obhut.errors import MissingExtraError

try:
    import ray as _ray  # noqa: F401 # is it there?
except ImportError as error:
    raise MissingExtraError("ray", "simulating clients on Ray", "ray") from error
