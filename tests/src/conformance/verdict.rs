//! Compares what a suite said on ext4 with what it said on the mount.

use super::exclusions::{self, Exclusion, Suite};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What became of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It held.
    Passed,
    /// It did not, with what the suite said.
    Failed(String),
    /// The suite did not try, with its reason.
    Skipped(String),
}

/// All cases of a run, by name.
pub type Outcomes = BTreeMap<String, Outcome>;

/// Counts, and everything that is wrong.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Cases that pass on ext4.
    pub native: usize,
    /// Those of them that pass on the mount.
    pub mount: usize,
    /// Those that may fail.
    pub excluded: usize,
    /// Everything that makes the test fail.
    pub wrong: Vec<String>,
}

fn judge_by(exclusions: &[&Exclusion], native: &Outcomes, mount: &Outcomes) -> Verdict {
    let mut verdict = Verdict::default();
    for (case, on_ext4) in native {
        let excluded = exclusions.iter().find(|e| e.case == case);
        if *on_ext4 != Outcome::Passed {
            continue;
        }
        verdict.native += 1;
        let here = mount.get(case).cloned().unwrap_or(Outcome::Skipped("it was not run".into()));
        match (here, excluded) {
            (Outcome::Passed, None) => verdict.mount += 1,
            (Outcome::Passed, Some(_)) => {
                verdict.mount += 1;
                verdict.wrong.push(format!("{case}: passes now; take it out of the exclusions"));
            }
            (_, Some(_)) => verdict.excluded += 1,
            (Outcome::Failed(why), None) => verdict.wrong.push(format!("{case}: {why}")),
            (Outcome::Skipped(why), None) => {
                verdict.wrong.push(format!("{case}: skipped on the mount: {why}"))
            }
        }
    }
    for exclusion in exclusions {
        if native.get(exclusion.case) != Some(&Outcome::Passed) {
            let case = exclusion.case;
            verdict.wrong.push(format!("{case}: is excluded, and is no case that passes on ext4"));
        }
    }
    verdict
}

/// Judges a suite.
///
/// # Panics
/// When a case that passes on ext4 does not pass on the mount and is not excluded; when one that is excluded
/// does not fail; when fewer than `least` pass on ext4, which says that the suite itself did not run.
pub fn judge(suite: Suite, least: usize, native: &Outcomes, mount: &Outcomes) {
    let verdict = judge_by(&exclusions::of(suite), native, mount);
    let mut text = format!(
        "{suite:?}: {} cases pass on ext4, {} of them on the mount, {} are excluded",
        verdict.native, verdict.mount, verdict.excluded
    );
    for (case, outcome) in native.iter().filter(|(_, o)| **o != Outcome::Passed) {
        let _ = write!(text, "\n  not judged: {case} on ext4: {outcome:?}");
    }
    println!("{text}");
    assert!(verdict.native >= least, "only {} cases pass on ext4; {least} or more should", verdict.native);
    assert!(
        verdict.wrong.is_empty(),
        "{} cases of {suite:?} are not as on ext4:\n{}",
        verdict.wrong.len(),
        verdict.wrong.join("\n")
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(list: &[(&str, Outcome)]) -> Outcomes {
        list.iter().map(|(name, outcome)| ((*name).to_owned(), outcome.clone())).collect()
    }

    #[test]
    fn every_way_to_be_wrong_is_told() {
        let failed = || Outcome::Failed("why".into());
        let native = outcomes(&[
            ("good", Outcome::Passed),
            ("bad", Outcome::Passed),
            ("silent", Outcome::Passed),
            ("known", Outcome::Passed),
            ("repaired", Outcome::Passed),
            ("ext4 can't", failed()),
        ]);
        let mount = outcomes(&[
            ("good", Outcome::Passed),
            ("bad", failed()),
            ("known", failed()),
            ("repaired", Outcome::Passed),
            ("ext4 can't", failed()),
        ]);
        let list = ["known", "repaired", "no such case"].map(|case| Exclusion {
            suite: Suite::Pjdfstest,
            case,
            why: "a test",
        });
        let verdict = judge_by(&list.iter().collect::<Vec<_>>(), &native, &mount);
        assert_eq!((verdict.native, verdict.mount, verdict.excluded), (5, 2, 1));
        assert_eq!(
            verdict.wrong,
            [
                "bad: why",
                "repaired: passes now; take it out of the exclusions",
                "silent: skipped on the mount: it was not run",
                "no such case: is excluded, and is no case that passes on ext4",
            ]
        );
    }
}
