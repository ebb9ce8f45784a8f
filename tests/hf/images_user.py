#!/usr/bin/env python3
"""A training job's input: many small images, decoded by worker processes as torch's DataLoader runs them.

  images_user.py DIR make FIRST LAST                  writes the images FIRST to LAST - 1 of DIR, PNG files of 10 to 60 KiB
  images_user.py DIR read COUNT WORKERS EPOCHS        reads all of them in a new order in each epoch, and compares the pixels

`read` prints one JSON object: {"wrong": [what], "epochs": [{"images": N, "bytes": N, "seconds": S}]}
"""
import argparse
import json
import multiprocessing
import os
import random
import time

from PIL import Image

CLASSES = 20
BATCH = 16
# Batches that each worker is ahead.
PREFETCH = 2


def name(i):
    return os.path.join(f"class-{i % CLASSES:02}", f"{i:05}.png")


def pixels(i):
    """Noise, which PNG can't make smaller: the file is as long as this is."""
    numbers = random.Random(i)
    size = numbers.randrange(60, 140), numbers.randrange(60, 140)
    return size, numbers.randbytes(size[0] * size[1] * 3)


def make(root, first, last):
    for i in range(first, last):
        path = os.path.join(root, name(i))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        size, data = pixels(i)
        Image.frombytes("RGB", size, data).save(path, compress_level=1)


def work(root, asked, done):
    """One worker: batches of paths come, batches of images go."""
    while (paths := asked.get()) is not None:
        answers = []
        for path in paths:
            size, wrong = 0, None
            try:
                with open(os.path.join(root, path), "rb") as f:
                    image = Image.open(f).convert("RGB")
                    size = os.fstat(f.fileno()).st_size
                if (image.size, image.tobytes()) != pixels(int(os.path.basename(path)[:-4])):
                    wrong = f"{path}: other pixels"
            except Exception as why:  # told to the test
                wrong = f"{path}: {why!r}"
            answers.append((path, size, wrong))
        done.put(answers)


def epoch(root, paths, workers, wrong):
    batches = [paths[at : at + BATCH] for at in range(0, len(paths), BATCH)]
    context = multiprocessing.get_context("fork")
    done = context.Queue()
    asked = [context.Queue() for _ in range(workers)]
    processes = [context.Process(target=work, args=(root, queue, done), daemon=True) for queue in asked]
    begin = time.monotonic()
    for process in processes:
        process.start()
    seen, size = set(), 0
    sent = min(len(batches), workers * PREFETCH)
    for at in range(sent):
        asked[at % workers].put(batches[at])
    for _ in batches:
        for path, length, why in done.get(timeout=120):
            seen.add(path)
            size += length
            if why:
                wrong.append(why)
        if sent < len(batches):
            asked[sent % workers].put(batches[sent])
            sent += 1
    for queue in asked:
        queue.put(None)
    for process in processes:
        process.join(60)
        if process.exitcode != 0:
            wrong.append(f"a worker ended with {process.exitcode}")
    if seen != set(paths):
        wrong.append(f"{len(seen)} of {len(paths)} images were read")
    return {"images": len(seen), "bytes": size, "seconds": time.monotonic() - begin}


def read(root, count, workers, epochs):
    wrong = []
    # As ImageFolder finds them.
    paths = [os.path.relpath(os.path.join(d, f), root) for d, _, files in os.walk(root) for f in files]
    if sorted(paths) != sorted(map(name, range(count))):
        wrong.append(f"{len(paths)} images are listed")
    order = random.Random(1)
    seen = []
    for _ in range(epochs):
        order.shuffle(paths)
        seen.append(epoch(root, paths, workers, wrong))
    return {"wrong": wrong[:10], "epochs": seen}


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("root")
    arguments.add_argument("what", choices=["make", "read"])
    arguments.add_argument("numbers", type=int, nargs="+")
    options = arguments.parse_args()
    if options.what == "make":
        make(options.root, *options.numbers)
    else:
        print(json.dumps(read(options.root, *options.numbers)))


if __name__ == "__main__":
    main()
