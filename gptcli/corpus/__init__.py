"""Documents on their way to the shards: readers, and later what chooses among them."""
