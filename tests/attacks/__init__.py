"""Attacks: programs that try to learn what belongs to one owner.

Each uses what any client can. A suite runs each with all rules on, and with those off
that stop it; independent judges look at all that reached the requester.
"""
