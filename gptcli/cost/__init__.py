"""What a model takes: parameters, FLOPs, memory, time and money, by formulas with their sources.
Needs neither torch nor numpy.
"""
