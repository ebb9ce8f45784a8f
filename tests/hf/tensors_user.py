#!/usr/bin/env python3
"""A user of `safetensors` without torch: saves weights, and reads them through a mapping.

  tensors_user.py PATH save SEED              saves weights to PATH in place of what was there, and prints their hashes
  tensors_user.py PATH read                   maps PATH and prints the hashes of all tensors
  tensors_user.py PATH hold --start FILE      maps PATH, makes FILE.PID, and reads when FILE exists, as `read`

Prints one JSON object: {"tensors": {NAME: sha256}, "bytes": N, "seconds": reading them took}
"""
import argparse
import hashlib
import json
import os
import time

import numpy
from safetensors import safe_open
from safetensors.numpy import save_file

LAYERS = 10


def weights(seed):
    """About 40 MiB in tensors of a few bytes to several MiB, some of which begin in the middle of a page."""
    numbers = numpy.random.default_rng(seed)
    made = {"embedding": numbers.standard_normal((1_500, 1_024), dtype=numpy.float32)}
    for layer in range(LAYERS):
        made[f"layer.{layer}.weight"] = numbers.standard_normal((1_024, 768), dtype=numpy.float32)
        made[f"layer.{layer}.bias"] = numbers.standard_normal(1_023 - layer, dtype=numpy.float32)
        made[f"layer.{layer}.quant"] = numbers.integers(-128, 127, (255, 1_021 + layer), dtype=numpy.int8)
        made[f"layer.{layer}.half"] = numbers.standard_normal((33, 65), dtype=numpy.float32).astype(numpy.float16)
    made["step"] = numpy.array([seed], dtype=numpy.int64)
    return made


def named(array):
    shape = f"{array.dtype}{array.shape}".encode()
    return hashlib.sha256(shape + array.tobytes()).hexdigest()


def save(path, seed):
    made = weights(seed)
    save_file(made, path + ".new", metadata={"format": "np"})
    os.replace(path + ".new", path)
    return {name: named(array) for name, array in made.items()}, 0.0


def read(path, start):
    with safe_open(path, framework="numpy") as tensors:
        if start:
            open(f"{start}.{os.getpid()}", "w").close()
            while not os.path.exists(start):
                time.sleep(0.005)
        begin = time.monotonic()
        arrays = {name: tensors.get_tensor(name) for name in tensors.keys()}
        seconds = time.monotonic() - begin
        # A part of one, as ranks of a parallel model take it.
        part = tensors.get_slice("embedding")[100:200, 7:9]
        assert (part == arrays["embedding"][100:200, 7:9]).all()
    return {name: named(array) for name, array in arrays.items()}, seconds


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("path")
    arguments.add_argument("what", choices=["save", "read", "hold"])
    arguments.add_argument("seed", type=int, nargs="?")
    arguments.add_argument("--start")
    options = arguments.parse_args()
    if options.what == "save":
        tensors, seconds = save(options.path, options.seed)
        size = os.path.getsize(options.path)
    else:
        size = os.path.getsize(options.path)
        tensors, seconds = read(options.path, options.start)
    print(json.dumps({"tensors": tensors, "bytes": size, "seconds": seconds}))


if __name__ == "__main__":
    main()
