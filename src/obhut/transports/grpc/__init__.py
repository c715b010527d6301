"""Workers reached over gRPC, by peers that authenticate each other.

Rules:

- Who sent a message is read from the certificate of the connection that brought it, and
  from nothing else.
- What gRPC's core says of connections that end is no line on a user's screen, unless
  ``GRPC_VERBOSITY`` asks for it: what it means for them is said by an error.
"""

import os

# Before gRPC is loaded, which reads it once.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
