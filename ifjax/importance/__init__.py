"""Importance of neurons: what a score is read from, and the metrics."""
