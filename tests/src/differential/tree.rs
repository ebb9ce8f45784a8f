//! What is there: every name with its attributes and bytes.

use crate::pattern::hex;
use crate::xattr;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

/// Descriptions by path.
pub(super) type Tree = BTreeMap<String, String>;

/// A new directory for everybody.
pub(super) fn fresh(dir: &Path) {
    fs::create_dir(dir).unwrap_or_else(|why| panic!("make {}: {why}", dir.display()));
    fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).expect("open it for everybody");
}

/// Removes all of it.
pub(super) fn remove(dir: &Path) {
    fs::remove_dir_all(dir).unwrap_or_else(|why| panic!("remove {}: {why}", dir.display()));
}

/// Bytes, short.
pub(super) fn digest(bytes: &[u8]) -> String {
    match bytes.len() {
        0..=8 => format!("{:?}", String::from_utf8_lossy(bytes)),
        len => format!("{len} bytes {}", &hex(&Sha256::digest(bytes))[..16]),
    }
}

/// The kind as a word.
fn kind(found: &fs::Metadata) -> &'static str {
    let kind = found.file_type();
    match () {
        () if kind.is_dir() => "directory",
        () if kind.is_file() => "file",
        () if kind.is_symlink() => "link",
        () if kind.is_fifo() => "pipe",
        () if kind.is_socket() => "socket",
        () => "device",
    }
}

/// An inode but for its times.
pub(super) fn described(found: &fs::Metadata) -> String {
    let size = if found.is_dir() { 0 } else { found.size() };
    let (mode, links, uid, gid) = (found.mode() & 0o7777, found.nlink(), found.uid(), found.gid());
    format!("{} {mode:04o} {links} {uid}:{gid} {size}", kind(found))
}

/// Everything below a directory.
pub(super) fn of(dir: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut inodes = BTreeMap::new();
    walk(dir, "", &mut tree, &mut inodes);
    tree
}

fn walk(dir: &Path, name: &str, tree: &mut Tree, inodes: &mut BTreeMap<u64, String>) {
    let mut entries: Vec<fs::DirEntry> =
        fs::read_dir(dir).expect("list").map(|entry| entry.expect("list")).collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = format!("{name}/{}", entry.file_name().to_string_lossy());
        let found = fs::symlink_metadata(entry.path()).expect("look at an entry");
        let mut text = described(&found);
        if found.is_file() {
            text += &format!(" {}", digest(&fs::read(entry.path()).expect("read a file")));
        } else if found.is_symlink() {
            text += &format!(" -> {:?}", fs::read_link(entry.path()).expect("read a link"));
        }
        for name in xattr::list(&entry.path()).expect("list attributes") {
            let value = xattr::get(&entry.path(), &name).expect("read an attribute");
            text += &format!(" {name}={}", digest(&value));
        }
        if !found.is_dir() {
            // The names of one inode.
            let first = inodes.entry(found.ino()).or_insert_with(|| path.clone());
            text += &format!(" = {first}");
        }
        tree.insert(path.clone(), text);
        if found.is_dir() {
            walk(&entry.path(), &path, tree, inodes);
        }
    }
}

/// Where a tree is not as the other.
pub(super) fn difference(seen: &Tree, native: &Tree) -> Vec<String> {
    let names = seen.keys().chain(native.keys());
    let mut lines: Vec<String> = names
        .filter(|name| seen.get(*name) != native.get(*name))
        .map(|name| {
            let show = |tree: &Tree| tree.get(name).cloned().unwrap_or_else(|| "nothing".into());
            format!("{name} is {}, and on ext4 {}", show(seen), show(native))
        })
        .collect();
    lines.sort();
    lines.dedup();
    lines
}
