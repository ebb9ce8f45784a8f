//! What Hugging Face clients do to a file system, call by call, as traced.

mod common;

use common::{Node, ROOT, World, ask, flock, noise, until};
use hfcache_base::InodeId;
use hfcache_base::meta::{Lock, LockKind, SetAttr, SetTime};
use hfcache_fuse::ops::FileSystem;
use std::sync::Arc;
use std::sync::atomic::Ordering;

fn mode(mode: u32) -> SetAttr {
    SetAttr { mode: Some(mode), ..SetAttr::default() }
}

/// filelock: O_EXCL, fchmod, flock without waiting, fstat, unlock, close.
#[tokio::test(flavor = "multi_thread")]
async fn python_filelock_excludes_between_nodes() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
    let (attr, ha) = a.create(ROOT, "x.lock", flags).await.expect("create lock file");
    let ino = attr.ino;
    assert_eq!(b.create(ROOT, "x.lock", flags).await.err(), Some(libc::EEXIST));
    assert_eq!(a.setattr(ino, mode(0o664)).await.expect("fchmod").mode, 0o664);
    a.lock(ino, flock(1, true), false).await.expect("lock");
    let hb = b.open(ino, libc::O_RDWR).await.expect("open").handle;
    let commits = b.meta.commits.load(Ordering::SeqCst);
    assert_eq!(b.lock(ino, flock(1, true), false).await, Err(libc::EAGAIN));
    assert!(a.getattr(ino).await.expect("fstat").nlink > 0);
    a.unlock(ino, flock(1, true)).await.expect("unlock");
    b.lock(ino, flock(1, true), false).await.expect("lock");
    assert_eq!(b.meta.commits.load(Ordering::SeqCst), commits, "polling writes nothing");
    // close drops the lock of a holder that did not unlock.
    b.flush(ino, hb).await.expect("flush");
    assert_eq!(a.lock(ino, flock(1, true), false).await, Err(libc::EAGAIN));
    ask(|r| b.fs.release(b.caller(), ino, hb, Some(1), r)).await.expect("release");
    a.lock(ino, flock(1, true), false).await.expect("lock");
    a.close(ino, ha).await.expect("close");
}

/// hf-hub: a blocking flock; it ends with the lock or with a signal.
#[tokio::test(flavor = "multi_thread")]
async fn a_blocking_flock_waits_and_can_be_interrupted() {
    let world = World::new();
    let (a, b) = (world.node(), Arc::new(world.node()));
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
    let (attr, _) = a.create(ROOT, "x.lock", flags).await.expect("create");
    let ino = attr.ino;
    a.lock(ino, flock(1, true), true).await.expect("lock");
    let (again, _) = b.create(ROOT, "x.lock", flags).await.expect("open and truncate");
    assert_eq!(again.ino, ino);

    let caller = b.caller();
    let (tell, told) = tokio::sync::oneshot::channel();
    let reply = hfcache_fuse::ops::Reply::new(move |r| {
        let _ = tell.send(r);
    });
    b.fs.lock(caller, ino, 0, flock(2, true), true, reply);
    b.fs.interrupt(caller.unique);
    assert_eq!(told.await.expect("answer"), Err(libc::EINTR));
    // An interrupt that overtakes its request counts, too.
    let caller = b.caller();
    b.fs.interrupt(caller.unique);
    assert_eq!(ask(|r| b.fs.lock(caller, ino, 0, flock(2, true), true, r)).await, Err(libc::EINTR));

    let waiter = tokio::spawn({
        let b = Arc::clone(&b);
        async move { b.lock(ino, flock(3, true), true).await }
    });
    tokio::task::yield_now().await;
    a.unlock(ino, flock(1, true)).await.expect("unlock");
    assert_eq!(waiter.await.expect("join"), Ok(()));
    let test = ask(|r| a.fs.lock_test(a.caller(), ino, flock(9, true), r)).await.expect("test");
    assert_eq!(test.map(|l| (l.owner, l.pid)), Some((3, 0)), "a pid of another node means nothing here");
}

/// What was written under a lock is there for its next holder, also without a close.
#[tokio::test(flavor = "multi_thread")]
async fn unlocking_saves_what_was_written_under_the_lock() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let ino = a.put(ROOT, "db", &noise(1, 10_000)).await;
    let ha = a.open(ino, libc::O_RDWR).await.expect("open").handle;
    let hb = b.open(ino, libc::O_RDWR).await.expect("open").handle;
    let range = Lock { kind: LockKind::Posix, owner: 5, exclusive: true, start: 0, end: 99, pid: 1 };
    a.lock(ino, range, false).await.expect("lock");
    assert_eq!(b.lock(ino, range, false).await, Err(libc::EAGAIN));
    a.write(ino, ha, 0, b"under the lock").await.expect("write");
    a.unlock(ino, range).await.expect("unlock");
    b.lock(ino, range, false).await.expect("lock");
    assert_eq!(b.read(ino, hb, 0, 14).await.expect("read"), b"under the lock");
    // fcntl locks go with any close of the process.
    ask(|r| b.fs.flush(b.caller(), ino, hb, 5, r)).await.expect("flush");
    a.lock(ino, range, false).await.expect("lock");
}

async fn download(node: &Node, blobs: InodeId, etag: &str, data: &[u8]) {
    let tmp = format!("{etag}.0123abcd.incomplete");
    node.put(blobs, &tmp, data).await;
    // _chmod_and_move: the umask is found out with a file of its own.
    let probe = node.put(blobs, "tmp_uuid", b"").await;
    let bits = node.getattr(probe).await.expect("stat").mode;
    let ino = node.lookup(blobs, &tmp).await.expect("lookup").attr.ino;
    node.setattr(ino, mode(bits)).await.expect("chmod");
    node.unlink(blobs, "tmp_uuid").await.expect("unlink");
    node.rename((blobs, &tmp), (blobs, etag)).await.expect("rename");
    assert_eq!(node.unlink(blobs, &tmp).await, Err(libc::ENOENT));
}

/// hf_hub_download: blob, symlink, ref; read on another node.
#[tokio::test(flavor = "multi_thread")]
async fn a_downloaded_snapshot_is_there_on_every_node() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let repo = a.mkdir(ROOT, "models--org--m").await.expect("mkdir");
    assert_eq!(a.mkdir(ROOT, "models--org--m").await, Err(libc::EEXIST));
    let blobs = a.mkdir(repo, "blobs").await.expect("mkdir");
    let refs = a.mkdir(repo, "refs").await.expect("mkdir");
    let snapshots = a.mkdir(repo, "snapshots").await.expect("mkdir");
    let commit = a.mkdir(snapshots, "c0ffee").await.expect("mkdir");
    let data = noise(1, 25 << 20);
    download(&a, blobs, "etag1", &data).await;
    assert_eq!(a.unlink(commit, "model.safetensors").await, Err(libc::ENOENT));
    a.symlink(commit, "model.safetensors", "../../blobs/etag1").await.expect("symlink");
    assert_eq!(b.symlink(commit, "model.safetensors", "elsewhere").await, Err(libc::EEXIST));
    let link = b.lookup(commit, "model.safetensors").await.expect("lookup").attr;
    assert_eq!(b.readlink(link.ino).await.expect("readlink"), b"../../blobs/etag1");
    assert_eq!(link.size, 17);
    assert!(b.get(blobs, "etag1").await == Ok(data));
    // refs/main is replaced and never empty.
    for round in 0..20 {
        let hash = format!("{round:040}");
        a.put(refs, "main.abcd.tmp", hash.as_bytes()).await;
        a.rename((refs, "main.abcd.tmp"), (refs, "main")).await.expect("rename");
        assert_eq!(b.get(refs, "main").await, Ok(hash.into_bytes()));
    }
    // delete: everything by name, then the directories.
    a.unlink(commit, "model.safetensors").await.expect("unlink");
    a.unlink(blobs, "etag1").await.expect("unlink");
    a.rmdir(snapshots, "c0ffee").await.expect("rmdir");
    assert_eq!(a.rmdir(ROOT, "models--org--m").await, Err(libc::ENOTEMPTY));
}

/// Rename of a symlink over a regular file, as the shared blob store does it.
#[tokio::test(flavor = "multi_thread")]
async fn a_symlink_replaces_an_open_blob() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let data = noise(2, 70_000);
    let ino = a.put(ROOT, "blob", &data).await;
    let h = b.open(ino, libc::O_RDONLY).await.expect("open").handle;
    a.symlink(ROOT, "tmp", "../shared").await.expect("symlink");
    a.rename((ROOT, "tmp"), (ROOT, "blob")).await.expect("rename");
    let now = b.lookup(ROOT, "blob").await.expect("lookup").attr;
    assert_eq!(b.readlink(now.ino).await.expect("readlink"), b"../shared");
    assert!(b.read(ino, h, 0, 70_000).await.expect("read") == data);
}

/// safetensors save: mkstemp, ftruncate to the size, write, rename; the mode stays 0600.
#[tokio::test(flavor = "multi_thread")]
async fn safetensors_saves_into_a_file_of_its_final_size() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
    let (entry, opened) = a.create_mode(ROOT, ".tmpAbC123", flags, 0o600).await.expect("create");
    let (ino, h) = (entry.attr.ino, opened.handle);
    let data = noise(3, 20_000_001);
    assert_eq!(a.truncate(ino, data.len() as u64).await.expect("ftruncate").size, data.len() as u64);
    a.write_all(ino, h, &data).await;
    a.close(ino, h).await.expect("close");
    a.rename((ROOT, ".tmpAbC123"), (ROOT, "model.safetensors")).await.expect("rename");
    let attr = b.lookup(ROOT, "model.safetensors").await.expect("lookup").attr;
    assert_eq!((attr.mode & 0o777, attr.size), (0o600, data.len() as u64));
    assert!(b.get(ROOT, "model.safetensors").await == Ok(data));
    assert_eq!(a.chunks.published.load(Ordering::SeqCst), 1, "the writer's bytes are its hot copy");
}

/// hf_xet: parallel positional writes into one sparse file.
#[tokio::test(flavor = "multi_thread")]
async fn parallel_positional_writes_fill_a_sparse_file() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let (attr, h) = a.create(ROOT, "x.incomplete", libc::O_RDWR | libc::O_CREAT).await.expect("create");
    let ino = attr.ino;
    let data = noise(4, 50 << 20);
    let piece = 700_001;
    let mut order: Vec<usize> = (0..data.len().div_ceil(piece)).collect();
    order.sort_by_key(|i| (i * 31) % 47);
    for group in order.chunks(8) {
        let writes = group.iter().map(|i| {
            let (from, to) = (i * piece, ((i + 1) * piece).min(data.len()));
            a.write(ino, h, from as u64, &data[from..to])
        });
        for done in futures::future::join_all(writes).await {
            done.expect("write");
        }
        let i = group[0] * piece;
        assert!(a.read(ino, h, i as u64, 1000).await.expect("read after write") == data[i..i + 1000]);
    }
    a.close(ino, h).await.expect("close");
    assert!(b.get(ROOT, "x.incomplete").await == Ok(data));
}

/// `.refs` of the shared blob store: append and fsync, in turns under a lock.
#[tokio::test(flavor = "multi_thread")]
async fn appends_in_turns_are_all_there() {
    let world = World::new();
    let nodes = [world.node(), world.node()];
    let mut want = Vec::new();
    for round in 0..30 {
        let node = &nodes[round % 2];
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND;
        let (attr, h) = node.create(ROOT, ".refs", flags).await.expect("open");
        node.lock(attr.ino, flock(1, true), true).await.expect("lock");
        let size = node.getattr(attr.ino).await.expect("fstat").size;
        let line = noise(round as u64, 333);
        node.write(attr.ino, h, size, &line).await.expect("append");
        node.fsync(attr.ino, h).await.expect("fsync");
        ask(|r| node.fs.release(node.caller(), attr.ino, h, Some(1), r)).await.expect("release");
        want.extend(line);
    }
    assert_eq!(nodes[0].get(ROOT, ".refs").await, Ok(want.clone()));
    assert_eq!(nodes[1].get(ROOT, ".refs").await, Ok(want));
}

/// datasets: rename of a directory while files in it are open; touch; mtime equal on all nodes.
#[tokio::test(flavor = "multi_thread")]
async fn arrow_files_are_built_in_a_directory_that_is_renamed() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let dir = a.mkdir(ROOT, "set.incomplete").await.expect("mkdir");
    let (attr, h) = a.create(dir, "train.arrow", libc::O_RDWR | libc::O_CREAT).await.expect("create");
    let data = noise(5, 2_000_000);
    a.write_all(attr.ino, h, &data[..1_000_000]).await;
    a.rename((ROOT, "set.incomplete"), (ROOT, "set")).await.expect("rename directory");
    a.write(attr.ino, h, 1_000_000, &data[1_000_000..]).await.expect("write");
    a.close(attr.ino, h).await.expect("close");
    let there = b.lookup(ROOT, "set").await.expect("lookup").attr.ino;
    assert!(b.get(there, "train.arrow").await == Ok(data));
    let (ma, mb) = (a.getattr(attr.ino).await.expect("stat"), b.getattr(attr.ino).await.expect("stat"));
    assert_eq!((ma.mtime, ma.size), (mb.mtime, mb.size));
    assert_eq!(b.setattr(attr.ino, mode(0o644)).await.expect("chmod").mtime, ma.mtime);
    let now = SetAttr { atime: Some(SetTime::Now), mtime: Some(SetTime::Now), ..SetAttr::default() };
    assert!(a.setattr(attr.ino, now).await.expect("touch").mtime > ma.mtime);
    assert_eq!(a.lookup(ROOT, "nothing").await.err(), Some(libc::ENOENT));
}

/// Many page faults at once on a cold file: nobody waits for anyone else, and answers stay right.
#[tokio::test(flavor = "multi_thread")]
async fn parallel_page_faults_are_all_answered() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    let data = noise(6, 30 << 20);
    let ino = a.put(ROOT, "f", &data).await;
    b.chunks.get_delay_ms.store(20, Ordering::SeqCst);
    let h = b.open(ino, libc::O_RDONLY).await.expect("open").handle;
    let faults = (0..400usize).map(|i| {
        let at = (i * 7_919 * 4096) % (data.len() - 4096);
        let (b, data) = (&b, &data);
        async move {
            assert!(b.read(ino, h, at as u64, 4096).await.expect("fault") == data[at..at + 4096]);
        }
    });
    futures::future::join_all(faults).await;
    let cells = b.chunks.cells.lock().clone();
    assert!(cells.values().all(|n| *n == 1), "each cell is fetched once");
    until("all fetches end", || b.chunks.gets.load(Ordering::SeqCst) == cells.len()).await;
}
