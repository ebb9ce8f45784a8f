#!/usr/bin/env python3
"""A small Hugging Face Hub over a directory of repositories, for tests.

  hub.py --repos DIR --ready FILE     serves DIR/NAMESPACE/NAME/** as models, one commit each

Writes HOST:PORT to FILE when it listens. GET /_counts answers how often each file was fetched to its end.
Standard library only. Answers as the real Hub does when Xet is off: see the heads of `resolve`.
"""
import argparse
import hashlib
import json
import os
import re
import threading
import urllib.parse
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LFS_FROM = 64 * 1024  # larger files are LFS files: named by sha256, smaller ones by git's sha1
PIECE = 1 << 20


def git_sha1(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Repo:
    """One repository with one commit."""

    def __init__(self, root, name):
        self.name, self.root, self.files = name, root, {}
        for folder, _, names in os.walk(root):
            for file in names:
                path = os.path.join(folder, file)
                with open(path, "rb") as f:
                    data = f.read()
                lfs = len(data) > LFS_FROM
                self.files[os.path.relpath(path, root)] = {
                    "size": len(data),
                    "oid": git_sha1(data),
                    "sha256": hashlib.sha256(data).hexdigest() if lfs else None,
                }
        self.commit = hashlib.sha1(json.dumps(self.files, sort_keys=True).encode()).hexdigest()

    def knows(self, revision):
        return revision in ("main", "refs/heads/main") or (len(revision) >= 7 and self.commit.startswith(revision))

    def entry(self, path):
        file = self.files[path]
        entry = {"type": "file", "oid": file["oid"], "size": file["size"], "path": path}
        if file["sha256"]:
            entry["lfs"] = {"oid": file["sha256"], "size": file["size"], "pointerSize": 134}
        return entry

    def tree(self, under, recursive):
        entries, folders = [], set()
        for path in sorted(self.files):
            if under and not path.startswith(under + "/"):
                continue
            rest = path[len(under) + 1 :] if under else path
            parts = rest.split("/")
            for depth in range(1, len(parts)):
                folder = "/".join(([under] if under else []) + parts[:depth])
                if folder not in folders and (recursive or depth == 1):
                    folders.add(folder)
                    oid = hashlib.sha1(folder.encode()).hexdigest()
                    entries.append({"type": "directory", "oid": oid, "size": 0, "path": folder})
            if recursive or len(parts) == 1:
                entries.append(self.entry(path))
        return entries

    def info(self):
        return {
            "_id": self.commit[:24],
            "id": self.name,
            "modelId": self.name,
            "author": self.name.split("/")[0],
            "sha": self.commit,
            "lastModified": "2026-01-01T00:00:00.000Z",
            "createdAt": "2026-01-01T00:00:00.000Z",
            "private": False,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": [{"rfilename": path} for path in sorted(self.files)],
        }


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repos, counts, lock = {}, Counter(), threading.Lock()

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.route()

    def do_GET(self):
        self.route()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.route(body)

    def route(self, body=b""):
        url = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(url.query)
        # One segment may hold an encoded slash: split first, decode then.
        parts = [urllib.parse.unquote(p) for p in url.path.split("/")[1:]]
        if parts == ["_counts"]:
            with self.lock:
                return self.json(200, dict(self.counts))
        if parts == ["api", "agent-harnesses"]:
            return self.json(200, {"standardEnvVars": [], "harnesses": {}})
        if parts[:2] == ["api", "telemetry"]:
            return self.json(200, {})
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            return self.api("/".join(parts[2:4]), parts[4:], query, body)
        if len(parts) >= 5 and parts[2] == "resolve":
            return self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        self.refuse(404, None, "no such page: " + url.path)

    def repo(self, name, revision):
        repo = self.repos.get(name)
        if repo is None:
            self.refuse(401, "RepoNotFound", "Repository not found")
        elif not repo.knows(revision):
            self.refuse(404, "RevisionNotFound", "Revision not found")
        else:
            return repo
        return None

    def api(self, name, rest, query, body):
        what = rest[0] if rest else "revision"
        repo = self.repo(name, rest[1] if len(rest) > 1 else "main")
        if repo is None:
            return
        self.count(f"API {what} {name}")
        if what == "revision":
            return self.json(200, repo.info())
        if what == "tree":
            under = "/".join(rest[2:])
            recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            entries = repo.tree(under, recursive)
            if under and not entries:
                return self.refuse(404, "EntryNotFound", "no such folder", repo.commit)
            return self.json(200, entries)
        if what == "paths-info":
            if self.headers.get("Content-Type", "").startswith("application/json"):
                paths = json.loads(body or b"{}").get("paths", [])
            else:
                paths = urllib.parse.parse_qs(body.decode()).get("paths", [])
            return self.json(200, [repo.entry(p) for p in paths if p in repo.files])
        if what == "refs":
            branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.commit}
            return self.json(200, {"branches": [branch], "tags": [], "converts": []})
        self.refuse(404, None, "no such api: " + what)

    def resolve(self, name, revision, path):
        repo = self.repo(name, revision)
        if repo is None:
            return
        file = repo.files.get(path)
        if file is None:
            return self.refuse(404, "EntryNotFound", "Entry not found", repo.commit)
        etag = '"%s"' % (file["sha256"] or file["oid"])
        heads = {"X-Repo-Commit": repo.commit, "ETag": etag, "Accept-Ranges": "bytes"}
        if file["sha256"]:
            heads.update({"X-Linked-ETag": etag, "X-Linked-Size": str(file["size"])})
        if self.headers.get("If-None-Match") == etag:
            return self.answer(304, heads)
        first, last, status = 0, file["size"] - 1, 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            first = int(asked[1])
            last = min(last, int(asked[2])) if asked[2] else last
            if first >= file["size"]:
                return self.answer(416, {"Content-Range": "bytes */%d" % file["size"]})
            status = 206
            heads["Content-Range"] = "bytes %d-%d/%d" % (first, last, file["size"])
        self.answer(status, heads, length=last - first + 1)
        if self.command == "HEAD":
            return self.count(f"HEAD {name}/{path}")
        with open(os.path.join(repo.root, path), "rb") as f:
            f.seek(first)
            left = last - first + 1
            while left:
                piece = f.read(min(left, PIECE))
                self.wfile.write(piece)
                left -= len(piece)
        self.count(f"GET {name}/{path}")

    def count(self, what):
        with self.lock:
            self.counts[what] += 1

    def refuse(self, status, code, message, commit=None):
        heads = {"X-Error-Message": message}
        if code:
            heads["X-Error-Code"] = code
        if commit:
            heads["X-Repo-Commit"] = commit
        self.answer(status, heads, json.dumps({"error": message}).encode())

    def json(self, status, value):
        self.answer(status, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def answer(self, status, heads, body=b"", length=None):
        self.send_response(status)
        for name, value in heads.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(body)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--repos", required=True)
    arguments.add_argument("--ready", required=True)
    options = arguments.parse_args()
    for namespace in sorted(os.listdir(options.repos)):
        for name in sorted(os.listdir(os.path.join(options.repos, namespace))):
            full = f"{namespace}/{name}"
            Hub.repos[full] = Repo(os.path.join(options.repos, namespace, name), full)
    ThreadingHTTPServer.request_queue_size = 128
    ThreadingHTTPServer.daemon_threads = True
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    with open(options.ready, "w") as f:
        f.write("%s:%d\n" % server.server_address)
    server.serve_forever()


if __name__ == "__main__":
    main()
