"""Extent of the slowest tests: by default as much as their claim needs, in a suite of minutes.

`GPT_TEST_WHOLE=1 make test` takes the papers' depths, longer curves and more drawn cases.
"""

from __future__ import annotations

import os

WHOLE = bool(os.environ.get("GPT_TEST_WHOLE"))
