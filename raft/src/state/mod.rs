//! The state machine: pure functions of a transaction and a command.
//!
//! ```text
//! namespace  names: create, link, unlink, rmdir, rename           nameless  … and none
//! file       attributes, content, chunks          xattr    extended attributes, access lists
//! share      what a shared tree makes of modes      trash    what was deleted and is kept
//! session    sessions, holds, reaping        cluster  members, tokens, the map
//! lock       the lock rules, without a store locking  … and with one
//! usage      who uses how much, quotas       view     what readers see
//! record, key                                tables (docs/formats/state.md)
//! ```
//!
//! [`apply`] knows no clock, no randomness and no node: the same commands on two stores leave the same
//! bytes in both. A command that fails changes nothing but its remembered reply.

mod cluster;
mod file;
mod key;
pub mod lock;
mod locking;
mod machine;
mod nameless;
mod namespace;
mod record;
mod session;
mod share;
mod trash;
mod usage;
mod view;
mod xattr;

pub use lock::LockRecord;
pub use view::StateView;

use crate::kv::{Table, Write};
use cluster::{AddNode, UpdateNode};
use file::Commit;
use hfcache_base::error::Context as _;
use hfcache_base::meta::{Applied, Attr, Command, FileKind, Op, Reply, Subject, Timestamp, Usage};
use hfcache_base::{InodeId, Kind, Result, SessionId, wire};
use machine::{Fail, Machine, Step};
use namespace::{Create, Rename};
use record::{Body, Counters, Inode, Xattrs};
use session::Admission;
use usage::{Journal, Ledger};
use xattr::SetXattr;

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// For its proposer.
    pub reply: Result<Reply, Kind>,
    /// For everyone. Without changes if the command failed or was applied before.
    pub applied: Applied,
}

/// Applies one command.
///
/// # Errors
/// Only if the store fails or is damaged; then the transaction must not be committed.
pub fn apply(txn: &mut dyn Write, command: &Command) -> Result<Outcome> {
    let counters: Option<Counters> = record::get(&*txn, Table::Single, key::COUNTERS)?;
    let mut counters = match counters {
        Some(counters) => counters,
        None => found(txn)?,
    };
    counters.time = counters.time.max(command.now);
    let mut journal = Journal::new(txn);
    let mut machine = Machine {
        txn: &mut journal,
        counters,
        session: command.session,
        changes: Vec::new(),
        ledger: Ledger::default(),
    };
    let remembered = command.session != SessionId(0);
    let admission = if remembered {
        machine.admit(command.sequence)?
    } else if without_session(&command.op) {
        Admission::Apply
    } else {
        Admission::Refuse(Kind::Fenced)
    };
    let reply = match admission {
        Admission::Apply => machine.run_counted(&command.op),
        Admission::Replay(reply) => return Ok(outcome(command, reply, Vec::new())),
        Admission::Refuse(kind) => return Ok(outcome(command, Err(kind), Vec::new())),
    };
    let reply = match reply {
        Ok(reply) => {
            let counters = machine.counters.clone();
            machine.put(Table::Single, key::COUNTERS, &counters)?;
            Ok(reply)
        }
        Err(Fail::Kind(kind)) => {
            debug_assert!(machine.changes.is_empty(), "{:?} failed half way", command.op);
            machine.changes.clear();
            Err(kind)
        }
        Err(Fail::Store(error)) => return Err(error.context(format!("apply {}", name(&command.op)))),
    };
    if remembered {
        machine.remember(command.sequence, command.acknowledged, &reply).doing(|| "remember reply".into())?;
    }
    let changes = std::mem::take(&mut machine.changes);
    Ok(outcome(command, reply, changes))
}

fn outcome(
    command: &Command,
    reply: Result<Reply, Kind>,
    changes: Vec<hfcache_base::meta::Change>,
) -> Outcome {
    Outcome { reply, applied: Applied { session: command.session, changes } }
}

/// What a tree uses in which there is nothing yet.
const ROOT_ALONE: Usage = Usage { bytes: 0, inodes: 1 };

/// The root of a new tree. Like `/tmp` it is anyone's to make things in, because the mount may belong to a
/// user who is not root; an admin narrows it with `chmod`.
fn root() -> Inode {
    let start = Timestamp(0);
    let attr = Attr {
        ino: InodeId::ROOT,
        kind: FileKind::Directory,
        mode: 0o1777,
        nlink: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        allocated: 0,
        atime: start,
        mtime: start,
        ctime: start,
        data_version: 1,
    };
    let body = Body::Directory { tree: ROOT_ALONE };
    Inode { attr, body, home: InodeId::ROOT, xattrs: Xattrs::default() }
}

/// Begins a state in an empty store.
fn found(txn: &mut dyn Write) -> Result<Counters> {
    let counters = Counters::default();
    txn.put(Table::Inode, &key::inode(InodeId::ROOT), &wire::encode(&root()))?;
    for owner in [Subject::User(0), Subject::Group(0)] {
        txn.put(Table::Account, &key::subject(owner), &wire::encode(&ROOT_ALONE))?;
    }
    txn.put(Table::Single, key::COUNTERS, &wire::encode(&counters))?;
    Ok(counters)
}

/// Operations of the cluster itself, which have no session and can be repeated without harm.
fn without_session(op: &Op) -> bool {
    matches!(
        op,
        Op::OpenSession { .. }
            | Op::CloseSessions(_)
            | Op::AddNode { .. }
            | Op::UpdateNode { .. }
            | Op::RemoveNode(_)
            | Op::CreateToken(_)
            | Op::RevokeToken(_)
            | Op::RaiseParity { .. }
            | Op::Reap
            | Op::ExpireTrash
            | Op::EmptyTrash(_)
    )
}

/// For error messages, which must not carry names or tokens.
fn name(op: &Op) -> &'static str {
    match op {
        Op::Create { .. } => "create",
        Op::Link { .. } => "link",
        Op::Unlink { .. } => "unlink",
        Op::Rmdir { .. } => "rmdir",
        Op::Rename { .. } => "rename",
        Op::SetAttr { .. } => "setattr",
        Op::Commit { .. } => "commit",
        Op::AllocateChunks { .. } => "allocate chunks",
        Op::Hold { .. } => "hold",
        Op::Reap => "reap",
        Op::OpenSession { .. } => "open session",
        Op::CloseSessions(_) => "close sessions",
        Op::Lock { .. } => "lock",
        Op::Unlock { .. } => "unlock",
        Op::ReturnDelegation { .. } => "return delegation",
        Op::AddNode { .. } => "add node",
        Op::UpdateNode { .. } => "update node",
        Op::RemoveNode(_) => "remove node",
        Op::CreateToken(_) => "create token",
        Op::RevokeToken(_) => "revoke token",
        Op::RaiseParity { .. } => "raise parity",
        Op::SetQuota { .. } => "set quota",
        Op::SetRate { .. } => "set rate",
        Op::SetXattr { .. } => "set xattr",
        Op::RemoveXattr { .. } => "remove xattr",
        Op::Append { .. } => "append",
        Op::Clone { .. } => "clone",
        Op::CreateNameless { .. } => "create nameless",
        Op::Touch(_) => "touch",
        Op::SetShare { .. } => "set share",
        Op::SetTrash { .. } => "set trash",
        Op::ExpireTrash => "expire trash",
        Op::EmptyTrash(_) => "empty trash",
        Op::Restore { .. } => "restore",
    }
}

impl Machine<'_> {
    fn run(&mut self, op: &Op) -> Step {
        match op {
            Op::Create { parent, name, node, mode, umask, uid, gid, exclusive } => self.create(&Create {
                parent: *parent,
                name,
                node,
                mode: *mode,
                umask: *umask,
                uid: *uid,
                gid: *gid,
                exclusive: *exclusive,
            }),
            Op::Link { ino, parent, name } => self.link(*ino, *parent, name),
            Op::Unlink { parent, name, hold } => self.unlink(*parent, name, *hold),
            Op::Rmdir { parent, name } => self.rmdir(*parent, name),
            Op::Rename { parent, name, new_parent, new_name, mode, hold, uid } => self.rename(&Rename {
                from: (*parent, name),
                to: (*new_parent, new_name),
                mode: *mode,
                hold: *hold,
                uid: *uid,
            }),
            Op::SetAttr { ino, set } => self.set_attr(*ino, set),
            Op::Commit { ino, pieces, size, mtime, base } => {
                self.commit(*ino, &Commit { pieces, size: *size, mtime: *mtime, base: *base })
            }
            Op::AllocateChunks { count } => self.allocate_chunks(*count),
            Op::Hold { ino, hold } => self.hold(*ino, *hold),
            Op::Reap => self.reap(),
            Op::OpenSession { node, nonce } => self.open_session(*node, *nonce),
            Op::CloseSessions(ids) => self.close_sessions(ids),
            Op::Lock { ino, lock, wait } => self.lock(*ino, *lock, *wait),
            Op::Unlock { ino, lock } => self.unlock(*ino, *lock),
            Op::ReturnDelegation { ino, held } => self.return_delegation(*ino, held),
            Op::AddNode { name, addr, domain, storage, key, token } => self.add_node(&AddNode {
                name,
                addr: *addr,
                domain,
                storage: *storage,
                key,
                token: token.as_ref(),
            }),
            Op::UpdateNode { id, addr, capacity, state } => {
                self.update_node(*id, &UpdateNode { addr: *addr, capacity: *capacity, state: *state })
            }
            Op::RemoveNode(id) => self.remove_node(*id),
            Op::CreateToken(token) => self.create_token(token),
            Op::RevokeToken(id) => self.revoke_token(id),
            Op::RaiseParity { chunks, parity } => self.raise_parity(chunks, *parity),
            Op::SetQuota { subject, limit } => self.set_quota(*subject, *limit),
            Op::SetRate { subject, rate } => self.set_rate(*subject, *rate),
            Op::SetXattr { ino, name, value, mode, kill_sgid } => {
                self.set_xattr(*ino, &SetXattr { name, value, mode: *mode, kill_sgid: *kill_sgid })
            }
            Op::RemoveXattr { ino, name } => self.remove_xattr(*ino, name),
            Op::Append { ino, token, pieces, len, mtime } => {
                self.append(*ino, *token, &Commit { pieces, size: *len, mtime: *mtime, base: None })
            }
            Op::Clone { from, from_offset, to, to_offset, len } => {
                self.clone_range((*from, *from_offset), (*to, *to_offset), *len)
            }
            Op::CreateNameless { parent, mode, umask, uid, gid, nameless } => {
                self.create_nameless(*parent, (*mode, *umask), (*uid, *gid), *nameless)
            }
            Op::Touch(reads) => self.touch(reads),
            Op::SetShare { dir, share } => self.set_share(*dir, *share),
            Op::SetTrash { retention } => self.set_trash(*retention),
            Op::ExpireTrash => self.expire_trash(),
            Op::EmptyTrash(ids) => self.empty_trash(ids),
            Op::Restore { id, parent, name } => self.restore(*id, *parent, name),
        }
    }
}
