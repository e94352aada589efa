"""Ablations: norm × constraint set × order × method over a data set, one machine, a tidy table and a plot."""
