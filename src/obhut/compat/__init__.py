"""The names of the seed's library, for programs written with it."""
