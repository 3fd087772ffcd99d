"""Write the weights of GPT-1 in the layout of OpenAI's release, of any size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from gptcli.model.hf import RELEASED_PARTS


def release_shapes(n_layer: int, d_model: int, n_ctx: int, vocab_size: int) -> list[list[int]]:
    """Return the shapes in params_shapes.json: positions, tokens, then twelve of each layer."""
    d = d_model
    attention = [[1, d, 3 * d], [3 * d], [1, d, d], [d], [d], [d]]
    mlp = [[1, d, 4 * d], [4 * d], [1, 4 * d, d], [d], [d], [d]]
    return [[n_ctx, d], [vocab_size, d], *(n_layer * [*attention, *mlp])]


def write_release(
    folder: Path, shapes: list[list[int]], *, scale: float = 0.1, dtype: type = np.float32
) -> list[np.ndarray]:
    """Write params_shapes.json and params_0.npy to params_9.npy: all numbers end to end, in ten files.

    Return the arrays, which are normal with standard deviation `scale`.
    """
    rng = np.random.default_rng(0)
    arrays: list[np.ndarray] = [rng.normal(0, scale, shape).astype(dtype) for shape in shapes]
    folder.mkdir(exist_ok=True)
    (folder / "params_shapes.json").write_text(json.dumps(shapes))
    numbers = np.concatenate([array.ravel() for array in arrays])
    for number, part in enumerate(np.array_split(numbers, RELEASED_PARTS)):
        np.save(folder / f"params_{number}.npy", part)
    return arrays
