"""The settings the papers' samples were made with, and the shapes of their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # The release's conditional samples.
    "gpt2": {"temperature": 1.0, "top_k": 40},
    # The released unconditional samples of GPT-3.
    "gpt3": {"temperature": 1.0, "top_p": 0.85, "max_tokens": 2048},
    # GPT-3, section 3.9.4: articles of about 200 words. Its sampling settings are unpublished:
    # those of the released samples.
    "news": {"temperature": 1.0, "top_p": 0.85, "max_tokens": 270, "stop": ["\nTitle: "]},
}


def in_context(instruction: str | None, examples: Sequence[str], prompt: str) -> str:
    """A task shown to the model, a line each for the instruction, the examples and the prompt
    (GPT-3, figure 2.1).
    """
    return "\n".join([*([instruction] if instruction else []), *examples, prompt])


def news_prompt(title: str, subtitle: str, articles: Sequence[str] = ()) -> str:
    """What GPT-3 wrote news articles from: earlier articles (the paper gives three), then a title
    and a subtitle without an article.
    """
    return "\n\n".join(
        [
            *(article.strip() for article in articles),
            f"Title: {title}\nSubtitle: {subtitle}\nArticle:",
        ]
    )
