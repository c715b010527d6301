"""Who somebody is: keys, certificates, pinned peers, invitations, rotation.

Rule: nothing here knows how a peer is reached for work. An invitation is redeemed over
a socket of its own.
"""
