#!/usr/bin/env python3
"""What a user runs: download with huggingface_hub into HF_HUB_CACHE and hash what is there.

  fetch.py REPO [--start FILE] [--revision R] [--file PATH]... [--force] [--times N]

With --start it makes FILE.PID when it is ready and waits until FILE exists, so that several begin at once. Without
--file it takes the whole repository. Prints one JSON object:
{"snapshot": DIR, "files": {PATH: sha256}, "links": {PATH: target or null}}
"""
import argparse
import hashlib
import json
import os
import time


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while piece := f.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("repo")
    arguments.add_argument("--start")
    arguments.add_argument("--revision")
    arguments.add_argument("--file", action="append", default=[])
    arguments.add_argument("--force", action="store_true")
    arguments.add_argument("--times", type=int, default=1)
    options = arguments.parse_args()
    from huggingface_hub import hf_hub_download, snapshot_download  # before the start: importing takes longest

    if options.start:
        open(f"{options.start}.{os.getpid()}", "w").close()
        while not os.path.exists(options.start):
            time.sleep(0.005)
    files, links = {}, {}

    def look(snapshot, path):
        relative = os.path.relpath(path, snapshot)
        files[relative] = sha256(path)
        links[relative] = os.readlink(path) if os.path.islink(path) else None

    for _ in range(options.times):
        if options.file:
            for name in options.file:
                path = hf_hub_download(options.repo, name, revision=options.revision, force_download=options.force)
                snapshot = path[: -len(name) - 1]
                look(snapshot, path)
            continue
        snapshot = snapshot_download(options.repo, revision=options.revision, force_download=options.force)
        for folder, _, names in os.walk(snapshot):
            for name in names:
                look(snapshot, os.path.join(folder, name))
    print(json.dumps({"snapshot": snapshot, "files": files, "links": links}))


if __name__ == "__main__":
    main()
