//! Who uses how much, counted as part of the command that changes it, and the quotas that end growth.
//!
//! Every inode is counted for its owner, its group, and the directory it is at home in with all above that
//! one. The parts of `apply` know nothing of it: what they write goes through [`Machine::put_inode`] and
//! [`Machine::delete_inode`], which note the difference, and [`Machine::settle`] adds the sums up at the end
//! of the command, once for each directory on the way to the root. Only then is it known whether a quota is
//! passed; so while there is any, the transaction keeps what it overwrites ([`Journal`]) and takes it back.
//!
//! ```text
//! named inode            its home and all directories above        directories: themselves and all above
//! nameless, not yet freed   no directory                           every inode: its owner and its group
//! ```

use super::key;
use super::machine::{Fail, Machine, Step};
use super::record::{Body, Inode, damaged, decode};
use crate::kv::{Read, Table, Write};
use hfcache_base::meta::{Change, FileKind, Limit, Op, Rate, Reply, Subject, Usage};
use hfcache_base::{InodeId, Kind, Result};
use std::collections::BTreeMap;
use std::ops::Bound;

/// A key and what it had.
type Overwritten = (Table, Vec<u8>, Option<Vec<u8>>);

/// The transaction of one command. While it keeps a record, all that was written can be taken back.
pub(crate) struct Journal<'a> {
    txn: &'a mut dyn Write,
    /// What was overwritten, oldest first.
    old: Option<Vec<Overwritten>>,
}

impl<'a> Journal<'a> {
    pub fn new(txn: &'a mut dyn Write) -> Self {
        Self { txn, old: None }
    }

    fn record(&mut self) {
        self.old = Some(Vec::new());
    }

    /// Takes back what was written since [`Journal::record`], and keeps no record any more.
    fn undo(&mut self) -> Result<()> {
        for (table, at, value) in self.old.take().unwrap_or_default().into_iter().rev() {
            match value {
                Some(value) => self.txn.put(table, &at, &value)?,
                None => self.txn.delete(table, &at)?,
            }
        }
        Ok(())
    }

    fn keep(&mut self, table: Table, at: &[u8]) -> Result<()> {
        if let Some(old) = &mut self.old {
            old.push((table, at.to_vec(), self.txn.get(table, at)?));
        }
        Ok(())
    }
}

impl Read for Journal<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.txn.get(table, key)
    }

    fn scan(
        &self,
        table: Table,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<()> {
        self.txn.scan(table, from, to, visit)
    }
}

impl Write for Journal<'_> {
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<()> {
        self.keep(table, key)?;
        self.txn.put(table, key, value)
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> Result<()> {
        self.keep(table, key)?;
        self.txn.delete(table, key)
    }
}

/// A change of usage. Wide enough for any sum of what 64 bits hold.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Delta {
    bytes: i128,
    inodes: i128,
}

impl Delta {
    fn of(used: Usage) -> Self {
        Self { bytes: i128::from(used.bytes), inodes: i128::from(used.inodes) }
    }

    fn add(&mut self, other: Self, sign: i128) {
        self.bytes += sign * other.bytes;
        self.inodes += sign * other.inodes;
    }

    fn onto(self, used: Usage) -> Result<Usage> {
        let sum = |have: u64, by: i128| u64::try_from(i128::from(have) + by);
        match (sum(used.bytes, self.bytes), sum(used.inodes, self.inodes)) {
            (Ok(bytes), Ok(inodes)) => Ok(Usage { bytes, inodes }),
            _ => Err(damaged("usage that does not add up")),
        }
    }

    /// Whether a limit forbids this change, which leads to `used`.
    fn is_over(self, limit: Limit, used: Usage) -> bool {
        let over = |by: i128, limit: Option<u64>, used: u64| by > 0 && limit.is_some_and(|most| used > most);
        over(self.bytes, limit.bytes, used.bytes) || over(self.inodes, limit.inodes, used.inodes)
    }
}

/// What a command changed so far.
#[derive(Default)]
pub(crate) struct Ledger {
    /// By the directory to begin at.
    trees: BTreeMap<InodeId, Delta>,
    accounts: BTreeMap<Subject, Delta>,
}

impl Ledger {
    fn count(&mut self, inode: &Inode, sign: i128) {
        let one = Delta { bytes: i128::from(inode.attr.allocated), inodes: 1 };
        for owner in [Subject::User(inode.attr.uid), Subject::Group(inode.attr.gid)] {
            self.accounts.entry(owner).or_default().add(one, sign);
        }
        if inode.attr.nlink > 0 {
            let at = if inode.is_directory() { inode.attr.ino } else { inode.home };
            self.trees.entry(at).or_default().add(one, sign);
        }
    }

    fn moved(&mut self, from: InodeId, to: InodeId, tree: Usage) {
        self.trees.entry(from).or_default().add(Delta::of(tree), -1);
        self.trees.entry(to).or_default().add(Delta::of(tree), 1);
    }
}

/// Whether a quota can refuse it. What takes away is never refused, even where it moves usage: an inode
/// with several names can go to another home when it loses one.
fn can_grow(op: &Op) -> bool {
    !matches!(
        op,
        Op::Unlink { .. }
            | Op::Rmdir { .. }
            | Op::AllocateChunks { .. }
            | Op::Hold { .. }
            | Op::Reap
            | Op::OpenSession { .. }
            | Op::CloseSessions(_)
            | Op::Lock { .. }
            | Op::Unlock { .. }
            | Op::ReturnDelegation { .. }
            | Op::AddNode { .. }
            | Op::UpdateNode { .. }
            | Op::RemoveNode(_)
            | Op::CreateToken(_)
            | Op::RevokeToken(_)
            | Op::RaiseParity { .. }
            | Op::Touch(_)
            | Op::SetQuota { .. }
            | Op::SetRate { .. }
            | Op::SetTrash { .. }
            | Op::ExpireTrash
            | Op::EmptyTrash(_)
    )
}

impl Machine<'_> {
    /// Runs a command and counts what it changed.
    pub fn run_counted(&mut self, op: &Op) -> Step {
        let limited = can_grow(op) && self.any(Table::Limit)?;
        let counters = limited.then(|| self.counters.clone());
        if limited {
            self.txn.record();
        }
        let reply = self.run(op)?;
        match (self.settle_usage(limited), counters) {
            (Ok(()), _) => Ok(reply),
            (Err(Fail::Kind(kind)), Some(counters)) => {
                self.txn.undo()?;
                self.counters = counters;
                self.changes.clear();
                Err(kind.into())
            }
            (Err(fail), _) => Err(fail),
        }
    }

    /// Writes an inode, and notes what that changes for those it is counted for.
    pub fn put_inode(&mut self, inode: &Inode) -> Result<()> {
        let ino = inode.attr.ino;
        if let Some(old) = self.inode(ino)? {
            self.ledger.count(&old, -1);
            if let (Body::Directory { tree }, true) = (&old.body, inode.attr.nlink > 0)
                && old.home != inode.home
            {
                self.ledger.moved(old.home, inode.home, *tree);
            }
            if inode.is_directory() && inode.attr.nlink == 0 {
                self.delete(Table::Limit, &key::subject(Subject::Tree(ino)))?;
            }
        }
        self.ledger.count(inode, 1);
        self.put(Table::Inode, &key::inode(ino), inode)
    }

    /// Removes an inode.
    pub fn delete_inode(&mut self, ino: InodeId) -> Result<()> {
        if let Some(old) = self.inode(ino)? {
            self.ledger.count(&old, -1);
        }
        self.delete(Table::Inode, &key::inode(ino))
    }

    /// Adds up what the command changed. With `limited`, fails where a quota is passed by it.
    fn settle_usage(&mut self, limited: bool) -> Step<()> {
        let ledger = std::mem::take(&mut self.ledger);
        let mut trees: BTreeMap<InodeId, (Inode, Delta)> = BTreeMap::new();
        for (start, delta) in ledger.trees {
            if delta == Delta::default() {
                continue;
            }
            let mut at = start;
            loop {
                let (up, sum) = match trees.entry(at) {
                    std::collections::btree_map::Entry::Occupied(there) => there.into_mut(),
                    std::collections::btree_map::Entry::Vacant(free) => {
                        let inode = super::record::get(&*self.txn, Table::Inode, &key::inode(at))?;
                        let inode = inode.ok_or_else(|| damaged("a directory that is not there"))?;
                        free.insert((inode, Delta::default()))
                    }
                };
                sum.add(delta, 1);
                if at == InodeId::ROOT {
                    break;
                }
                at = up.home;
            }
        }
        for (ino, (mut inode, delta)) in trees {
            if delta == Delta::default() {
                continue;
            }
            let Body::Directory { tree } = &mut inode.body else {
                return Err(damaged("a parent that is no directory").into());
            };
            *tree = delta.onto(*tree)?;
            let used = *tree;
            self.check_limit(Subject::Tree(ino), limited, delta, used)?;
            self.put(Table::Inode, &key::inode(ino), &inode)?;
        }
        for (owner, delta) in ledger.accounts {
            if delta == Delta::default() {
                continue;
            }
            let at = key::subject(owner);
            let used = delta.onto(self.get(Table::Account, &at)?.unwrap_or_default())?;
            self.check_limit(owner, limited, delta, used)?;
            if used == Usage::default() {
                self.delete(Table::Account, &at)?;
            } else {
                self.put(Table::Account, &at, &used)?;
            }
        }
        Ok(())
    }

    fn check_limit(&self, of: Subject, limited: bool, delta: Delta, used: Usage) -> Step<()> {
        if limited
            && let Some(limit) = self.get::<Limit>(Table::Limit, &key::subject(of))?
            && delta.is_over(limit, used)
        {
            return Err(Kind::Quota.into());
        }
        Ok(())
    }

    fn any(&self, table: Table) -> Result<bool> {
        let mut any = false;
        self.txn.scan(table, Bound::Unbounded, Bound::Unbounded, &mut |_, _| {
            any = true;
            false
        })?;
        Ok(any)
    }

    pub fn set_quota(&mut self, subject: Subject, limit: Limit) -> Step {
        let at = key::subject(subject);
        if limit.is_none() {
            // Also of who or what is no more.
            self.delete(Table::Limit, &at)?;
            return Ok(Reply::Done);
        }
        match subject {
            Subject::Tree(ino) => {
                let inode = self.inode(ino)?.filter(|i| i.attr.nlink > 0).ok_or(Kind::NotFound)?;
                if inode.attr.kind != FileKind::Directory {
                    return Err(Kind::NotDirectory.into());
                }
            }
            // What root owns keeps the machine going.
            Subject::User(0) | Subject::Group(0) => return Err(Kind::NotPermitted.into()),
            Subject::User(u32::MAX) | Subject::Group(u32::MAX) => return Err(Kind::Invalid.into()),
            Subject::User(_) | Subject::Group(_) => {}
        }
        self.put(Table::Limit, &at, &limit)?;
        Ok(Reply::Done)
    }

    pub fn set_rate(&mut self, subject: Subject, rate: Rate) -> Step {
        match subject {
            Subject::Tree(_) | Subject::User(u32::MAX) | Subject::Group(u32::MAX) => {
                return Err(Kind::Invalid.into());
            }
            Subject::User(0) | Subject::Group(0) => return Err(Kind::NotPermitted.into()),
            Subject::User(_) | Subject::Group(_) => {}
        }
        if [rate.read, rate.write, rate.ops].contains(&Some(0)) {
            // It would wait for ever.
            return Err(Kind::Invalid.into());
        }
        let at = key::subject(subject);
        if rate.is_none() {
            self.delete(Table::Rate, &at)?;
        } else {
            self.put(Table::Rate, &at, &rate)?;
        }
        self.changed(Change::Rates);
        Ok(Reply::Done)
    }

    // ---- where an inode with several names is at home ------------------------------------------------

    /// A file gets another name in `dir`. The records begin with its second name.
    pub fn add_name(&mut self, inode: &mut Inode, dir: InodeId) -> Result<()> {
        match inode.attr.nlink {
            0 => inode.home = dir,
            1 => {
                self.count_names(inode.attr.ino, inode.home, 1)?;
                self.count_names(inode.attr.ino, dir, 1)?;
            }
            _ => {
                self.count_names(inode.attr.ino, dir, 1)?;
            }
        }
        Ok(())
    }

    /// A file that has several names loses one in `dir`; a home without a name moves to the directory with
    /// the lowest number that has one.
    pub fn remove_name(&mut self, inode: &mut Inode, dir: InodeId) -> Result<()> {
        if inode.is_directory() || inode.attr.nlink < 2 {
            return Ok(());
        }
        let ino = inode.attr.ino;
        let left = self.count_names(ino, dir, -1)?;
        let rows = self.keys(Table::Names, &key::inode(ino))?;
        if left == 0 && inode.home == dir {
            let first = rows.first().and_then(|at| key::names_dir(at));
            inode.home = first.ok_or_else(|| damaged("names that do not add up"))?;
        }
        if inode.attr.nlink == 2 {
            for at in rows {
                self.delete(Table::Names, &at)?;
            }
        }
        Ok(())
    }

    /// A name goes from one directory to another. The home goes along, unless it is elsewhere or has
    /// another name left.
    pub fn move_home(&mut self, inode: &mut Inode, from: InodeId, to: InodeId) -> Result<()> {
        if from == to {
            return Ok(());
        }
        if inode.is_directory() || inode.attr.nlink < 2 {
            inode.home = to;
            return Ok(());
        }
        let left = self.count_names(inode.attr.ino, from, -1)?;
        self.count_names(inode.attr.ino, to, 1)?;
        if left == 0 && inode.home == from {
            inode.home = to;
        }
        Ok(())
    }

    /// Changes how many names an inode has in a directory; answers how many those are now.
    fn count_names(&mut self, ino: InodeId, dir: InodeId, by: i32) -> Result<u32> {
        let at = key::names(ino, dir);
        let old = self.txn.get(Table::Names, &at)?.map(|v| decode::<u32>(Table::Names, &v)).transpose()?;
        let now = old
            .unwrap_or_default()
            .checked_add_signed(by)
            .ok_or_else(|| damaged("names that do not add up"))?;
        if now == 0 {
            self.delete(Table::Names, &at)?;
        } else {
            self.put(Table::Names, &at, &now)?;
        }
        Ok(now)
    }
}

impl Inode {
    pub(crate) fn is_directory(&self) -> bool {
        self.attr.kind == FileKind::Directory
    }
}
