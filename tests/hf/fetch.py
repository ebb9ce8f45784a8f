#!/usr/bin/env python3
"""What a user runs: download a repository with huggingface_hub into HF_HUB_CACHE and hash what is there.

  fetch.py REPO START     makes the file START.PID when ready, then waits until START exists, so that several
                          begin at once

Prints one JSON object: {"snapshot": DIR, "files": {PATH: sha256}, "links": {PATH: target or null}}
"""
import hashlib
import json
import os
import sys
import time


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while piece := f.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def main():
    repo, start = sys.argv[1:]
    from huggingface_hub import snapshot_download  # before the start: importing takes longest

    open(f"{start}.{os.getpid()}", "w").close()
    while not os.path.exists(start):
        time.sleep(0.005)
    snapshot = snapshot_download(repo)
    files, links = {}, {}
    for folder, _, names in os.walk(snapshot):
        for name in names:
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, snapshot)
            files[relative] = sha256(path)
            links[relative] = os.readlink(path) if os.path.islink(path) else None
    print(json.dumps({"snapshot": snapshot, "files": files, "links": links}))


if __name__ == "__main__":
    main()
