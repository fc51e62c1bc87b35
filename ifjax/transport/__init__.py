"""Optimal transport between neurons: costs, centroids, plans, solvers."""
