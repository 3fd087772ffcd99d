from __future__ import annotations

import pytest

from gptcli.cost.layout import Layout
from gptcli.errors import UsageError
from gptcli.trainer.layout import parse_layout


@pytest.mark.parametrize(
    ("text", "layout"),
    [("dp=2,shard=4", Layout(2, 4)), (" shard = 3 ", Layout(1, 3)), ("dp=1", Layout()), ("shard=2,dp=2", Layout(2, 2))],
)
def test_parsed_and_printed(text, layout):
    assert parse_layout(text) == layout == parse_layout(str(layout))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no part"), ("dp", "no part"), ("dp=0", "no part"), ("dp=-1", "no part"), ("dp=2;shard=2", "no part"), ("dp=2,,", "no part"),
        ("pd=2", "unknown axis 'pd'"), ("dp=2,dp=2", "twice"),
    ],
)  # fmt: skip
def test_refused(text, message):
    with pytest.raises(UsageError, match=message):
        parse_layout(text)
