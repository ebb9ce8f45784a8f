//! A user at work: a thread with his rights, his umask and his open files, on the mount and on ext4.

use super::Role;
use super::op::{Op, SLOTS};
use crate::{sys, within, xattr};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// No operation takes longer, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// What an operation answered: something to compare, or the number of an error.
pub(super) type Answer = Result<String, i32>;

/// See the module. Ends when dropped.
pub(super) struct Actor {
    ask: Option<Sender<Op>>,
    told: Option<Receiver<(Answer, Answer)>>,
    thread: Option<JoinHandle<()>>,
}

impl Actor {
    /// Lets a user work in two directories.
    pub(super) fn start(role: Role, mount: &Path, ext4: &Path) -> Self {
        let (ask, asked) = channel::<Op>();
        let (tell, told) = channel();
        let mut places = [Place::new(mount), Place::new(ext4)];
        let thread = std::thread::spawn(move || {
            sys::become_user(role.uid, role.gid, role.more, role.umask).expect("become a user");
            while let Ok(op) = asked.recv() {
                let [mount, ext4] = &mut places;
                let answers = (mount.does(&op), ext4.does(&op));
                if tell.send(answers).is_err() {
                    return;
                }
            }
        });
        Self { ask: Some(ask), told: Some(told), thread: Some(thread) }
    }

    /// What both said.
    pub(super) fn does(&self, op: &Op) -> (Answer, Answer) {
        let (ask, told) = (self.ask.as_ref().expect("at work"), self.told.as_ref().expect("at work"));
        ask.send(op.clone()).expect("the user is at work");
        match told.recv_timeout(PATIENCE) {
            Ok(answers) => answers,
            Err(why) => panic!("{op:?}: no answer within {PATIENCE:?}: {why}"),
        }
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.ask = None;
        self.told = None;
        if let Some(thread) = self.thread.take() {
            within(PATIENCE, "the end of a user", move || thread.join().is_ok());
        }
    }
}

/// One of the two, with what is open there.
struct Place {
    root: PathBuf,
    held: Vec<Option<File>>,
}

impl Place {
    fn new(root: &Path) -> Self {
        Self { root: root.into(), held: (0..SLOTS).map(|_| None).collect() }
    }

    fn does(&mut self, op: &Op) -> Answer {
        self.tries(op).map_err(|why| why.raw_os_error().unwrap_or(-1))
    }

    /// As a string, so that what ends with a slash does.
    fn at(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("{}/{path}", self.root.display()))
    }

    fn held(&self, slot: u64) -> io::Result<&File> {
        let none = || io::Error::from_raw_os_error(libc::EBADF);
        self.held[slot as usize].as_ref().ok_or_else(none)
    }

    fn tries(&mut self, op: &Op) -> io::Result<String> {
        match op {
            Op::Create { path, mode, exclusive } => {
                let mut options = opening();
                options.write(true).create(true).mode(*mode & 0o777);
                if *exclusive {
                    options.create_new(true);
                }
                told(&options.open(self.at(path))?.metadata()?)
            }
            Op::Write { path, at, len, fill } => {
                let file = opening().write(true).open(self.at(path))?;
                file.write_all_at(&vec![*fill; *len], *at)?;
                told(&file.metadata()?)
            }
            Op::Append { path, len, fill } => {
                use io::Write as _;
                let mut file = opening().append(true).open(self.at(path))?;
                file.write_all(&vec![*fill; *len])?;
                done()
            }
            Op::Truncate { path, len } => {
                let file = opening().write(true).open(self.at(path))?;
                file.set_len(*len)?;
                told(&file.metadata()?)
            }
            Op::Punch { path, at, len } => {
                let file = opening().write(true).open(self.at(path))?;
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                sys::fallocate(&file, mode, *at as i64, *len as i64)?;
                told(&file.metadata()?)
            }
            Op::Copy { from, at, to, to_at, len } => {
                let from = opening().read(true).open(self.at(from))?;
                let to = opening().write(true).open(self.at(to))?;
                let copied = sys::copy_range(&from, *at as i64, &to, *to_at as i64, *len)?;
                Ok(copied.to_string())
            }
            Op::Read { path } => {
                use io::Read as _;
                let mut bytes = Vec::new();
                opening().read(true).open(self.at(path))?.read_to_end(&mut bytes)?;
                Ok(super::tree::digest(&bytes))
            }
            Op::Stat { path } => told(&fs::symlink_metadata(self.at(path))?),
            Op::List { path } => {
                let mut names = Vec::new();
                for entry in fs::read_dir(self.at(path))? {
                    let entry = entry?;
                    names.push(format!("{:?} {:?}", entry.file_name(), entry.file_type()?));
                }
                names.sort();
                Ok(names.join(" "))
            }
            Op::Mkdir { path, mode } => {
                fs::DirBuilder::new().mode(*mode).create(self.at(path))?;
                told(&fs::symlink_metadata(self.at(path))?)
            }
            Op::Rmdir { path } => fs::remove_dir(self.at(path)).and_then(|()| done()),
            Op::Unlink { path } => fs::remove_file(self.at(path)).and_then(|()| done()),
            Op::Rename { from, to, flags } => {
                sys::rename_with(&self.at(from), &self.at(to), *flags).and_then(|()| done())
            }
            Op::Link { from, to } => {
                fs::hard_link(self.at(from), self.at(to))?;
                told(&fs::symlink_metadata(self.at(to))?)
            }
            Op::Symlink { target, path } => {
                symlink(target, self.at(path))?;
                told(&fs::symlink_metadata(self.at(path))?)
            }
            Op::Readlink { path } => Ok(format!("{:?}", fs::read_link(self.at(path))?)),
            Op::Special { path, mode } => {
                sys::make_node(&self.at(path), *mode)?;
                told(&fs::symlink_metadata(self.at(path))?)
            }
            Op::Chmod { path, mode } => {
                fs::set_permissions(self.at(path), fs::Permissions::from_mode(*mode))?;
                told(&fs::symlink_metadata(self.at(path))?)
            }
            Op::Chown { path, uid, gid } => {
                std::os::unix::fs::lchown(self.at(path), *uid, *gid)?;
                told(&fs::symlink_metadata(self.at(path))?)
            }
            Op::Times { path, access, modification } => {
                sys::set_times(&self.at(path), Some((*access, 999_999_999)), Some((*modification, 1)))?;
                let found = fs::symlink_metadata(self.at(path))?;
                Ok(format!("{} {} {}", found.atime(), found.mtime(), found.mtime_nsec()))
            }
            Op::SetXattr { path, name, value, flags } => {
                xattr::set_with(&self.at(path), name, value.as_bytes(), *flags).and_then(|()| done())
            }
            Op::GetXattr { path, name } => Ok(super::tree::digest(&xattr::get(&self.at(path), name)?)),
            Op::ListXattr { path } => Ok(xattr::list(&self.at(path))?.join(" ")),
            Op::RemoveXattr { path, name } => xattr::remove(&self.at(path), name).and_then(|()| done()),
            Op::SetAcl { path, default, text } => {
                let name = if *default { xattr::DEFAULT } else { xattr::ACCESS };
                xattr::set(&self.at(path), name, &xattr::acl(text))?;
                told(&fs::symlink_metadata(self.at(path))?)
            }
            Op::Open { slot, path, write } => {
                self.held[*slot as usize] = None;
                let file = opening().read(true).write(*write).open(self.at(path))?;
                let found = file.metadata()?;
                // A pipe that is open here is open for the users of this node only.
                self.held[*slot as usize] = Some(file).filter(|_| found.is_file());
                told(&found)
            }
            Op::Nameless { slot, path } => {
                self.held[*slot as usize] = None;
                let mut options = opening();
                options.read(true).write(true).mode(0o666).custom_flags(libc::O_TMPFILE);
                let file = options.open(self.at(path))?;
                let answer = told(&file.metadata()?);
                self.held[*slot as usize] = Some(file);
                answer
            }
            Op::HeldWrite { slot, at, len, fill } => {
                let file = self.held(*slot)?;
                file.write_all_at(&vec![*fill; *len], *at)?;
                // Others see it only then.
                file.sync_all()?;
                told(&file.metadata()?)
            }
            Op::HeldTruncate { slot, len } => {
                let file = self.held(*slot)?;
                file.set_len(*len)?;
                told(&file.metadata()?)
            }
            Op::HeldStat { slot } => told(&self.held(*slot)?.metadata()?),
            Op::HeldLink { slot, path } => {
                sys::link_open(self.held(*slot)?, &self.at(path))?;
                told(&self.held(*slot)?.metadata()?)
            }
            Op::Close { slot } => {
                self.held[*slot as usize] = None;
                done()
            }
        }
    }
}

/// No pipe makes anybody wait.
fn opening() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(libc::O_NONBLOCK);
    options
}

fn done() -> io::Result<String> {
    Ok(String::new())
}

/// What must be the same of an inode. The size of a directory is each file system's own affair.
fn told(found: &fs::Metadata) -> io::Result<String> {
    Ok(super::tree::described(found))
}
