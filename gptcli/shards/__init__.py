"""Shards: files of tokens, the manifest of a folder of them, and the order training reads them in.

`format` is the byte layout of one shard and of the token files of other programs, and `manifest`
describes a folder. `order` joins the shards of a split into one stream of tokens and turns it into
shuffled windows for training; `loader` gives them as tensors. `folder` checks a finished folder
byte for byte and exports its tokens.
"""
