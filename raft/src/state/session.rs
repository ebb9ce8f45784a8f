//! Sessions, what they hold, and what is freed when nobody holds it.

use super::key::{self, Item};
use super::machine::{Machine, Step};
use super::record::{ChunkBatch, Orphan, SessionRecord, decode, map};
use crate::kv::{Read as _, Table};
use hfcache_base::limits::ORPHAN_GRACE;
use hfcache_base::meta::{Change, Reply};
use hfcache_base::{InodeId, Kind, NodeId, Result, SessionId};
use std::ops::Bound::Unbounded;

/// Remembered nonces of a node: a proposal that is repeated later than this many sessions is not expected.
const NONCES: usize = 16;
/// Replies are pruned when this many may be: one scan for many commands.
const PRUNE_EVERY: u64 = 64;
/// Most inodes that one `Reap` frees. The leader proposes the next one soon.
const REAP_MAX: usize = 1_024;

/// What is known of a command before it is applied.
pub(crate) enum Admission {
    /// New.
    Apply,
    /// Applied before, with this reply.
    Replay(Result<Reply, Kind>),
    /// Not to be applied.
    Refuse(Kind),
}

impl Machine<'_> {
    /// Whether this (session, sequence) may be applied.
    pub fn admit(&self, sequence: u64) -> Result<Admission> {
        let Some(session) = self.session_record(self.session)? else {
            return Ok(Admission::Refuse(Kind::Fenced));
        };
        if let Some(reply) = self.get(Table::Reply, &key::reply(self.session, sequence))? {
            return Ok(Admission::Replay(reply));
        }
        // Its reply arrived and was forgotten: nobody waits for this copy.
        let forgotten = sequence < session.floor;
        Ok(if forgotten { Admission::Refuse(Kind::Stale) } else { Admission::Apply })
    }

    /// Remembers a reply, and forgets those that have arrived.
    pub fn remember(&mut self, sequence: u64, acknowledged: u64, reply: &Result<Reply, Kind>) -> Result<()> {
        // The command may have ended its own session.
        let Some(mut session) = self.session_record(self.session)? else { return Ok(()) };
        self.put(Table::Reply, &key::reply(self.session, sequence), reply)?;
        let floor = acknowledged.min(sequence);
        if floor >= session.floor.saturating_add(PRUNE_EVERY) {
            let mut old = Vec::new();
            self.txn.scan(
                Table::Reply,
                std::ops::Bound::Included(&key::reply(self.session, 0)),
                std::ops::Bound::Excluded(&key::reply(self.session, floor)),
                &mut |at, _| {
                    old.push(at.to_vec());
                    true
                },
            )?;
            for at in old {
                self.delete(Table::Reply, &at)?;
            }
            session.floor = floor;
            self.put(Table::Session, &key::session(self.session), &session)?;
        }
        Ok(())
    }

    fn session_record(&self, id: SessionId) -> Result<Option<SessionRecord>> {
        self.get(Table::Session, &key::session(id))
    }

    /// Live sessions of a node.
    pub fn sessions_of(&self, node: NodeId) -> Result<Vec<(SessionId, SessionRecord)>> {
        let mut found = Vec::new();
        self.txn.scan(Table::Session, Unbounded, Unbounded, &mut |at, value| {
            found.push((key::first_number(at), decode::<SessionRecord>(Table::Session, value)));
            true
        })?;
        let mut sessions = Vec::new();
        for (id, record) in found {
            let (id, record) = (id.ok_or_else(|| super::record::damaged("key of a session"))?, record?);
            if record.node == node {
                sessions.push((SessionId(id), record));
            }
        }
        Ok(sessions)
    }

    pub fn open_session(&mut self, node: NodeId, nonce: u64) -> Step {
        if !map(&*self.txn)?.nodes.contains_key(&node) {
            return Err(Kind::NotFound.into());
        }
        let earlier = self.sessions_of(node)?;
        if let Some((id, _)) = earlier.iter().find(|(_, s)| s.nonce == nonce) {
            return Ok(Reply::Session(*id));
        }
        let mut nonces: Vec<u64> = self.get(Table::Single, &key::nonces(node))?.unwrap_or_default();
        if nonces.contains(&nonce) {
            // A late copy of a proposal whose session has ended must not end the node's newer one.
            return Err(Kind::Fenced.into());
        }
        for (id, _) in earlier {
            self.close_session(id)?;
        }
        if nonces.len() >= NONCES {
            nonces.remove(0);
        }
        nonces.push(nonce);
        self.put(Table::Single, &key::nonces(node), &nonces)?;
        let id = SessionId(self.counters.next_session);
        self.counters.next_session += 1;
        let record = SessionRecord { node, nonce, opened: self.now(), floor: 0 };
        self.put(Table::Session, &key::session(id), &record)?;
        Ok(Reply::Session(id))
    }

    pub fn close_sessions(&mut self, ids: &[SessionId]) -> Step {
        let mut closed = 0;
        for id in ids {
            closed += u64::from(self.close_session(*id)?);
        }
        Ok(Reply::Count(closed))
    }

    /// Ends a session and drops all it had.
    pub fn close_session(&mut self, id: SessionId) -> Result<bool> {
        let at = key::session(id);
        if !self.has(Table::Session, &at)? {
            return Ok(false);
        }
        self.delete(Table::Session, &at)?;
        for at in self.keys(Table::Reply, &at)? {
            self.delete(Table::Reply, &at)?;
        }
        self.changed(Change::SessionClosed(id));
        for at in self.keys(Table::SessionItem, &at)? {
            let item =
                key::item_parts(&at).ok_or_else(|| super::record::damaged("key of a session's item"))?;
            match item {
                (ino, Item::Lock) => self.drop_locks(id, ino)?,
                (ino, Item::Hold) => self.release(id, ino)?,
                (_, Item::Linkable) => {}
            }
            self.delete(Table::SessionItem, &at)?;
        }
        let mut batches = Vec::new();
        self.txn.scan(Table::ChunkBatch, Unbounded, Unbounded, &mut |at, value| {
            batches.push((at.to_vec(), decode::<ChunkBatch>(Table::ChunkBatch, value)));
            true
        })?;
        for (at, batch) in batches {
            if batch?.session == id {
                self.delete(Table::ChunkBatch, &at)?;
            }
        }
        Ok(true)
    }

    pub fn hold(&mut self, ino: InodeId, hold: bool) -> Step {
        if !hold {
            self.release(self.session, ino)?;
            return Ok(Reply::Done);
        }
        if !self.has(Table::Inode, &key::inode(ino))? {
            return Err(Kind::Stale.into());
        }
        match self.orphan(ino)? {
            Some(orphan) if orphan.holders.contains(&self.session) => {}
            Some(mut orphan) => {
                orphan.holders.push(self.session);
                self.put(Table::Orphan, &key::inode(ino), &orphan)?;
                self.set_item(self.session, ino, Item::Hold, true)?;
            }
            None if self.is_in_trash(ino)? => self.hold_trashed(ino)?,
            // An inode that has a name needs no holder.
            None => {}
        }
        Ok(Reply::Done)
    }

    fn release(&mut self, session: SessionId, ino: InodeId) -> Result<()> {
        if let Some(mut orphan) = self.orphan(ino)? {
            let before = orphan.holders.len();
            orphan.holders.retain(|h| *h != session);
            if orphan.holders.len() != before {
                self.put(Table::Orphan, &key::inode(ino), &orphan)?;
                self.set_item(session, ino, Item::Hold, false)?;
                self.set_item(session, ino, Item::Linkable, false)?;
            }
        }
        Ok(())
    }

    /// Frees what has had no name for long enough, is held by nobody, and has no locks held or awaited.
    pub fn reap(&mut self) -> Step {
        let grace = i64::try_from(ORPHAN_GRACE.as_nanos()).unwrap_or(i64::MAX);
        let now = self.now().0;
        let mut due = Vec::new();
        self.txn.scan(Table::Orphan, Unbounded, Unbounded, &mut |at, value| {
            match decode::<Orphan>(Table::Orphan, value) {
                Ok(orphan) if !orphan.holders.is_empty() || now.saturating_sub(orphan.since.0) < grace => {}
                orphan => due.push((key::first_number(at), orphan)),
            }
            due.len() < REAP_MAX
        })?;
        let mut reaped = 0;
        for (ino, orphan) in due {
            orphan?;
            let ino = InodeId(ino.ok_or_else(|| super::record::damaged("key of an orphan"))?);
            if self.is_in_trash(ino)? {
                // It may have a name again one day: who has its locks keeps them.
                self.delete(Table::Orphan, &key::inode(ino))?;
                continue;
            }
            if !self.forget_locks(ino)? {
                continue;
            }
            self.delete(Table::Orphan, &key::inode(ino))?;
            let inode = self.known_inode(ino)?;
            self.free(inode)?;
            reaped += 1;
        }
        Ok(Reply::Count(reaped))
    }
}
