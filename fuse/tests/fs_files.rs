//! Bytes and names of files, on one node and between two.

mod common;

use common::{Node, ROOT, World, ask, noise, until};
use hfcache_base::limits::{CHUNK_TARGET, INLINE_MAX, MIB};
use hfcache_base::meta::{Lock, LockKind, SetAttr, SetTime, Timestamp};
use hfcache_fuse::ops::{Data, FileSystem};
use std::sync::atomic::Ordering;

const RW: i32 = libc::O_RDWR | libc::O_CREAT;

async fn extents(node: &Node, ino: hfcache_base::InodeId) -> usize {
    use hfcache_base::seam::Meta;
    node.meta.read_stale().content(ino).expect("content").1.extents.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_closed_here_is_read_there() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    for len in [0, 1, 100, INLINE_MAX, INLINE_MAX + 1, 300_000, CHUNK_TARGET as usize + 77] {
        let name = format!("f{len}");
        let data = noise(len as u64, len);
        a.put(ROOT, &name, &data).await;
        assert!(b.get(ROOT, &name).await == Ok(data.clone()), "{len} bytes on the other node");
        assert!(a.get(ROOT, &name).await == Ok(data), "{len} bytes on the writer's node");
        let attr = b.lookup(ROOT, &name).await.expect("lookup").attr;
        assert_eq!(attr.size, len as u64);
        assert_eq!(extents(&a, attr.ino).await > 0, len > INLINE_MAX, "small files live in the inode");
    }
    // The writer reads its own hot copy and never the chunk store.
    assert_eq!(a.chunks.gets.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_lease_everything_still_works() {
    let world = World::new();
    let a = world.node();
    a.meta.leased.store(false, Ordering::SeqCst);
    let data = noise(1, 3 << 20);
    a.put(ROOT, "f", &data).await;
    assert!(a.get(ROOT, "f").await == Ok(data));
    let entry = a.lookup(ROOT, "f").await.expect("lookup");
    assert!(entry.attr_ttl.is_zero() && entry.entry_ttl.is_zero(), "nothing may be kept without a lease");
    a.meta.leased.store(true, Ordering::SeqCst);
    let entry = a.lookup(ROOT, "f").await.expect("lookup");
    assert!(!entry.attr_ttl.is_zero() && entry.entry_ttl.is_zero(), "names only where they can be expired");
    a.told.can_expire_names.store(true, Ordering::SeqCst);
    assert!(!a.lookup(ROOT, "f").await.expect("lookup").entry_ttl.is_zero());
    assert_eq!(a.lookup(ROOT, "g").await.err(), Some(libc::ENOENT));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_settled_is_told_when_it_is_and_never_kept() {
    use futures::FutureExt;
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let ino = a.put(ROOT, "f", b"old").await;
    let link = a.symlink(ROOT, "l", "target").await.expect("symlink");
    let h = b.open(ino, libc::O_RDONLY).await.expect("open").handle;
    assert_eq!(b.read(ino, h, 0, 100).await, Ok(b"old".to_vec()));
    b.meta.settled.send_replace(false);
    let w = a.open(ino, libc::O_WRONLY).await.expect("open").handle;
    a.write_all(ino, w, b"new and longer").await;
    a.close(ino, w).await.expect("close");
    {
        let mut asked = vec![
            b.lookup(ROOT, "f")
                .map(|e| format!("{:?}", e.map(|e| (e.attr.size, e.attr_ttl, e.entry_ttl))))
                .boxed(),
            b.lookup(ROOT, "g").map(|e| format!("{:?}", e.err())).boxed(),
            b.getattr(ino).map(|a| format!("{:?}", a.map(|a| a.size))).boxed(),
            b.list(ROOT, 4096, true).map(|rows| rows.len().to_string()).boxed(),
            b.readlink(link).map(|to| format!("{to:?}")).boxed(),
            b.open(ino, libc::O_RDONLY).map(|o| o.is_ok().to_string()).boxed(),
            b.read(ino, h, 0, 100).map(|bytes| format!("{bytes:?}")).boxed(),
        ];
        let first = futures::future::select_all(&mut asked);
        let first = tokio::time::timeout(std::time::Duration::from_millis(100), first).await;
        assert!(first.is_err(), "told before it was settled: {:?}", first.map(|(told, ..)| told));
        b.meta.settled.send_replace(true);
        let told = futures::future::join_all(asked).await;
        let new = format!("{:?}", Ok::<_, i32>(b"new and longer".to_vec()));
        let target = format!("{:?}", Ok::<_, i32>(b"target".to_vec()));
        let want = ["Ok((14, 0ns, 0ns))", "Some(2)", "Ok(14)", "4", &target, "true", &new];
        assert_eq!(told, want);
    }
    assert!(!b.lookup(ROOT, "f").await.expect("lookup").attr_ttl.is_zero());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernel_of_the_node_that_replaces_a_name_is_told_as_soon_as_others_show_it() {
    let world = World::new();
    let a = world.node();
    a.told.can_expire_names.store(true, Ordering::SeqCst);
    let told = || a.told.names.load(Ordering::SeqCst);
    let ino = a.put(ROOT, "t", b"new").await;
    a.put(ROOT, "f", b"old").await;
    assert!(!a.lookup(ROOT, "f").await.expect("lookup").entry_ttl.is_zero());
    assert_eq!(told(), 0, "a new name is in nobody's cache");
    a.rename((ROOT, "t"), (ROOT, "f")).await.expect("rename");
    assert_eq!(told(), 1);
    a.unlink(ROOT, "f").await.expect("unlink");
    assert_eq!(told(), 2);
    let before = a.told.attrs.lock().len();
    a.getattr(ino).await.err();
    let ino = a.put(ROOT, "g", b"").await;
    a.getattr(ino).await.expect("getattr");
    a.setattr(ino, SetAttr { mode: Some(0o600), ..SetAttr::default() }).await.expect("chmod");
    assert!(a.told.attrs.lock()[before..].contains(&ino));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_reads_its_own_unflushed_writes() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let old = noise(1, 2_000_000);
    let ino = a.put(ROOT, "f", &old).await;
    let h = a.open(ino, libc::O_RDWR).await.expect("open").handle;
    let other = a.open(ino, libc::O_RDONLY).await.expect("open").handle;
    let patch = noise(2, 5000);
    a.write(ino, h, 1_000_000, &patch).await.expect("write");
    a.write(ino, h, 2_500_000, b"tail").await.expect("write");
    let mut now = old.clone();
    now[1_000_000..1_005_000].copy_from_slice(&patch);
    now.resize(2_500_000, 0);
    now.extend(b"tail");
    let attr = a.getattr(ino).await.expect("getattr");
    assert_eq!(attr.size, now.len() as u64, "the size here counts what is written here");
    assert_eq!(b.getattr(ino).await.expect("getattr").size, old.len() as u64, "and not elsewhere");
    for (offset, size) in [(0, 1 << 20), (999_999, 10_000), (1_999_990, 600_000), (2_499_999, 100)] {
        let end = (offset + size).min(now.len());
        let read = a.read(ino, other, offset as u64, size as u32).await.expect("read");
        assert!(read == now[offset..end], "{offset}+{size}");
    }
    let puts = a.chunks.puts.load(Ordering::SeqCst);
    a.close(ino, h).await.expect("close");
    assert_eq!(a.chunks.puts.load(Ordering::SeqCst), puts + 1, "small runs share a chunk");
    assert!(b.get(ROOT, "f").await == Ok(now.clone()));
    assert!(a.get(ROOT, "f").await == Ok(now));
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_grow_and_shrink_under_a_writer() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let (attr, h) = a.create(ROOT, "f", RW).await.expect("create");
    let ino = attr.ino;
    let data = noise(3, 5_000_000);
    a.write_all(ino, h, &data).await;
    assert_eq!(a.truncate(ino, 3_000_000).await.expect("truncate").size, 3_000_000);
    assert_eq!(a.truncate(ino, 4_000_000).await.expect("truncate").size, 4_000_000);
    a.write(ino, h, 3_999_999, b"!").await.expect("write");
    let mut now = data[..3_000_000].to_vec();
    now.resize(4_000_000, 0);
    now[3_999_999] = b'!';
    assert!(a.read(ino, h, 2_999_000, 1_001_000).await.expect("read") == now[2_999_000..]);
    a.flush(ino, h).await.expect("flush");
    assert!(b.get(ROOT, "f").await == Ok(now.clone()));
    // Down to an inode's worth and up again: no old bytes come back.
    a.truncate(ino, 10).await.expect("truncate");
    a.write(ino, h, 20, b"x").await.expect("write");
    a.close(ino, h).await.expect("close");
    let mut small = now[..10].to_vec();
    small.resize(20, 0);
    small.push(b'x');
    assert_eq!(b.get(ROOT, "f").await, Ok(small.clone()));
    assert_eq!(a.get(ROOT, "f").await, Ok(small));
    let trunc = a.open(ino, libc::O_WRONLY | libc::O_TRUNC).await.expect("open").handle;
    assert_eq!(b.get(ROOT, "f").await, Ok(Vec::new()));
    a.close(ino, trunc).await.expect("close");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overwritten_window_is_put_again() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let (attr, h) = a.create(ROOT, "f", RW).await.expect("create");
    let mut data = noise(4, 3 * CHUNK_TARGET as usize + 5);
    a.write_all(attr.ino, h, &data).await;
    until("windows are put behind the writer", || a.chunks.puts.load(Ordering::SeqCst) >= 3).await;
    for (i, at) in [3usize, CHUNK_TARGET as usize - 1, 40 << 20].into_iter().enumerate() {
        let patch = noise(90 + i as u64, 1000);
        data[at..at + 1000].copy_from_slice(&patch);
        a.write(attr.ino, h, at as u64, &patch).await.expect("write");
    }
    a.close(attr.ino, h).await.expect("close");
    assert!(b.get(ROOT, "f").await == Ok(data.clone()));
    assert!(a.get(ROOT, "f").await == Ok(data));
    let referred = world.cluster.state.lock().chunk_refs().len();
    until("chunks that were overwritten before the flush are forgotten", || {
        world.store.chunks.lock().len() == referred
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn holes_are_punched_and_ranges_zeroed() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let mut data = noise(5, 2_000_000);
    let ino = a.put(ROOT, "f", &data).await;
    let h = a.open(ino, libc::O_RDWR).await.expect("open").handle;
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    a.write(ino, h, 100_000, &noise(6, 50_000)).await.expect("write");
    data[100_000..150_000].copy_from_slice(&noise(6, 50_000));
    a.fallocate(ino, h, 120_000, 1_000_000, punch).await.expect("punch");
    data[120_000..1_120_000].fill(0);
    a.write(ino, h, 500_000, b"in the hole").await.expect("write");
    data[500_000..500_011].copy_from_slice(b"in the hole");
    assert!(a.read(ino, h, 90_000, 1_040_000).await.expect("read") == data[90_000..1_130_000]);
    a.fallocate(ino, h, 1_999_000, 2_000, libc::FALLOC_FL_ZERO_RANGE).await.expect("zero range");
    data[1_999_000..].fill(0);
    data.resize(2_001_000, 0);
    a.fallocate(ino, h, 0, 2_002_000, 0).await.expect("allocate");
    data.resize(2_002_000, 0);
    a.fallocate(ino, h, 0, 9_002_000, libc::FALLOC_FL_KEEP_SIZE).await.expect("allocate");
    assert_eq!(a.fallocate(ino, h, 0, 5, libc::FALLOC_FL_COLLAPSE_RANGE).await, Err(libc::EOPNOTSUPP));
    a.close(ino, h).await.expect("close");
    assert!(b.get(ROOT, "f").await == Ok(data.clone()));
    assert!(a.get(ROOT, "f").await == Ok(data));
    assert!(b.getattr(ino).await.expect("getattr").allocated < 1_100_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn mtime_is_the_last_write_or_what_was_set_after_it() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let (attr, h) = a.create(ROOT, "f", RW).await.expect("create");
    let ino = attr.ino;
    a.write(ino, h, 0, &noise(1, 9000)).await.expect("write");
    let written = a.getattr(ino).await.expect("getattr").mtime;
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    a.flush(ino, h).await.expect("flush");
    assert_eq!(a.getattr(ino).await.expect("getattr").mtime, written, "a flush changes no mtime");
    assert_eq!(b.getattr(ino).await.expect("getattr").mtime, written);
    // cp -p: write, utimens, close.
    a.write(ino, h, 0, b"new").await.expect("write");
    let then = Timestamp(1_234_567_890_123_456_789);
    let set = SetAttr { mtime: Some(SetTime::To(then)), ..SetAttr::default() };
    assert_eq!(a.setattr(ino, set).await.expect("setattr").mtime, then);
    a.close(ino, h).await.expect("close");
    assert_eq!(a.getattr(ino).await.expect("getattr").mtime, then);
    assert_eq!(b.getattr(ino).await.expect("getattr").mtime, then);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_without_a_name_lives_while_it_is_open() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let data = noise(8, 200_000);
    let ino = a.put(ROOT, "f", &data).await;
    let ha = a.open(ino, libc::O_RDWR).await.expect("open").handle;
    let hb = b.open(ino, libc::O_RDONLY).await.expect("open").handle;
    a.unlink(ROOT, "f").await.expect("unlink");
    assert_eq!(b.lookup(ROOT, "f").await.err(), Some(libc::ENOENT));
    until("both nodes hold it", || world.cluster.state.lock().inodes[&ino].holders.len() == 2).await;
    world.cluster.reap(a.meta.clock().as_ref());
    a.write(ino, ha, 0, b"still here").await.expect("write");
    a.flush(ino, ha).await.expect("flush");
    assert_eq!(a.read(ino, ha, 0, 10).await.expect("read"), b"still here");
    assert!(b.read(ino, hb, 0, 200_000).await.expect("read") == data);
    a.release(ino, ha).await.expect("release");
    b.close(ino, hb).await.expect("close");
    until("nobody holds it", || world.cluster.state.lock().inodes[&ino].holders.is_empty()).await;
    world.cluster.reap(a.meta.clock().as_ref());
    assert!(!world.cluster.state.lock().inodes.contains_key(&ino));
    assert!(world.store.chunks.lock().is_empty(), "its chunks are free");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_file_lives_while_it_is_open() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let old = noise(8, 100_000);
    let ino = a.put(ROOT, "f", &old).await;
    let h = a.open(ino, libc::O_RDONLY).await.expect("open").handle;
    b.put(ROOT, "tmp", b"new").await;
    b.rename((ROOT, "tmp"), (ROOT, "f")).await.expect("rename");
    until("the reader's node holds it", || !world.cluster.state.lock().inodes[&ino].holders.is_empty()).await;
    world.cluster.reap(a.meta.clock().as_ref());
    assert_eq!(a.get(ROOT, "f").await, Ok(b"new".to_vec()));
    assert!(a.read(ino, h, 0, 100_000).await.expect("read") == old);
    a.close(ino, h).await.expect("close");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_reader_follows_a_remote_change() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let ino = a.put(ROOT, "f", &noise(1, 100_000)).await;
    assert!(b.get(ROOT, "f").await.is_ok());
    let hb = b.open(ino, libc::O_RDONLY).await.expect("open");
    assert!(hb.keep_cache, "same content: pages are kept");
    b.getattr(ino).await.expect("getattr");
    let new = noise(2, 100_000);
    a.put(ROOT, "f", &new).await;
    assert!(b.told.attrs.lock().contains(&ino), "told before the writer heard of its success");
    until("pages are dropped", || b.told.data.lock().contains(&ino)).await;
    assert!(b.read(ino, hb.handle, 0, 100_000).await.expect("read") == new, "old chunks are gone by now");
    assert!(!b.open(ino, libc::O_RDONLY).await.expect("open").keep_cache);
    assert!(b.open(ino, libc::O_RDONLY).await.expect("open").keep_cache);
    assert!(a.told.data.lock().is_empty(), "the writer's own pages are right");
    assert!(a.open(ino, libc::O_RDONLY).await.expect("open").keep_cache, "and are kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_fetch_per_cell_and_reading_ahead() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let data = noise(11, 40 << 20);
    let ino = a.put(ROOT, "f", &data).await;
    b.chunks.get_delay_ms.store(5, Ordering::SeqCst);
    let h = b.open(ino, libc::O_RDONLY).await.expect("open").handle;
    let mut at = 0;
    while at < data.len() {
        let reads = (0..8).map(|i| b.read(ino, h, (at + i * 131_072) as u64, 131_072));
        for (i, part) in futures::future::join_all(reads).await.into_iter().enumerate() {
            let from = at + i * 131_072;
            assert!(part.expect("read") == data[from..(from + 131_072).min(data.len())]);
        }
        at += 8 * 131_072;
    }
    let cells = b.chunks.cells.lock().clone();
    assert!(cells.values().all(|n| *n == 1), "{cells:?}");
    assert_eq!(cells.len() as u64, data.len() as u64 / MIB);
    // Hot by now: answered from the local file on the asking thread.
    let now = ask(|r| b.fs.read(b.caller(), ino, h, 5 << 20, 1 << 20, r)).await.expect("read");
    assert!(matches!(now, Data::Local { .. }));
    assert_eq!(b.chunks.gets.load(Ordering::SeqCst) as u64, data.len() as u64 / MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_local_disk_costs_speed_and_nothing_else() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    b.chunks.no_local.store(true, Ordering::SeqCst);
    let data = noise(12, 3 << 20);
    a.put(ROOT, "f", &data).await;
    assert!(b.get(ROOT, "f").await == Ok(data));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_writers_on_one_node_share_the_file() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let (attr, h1) = a.create(ROOT, "f", RW).await.expect("create");
    let ino = attr.ino;
    let h2 = a.open(ino, libc::O_RDWR).await.expect("open").handle;
    let data = noise(13, 6 << 20);
    let part = |h, from: usize| {
        let (a, data) = (&a, &data);
        async move {
            for at in (from..data.len()).step_by(2 << 16) {
                let end = (at + (1 << 16)).min(data.len());
                a.write(ino, h, at as u64, &data[at..end]).await.expect("write");
                if at % 7 == 0 {
                    a.fsync(ino, h).await.expect("fsync");
                }
            }
            a.flush(ino, h).await.expect("flush");
        }
    };
    tokio::join!(part(h1, 0), part(h2, 1 << 16));
    assert!(b.get(ROOT, "f").await == Ok(data.clone()));
    assert!(a.get(ROOT, "f").await == Ok(data));
    let commits = a.meta.commits.load(Ordering::SeqCst);
    a.close(ino, h1).await.expect("close");
    a.close(ino, h2).await.expect("close");
    assert_eq!(a.meta.commits.load(Ordering::SeqCst), commits, "closing a clean file costs nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_of_a_reader_is_told_only_where_fcntl_locks_are_used() {
    let world = World::new();
    let a = world.node();
    let (attr, h) = a.create(ROOT, "f", RW).await.expect("create");
    let ino = attr.ino;
    assert!(!a.open(ino, libc::O_WRONLY).await.expect("open").no_flush, "what is written is saved at close");
    let first = a.open(ino, libc::O_RDONLY).await.expect("open");
    assert!(first.no_flush);
    let lock = |owner| Lock { kind: LockKind::Posix, owner, exclusive: false, start: 0, end: 9, pid: 1 };
    ask(|r| a.fs.lock(a.caller(), ino, first.handle, lock(7), false, r)).await.expect("lock");
    ask(|r| a.fs.lock(a.caller(), ino, h, lock(8), false, r)).await.expect("lock");
    assert!(!a.open(ino, libc::O_RDONLY).await.expect("open").no_flush, "there are locks now");
    a.close(ino, first.handle).await.expect("close");
    assert!(!a.fs.lock_held(ino, LockKind::Posix, 7), "taken through what was closed");
    assert!(a.fs.lock_held(ino, LockKind::Posix, 8), "taken through another");
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_are_listed_in_pages() {
    let world = World::new();
    let a = world.node();
    let dir = a.mkdir(ROOT, "d").await.expect("mkdir");
    for i in 0..300 {
        a.mkdir(dir, &format!("e{i:03}")).await.expect("mkdir");
    }
    for plus in [false, true] {
        let rows = a.list(dir, 4096, plus).await;
        assert_eq!(rows.len(), 302);
        assert_eq!((rows[0].name.as_slice(), rows[0].ino), (b".".as_slice(), dir));
        assert_eq!((rows[1].name.as_slice(), rows[1].ino), (b"..".as_slice(), ROOT));
        let mut names: Vec<_> = rows[2..].iter().map(|r| r.name.clone()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 300);
        assert!(rows.iter().all(|r| r.entry.is_some() == (plus && !r.name.starts_with(b"."))));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_mount_refuses_every_change() {
    let world = World::new();
    let (a, b) = (world.node(), world.node_with(true, 1));
    let ino = a.put(ROOT, "f", b"data").await;
    assert_eq!(b.get(ROOT, "f").await, Ok(b"data".to_vec()));
    assert_eq!(b.open(ino, libc::O_RDWR).await.err(), Some(libc::EROFS));
    assert_eq!(b.create(ROOT, "g", RW).await.err(), Some(libc::EROFS));
    assert_eq!(b.mkdir(ROOT, "d").await.err(), Some(libc::EROFS));
    assert_eq!(b.unlink(ROOT, "f").await.err(), Some(libc::EROFS));
    assert_eq!(b.rename((ROOT, "f"), (ROOT, "g")).await.err(), Some(libc::EROFS));
    assert_eq!(b.truncate(ino, 0).await.err(), Some(libc::EROFS));
}
