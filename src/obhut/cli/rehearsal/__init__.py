"""``obhut policy rehearse``: what a program would get, before it is sent."""
