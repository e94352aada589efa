"""Comparisons: methods × metrics × inputs from one configuration, kept cell by cell so that an interrupted run goes on where it stopped."""
