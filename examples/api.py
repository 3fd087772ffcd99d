"""The library from a text file to a score: tokenizer, shards, training, text, evaluation, cost.

    python examples/api.py [TEXT_FILE]

It takes less than a minute on a laptop's CPU and writes into a temporary folder.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path

import gptcli


def make_text(path: Path) -> Path:
    """Write a small text of sums, with blank lines between its paragraphs."""
    sums = [f"{a} plus {b} is {a + b}." for a in range(60) for b in range(60)]
    lines = [" ".join(sums[7 * row % 3600 : 7 * row % 3600 + 6]) for row in range(1500)]
    path.write_text("\n\n".join(lines), encoding="utf-8")
    return path


def main(text: Path, folder: Path) -> dict[str, float]:
    """Go all the way from `text`, with files in `folder`, and return some results."""
    # a tokenizer, and the text as shuffled token shards
    tokenizer = gptcli.train_tokenizer([text.read_text(encoding="utf-8")], vocab_size=512)
    shards = folder / "shards"
    manifest = gptcli.build_shards(
        text, shards, tokenizer=tokenizer, documents="paragraph", val_fraction=0.05
    )
    print(f"{manifest.tokens('train'):,} training tokens, vocabulary {tokenizer.vocab_size}")

    # batches for a training loop of any kind: x and y of shape (batch_size, n_ctx)
    loader = gptcli.DataLoader(shards, batch_size=4, n_ctx=64, seed=1)
    for x, y in itertools.islice(loader, 2):
        print(f"batch {tuple(x.shape)}, targets {tuple(y.shape)}, epoch {loader.epoch:.2f}")

    # a small model with the recipe of the nearest GPT-3 size
    model = gptcli.ModelConfig(
        n_layer=2, n_head=2, d_model=64, n_ctx=64, vocab_size=tokenizer.vocab_size
    )
    config = gptcli.TrainConfig.for_model(model, tokens="150k", batch_tokens=1024)
    report = gptcli.train(config, data=shards, out=folder / "run", model=model)
    print(f"{report['tokens']:,} tokens, loss {report['smoothed_loss']:.3f}")

    # text from it
    loaded = gptcli.load_model(folder / "run")
    params = gptcli.SamplingParams(temperature=0.7, top_k=20)
    prompts = ["2 plus 2 is", "7 plus 5 is"]
    texts = gptcli.generate(loaded, prompts, params=params, max_tokens=12, seed=1)
    for prompt, continuation in zip(prompts, texts, strict=True):
        print(f"{prompt}|{continuation}")

    # its loss on the validation shards, and the price of a run of GPT-3's size
    loss = gptcli.evaluate(loaded)["losses"][0]
    print(f"validation loss {loss['loss']:.3f}, perplexity {loss['perplexity']:.1f}")
    cost = gptcli.estimate_cost("175B", gpus=1024, gpu="h100")
    print(f"GPT-3 175B on 1,024 H100s: {cost.days:.0f} days, ${cost.dollars or 0:,.0f}")
    return {"train_loss": report["smoothed_loss"], "val_loss": loss["loss"], "days": cost.days}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        given = Path(sys.argv[1]) if len(sys.argv) > 1 else make_text(Path(name, "sums.txt"))
        main(given, Path(name))
