"""Studies of bounds on known distributions, and of the codes in a cache: behind ``ifsq analyze``."""
