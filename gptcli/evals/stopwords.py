"""GPT-2's stop-word filter for LAMBADA: a stop word is no prediction (section 3.3; the paper does
not publish its list).

Ours are the function words of English. The rule is of tokens: one that spells a stop word, with or
without the space before it, is left out wherever the word to predict is held against the likeliest
token, so that a target that begins with such a token counts as wrong.
"""

from __future__ import annotations

from gptcli.tokenizer.tokenizer import Tokenizer

WORDS = """
    a an the this that these those
    i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers herself
    it its itself they them their theirs themselves one
    who whom whose which what where when why how
    and or but nor so yet if because as until while although though since unless than whether
    of at by for with about against between into through during before after above below to from up down in out on off over under
    again further then once here there
    am is are was were be been being have has had having do does did doing
    can could will would shall should may might must
    not no only own same too very just now all any both each few more most other some such
    s t d ll m re ve don doesn didn isn aren wasn weren won wouldn couldn shouldn hasn haven hadn
"""
STOP_WORDS = frozenset(WORDS.split())


def stop_tokens(tokenizer: Tokenizer) -> list[int]:
    """The tokens that spell a stop word."""
    return [
        token
        for token in range(tokenizer.vocab_size)
        if tokenizer.decode([token]).strip().lower() in STOP_WORDS
    ]
