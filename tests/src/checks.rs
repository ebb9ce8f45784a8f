//! Several checks on one cluster: starting one costs more than most checks. All are run, also after one has
//! failed, and the test fails at its end with the list of those that did.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// A check of something, and its name.
pub type Check<W> = (&'static str, fn(&W));

/// See the module.
#[derive(Debug, Default)]
pub struct Checks {
    done: usize,
    failed: Vec<String>,
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
        .unwrap_or_else(|| "panicked".into())
}

impl Checks {
    /// Runs one check. `HFCACHE_CHECK=PART` runs only those with that in their name.
    pub fn run(&mut self, name: &str, check: impl FnOnce()) {
        if std::env::var("HFCACHE_CHECK").is_ok_and(|part| !name.contains(&part)) {
            return;
        }
        let start = Instant::now();
        self.done += 1;
        match catch_unwind(AssertUnwindSafe(check)) {
            Ok(()) => println!("  ok      {name} ({:.2} s)", start.elapsed().as_secs_f64()),
            Err(panic) => {
                println!("  FAILED  {name}: {}", message(&*panic));
                self.failed.push(format!("{name}: {}", message(&*panic)));
            }
        }
    }

    /// Runs each of a list on one thing.
    pub fn run_each<W>(&mut self, world: &W, checks: &[Check<W>]) {
        for (name, check) in checks {
            self.run(name, || check(world));
        }
    }

    /// Ends the test.
    ///
    /// # Panics
    /// When a check has failed, with all that did.
    pub fn finish(self) {
        println!("  {} checks, {} failed", self.done, self.failed.len());
        assert!(
            self.failed.is_empty(),
            "{} of {} checks failed:\n{}",
            self.failed.len(),
            self.done,
            self.failed.join("\n")
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "1 of 2 checks failed:\nsecond: because")]
    fn all_run_and_the_failed_are_named() {
        let mut checks = Checks::default();
        checks.run("second", || panic!("because"));
        let mut ran = false;
        checks.run("third", || ran = true);
        assert!(ran);
        checks.finish();
    }
}
