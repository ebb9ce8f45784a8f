#!/usr/bin/env python3
"""A program that keeps a number in an SQLite database with a rollback journal.

  sqlite_user.py DB make                  makes the database
  sqlite_user.py DB add WHO N             adds 1 to the number N times, each time in a transaction with a note of WHO
  sqlite_user.py DB die WHO               begins a transaction, changes much, prints "held" and waits to be killed
  sqlite_user.py DB read                  prints [number, notes by WHO, integrity] as JSON
"""
import json
import sqlite3
import sys
import time


def main():
    path, what = sys.argv[1:3]
    db = sqlite3.connect(path, timeout=120, isolation_level=None)
    db.execute("PRAGMA synchronous=FULL")
    if what == "make":
        assert db.execute("PRAGMA journal_mode=DELETE").fetchone() == ("delete",)
        db.execute("CREATE TABLE counter(n INTEGER NOT NULL)")
        db.execute("CREATE TABLE note(who TEXT NOT NULL, at INTEGER NOT NULL, text TEXT, UNIQUE(who, at))")
        db.execute("INSERT INTO counter VALUES (0)")
    elif what == "add":
        who, times = sys.argv[3], int(sys.argv[4])
        for i in range(times):
            db.execute("BEGIN IMMEDIATE")
            (n,) = db.execute("SELECT n FROM counter").fetchone()
            db.execute("UPDATE counter SET n = ?", (n + 1,))
            db.execute("INSERT INTO note VALUES (?, ?, ?)", (who, i, "x" * (n % 700)))
            db.execute("COMMIT")
    elif what == "die":
        # A cache of a few pages, so that changed pages are in the file before the transaction ends.
        db.execute("PRAGMA cache_size=5")
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE counter SET n = n + 1000")
        for i in range(200):
            db.execute("INSERT INTO note VALUES (?, ?, ?)", (sys.argv[3], i, "y" * 3000))
        print("held", flush=True)
        time.sleep(600)
    elif what == "read":
        (n,) = db.execute("SELECT n FROM counter").fetchone()
        notes = dict(db.execute("SELECT who, count(*) FROM note GROUP BY who"))
        (integrity,) = db.execute("PRAGMA integrity_check").fetchone()
        print(json.dumps([n, notes, integrity]))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
