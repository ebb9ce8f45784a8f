//! Locks in the state: the records of [`super::lock`] kept in their table.

use super::key::{self, Item};
use super::lock::{Event, LockRecord, normal};
use super::machine::{Machine, Step};
use crate::kv::Table;
use hfcache_base::meta::{Change, Lock, LockHolder, Reply};
use hfcache_base::{InodeId, Kind, Result, SessionId};

impl Machine<'_> {
    pub fn lock(&mut self, ino: InodeId, lock: Lock, wait: bool) -> Step {
        if !self.has(Table::Inode, &key::inode(ino))? {
            return Err(Kind::Stale.into());
        }
        let ask = LockHolder { session: self.session, lock: normal(lock)? };
        let reply = self.with_locks(ino, |record, events| record.request(ask, wait, events))??;
        Ok(Reply::Lock(reply))
    }

    pub fn unlock(&mut self, ino: InodeId, lock: Lock) -> Step {
        let range = LockHolder { session: self.session, lock: normal(lock)? };
        self.with_locks(ino, |record, events| record.release(range, events))?;
        Ok(Reply::Done)
    }

    pub fn return_delegation(&mut self, ino: InodeId, held: &[Lock]) -> Step {
        let session = self.session;
        self.with_locks(ino, |record, events| record.give_back(session, held, events))??;
        Ok(Reply::Done)
    }

    /// A session ended.
    pub fn drop_locks(&mut self, session: SessionId, ino: InodeId) -> Result<()> {
        self.with_locks(ino, |record, events| record.close(session, events))
    }

    /// Forgets a delegation of an inode that is about to be freed; `false` if someone holds or awaits a
    /// lock there, who then must have it open.
    pub fn forget_locks(&mut self, ino: InodeId) -> Result<bool> {
        self.with_locks(ino, |record, _| {
            let idle = record.queue.is_empty();
            if idle {
                *record = LockRecord::default();
            }
            idle
        })
    }

    fn with_locks<T>(
        &mut self,
        ino: InodeId,
        change: impl FnOnce(&mut LockRecord, &mut Vec<Event>) -> T,
    ) -> Result<T> {
        let at = key::inode(ino);
        let before: LockRecord = self.get(Table::Lock, &at)?.unwrap_or_default();
        let mut after = before.clone();
        let mut events = Vec::new();
        let out = change(&mut after, &mut events);
        if after == before {
            return Ok(out);
        }
        let (old, new) = (before.sessions(), after.sessions());
        for session in old.symmetric_difference(&new) {
            self.set_item(*session, ino, Item::Lock, new.contains(session))?;
        }
        if after.is_empty() {
            self.delete(Table::Lock, &at)?;
        } else {
            self.put(Table::Lock, &at, &after)?;
        }
        for event in events {
            self.changed(match event {
                Event::Queued => Change::LockQueued(ino),
                Event::Recall(session) => Change::Recall { session, ino },
                Event::Granted(LockHolder { session, lock }, delegated) => {
                    Change::LockGranted { session, ino, lock, delegated }
                }
                Event::Returned => Change::LocksReturned(ino),
            });
        }
        Ok(out)
    }
}
