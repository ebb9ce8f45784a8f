//! A state in memory that is driven command by command, and checked at each.

#![expect(dead_code, reason = "each test uses a part")]
#![expect(clippy::unwrap_used, reason = "a failure ends the test")]

use hfcache_base::meta::*;
use hfcache_base::{ChunkId, InodeId, Kind, NodeId, Scheme, SessionId};
use hfcache_raft::kv::{Memory, Table};
use hfcache_raft::state::{Outcome, StateView, apply};
use std::collections::BTreeMap;

pub const ROOT: InodeId = InodeId::ROOT;
pub const SECOND: i64 = 1_000_000_000;

/// A store, its sessions, and every command so far.
pub struct World {
    pub store: Memory,
    pub now: i64,
    pub log: Vec<Command>,
    sequences: BTreeMap<SessionId, u64>,
    next_chunk: BTreeMap<SessionId, (u64, u64)>,
}

impl World {
    /// One node `n1` and its session.
    pub fn new() -> (Self, SessionId) {
        let mut world = Self::empty();
        let session = world.join(1);
        (world, session)
    }

    /// Nothing at all.
    pub fn empty() -> Self {
        Self {
            store: Memory::new(),
            now: 1_000 * SECOND,
            log: Vec::new(),
            sequences: BTreeMap::new(),
            next_chunk: BTreeMap::new(),
        }
    }

    /// Admits node `n` (the next one) and opens its session.
    pub fn join(&mut self, n: u8) -> SessionId {
        let token = (n > 1).then(|| TokenUse { id: "t".into(), secret_hash: [7; 32] });
        if n == 2 {
            let (id, secret_hash) = ("t".to_owned(), [7; 32]);
            let token = Token { id, secret_hash, expires: Timestamp(i64::MAX), revoked: false };
            self.run(SessionId(0), Op::CreateToken(token)).unwrap();
        }
        let node = self.run(SessionId(0), add_node(n, token)).unwrap();
        let Reply::Node(node) = node else { panic!("{node:?}") };
        self.open(node.id, u64::from(n))
    }

    pub fn open(&mut self, node: NodeId, nonce: u64) -> SessionId {
        match self.run(SessionId(0), Op::OpenSession { node, nonce }).unwrap() {
            Reply::Session(id) => id,
            other => panic!("{other:?}"),
        }
    }

    pub fn view(&self) -> StateView<&Memory> {
        StateView::new(&self.store)
    }

    pub fn command(&mut self, session: SessionId, op: Op) -> Command {
        self.now += 1;
        let sequence = self.sequences.entry(session).or_insert(0);
        *sequence += 1;
        let now = Timestamp(self.now);
        Command { session, sequence: *sequence, acknowledged: sequence.saturating_sub(8), now, op }
    }

    /// Applies, and checks what holds for every command: a copy of it changes nothing and gets the same
    /// reply; a failed one changes nothing but replies.
    pub fn outcome(&mut self, session: SessionId, op: Op) -> Outcome {
        let command = self.command(session, op);
        let before = self.store.clone();
        let outcome = apply(&mut self.store, &command).unwrap();
        if outcome.reply.is_err() && before.iter().next().is_some() {
            let rest = |m: &Memory| -> Vec<_> {
                let state = |t: Table| t != Table::Reply && t != Table::Session;
                m.iter().filter(|p| state(p.0)).map(|(t, k, v)| (t, k.to_vec(), v.to_vec())).collect()
            };
            assert_eq!(rest(&before), rest(&self.store), "{command:?} failed and changed something");
        }
        if session != SessionId(0) {
            let after = self.store.clone();
            let again = apply(&mut self.store, &command).unwrap();
            if !matches!(command.op, Op::CloseSessions(_)) {
                assert_eq!(again.reply, outcome.reply, "{command:?} repeated");
            }
            assert!(again.applied.changes.is_empty());
            assert_eq!(after, self.store, "{command:?} repeated changed something");
        }
        self.log.push(command);
        outcome
    }

    pub fn run(&mut self, session: SessionId, op: Op) -> Result<Reply, Kind> {
        self.outcome(session, op).reply
    }

    pub fn changes(&mut self, session: SessionId, op: Op) -> Vec<Change> {
        let outcome = self.outcome(session, op);
        outcome.reply.unwrap();
        outcome.applied.changes
    }

    /// Makes something and gives its inode.
    pub fn make(&mut self, s: SessionId, parent: InodeId, name: &str, node: NewNode) -> InodeId {
        match self.run(s, create(parent, name, node)).unwrap() {
            Reply::Entry { attr, created: true } => attr.ino,
            other => panic!("{other:?}"),
        }
    }

    pub fn file(&mut self, s: SessionId, parent: InodeId, name: &str) -> InodeId {
        self.make(s, parent, name, NewNode::File)
    }

    pub fn dir(&mut self, s: SessionId, parent: InodeId, name: &str) -> InodeId {
        self.make(s, parent, name, NewNode::Directory)
    }

    /// A fresh chunk of this session.
    pub fn chunk(&mut self, s: SessionId, len: u32) -> ChunkRef {
        let have = self.next_chunk.get(&s).copied().unwrap_or((0, 0));
        let (at, end) = if have.0 == have.1 {
            match self.run(s, Op::AllocateChunks { count: 5 }).unwrap() {
                Reply::Chunks { first, count } => (first.0, first.0 + u64::from(count)),
                other => panic!("{other:?}"),
            }
        } else {
            have
        };
        self.next_chunk.insert(s, (at + 1, end));
        ChunkRef { id: ChunkId(at), len, scheme: Scheme { data: 1, parity: 1 } }
    }
}

pub fn add_node(n: u8, token: Option<TokenUse>) -> Op {
    Op::AddNode {
        name: format!("node{n}"),
        addr: ([127, 0, 0, 1], 7000 + u16::from(n)).into(),
        domain: String::new(),
        storage: true,
        key: [n; 32],
        token,
    }
}

pub fn create(parent: InodeId, name: &str, node: NewNode) -> Op {
    let name = name.as_bytes().to_vec();
    Op::Create { parent, name, node, mode: 0o644, umask: 0, uid: 10, gid: 20, exclusive: true }
}

pub fn unlink(parent: InodeId, name: &str) -> Op {
    Op::Unlink { parent, name: name.as_bytes().to_vec(), hold: false }
}

pub fn rmdir(parent: InodeId, name: &str) -> Op {
    Op::Rmdir { parent, name: name.as_bytes().to_vec() }
}

pub fn link(ino: InodeId, parent: InodeId, name: &str) -> Op {
    Op::Link { ino, parent, name: name.as_bytes().to_vec() }
}

pub fn rename(parent: InodeId, name: &str, new_parent: InodeId, new_name: &str, mode: RenameMode) -> Op {
    let (name, new_name) = (name.as_bytes().to_vec(), new_name.as_bytes().to_vec());
    Op::Rename { parent, name, new_parent, new_name, mode, hold: false, uid: 10 }
}

pub fn truncate(ino: InodeId, size: u64) -> Op {
    Op::SetAttr { ino, set: SetAttr { size: Some(size), ..SetAttr::default() } }
}

pub fn chown(ino: InodeId, uid: u32, gid: u32) -> Op {
    Op::SetAttr { ino, set: SetAttr { uid: Some(uid), gid: Some(gid), ..SetAttr::default() } }
}

pub fn limit(bytes: impl Into<Option<u64>>, inodes: impl Into<Option<u64>>) -> Limit {
    Limit { bytes: bytes.into(), inodes: inodes.into() }
}

pub fn quota(subject: Subject, limit: Limit) -> Op {
    Op::SetQuota { subject, limit }
}

pub fn piece(chunk: ChunkRef, offset: u64, chunk_offset: u32, len: u32) -> Piece {
    Piece::Chunk(Extent { offset, len, chunk_offset, chunk })
}

pub fn commit(ino: InodeId, pieces: Vec<Piece>, size: u64) -> Op {
    Op::Commit { ino, pieces, size, mtime: None, base: None }
}

/// A small deterministic generator (splitmix64).
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        hfcache_base::placement::mix(self.0)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.roll() % n
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}
