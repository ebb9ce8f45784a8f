//! Members, tokens, and the cluster map.

use super::key;
use super::machine::{Machine, Step};
use super::record::map;
use crate::kv::Table;
use hfcache_base::limits::NAME_MAX;
use hfcache_base::meta::{Change, Reply, Token, TokenUse};
use hfcache_base::{ClusterMap, Kind, Node, NodeId, NodeState, Result};
use std::net::SocketAddr;

/// What an `AddNode` asks for.
pub(crate) struct AddNode<'a> {
    pub name: &'a str,
    pub addr: SocketAddr,
    pub domain: &'a str,
    pub storage: bool,
    pub key: &'a [u8; 32],
    pub token: Option<&'a TokenUse>,
}

/// What an `UpdateNode` asks for.
pub(crate) struct UpdateNode {
    pub addr: Option<SocketAddr>,
    pub capacity: Option<u64>,
    pub state: Option<NodeState>,
}

impl Machine<'_> {
    pub fn add_node(&mut self, ask: &AddNode<'_>) -> Step {
        let mut map = map(&*self.txn)?;
        let known: Option<NodeId> = self.get(Table::Single, &key::node_key(ask.key))?;
        if let Some(node) = known.and_then(|id| map.nodes.get(&id)) {
            return Ok(Reply::Node(Box::new(node.clone())));
        }
        match ask.token {
            Some(used) => self.check_token(used)?,
            // Only who makes the cluster needs no token.
            None if map.nodes.is_empty() => {}
            None => return Err(Kind::Unauthorized.into()),
        }
        let too_long = ask.name.len() > NAME_MAX || ask.domain.len() > NAME_MAX;
        if ask.name.is_empty() || too_long {
            return Err(Kind::Invalid.into());
        }
        let id = NodeId(self.counters.next_node);
        self.counters.next_node += 1;
        let node = Node {
            id,
            name: ask.name.to_owned(),
            addr: ask.addr,
            domain: ask.domain.to_owned(),
            storage: ask.storage,
            capacity: 0,
            state: NodeState::Joined,
        };
        self.put(Table::Single, &key::node_key(ask.key), &id)?;
        map.nodes.insert(id, node.clone());
        self.put_map(map, node.takes_shards())?;
        Ok(Reply::Node(Box::new(node)))
    }

    fn check_token(&self, used: &TokenUse) -> Step<()> {
        let token: Option<Token> = self.get(Table::Token, used.id.as_bytes())?;
        let valid = token.is_some_and(|token| {
            // Folded without an early end, so that the time of an answer says nothing of the hash.
            let apart = token.secret_hash.iter().zip(&used.secret_hash).fold(0, |d, (a, b)| d | (a ^ b));
            apart == 0 && !token.revoked && self.now() < token.expires
        });
        if valid { Ok(()) } else { Err(Kind::Unauthorized.into()) }
    }

    pub fn update_node(&mut self, id: NodeId, ask: &UpdateNode) -> Step {
        let mut map = map(&*self.txn)?;
        let node = map.nodes.get_mut(&id).ok_or(Kind::NotFound)?;
        let before = node.clone();
        node.addr = ask.addr.unwrap_or(node.addr);
        node.capacity = ask.capacity.unwrap_or(node.capacity);
        node.state = ask.state.unwrap_or(node.state);
        let after = node.clone();
        if after != before {
            self.put_map(map, after.takes_shards() != before.takes_shards())?;
        }
        Ok(Reply::Node(Box::new(after)))
    }

    pub fn remove_node(&mut self, id: NodeId) -> Step {
        let mut map = map(&*self.txn)?;
        let node = map.nodes.remove(&id).ok_or(Kind::NotFound)?;
        let mut keys = Vec::new();
        super::record::scan_prefix(&*self.txn, Table::Single, b"key/", &mut |at, value| {
            keys.push((at.to_vec(), super::record::decode::<NodeId>(Table::Single, value)));
            true
        })?;
        for (at, owner) in keys {
            if owner? == id {
                self.delete(Table::Single, &at)?;
            }
        }
        for (session, _) in self.sessions_of(id)? {
            self.close_session(session)?;
        }
        self.delete(Table::Single, &key::nonces(id))?;
        self.put_map(map, node.takes_shards())?;
        Ok(Reply::Done)
    }

    /// Stores a changed map under a new epoch; the table is made anew only when storage changed.
    fn put_map(&mut self, mut map: ClusterMap, storage_changed: bool) -> Result<()> {
        if storage_changed {
            map.rebuild();
        } else {
            map.epoch.0 += 1;
        }
        self.put(Table::Single, key::MAP, &map)?;
        self.changed(Change::Map);
        Ok(())
    }

    pub fn create_token(&mut self, token: &Token) -> Step {
        if token.id.is_empty() || token.id.len() > NAME_MAX {
            return Err(Kind::Invalid.into());
        }
        match self.get::<Token>(Table::Token, token.id.as_bytes())? {
            None => self.put(Table::Token, token.id.as_bytes(), token)?,
            Some(there) if there == *token => {}
            Some(_) => return Err(Kind::Exists.into()),
        }
        Ok(Reply::Done)
    }

    pub fn revoke_token(&mut self, id: &str) -> Step {
        let mut token: Token = self.get(Table::Token, id.as_bytes())?.ok_or(Kind::NotFound)?;
        token.revoked = true;
        self.put(Table::Token, id.as_bytes(), &token)?;
        Ok(Reply::Done)
    }
}
