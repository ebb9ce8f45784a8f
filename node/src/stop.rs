//! The wish to end, and why: from a signal, the admin socket, or a part that died.

use std::sync::Arc;
use tokio::sync::watch;

/// How a node ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// As wished: exit status 0.
    Wished(String),
    /// Something broke: exit status 1.
    Broken(String),
    /// It goes on with a fresh process: it lost its session, and with that all that it held.
    Restart(String),
}

/// Can be cloned; the first wish counts.
#[derive(Clone, Debug)]
pub struct Stop(Arc<watch::Sender<Option<End>>>);

impl Default for Stop {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl Stop {
    /// Please end.
    pub fn request(&self, why: &str) {
        self.end(End::Wished(why.into()));
    }

    /// It cannot go on.
    pub fn broken(&self, why: impl Into<String>) {
        self.end(End::Broken(why.into()));
    }

    /// It has to start afresh.
    pub fn restart(&self, why: &str) {
        self.end(End::Restart(why.into()));
    }

    fn end(&self, end: End) {
        self.0.send_if_modified(|now| {
            let first = now.is_none();
            if first {
                *now = Some(end);
            }
            first
        });
    }

    /// Waits for the end.
    pub async fn wait(&self) -> End {
        let mut watch = self.0.subscribe();
        loop {
            if let Some(end) = watch.borrow_and_update().clone() {
                return end;
            }
            // The sender is in `self`, so this cannot fail.
            if watch.changed().await.is_err() {
                return End::Broken("nobody is left to say when to end".into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_wish_counts() {
        let stop = Stop::default();
        let waiting = tokio::spawn({
            let stop = stop.clone();
            async move { stop.wait().await }
        });
        stop.request("a");
        stop.broken("b");
        assert_eq!(waiting.await.unwrap(), End::Wished("a".into()));
        assert_eq!(stop.wait().await, End::Wished("a".into()));
    }
}
