"""Documents to shards: the build behind `gpt build-shards`.

A build runs in five steps, and each leaves files behind that the next one reads:

1. `input_splits` divides the input files into pieces of work, the input splits.
2. `worker_tasks`, in worker processes (`pool`), read the documents of a split (`formats`), filter
   them (`clean`, `quality`) and write them to chunks (`chunks`): files of tokens sorted by shuffle
   key.
3. Sources that are deduplicated or decontaminated first become text chunks. Once all documents are
   read, `coordinator` compares them (`dedup`, `decontaminate`) and the workers tokenize the
   documents that are kept.
4. `shuffle` merges the sorted chunks into shards, so that shards are shuffled across the corpus.
5. `build` writes `report.md` and, last, `manifest.json`.

Every file is written atomically and never rewritten. A build that is killed at any moment, even by
`kill -9`, leaves only complete files in `.work`, and `--resume` makes those that are missing. A
folder without `manifest.json` is unfinished.
"""
