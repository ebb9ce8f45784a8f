//! Paths as people type them, where this node's mount is, and what they name in the namespace.

use hfcache_base::meta::Attr;
use hfcache_base::seam::View;
use hfcache_base::{Error, InodeId, Kind, Result};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Where this node's mount is, and which directory of the tree is its root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The mount point, without symbolic links above it.
    pub mount: PathBuf,
    /// The names from the tree's root to the mount's.
    pub subdir: Vec<Vec<u8>>,
}

impl Place {
    /// A mount point and the directory of the tree that is seen there.
    pub fn new(mount: &Path, subdir: &Path) -> Self {
        Self { mount: settled(mount), subdir: names(subdir).unwrap_or_default() }
    }

    /// The names from the tree's root to what a path on this machine names.
    ///
    /// # Errors
    /// A path that does not lead into the mount.
    pub fn names(&self, path: &Path) -> Result<Vec<Vec<u8>>> {
        let outside = || {
            let (path, mount) = (path.display(), self.mount.display());
            Error::new(Kind::Invalid, format!("{path} is not in this node's mount, {mount}"))
        };
        let below = path.strip_prefix(&self.mount).map_err(|_| outside())?;
        let mut all = self.subdir.clone();
        all.extend(names(below).ok_or_else(outside)?);
        Ok(all)
    }

    /// What a path on this machine names. Symbolic links are not followed.
    ///
    /// # Errors
    /// [`Kind::Invalid`] outside of the mount; [`Kind::NotFound`]; [`Kind::NotDirectory`].
    pub fn find(&self, view: &dyn View, path: &Path) -> Result<Attr> {
        let lost = |e: Error| match e.kind() {
            Kind::NotFound | Kind::NotDirectory => Error::new(
                e.kind(),
                format!(
                    "{} {}",
                    path.display(),
                    if e.kind() == Kind::NotFound { "is not there" } else { "leads through a file" }
                ),
            ),
            _ => e,
        };
        walk(view, &self.names(path)?).map_err(lost)
    }

    /// A path from the tree's root as one from the mount's, if the mount shows it.
    pub fn below<'a>(&self, path: &'a [u8]) -> Option<&'a Path> {
        let shown: PathBuf = self.subdir.iter().map(|name| OsStr::from_bytes(name)).collect();
        Path::new(OsStr::from_bytes(path)).strip_prefix(shown).ok()
    }

    /// What to call a path from the tree's root: its path on this machine if the mount shows it.
    pub fn describe(&self, path: &[u8]) -> String {
        match self.below(path) {
            // Joining nothing would add a slash.
            Some(below) if below.as_os_str().is_empty() => self.mount.display().to_string(),
            Some(below) => self.mount.join(below).display().to_string(),
            None => format!("(tree)/{}", OsStr::from_bytes(path).display()),
        }
    }
}

/// Follows names from the root.
///
/// # Errors
/// As [`View::lookup`].
pub fn walk(view: &dyn View, names: &[Vec<u8>]) -> Result<Attr> {
    names.iter().try_fold(view.attr(InodeId::ROOT)?, |at, name| view.lookup(at.ino, name))
}

/// The names of a relative path (a leading slash is allowed); `None` with `..` in it.
pub fn names(path: &Path) -> Option<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => names.push(name.as_bytes().to_vec()),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(names)
}

/// A path without symbolic links as far as it exists, and without `..` behind that.
pub fn settled(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    for above in absolute.ancestors() {
        if let (Ok(real), Ok(rest)) = (std::fs::canonicalize(above), absolute.strip_prefix(above)) {
            // Joining nothing would add a slash.
            return if rest.as_os_str().is_empty() { real } else { real.join(rest) };
        }
    }
    absolute
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(subdir: &str) -> Place {
        Place { mount: "/mnt/hf".into(), subdir: names(subdir.as_ref()).unwrap() }
    }

    #[test]
    fn a_path_in_the_mount_becomes_names_from_the_root() {
        let list = |names: &[&str]| -> Vec<Vec<u8>> { names.iter().map(|n| n.as_bytes().to_vec()).collect() };
        assert_eq!(place("").names("/mnt/hf".as_ref()).unwrap(), list(&[]));
        assert_eq!(place("").names("/mnt/hf/hub/x".as_ref()).unwrap(), list(&["hub", "x"]));
        assert_eq!(place("/team/a/").names("/mnt/hf/hub".as_ref()).unwrap(), list(&["team", "a", "hub"]));
        for outside in ["/mnt", "/mnt/hfx", "/mnt/hf/../x", "mnt/hf"] {
            let error = place("").names(outside.as_ref()).unwrap_err();
            assert!(error.to_string().contains("/mnt/hf"), "{outside}: {error}");
        }
        assert_eq!(names("a/../b".as_ref()), None);
    }

    #[test]
    fn names_from_the_root_become_a_path_where_the_mount_shows_them() {
        assert_eq!(place("").describe(b"team/hub"), "/mnt/hf/team/hub");
        assert_eq!(place("").describe(b""), "/mnt/hf");
        assert_eq!(place("team").describe(b"team/hub"), "/mnt/hf/hub");
        assert_eq!(place("team").describe(b"team"), "/mnt/hf");
        assert_eq!(place("other").describe(b"team/hub"), "(tree)/team/hub");
    }

    #[test]
    fn a_path_that_is_not_all_there_is_settled_as_far_as_it_is() {
        let dir = crate::data::tests::TempDir::new();
        let real = std::fs::canonicalize(dir.path()).unwrap();
        std::fs::create_dir(real.join("a")).unwrap();
        std::os::unix::fs::symlink("a", real.join("link")).unwrap();
        assert_eq!(settled(&real.join("link")), real.join("a"));
        assert_eq!(settled(&real.join("link/gone/x")), real.join("a/gone/x"));
    }

    #[test]
    fn paths_are_those_of_what_the_mount_shows() {
        for (shown, path, wanted) in [
            ("", "a/b", Some("a/b")),
            ("", "", Some("")),
            ("a", "a/b", Some("b")),
            ("a", "a", Some("")),
            ("a", "ab/c", None),
            ("a/b", "a", None),
        ] {
            assert_eq!(place(shown).below(path.as_bytes()), wanted.map(Path::new), "{shown} {path}");
        }
    }
}
