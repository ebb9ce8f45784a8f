//! The real disk, behind [`Disk`]: plain system calls, no runtime.

use crate::direct::Direct;
use hfcache_base::error::Context;
use hfcache_base::seam::{Disk, DiskFile, Space};
use hfcache_base::{Error, Kind, Result};
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The disks of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

struct RealFile(File, Direct);

impl DiskFile for RealFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.0.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(done)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        Ok(self.0.write_all_at(data, offset)?)
    }

    fn write_direct(&self, parts: &[&[u8]], offset: u64) -> Result<()> {
        Ok(self.1.write(&self.0, parts, offset)?)
    }

    fn sync(&self) -> Result<()> {
        Ok(self.0.sync_data()?)
    }

    fn len(&self) -> Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        Ok(self.0.set_len(len)?)
    }

    fn punch(&self, offset: u64, len: u64) -> Result<()> {
        use rustix::fs::FallocateFlags;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.0, flags, offset, len) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Err(Kind::NotSupported.into()),
            Err(e) => Err(Error::io(e.into())),
        }
    }

    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}

impl Disk for RealDisk {
    fn open(&self, path: &Path, create: bool) -> Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .truncate(create)
            .open(path)
            .doing(|| format!("open {}", path.display()))?;
        Ok(Box::new(RealFile(file, Direct::default())))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        std::fs::rename(from, to).doing(|| format!("rename {} to {}", from.display(), to.display()))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            other => other.doing(|| format!("remove {}", path.display())),
        }
    }

    fn create_dir(&self, path: &Path) -> Result<()> {
        std::fs::create_dir_all(path).doing(|| format!("make directory {}", path.display()))
    }

    fn list(&self, path: &Path) -> Result<Vec<PathBuf>> {
        let entries = match std::fs::read_dir(path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io(e).context(format!("list {}", path.display()))),
        };
        entries.map(|e| Ok(e?.path())).collect::<Result<_>>().doing(|| format!("list {}", path.display()))
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        File::open(path).and_then(|d| d.sync_all()).doing(|| format!("sync directory {}", path.display()))
    }

    fn space(&self, path: &Path) -> Result<Space> {
        let s = rustix::fs::statvfs(path)
            .map_err(std::io::Error::from)
            .doing(|| format!("ask for the free space of {}", path.display()))?;
        Ok(Space {
            total: s.f_blocks.saturating_mul(s.f_frsize),
            free: s.f_bavail.saturating_mul(s.f_frsize),
        })
    }
}
