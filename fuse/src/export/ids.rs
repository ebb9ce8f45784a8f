//! User and group numbers of this machine and those of the cluster.

use super::rights::Who;
use std::collections::BTreeMap;

/// Whose rights are taken away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Squash {
    /// Nobody's.
    #[default]
    None,
    /// Root's of this machine: it acts as the anonymous user.
    Root,
    /// Everyone's: all act as the anonymous user, whoever they are here.
    All,
}

/// Numbers of this machine and the numbers of the cluster they stand for; each stands for one other. Numbers
/// that are not named stand for themselves, unless they are taken: a number that is given to somebody must
/// not let its namesake in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap {
    to_cluster: BTreeMap<u32, u32>,
    to_local: BTreeMap<u32, u32>,
}

impl IdMap {
    /// A map of pairs (this machine's, the cluster's).
    ///
    /// # Errors
    /// The number that would stand for two.
    pub fn new(pairs: impl IntoIterator<Item = (u32, u32)>) -> Result<Self, u32> {
        let mut map = Self::default();
        for (local, cluster) in pairs {
            if map.to_cluster.insert(local, cluster).is_some_and(|before| before != cluster) {
                return Err(local);
            }
            if map.to_local.insert(cluster, local).is_some_and(|before| before != local) {
                return Err(cluster);
            }
        }
        Ok(map)
    }

    /// Whether every number stands for itself.
    pub fn is_plain(&self) -> bool {
        self.to_cluster.iter().all(|(local, cluster)| local == cluster)
    }

    /// The cluster's number; `anon` for one that is taken.
    pub fn stored(&self, local: u32, anon: u32) -> u32 {
        self.to_cluster(local).unwrap_or(anon)
    }

    /// The cluster's number; `None` for one that is taken.
    pub fn to_cluster(&self, local: u32) -> Option<u32> {
        match self.to_cluster.get(&local) {
            Some(cluster) => Some(*cluster),
            None if self.to_local.contains_key(&local) => None,
            None => Some(local),
        }
    }

    /// This machine's number; `anon` for one that is taken.
    pub fn shown(&self, cluster: u32, anon: u32) -> u32 {
        self.to_local(cluster).unwrap_or(anon)
    }

    /// This machine's number; `None` for one that is taken.
    pub fn to_local(&self, cluster: u32) -> Option<u32> {
        match self.to_local.get(&cluster) {
            Some(local) => Some(*local),
            None if self.to_cluster.contains_key(&cluster) => None,
            None => Some(cluster),
        }
    }
}

/// Who is who.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    /// Who has no rights of his own.
    pub squash: Squash,
    /// The anonymous user and group, as the cluster's numbers.
    pub anon: Who,
    /// Users.
    pub users: IdMap,
    /// Groups.
    pub groups: IdMap,
}

impl Default for Ids {
    fn default() -> Self {
        let nobody = Who { uid: 65_534, gid: 65_534 };
        Self { squash: Squash::None, anon: nobody, users: IdMap::default(), groups: IdMap::default() }
    }
}

impl Ids {
    /// Whether everybody is who he is.
    pub fn is_plain(&self) -> bool {
        self.squash == Squash::None && self.users.is_plain() && self.groups.is_plain()
    }

    /// Whether this user of this machine has no rights of his own.
    pub fn is_squashed(&self, uid: u32) -> bool {
        match self.squash {
            Squash::None => false,
            Squash::Root => uid == 0,
            Squash::All => true,
        }
    }

    /// Who a caller is to the cluster.
    pub fn identity(&self, uid: u32, gid: u32) -> Who {
        if self.is_squashed(uid) {
            return self.anon;
        }
        let gid = self.groups.stored(gid, self.anon.gid);
        // What root made elsewhere is its group's, too: with root, that group loses its rights.
        let gid = if self.squash == Squash::Root && gid == 0 { self.anon.gid } else { gid };
        Who { uid: self.users.stored(uid, self.anon.uid), gid }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_go_both_ways_and_nobody_slips_in_as_another() {
        let map = IdMap::new([(1001, 5001), (1002, 5002), (7, 7)]).unwrap();
        for (local, cluster) in [(1001, 5001), (1002, 5002), (7, 7), (0, 0), (42, 42)] {
            assert_eq!((map.stored(local, 99), map.shown(cluster, 99)), (cluster, local));
        }
        // 5001 of this machine is not the cluster's 5001, nor the cluster's 1001 the one here.
        assert_eq!((map.stored(5001, 99), map.shown(1001, 99)), (99, 99));
        assert!(!map.is_plain() && IdMap::new([(7, 7)]).unwrap().is_plain());
        assert_eq!(IdMap::new([(1, 5), (2, 5)]), Err(5));
        assert_eq!(IdMap::new([(1, 5), (1, 6)]), Err(1));
        // Two that change places.
        let swap = IdMap::new([(1, 2), (2, 1)]).unwrap();
        assert_eq!((swap.stored(1, 9), swap.stored(2, 9), swap.shown(1, 9), swap.shown(2, 9)), (2, 1, 2, 1));
    }

    #[test]
    fn who_is_squashed() {
        let who = |uid, gid| Who { uid, gid };
        let mut ids = Ids { anon: who(99, 98), users: IdMap::new([(1001, 5001)]).unwrap(), ..Ids::default() };
        assert_eq!((ids.identity(0, 0), ids.identity(1001, 10)), (who(0, 0), who(5001, 10)));
        ids.squash = Squash::Root;
        assert_eq!((ids.identity(0, 0), ids.identity(0, 10)), (who(99, 98), who(99, 98)));
        assert_eq!((ids.identity(1001, 10), ids.identity(7, 0)), (who(5001, 10), who(7, 98)));
        ids.squash = Squash::All;
        assert_eq!(ids.identity(1001, 10), who(99, 98));
        assert!(!ids.is_plain() && Ids::default().is_plain());
    }
}
