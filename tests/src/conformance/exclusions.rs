//! The one list of cases that pass on ext4 and may fail on the mount. Each has its reason; one that passes after
//! all, or that does not exist, fails the test, so that the list never gets longer than the truth.

/// Who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// The crate `pjdfstest`.
    Pjdfstest,
    /// Its ancestor in C and shell.
    PjdfstestC,
    /// The file-system class of stress-ng.
    StressNg,
}

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Exclusion {
    /// Whose case it is.
    pub suite: Suite,
    /// Its name there.
    pub case: &'static str,
    /// Why it can't pass.
    pub why: &'static str,
}

/// All of them.
pub const ALL: &[Exclusion] = &[Exclusion {
    suite: Suite::Pjdfstest,
    case: "link::link_count_max",
    why: "the suite asks pathconf for LINK_MAX, which the C library answers from a table of file-system types; \
          for every FUSE file system that is 127, which the suite takes for unknown and skips the case",
}];

/// Those of one suite.
pub fn of(suite: Suite) -> Vec<&'static Exclusion> {
    ALL.iter().filter(|e| e.suite == suite).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_reason_and_is_there_once() {
        for (i, one) in ALL.iter().enumerate() {
            assert!(one.why.len() > 30, "{}: say why", one.case);
            assert!(
                ALL[..i].iter().all(|o| (o.suite, o.case) != (one.suite, one.case)),
                "{} twice",
                one.case
            );
        }
    }
}
