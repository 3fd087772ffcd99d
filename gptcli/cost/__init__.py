"""FLOPs, memory, communication, time, money and energy of a model; imports neither torch nor numpy."""
