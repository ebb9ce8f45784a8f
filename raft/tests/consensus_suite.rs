//! openraft's own test suite for stores, on the real log and state files.

#![expect(clippy::unwrap_used, reason = "a helper of a test may fail the test")]

use hfcache_raft::consensus::log_store::LogStore;
use hfcache_raft::consensus::machine::Machine;
use hfcache_raft::consensus::store::Store;
use hfcache_raft::consensus::types::Types;
use openraft::testing::log::{StoreBuilder, Suite};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

struct Files;

struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

static NEXT: AtomicU64 = AtomicU64::new(0);

impl StoreBuilder<Types, LogStore, Machine, Dir> for Files {
    async fn build(&self) -> Result<(Dir, LogStore, Machine), openraft::StorageError<Types>> {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("hfcache-suite-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let log = LogStore::open(&dir.join("log.redb")).unwrap();
        let store = Arc::new(Store::open(&dir).unwrap());
        Ok((Dir(dir), log, Machine::new(store)))
    }
}

#[test]
fn both_stores_keep_openrafts_contract() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(Suite::test_all(Files)).unwrap();
}
