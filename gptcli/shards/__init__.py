"""Tokens on disk: the byte layout, the manifest that describes a folder of shards, the loader, and
the training order.
"""
