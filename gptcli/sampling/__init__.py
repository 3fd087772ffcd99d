"""Text from a model: the decode loop, the rules that choose the next token, and text as a
stream.
"""
