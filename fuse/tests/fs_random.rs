//! Random writes, cuts, reads, flushes and reopens on two nodes, against a plain vector of bytes.

mod common;

use common::{Draw, Node, ROOT, World, noise};
use hfcache_base::InodeId;
use std::sync::atomic::Ordering;

const FILE_MAX: u64 = 3 << 20;

/// One handle and what it must show: the file as it was when the last other node closed it, with this
/// node's own writes over it. Only one node writes at a time, as close-to-open asks for.
async fn run(seed: u64, steps: u64) {
    let mut draw = Draw(seed);
    let world = World::new();
    let nodes = [world.node(), world.node()];
    for node in &nodes {
        node.meta.leased.store(draw.below(4) > 0, Ordering::SeqCst);
    }
    let (attr, first) = nodes[0].create(ROOT, "f", libc::O_RDWR | libc::O_CREAT).await.expect("create");
    let ino = attr.ino;
    let mut model: Vec<u8> = Vec::new();
    let mut turn = 0;
    let mut handles = vec![first];
    let small = draw.below(3) == 0;
    let span = if small { 6000 } else { FILE_MAX };
    for step in 0..steps {
        let what = format!("seed {seed} step {step}");
        let node = &nodes[turn];
        let handle = handles[draw.below(handles.len() as u64) as usize];
        match draw.below(100) {
            0..35 => {
                let offset = draw.below(span);
                let most = if draw.below(4) == 0 { span / 2 } else { 5000 };
                let len = 1 + draw.below(most.min(1 << 20));
                let data = noise(draw.next(), len as usize);
                node.write(ino, handle, offset, &data).await.expect(&what);
                let end = (offset + len) as usize;
                if model.len() < end {
                    model.resize(end, 0);
                }
                model[offset as usize..end].copy_from_slice(&data);
            }
            35..45 => {
                let size = draw.below(span);
                let attr = node.truncate(ino, size).await.expect(&what);
                model.resize(size as usize, 0);
                assert_eq!(attr.size, size, "{what}");
            }
            45..52 => {
                let (offset, len) = (draw.below(span), 1 + draw.below(span / 3));
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                node.fallocate(ino, handle, offset, len, mode).await.expect(&what);
                let end = ((offset + len) as usize).min(model.len());
                if (offset as usize) < end {
                    model[offset as usize..end].fill(0);
                }
            }
            52..77 => check(node, ino, handle, &model, &mut draw, &what).await,
            77..85 => node.fsync(ino, handle).await.expect(&what),
            85..90 if handles.len() < 4 => {
                handles.push(node.open(ino, libc::O_RDWR).await.expect(&what).handle);
            }
            90..93 => {
                // Nobody flushes here: failures on the way must not show.
                *node.chunks.put_fails.lock() = (1, None);
                node.meta.lose_answers.store(usize::from(draw.below(2) == 0), Ordering::SeqCst);
                let _ = node.fsync(ino, handle).await;
                *node.chunks.put_fails.lock() = (0, None);
                node.meta.lose_answers.store(0, Ordering::SeqCst);
            }
            93..100 => {
                for handle in handles.drain(..) {
                    node.close(ino, handle).await.expect(&what);
                }
                if draw.below(3) == 0 {
                    node.chunks.hot.lock().clear();
                }
                turn = draw.below(2) as usize;
                handles.push(nodes[turn].open(ino, libc::O_RDWR).await.expect(&what).handle);
                check(&nodes[turn], ino, handles[0], &model, &mut draw, &what).await;
            }
            _ => {}
        }
        let size = nodes[turn].getattr(ino).await.expect(&what).size;
        assert_eq!(size, model.len() as u64, "{what}");
    }
    for handle in handles {
        nodes[turn].close(ino, handle).await.expect("close");
    }
    for node in &nodes {
        assert!(node.get(ROOT, "f").await == Ok(model.clone()), "seed {seed} at the end");
    }
    let live: std::collections::BTreeSet<_> =
        world.cluster.state.lock().chunk_refs().iter().map(|c| c.id).collect();
    for id in live {
        assert!(world.store.chunks.lock().contains_key(&id), "seed {seed}: {id} was forgotten");
    }
}

async fn check(node: &Node, ino: InodeId, handle: u64, model: &[u8], draw: &mut Draw, what: &str) {
    let (offset, size) = match draw.below(3) {
        0 => (0, FILE_MAX * 2),
        _ => (draw.below(model.len() as u64 + 10), 1 + draw.below(200_000)),
    };
    let read = node.read(ino, handle, offset, size as u32).await.expect(what);
    let end = (offset + size).min(model.len() as u64) as usize;
    let want = model.get(offset as usize..end).unwrap_or(&[]);
    if read != want {
        let at = read.iter().zip(want).position(|(a, b)| a != b);
        panic!("{what}: read {offset}+{size}: {} bytes for {}, differs at {at:?}", read.len(), want.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_work_matches_a_vector_of_bytes() {
    let seeds = match std::env::var("SEED") {
        Ok(seed) => vec![seed.parse().expect("SEED is a number")],
        Err(_) => (1..=40).collect::<Vec<u64>>(),
    };
    for seed in seeds {
        println!("seed {seed}");
        run(seed, 120).await;
    }
}
