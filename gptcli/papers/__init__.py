"""The facts of the papers as literal tables. Nothing here computes anything."""
