#!/usr/bin/env python3
"""A small Hugging Face Hub over a directory of repositories, for tests.

  hub.py --repos DIR --ready FILE     serves DIR/NAMESPACE/NAME/** as models, DIR/datasets/NAMESPACE/NAME/** as datasets

Writes HOST:PORT to FILE when it listens. Standard library only. Answers as the real Hub does when Xet is off: see the
heads of `resolve`. The tests turn it with plain GETs:

  /_counts                                  how often what was asked: "GET NAME/PATH" are answers that came to their end,
                                            "START NAME/PATH" all, "BYTES NAME/PATH" what was sent, but not to
                                            "PROBE NAME/PATH", the first byte alone: how hf-hub 0.5 asks for size and hash
  /_reload                                  reads the directories again: what changed there is a new commit of `main`
  /_pace?bytes=N                            a body is sent at N bytes a second; 0: at once
  /_cut?file=NAME/PATH&after=N&times=K      the next K bodies of that file end after N bytes
  /_gate?repo=NAME&token=T                  only who has this token sees that repository
"""
import argparse
import hashlib
import json
import os
import re
import threading
import time
import urllib.parse
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LFS_FROM = 64 * 1024  # larger files are LFS files: named by sha256, smaller ones by git's sha1
PIECE = 1 << 20
PAGE = 1000


def git_sha1(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Commit:
    """The files of a repository at one time. Their bytes are kept by their name, whatever happens to the directory."""

    def __init__(self, root, objects):
        self.objects, self.files = objects, {}
        for folder, _, names in os.walk(root):
            for file in names:
                path = os.path.join(folder, file)
                with open(path, "rb") as f:
                    data = f.read()
                sha256 = hashlib.sha256(data).hexdigest()
                kept = os.path.join(objects, sha256)
                if not os.path.exists(kept):
                    with open(kept, "wb") as f:
                        f.write(data)
                self.files[os.path.relpath(path, root)] = {
                    "size": len(data),
                    "oid": git_sha1(data),
                    "sha256": sha256,
                    "lfs": len(data) > LFS_FROM,
                }
        self.id = hashlib.sha1(json.dumps(self.files, sort_keys=True).encode()).hexdigest()

    def entry(self, path):
        file = self.files[path]
        entry = {"type": "file", "oid": file["oid"], "size": file["size"], "path": path}
        if file["lfs"]:
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


class Repo:
    """One repository with its commits, the last one being `main`."""

    def __init__(self, root, objects, name):
        self.name, self.root, self.objects, self.commits, self.token = name, root, objects, [], None
        self.reload()

    def reload(self):
        commit = Commit(self.root, self.objects)
        if not self.commits or self.commits[-1].id != commit.id:
            self.commits.append(commit)

    def at(self, revision):
        if revision in ("main", "refs/heads/main"):
            return self.commits[-1]
        if len(revision) < 7:
            return None
        return next((c for c in self.commits if c.id.startswith(revision)), None)

    def info(self, commit):
        name = self.name.removeprefix("datasets/")
        info = {
            "_id": commit.id[:24],
            "id": name,
            "author": name.split("/")[0],
            "sha": commit.id,
            "lastModified": "2026-01-01T00:00:00.000Z",
            "createdAt": "2026-01-01T00:00:00.000Z",
            "private": False,
            "gated": "manual" if self.token else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
        }
        return info if self.name.startswith("datasets/") else {**info, "modelId": name}


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repos, counts, cuts, lock = {}, Counter(), {}, threading.Lock()
    pace = 0

    def log_message(self, *_):
        pass

    def handle(self):
        try:
            super().handle()
        except ConnectionError:  # a client ends without closing what it keeps alive
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
        if len(parts) == 1 and parts[0].startswith("_"):
            return self.control(parts[0][1:], {name: values[0] for name, values in query.items()})
        if parts == ["api", "agent-harnesses"]:
            return self.json(200, {"standardEnvVars": [], "harnesses": {}})
        if parts[:2] == ["api", "telemetry"]:
            return self.json(200, {})
        if parts[0] == "api" and len(parts) >= 4 and parts[1] in ("models", "datasets"):
            kind = "datasets/" if parts[1] == "datasets" else ""
            return self.api(kind + "/".join(parts[2:4]), parts[4:], query, body)
        kind = "datasets/" if parts[0] == "datasets" else ""
        rest = parts[1:] if kind else parts
        if len(rest) >= 5 and rest[2] == "resolve":
            return self.resolve(kind + "/".join(rest[:2]), rest[3], "/".join(rest[4:]))
        self.refuse(404, None, "no such page: " + url.path)

    def control(self, what, query):
        with self.lock:
            if what == "reload":
                for repo in self.repos.values():
                    repo.reload()
            elif what == "pace":
                Hub.pace = int(query["bytes"])
            elif what == "cut":
                self.cuts[query["file"]] = [int(query["after"]), int(query["times"])]
            elif what == "gate":
                self.repos[query["repo"]].token = query["token"]
            elif what != "counts":
                return self.refuse(404, None, "no such control: " + what)
            return self.json(200, dict(self.counts))

    def repo(self, name, revision):
        repo = self.repos.get(name)
        if repo is None:
            self.refuse(401, "RepoNotFound", "Repository not found")
        elif repo.token and self.headers.get("Authorization") != "Bearer " + repo.token:
            self.refuse(401, "GatedRepo", "Access to this repository is restricted")
        elif repo.at(revision) is None:
            self.refuse(404, "RevisionNotFound", "Revision not found")
        else:
            return repo, repo.at(revision)
        return None, None

    def api(self, name, rest, query, body):
        what = rest[0] if rest else "revision"
        self.count(f"API {what} {name}")
        repo, commit = self.repo(name, rest[1] if len(rest) > 1 else "main")
        if repo is None:
            return
        if what == "revision":
            return self.json(200, repo.info(commit))
        if what == "tree":
            under = "/".join(rest[2:])
            recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            entries = commit.tree(under, recursive)
            if under and not entries:
                return self.refuse(404, "EntryNotFound", "no such folder", commit.id)
            first = int(query.get("cursor", ["0"])[0])
            heads = {}
            if first + PAGE < len(entries):
                more = urllib.parse.urlencode({**{k: v[0] for k, v in query.items()}, "cursor": first + PAGE})
                page = self.path.split("?")[0]
                heads["Link"] = f'<http://{self.headers["Host"]}{page}?{more}>; rel="next"'
            return self.json(200, entries[first : first + PAGE], heads)
        if what == "paths-info":
            if self.headers.get("Content-Type", "").startswith("application/json"):
                paths = json.loads(body or b"{}").get("paths", [])
            else:
                paths = urllib.parse.parse_qs(body.decode()).get("paths", [])
            return self.json(200, [commit.entry(p) for p in paths if p in commit.files])
        if what == "refs":
            branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": commit.id}
            return self.json(200, {"branches": [branch], "tags": [], "converts": []})
        self.refuse(404, None, "no such api: " + what)

    def resolve(self, name, revision, path):
        repo, commit = self.repo(name, revision)
        if repo is None:
            return
        file = commit.files.get(path)
        if file is None:
            return self.refuse(404, "EntryNotFound", "Entry not found", commit.id)
        etag = '"%s"' % (file["sha256"] if file["lfs"] else file["oid"])
        heads = {"X-Repo-Commit": commit.id, "ETag": etag, "Accept-Ranges": "bytes"}
        if file["lfs"]:
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
        full = f"{name}/{path}"
        probe = asked and asked[0] == "bytes=0-0"
        self.count(f"{'HEAD' if self.command == 'HEAD' else 'PROBE' if probe else 'START'} {full}")
        self.answer(status, heads, length=last - first + 1)
        if self.command != "HEAD":
            with open(os.path.join(repo.objects, file["sha256"]), "rb") as f:
                if probe:
                    self.wfile.write(f.read(1))
                    return
                f.seek(first)
                try:
                    self.body(full, f, last - first + 1)
                except ConnectionError:  # a client was killed
                    self.close_connection = True

    def body(self, full, f, left):
        with self.lock:
            after, times = self.cuts.get(full, (0, 0))
            if times:
                self.cuts[full][1] -= 1
        allowed = min(left, after) if times else left
        begin, sent = time.monotonic(), 0
        while sent < allowed:
            pace = self.pace
            piece = f.read(min(allowed - sent, max(pace // 20, 1) if pace else PIECE))
            self.wfile.write(piece)
            sent += len(piece)
            self.count(f"BYTES {full}", len(piece))
            if pace:
                time.sleep(max(0.0, begin + sent / pace - time.monotonic()))
        if sent < left:
            self.wfile.flush()
            self.close_connection = True
            return
        self.count(f"GET {full}")

    def count(self, what, by=1):
        with self.lock:
            self.counts[what] += by

    def refuse(self, status, code, message, commit=None):
        heads = {"X-Error-Message": message}
        if code:
            heads["X-Error-Code"] = code
        if commit:
            heads["X-Repo-Commit"] = commit
        self.answer(status, heads, json.dumps({"error": message}).encode())

    def json(self, status, value, heads=None):
        heads = {"Content-Type": "application/json", **(heads or {})}
        self.answer(status, heads, json.dumps(value).encode())

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
    objects = options.repos + ".objects"
    os.makedirs(objects, exist_ok=True)
    for kind in ("", "datasets/"):
        base = os.path.join(options.repos, kind)
        for namespace in sorted(os.listdir(base)) if os.path.isdir(base) else []:
            if not kind and namespace == "datasets":
                continue
            for name in sorted(os.listdir(os.path.join(base, namespace))):
                full = f"{kind}{namespace}/{name}"
                Hub.repos[full] = Repo(os.path.join(base, namespace, name), objects, full)
    ThreadingHTTPServer.request_queue_size = 128
    ThreadingHTTPServer.daemon_threads = True
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    with open(options.ready, "w") as f:
        f.write("%s:%d\n" % server.server_address)
    server.serve_forever()


if __name__ == "__main__":
    main()
