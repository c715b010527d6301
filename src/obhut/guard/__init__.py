"""What may leave: policies, the rules of release, the record of decisions.

Rules:

- It is pure: no I/O, no clock, no torch and no gRPC. Dates are arguments.
- A decision depends on coefficients, names, policies and what was released before,
  and never on a value; so a refusal tells nothing.
- Deny is the default: what can not be shown to be allowed is refused.
"""
