"""Shards: files of tokens, the manifest of a folder of them, and the order training reads them in.

`format` is the byte layout of one shard, `manifest` describes a folder, `loader` joins the shards
of a split into one stream of tokens, and `order` turns the stream into shuffled windows for
training. `external` reads the token files of other programs, `export` writes them, and `verify`
checks a folder byte for byte.
"""
