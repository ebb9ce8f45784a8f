#!/usr/bin/env python3
"""A user of `datasets` who keeps all of its caches in a directory that others share.

  data_user.py DIR make [KIND]                writes JSON, CSV and Parquet files to DIR and prints what they hold
  data_user.py DIR use KIND [--start FILE]    loads DIR/KIND, maps it, and prints what there is and what was done for it
  data_user.py REPO use hub                   the same with a repository of the Hub

With --start it makes FILE.PID when it is ready and waits until FILE exists, so that several begin at once. The mapped
function adds a byte to the file that CALLS names for each batch. `use` prints one JSON object:
{"rows": N, "content": sha256, "mapped": sha256, "generated": times, "calls": batches,
 "arrow": {NAME: [inode, size, mtime in ns]}}
"""
import argparse
import csv
import hashlib
import json
import logging
import os
import random
import time

ROWS = 6_000
SHARDS = 2
BATCH = 500
WORDS = "a cache holds what many read and few write".split()


def rows():
    numbers = random.Random(7)
    for i in range(ROWS):
        text = " ".join(numbers.choices(WORDS, k=numbers.randrange(3, 60)))
        # Eighths are the same in every format.
        yield {"id": i, "text": text, "score": numbers.randrange(1_000) / 8}


def upper(batch):
    with open(os.environ["CALLS"], "a") as calls:
        calls.write(".")
    return {"upper": [text.upper() for text in batch["text"]], "length": [len(text) for text in batch["text"]]}


def content(rows):
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def make(root, kinds):
    import pyarrow
    import pyarrow.parquet

    every = list(rows())
    for kind in kinds:
        os.makedirs(os.path.join(root, kind))
        for shard in range(SHARDS):
            part = every[shard * ROWS // SHARDS : (shard + 1) * ROWS // SHARDS]
            path = os.path.join(root, kind, f"part-{shard}.{kind}")
            if kind == "parquet":
                pyarrow.parquet.write_table(pyarrow.Table.from_pylist(part), path, row_group_size=BATCH)
                continue
            with open(path, "w", newline="") as f:
                if kind == "json":
                    f.writelines(json.dumps(row) + "\n" for row in part)
                else:
                    table = csv.DictWriter(f, list(part[0]))
                    table.writeheader()
                    table.writerows(part)
    mapped = [{**row, "upper": row["text"].upper(), "length": len(row["text"])} for row in every]
    return {"rows": ROWS, "content": content(every), "mapped": content(mapped)}


class Generated(logging.Handler):
    """Counts how often the library says that it prepares a dataset."""

    times = 0

    def emit(self, record):
        self.times += record.getMessage().startswith("Generating dataset ")


def use(root, kind, start):
    import datasets  # before the start: importing takes longest

    generated = Generated()
    datasets.utils.logging.set_verbosity_info()
    library = datasets.utils.logging.get_logger("datasets")
    library.handlers = [generated]
    datasets.disable_progress_bars()
    if start:
        open(f"{start}.{os.getpid()}", "w").close()
        while not os.path.exists(start):
            time.sleep(0.005)
    if kind == "hub":
        data = datasets.load_dataset(root, split="train")
    else:
        data = datasets.load_dataset(kind, data_files=os.path.join(root, kind, "*"), split="train")
    # Processes write a file each.
    processes = SHARDS if kind == "csv" else None
    mapped = data.map(upper, batched=True, batch_size=BATCH, num_proc=processes)
    arrow = {}
    for file in data.cache_files + mapped.cache_files:
        status = os.stat(file["filename"])
        arrow[os.path.basename(file["filename"])] = [status.st_ino, status.st_size, status.st_mtime_ns]
    calls = os.environ["CALLS"]
    return {
        "rows": len(data),
        "content": content(data),
        "mapped": content(mapped),
        "generated": generated.times,
        "calls": os.path.getsize(calls) if os.path.exists(calls) else 0,
        "arrow": arrow,
    }


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("root")
    arguments.add_argument("what", choices=["make", "use"])
    arguments.add_argument("kind", nargs="?")
    arguments.add_argument("--start")
    options = arguments.parse_args()
    if options.what == "make":
        kinds = [options.kind] if options.kind else ["json", "csv", "parquet"]
        print(json.dumps(make(options.root, kinds)))
    else:
        print(json.dumps(use(options.root, options.kind, options.start)))


if __name__ == "__main__":
    main()
