"""Facts of the papers as literal tables, each with its source; computes nothing."""
