"""Loops in C for CPUs, built where they run, for the few places where PyTorch's calls take the
time.
"""
