//! The threads of a mount: none that is kept busy keeps the others' requests waiting.

mod kernel_memory;

use kernel_memory::{World, eventually};
use std::fs;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// One client asks for one thing after the other, which is what a single thread serves; and the last thing it asks
/// for keeps that thread. Others are served, whichever thread it was.
#[test]
fn a_stream_that_gets_stuck_keeps_nobody_waiting() {
    let world = World::with(|options| options.threads = 4);
    fs::write(world.path("f"), b"x").unwrap();
    let stream = || (0..1_000).for_each(|_| assert_eq!(fs::metadata(world.path("f")).unwrap().len(), 1));
    let served = AtomicU64::new(0);
    thread::scope(|scope| {
        // Let go when the test fails, so that it ends.
        let guard = world.fs.hold.lock();
        // The kernel asks for a name once, whoever waits for it: each in a directory of its own.
        for number in 1..4 {
            let (dir, held) = (world.path(&number.to_string()), &world.fs.held);
            fs::create_dir(&dir).unwrap();
            scope.spawn(move || {
                stream();
                let missing = fs::metadata(dir.join("held")).unwrap_err();
                assert_eq!(missing.kind(), ErrorKind::NotFound);
            });
            eventually("the stream gets stuck", || held.load(Ordering::SeqCst) == number);
            scope.spawn(|| {
                stream();
                served.fetch_add(1, Ordering::SeqCst);
            });
            eventually("others are served", || served.load(Ordering::SeqCst) == number);
        }
        drop(guard);
    });
    stream();
}
