"""Evaluation: loss on shards and text, and the papers' tasks, each a TOML file in `tasks/`."""
