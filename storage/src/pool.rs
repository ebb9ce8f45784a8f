//! Threads for calls that block on a disk. Handing a job over costs a few microseconds, a fraction of what
//! the runtime's own blocking pool takes, and the queue is bounded.

use hfcache_base::{Error, Kind, Result};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::{Semaphore, oneshot};

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    ready: Condvar,
}

/// See the module. Jobs that were accepted run even if nobody waits for them any more.
pub struct IoPool {
    shared: Arc<Shared>,
    slots: Arc<Semaphore>,
    threads: Vec<JoinHandle<()>>,
}

impl IoPool {
    /// Starts `threads` threads, named `what`, with room for `queue` waiting jobs.
    ///
    /// # Errors
    /// If the system gives no threads.
    pub fn new(what: &str, threads: usize, queue: usize) -> Result<Self> {
        let shared = Arc::new(Shared { queue: Mutex::default(), ready: Condvar::new() });
        let mut pool =
            Self { shared, slots: Arc::new(Semaphore::new(queue.max(1) + threads)), threads: Vec::new() };
        for n in 0..threads.max(1) {
            let shared = pool.shared.clone();
            let thread = std::thread::Builder::new().name(format!("{what}-{n}")).spawn(move || work(&shared));
            pool.threads.push(thread.map_err(|e| Error::io(e).context("start disk thread"))?);
        }
        Ok(pool)
    }

    /// Runs a job and waits for its result.
    ///
    /// # Errors
    /// What the job says; [`Kind::Internal`] if it panicked; [`Kind::Canceled`] after shutdown.
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let slot = self.slots.clone().acquire_owned().await.map_err(|_| Error::from(Kind::Canceled))?;
        let (send, receive) = oneshot::channel();
        {
            let mut queue = self.shared.queue.lock();
            if queue.closed {
                return Err(Kind::Canceled.into());
            }
            queue.jobs.push_back(Box::new(move || {
                let result = catch_unwind(AssertUnwindSafe(job));
                drop(slot);
                if let Ok(result) = result {
                    // Whoever gave up waiting wants no answer.
                    let _ = send.send(result);
                }
            }));
        }
        self.shared.ready.notify_one();
        receive.await.map_err(|_| Error::new(Kind::Internal, "a disk job panicked"))?
    }
}

impl Drop for IoPool {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.ready.notify_all();
        let me = std::thread::current().id();
        for thread in self.threads.drain(..) {
            // The last owner may be a job on one of these threads.
            if thread.thread().id() != me {
                // A thread ends only by returning: panics of jobs are caught.
                let _ = thread.join();
            }
        }
    }
}

fn work(shared: &Shared) {
    loop {
        let job = {
            let mut queue = shared.queue.lock();
            loop {
                if let Some(job) = queue.jobs.pop_front() {
                    break job;
                }
                if queue.closed {
                    return;
                }
                shared.ready.wait(&mut queue);
            }
        };
        job();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn jobs_run_and_a_panic_is_an_error() {
        let pool = IoPool::new("test", 2, 4).unwrap();
        assert_eq!(pool.run(|| Ok(7)).await.unwrap(), 7);
        let bad = pool.run(|| -> Result<()> { panic!("on purpose") }).await;
        assert_eq!(bad.unwrap_err().kind(), Kind::Internal);
        let many = futures::future::join_all((0..100).map(|i| pool.run(move || Ok(i)))).await;
        assert!(many.into_iter().enumerate().all(|(i, r)| r.unwrap() == i));
    }
}
