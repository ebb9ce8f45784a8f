//! Space, file system, and how long a sync takes.

use super::Finding;
use crate::status::show::bytes;
use crate::world::RealRng;
use hfcache_base::seam::Rng;
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const FREE_WANTED: u64 = 10 << 30;
const SYNCS: usize = 9;
const SYNC_SLOW: Duration = Duration::from_millis(20);

pub(super) fn examine(places: &[(String, PathBuf)]) -> Vec<Finding> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for (what, wanted) in places {
        // A directory that is not there yet will be made on the disk of its nearest parent.
        let Some(path) = wanted.ancestors().find(|p| p.is_dir()) else { continue };
        if std::fs::metadata(path).is_ok_and(|m| seen.insert(m.dev())) {
            found.extend(one(what, path));
        }
    }
    found
}

fn one(what: &str, path: &Path) -> Vec<Finding> {
    let shown = path.display();
    let stat = match rustix::fs::statfs(path) {
        Ok(stat) => stat,
        Err(e) => return vec![Finding::fail(what, format!("{shown}: {e}"), "name another directory")],
    };
    let size = stat.f_bsize.unsigned_abs();
    let (free, total) = (stat.f_bavail.saturating_mul(size), stat.f_blocks.saturating_mul(size));
    let (name, fitness) = file_system(stat.f_type as u64);
    let found = format!("{shown}: {} free of {}, {name}", bytes(free), bytes(total));
    let mut all = vec![match fitness {
        Fitness::Good if free < FREE_WANTED => {
            Finding::warn(what, found, "models are large: give hfcache a disk with more room")
        }
        Fitness::Good => Finding::ok(what, found),
        Fitness::Volatile => {
            Finding::warn(what, found, "this is memory: nothing survives a restart; name a directory on a disk")
        }
        Fitness::Network => {
            Finding::fail(what, found, "locks and syncs are not reliable there; name a directory on a local disk")
        }
    }];
    all.push(match sync_time(path) {
        Ok(t) if t > SYNC_SLOW => Finding::warn(
            "sync",
            format!("{shown}: {:.1} ms", t.as_secs_f64() * 1e3),
            "each small change waits for this; a disk with power-loss protection answers in under 1 ms",
        ),
        Ok(t) => Finding::ok("sync", format!("{shown}: {:.2} ms", t.as_secs_f64() * 1e3)),
        Err(e) => Finding::fail("sync", format!("{shown}: {e}"), "make the directory writable for this user"),
    });
    all
}

enum Fitness {
    Good,
    Volatile,
    Network,
}

/// Magic numbers from statfs(2).
fn file_system(magic: u64) -> (&'static str, Fitness) {
    match magic & 0xffff_ffff {
        0xef53 => ("ext4", Fitness::Good),
        0x5846_5342 => ("xfs", Fitness::Good),
        0x9123_683e => ("btrfs", Fitness::Good),
        0x2fc1_2fc1 => ("zfs", Fitness::Good),
        0xf2f5_2010 => ("f2fs", Fitness::Good),
        0x794c_7630 => ("overlayfs", Fitness::Good),
        0x0102_1994 | 0x8584_58f6 => ("tmpfs", Fitness::Volatile),
        0x6969 => ("nfs", Fitness::Network),
        0xff53_4d42 | 0xfe53_4d42 | 0x517b => ("smb", Fitness::Network),
        0x00c3_6400 => ("ceph", Fitness::Network),
        0x0bd0_0bd0 => ("lustre", Fitness::Network),
        0x6573_5546 => ("fuse", Fitness::Network),
        0x4750_4653 => ("gpfs", Fitness::Network),
        _ => ("a file system that hfcache does not know", Fitness::Good),
    }
}

/// The median of a few small synced writes.
fn sync_time(dir: &Path) -> std::io::Result<Duration> {
    let path = dir.join(format!(".hfcache-doctor-{:x}", RealRng::default().next_u64()));
    let file = std::fs::File::create_new(&path)?;
    let measured = (0..SYNCS)
        .map(|i| {
            let start = Instant::now();
            std::os::unix::fs::FileExt::write_all_at(&file, &[i as u8; 4_096], i as u64 * 4_096)?;
            file.sync_data()?;
            Ok(start.elapsed())
        })
        .collect::<std::io::Result<Vec<_>>>();
    let _ = std::fs::remove_file(&path);
    let mut times = measured?;
    times.sort();
    Ok(times[SYNCS / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_measured_once_and_left_clean() {
        let dir = crate::data::tests::TempDir::new();
        let places = [("a".to_owned(), dir.path().join("not/there/yet")), ("b".to_owned(), dir.path().into())];
        let found = examine(&places);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
