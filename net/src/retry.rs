//! Retries of calls that may be repeated, within a budget: when much fails, retries must not double the
//! load that made it fail.

use hfcache_base::seam::{Answer, Call, Net};
use hfcache_base::{NodeId, Result};
use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// A bucket of retries: each success puts a tenth of one in, each retry takes one out.
#[derive(Debug)]
pub struct RetryBudget {
    /// Tenths of a retry.
    tenths: Mutex<u32>,
    max: u32,
}

impl RetryBudget {
    /// A full bucket of `retries`.
    pub fn new(retries: u32) -> Self {
        let max = retries.saturating_mul(10);
        Self { tenths: Mutex::new(max), max }
    }

    /// Counts a success.
    pub fn succeeded(&self) {
        let mut tenths = self.tenths.lock();
        *tenths = tenths.saturating_add(1).min(self.max);
    }

    /// Takes a retry if there is one.
    pub fn take(&self) -> bool {
        let mut tenths = self.tenths.lock();
        let enough = *tenths >= 10;
        if enough {
            *tenths -= 10;
        }
        enough
    }

    /// Makes a call that may be served twice, again and again while it fails for a transient reason and
    /// both budget and deadline last.
    ///
    /// # Errors
    /// The last one.
    pub async fn call(&self, net: &dyn Net, to: NodeId, call: Call, deadline: Duration) -> Result<Answer> {
        let until = Instant::now() + deadline;
        let mut pause = Duration::from_millis(10);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match net.call(to, call.clone(), left).await {
                Ok(answer) => {
                    self.succeeded();
                    return Ok(answer);
                }
                Err(e) if !e.kind().is_transient() || Instant::now() + pause >= until || !self.take() => {
                    return Err(e);
                }
                Err(_) => tokio::time::sleep(pause).await,
            }
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_earned() {
        let budget = RetryBudget::new(2);
        assert!(budget.take() && budget.take() && !budget.take());
        for _ in 0..9 {
            budget.succeeded();
        }
        assert!(!budget.take());
        budget.succeeded();
        assert!(budget.take() && !budget.take());
        for _ in 0..1_000 {
            budget.succeeded();
        }
        assert!(budget.take() && budget.take() && !budget.take());
    }
}
