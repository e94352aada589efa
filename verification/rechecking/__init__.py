"""Levels B and C of the checker: a second, plain implementation of the bounds, over numpy and python-flint alone."""
