"""FLOPs, memory, communication, time, money and energy of a model.

Imports neither torch nor numpy.
"""
