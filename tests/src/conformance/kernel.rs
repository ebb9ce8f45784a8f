//! What the kernel says while a suite runs: a warning there is a failure even if every case passes.

use std::process::Command;

/// Words of a line that means harm.
const BAD: [&str; 6] = ["BUG:", "WARNING:", "blocked for more than", "Oops", "general protection", "fuse:"];

fn lines() -> Option<Vec<String>> {
    let output = Command::new("dmesg").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).lines().map(Into::into).collect())
}

/// The kernel's messages up to now.
#[derive(Debug)]
pub struct Messages(Option<Vec<String>>);

impl Messages {
    /// Remembers what was said before.
    pub fn now() -> Self {
        let before = lines();
        if before.is_none() {
            println!("SKIPPED: the kernel's messages can't be read here");
        }
        Self(before)
    }

    /// What was said since, as far as it means harm.
    pub fn harm(&self) -> Vec<String> {
        let Some(before) = &self.0 else { return Vec::new() };
        harm(before, &lines().unwrap_or_default())
    }
}

fn harm(before: &[String], after: &[String]) -> Vec<String> {
    // The ring forgets its oldest lines, so that counting would not do.
    let old: std::collections::BTreeSet<&String> = before.iter().collect();
    after.iter().filter(|l| !old.contains(l) && BAD.iter().any(|b| l.contains(b))).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_lines_that_mean_harm_count() {
        let say = |lines: &[&str]| lines.iter().map(|&l| l.to_owned()).collect::<Vec<_>>();
        let before = say(&["[1.0] WARNING: old", "[1.1] usb"]);
        let after =
            say(&["[1.1] usb", "[2.0] EXT4-fs mounted", "[2.1] INFO: task x blocked for more than 120 s"]);
        assert_eq!(harm(&before, &after), say(&["[2.1] INFO: task x blocked for more than 120 s"]));
    }
}
