"""Workers reached over gRPC, by peers that authenticate each other.

Rule: who sent a message is read from the certificate of the connection that brought
it, and from nothing else.
"""
