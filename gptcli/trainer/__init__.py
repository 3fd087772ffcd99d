"""Training: the papers' recipe and schedules in tokens, layouts over processes, the step,
checkpoints, and the record of a run.
"""
