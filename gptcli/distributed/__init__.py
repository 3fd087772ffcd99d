"""How processes divide the work: who they are, and parallelism applied to a plain model from outside."""
