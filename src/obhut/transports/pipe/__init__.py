"""Processes that hold sessions: how a worker's parent starts and speaks to them.

The parent (``children``) knows identities and the network and runs no operator. A
child runs the operators of one session; an operator may have been turned against
it, so it counts as hostile. The fork server in between runs neither.

Rules:

- The parent loads no torch and unpickles nothing; what a child says is decoded by
  table and held to limits before anything is allocated for it.
- Files are passed to a child, never by one: the parent makes all shared memory,
  so that its size is fixed before a child can touch it.
- The parent reads each byte that a child wrote once: it may change between two
  readings.
- One message is under way at a time, in one direction.
"""
