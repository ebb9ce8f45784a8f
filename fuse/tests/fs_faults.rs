//! Failures below: nothing is lost without a word, nothing hangs for ever.

mod common;

use common::{Node, ROOT, World, ask, noise, until};
use hfcache_base::limits::CHUNK_TARGET;
use hfcache_base::{InodeId, Kind};
use hfcache_fuse::ops::FileSystem;
use std::sync::atomic::Ordering;

const RW: i32 = libc::O_RDWR | libc::O_CREAT;

async fn fresh(node: &Node, data: &[u8]) -> (InodeId, u64) {
    let (attr, h) = node.create(ROOT, "f", RW).await.expect("create");
    node.write_all(attr.ino, h, data).await;
    (attr.ino, h)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_under_a_read_or_a_write_is_not_noticed() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    *a.chunks.put_fails.lock() = (3, Some(Kind::Unavailable));
    let data = noise(1, 5 << 20);
    let (ino, h) = fresh(&a, &data).await;
    a.close(ino, h).await.expect("close");
    *b.chunks.get_fails.lock() = (9, Some(Kind::TimedOut));
    assert!(b.get(ROOT, "f").await == Ok(data));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_put_is_an_error_and_stays_for_a_retry() {
    let world = World::new();
    let (a, b) = (world.node_with(false, 200), world.node());
    *a.chunks.put_fails.lock() = (usize::MAX, Some(Kind::Unavailable));
    let data = noise(2, 300_000);
    let (ino, h) = fresh(&a, &data).await;
    assert_eq!(a.flush(ino, h).await, Err(libc::EIO));
    assert_eq!(a.fsync(ino, h).await, Err(libc::EIO), "and again");
    assert_eq!(b.get(ROOT, "f").await, Ok(Vec::new()));
    assert!(a.read(ino, h, 0, 300_000).await.expect("read") == data);
    *a.chunks.put_fails.lock() = (1, Some(Kind::NoSpace));
    assert_eq!(a.fsync(ino, h).await, Err(libc::ENOSPC));
    a.fsync(ino, h).await.expect("fsync");
    assert!(b.get(ROOT, "f").await == Ok(data));
    a.close(ino, h).await.expect("close");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_cluster_is_told_to_the_writer() {
    let world = World::new();
    let a = world.node();
    *a.chunks.put_fails.lock() = (usize::MAX, Some(Kind::NoSpace));
    let (ino, h) = fresh(&a, &noise(3, CHUNK_TARGET as usize)).await;
    until("the window was put in vain", || a.chunks.puts.load(Ordering::SeqCst) > 0).await;
    let mut told = false;
    for i in 0..1000 {
        told |= a.write(ino, h, u64::from(CHUNK_TARGET) + i, b"x").await == Err(libc::ENOSPC);
        if told {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert!(told);
    assert_eq!(a.close(ino, h).await, Err(libc::ENOSPC));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_loses_nothing() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let mut data = noise(4, 2 * CHUNK_TARGET as usize);
    let (ino, h) = fresh(&a, &data).await;
    a.meta.lose_answers.store(1, Ordering::SeqCst);
    assert_eq!(a.fsync(ino, h).await, Err(libc::EIO));
    // It took effect all the same. What is written now must not take committed chunks away.
    a.write(ino, h, 1000, b"later").await.expect("write");
    data[1000..1005].copy_from_slice(b"later");
    assert!(b.get(ROOT, "f").await.is_ok(), "every committed chunk is there");
    a.close(ino, h).await.expect("close");
    assert!(b.get(ROOT, "f").await == Ok(data.clone()));
    assert!(a.get(ROOT, "f").await == Ok(data));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_commit_is_an_error_and_stays_for_a_retry() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    for len in [100, 100_000] {
        let data = noise(5, len);
        let (ino, h) = fresh(&a, &data).await;
        *a.meta.refuse.lock() = (1, Some(Kind::Unavailable));
        assert_eq!(a.flush(ino, h).await, Err(libc::EIO));
        a.flush(ino, h).await.expect("flush");
        assert!(b.get(ROOT, "f").await == Ok(data));
        a.close(ino, h).await.expect("close");
        a.unlink(ROOT, "f").await.expect("unlink");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_cannot_be_had_are_an_error_in_the_end() {
    let world = World::new();
    let (a, b) = (world.node(), world.node_with(false, 200));
    a.put(ROOT, "f", &noise(6, 100_000)).await;
    *b.chunks.get_fails.lock() = (usize::MAX, Some(Kind::Unavailable));
    assert_eq!(b.get(ROOT, "f").await, Err(libc::EIO));
    *b.chunks.get_fails.lock() = (usize::MAX, Some(Kind::Corrupt));
    assert_eq!(b.get(ROOT, "f").await, Err(libc::EIO));
    *b.chunks.get_fails.lock() = (0, None);
    assert!(b.get(ROOT, "f").await.is_ok(), "a failure is not remembered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_is_killed_does_not_wait() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let ino = a.put(ROOT, "f", &noise(6, 100_000)).await;
    b.chunks.get_delay_ms.store(60_000, Ordering::SeqCst);
    let h = b.open(ino, libc::O_RDONLY).await.expect("open").handle;
    let caller = b.caller();
    let read = ask(|r| {
        b.fs.read(caller, ino, h, 0, 4096, r);
        b.fs.interrupt(caller.unique);
    });
    assert_eq!(read.await.err(), Some(libc::EINTR));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_is_too_fast_waits_for_the_holders() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    a.chunks.put_delay_ms.store(30, Ordering::SeqCst);
    let data = noise(7, 12 * CHUNK_TARGET as usize);
    let (ino, h) = fresh(&a, &data).await;
    let put = a.chunks.puts.load(Ordering::SeqCst);
    assert!(put >= 12 - 3 - 3, "{put} windows were put while the writer was at it");
    a.close(ino, h).await.expect("close");
    assert!(a.chunks.putting_most.load(Ordering::SeqCst) <= 3);
    assert!(b.get(ROOT, "f").await == Ok(data));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_node_refuses_and_recovers() {
    let world = World::new();
    let a = world.node_with(false, 50);
    let ino = a.put(ROOT, "f", &noise(8, 100_000)).await;
    let h = a.open(ino, libc::O_RDWR).await.expect("open").handle;
    a.meta.fenced.store(true, Ordering::SeqCst);
    let mut refused = false;
    for _ in 0..2000 {
        refused = a.read(ino, h, 0, 10).await == Err(libc::EIO);
        if refused {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert!(refused, "even what is hot may be stale");
    assert_eq!(a.write(ino, h, 0, b"x").await, Err(libc::EIO));
    assert_eq!(a.getattr(ino).await.err(), Some(libc::EIO));
    assert_eq!(a.lock(ino, common::flock(1, true), false).await, Err(libc::EIO));
    a.meta.fenced.store(false, Ordering::SeqCst);
    let mut back = false;
    for _ in 0..2000 {
        back = a.write(ino, h, 0, b"back").await == Ok(4);
        if back {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert!(back);
    a.close(ino, h).await.expect("close");
    assert_eq!(a.get(ROOT, "f").await.expect("read")[..4], *b"back");
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_saves_and_says_what_it_could_not() {
    let world = World::new();
    let (a, b) = (world.node_with(false, 200), world.node());
    let data = noise(9, 100_000);
    let (ino, _) = fresh(&a, &data).await;
    *a.chunks.put_fails.lock() = (usize::MAX, Some(Kind::Unavailable));
    let unsaved = a.fs.shutdown().await;
    assert_eq!(unsaved.iter().map(|u| u.ino).collect::<Vec<_>>(), [ino]);
    *a.chunks.put_fails.lock() = (0, None);
    assert!(a.fs.shutdown().await.is_empty());
    assert!(b.get(ROOT, "f").await == Ok(data));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_flush_is_several_commits() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let mut data = noise(10, 4 << 20);
    let ino = a.put(ROOT, "f", &data).await;
    let h = a.open(ino, libc::O_RDWR).await.expect("open").handle;
    let commits = a.meta.commits.load(Ordering::SeqCst);
    for i in 0..1000usize {
        let at = i * 4000;
        a.write(ino, h, at as u64, b"patch").await.expect("write");
        data[at..at + 5].copy_from_slice(b"patch");
    }
    a.close(ino, h).await.expect("close");
    assert!(a.meta.commits.load(Ordering::SeqCst) - commits >= 4);
    assert!(a.chunks.puts.load(Ordering::SeqCst) < 20, "small runs share chunks");
    assert!(b.get(ROOT, "f").await == Ok(data));
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_during_a_flush_are_not_lost() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    a.chunks.put_delay_ms.store(20, Ordering::SeqCst);
    let mut data = noise(11, 20 << 20);
    let (ino, h) = fresh(&a, &data).await;
    let flush = a.flush(ino, h);
    let writes = async {
        for i in 0..200u64 {
            let at = (i * 99_991) % (data.len() as u64 - 10);
            a.write(ino, h, at, &[i as u8; 10]).await.expect("write");
            data[at as usize..at as usize + 10].fill(i as u8);
            tokio::task::yield_now().await;
        }
    };
    let (flushed, ()) = tokio::join!(flush, writes);
    flushed.expect("flush");
    assert!(a.read(ino, h, 0, 20 << 20).await.expect("read") == data);
    a.close(ino, h).await.expect("close");
    assert!(b.get(ROOT, "f").await == Ok(data.clone()));
    assert!(a.get(ROOT, "f").await == Ok(data));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_never_falls_back_behind_a_flush() {
    let world = World::new();
    let a = std::sync::Arc::new(world.node());
    let ino = a.put(ROOT, "f", &noise(12, 100_000)).await;
    let h = a.open(ino, libc::O_RDWR).await.expect("open").handle;
    for round in 0..200u8 {
        a.write(ino, h, 5_000, &[round; 100]).await.expect("write");
        let flush = tokio::spawn({
            let a = std::sync::Arc::clone(&a);
            async move { a.fsync(ino, h).await }
        });
        while !flush.is_finished() {
            assert_eq!(a.read(ino, h, 5_000, 100).await.expect("read"), [round; 100]);
        }
        flush.await.expect("join").expect("fsync");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_flush_is_finished_by_the_next() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let mut data = noise(13, 4 << 20);
    let ino = a.put(ROOT, "f", &data).await;
    let h = a.open(ino, libc::O_RDWR).await.expect("open").handle;
    for i in 0..1000usize {
        a.write(ino, h, i as u64 * 4000, b"patch").await.expect("write");
        data[i * 4000..i * 4000 + 5].copy_from_slice(b"patch");
    }
    // The second of four commits fails, and what the first one saved is not lost or saved twice wrongly.
    a.meta.refuse_after(1);
    assert_eq!(a.fsync(ino, h).await, Err(libc::EIO));
    assert!(a.read(ino, h, 0, 4 << 20).await.expect("read") == data);
    a.close(ino, h).await.expect("close");
    assert!(b.get(ROOT, "f").await == Ok(data.clone()));
    assert!(a.get(ROOT, "f").await == Ok(data));
}
