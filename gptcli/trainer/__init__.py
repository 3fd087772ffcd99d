"""Training: recipe, schedules, the optimizer step, the loop and its callbacks, and checkpoints."""
