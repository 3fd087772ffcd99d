"""Learn a byte-level BPE; encode and decode."""
