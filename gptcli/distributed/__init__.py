"""Parallel training: rank coordinates, process launch, and each kind of parallelism."""
