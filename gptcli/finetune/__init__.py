"""Fine-tuning as in GPT-1: task files, input transformations, classifier, training loop."""
