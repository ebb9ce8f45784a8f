//! Shared trees. A policy stands at a directory and holds for everything below, up to a nearer one; which
//! one that is, is found by the way up to the root when something is made, moved there or changed, so a
//! directory that moves needs no visit to what is in it.

use super::key;
use super::machine::{Machine, Step};
use super::record::Inode;
use crate::kv::Table;
use hfcache_base::limits::SHARES_MAX;
use hfcache_base::meta::{Reply, Share};
use hfcache_base::{InodeId, Kind, Result};
use std::collections::BTreeMap;

/// All of them: few, so that the look at whether there are any is one record.
pub(crate) type Shares = BTreeMap<InodeId, Share>;

impl Machine<'_> {
    fn shares(&self) -> Result<Shares> {
        Ok(self.get(Table::Single, key::SHARES)?.unwrap_or_default())
    }

    /// The policy for what is in a directory.
    pub fn share_over(&self, dir: InodeId) -> Result<Option<Share>> {
        let shares = self.shares()?;
        if shares.is_empty() {
            return Ok(None);
        }
        let mut at = dir;
        loop {
            if let Some(share) = shares.get(&at) {
                return Ok(Some(*share));
            }
            // Of several hard links, the one that counts may be gone, and its directory too.
            let Some(inode) = self.inode(at)?.filter(|_| at != InodeId::ROOT) else { return Ok(None) };
            at = inode.home;
        }
    }

    /// The policy for an inode.
    pub fn share_of(&self, inode: &Inode) -> Result<Option<Share>> {
        let own = inode.is_directory();
        self.share_over(if own { inode.attr.ino } else { inode.home })
    }

    /// Gives an inode what a policy asks for, in its access control list as well.
    pub fn open(&mut self, inode: &mut Inode, share: Share) -> Result<()> {
        if share.open(&mut inode.attr) {
            self.chmod_acl(inode)?;
        }
        Ok(())
    }

    pub fn set_share(&mut self, dir: InodeId, share: Option<Share>) -> Step {
        let inode = self.directory(dir)?;
        let mut shares = self.shares()?;
        let Some(share) = share else {
            if shares.remove(&dir).is_none() {
                return Err(Kind::NoData.into());
            }
            self.put(Table::Single, key::SHARES, &shares)?;
            return Ok(Reply::Attr(inode.attr));
        };
        if share.group == Some(u32::MAX) {
            return Err(Kind::Invalid.into());
        }
        shares.insert(dir, share);
        if shares.len() > SHARES_MAX {
            return Err(Kind::NoSpace.into());
        }
        self.put(Table::Single, key::SHARES, &shares)?;
        let mut now = inode.clone();
        self.open(&mut now, share)?;
        if now != inode {
            self.edit(dir, |inode| *inode = now)?;
        }
        Ok(Reply::Attr(self.known_inode(dir)?.attr))
    }

    /// A directory takes the place of one that is about to be gone, as far as there may be one more.
    pub fn pass_share(&mut self, from: InodeId, to: InodeId) -> Result<()> {
        let mut shares = self.shares()?;
        if let Some(share) = shares.get(&from).copied()
            && shares.len() < SHARES_MAX
        {
            shares.insert(to, share);
            self.put(Table::Single, key::SHARES, &shares)?;
        }
        Ok(())
    }

    /// A directory is gone for ever.
    pub fn forget_share(&mut self, dir: InodeId) -> Result<()> {
        let mut shares = self.shares()?;
        if shares.remove(&dir).is_some() {
            self.put(Table::Single, key::SHARES, &shares)?;
        }
        Ok(())
    }
}
