"""The names of PySyft 0.2, for programs written with it."""
