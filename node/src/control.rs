//! What the admin socket can ask of a running node, and who may join through it.

use crate::admin::{QUORUM_DEADLINE, Request, server::Handler};
use crate::data::DataDir;
use crate::leave;
use crate::place::Place;
use crate::rate;
use crate::run::Tree;
use crate::share::{self, Existing};
use crate::status::{self, Sources};
use crate::stop::Stop;
use crate::time::{self, earlier, later};
use crate::trash;
use crate::usage;
use async_trait::async_trait;
use hfcache_base::meta::{Op, Reply, Share, Timestamp, Token, TokenUse};
use hfcache_base::seam::{Clock, Meta};
use hfcache_base::{Error, Kind, Result};
use hfcache_net::{Identity, JoinAdmit, JoinAsk, JoinHandler, JoinToken};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, mpsc};

/// Longest token that can be asked for.
const TTL_MAX: Duration = Duration::from_secs(3_650 * 86_400);
/// Addresses in a token.
const SEEDS: usize = 5;
/// Time for an answer to reach the client before the node stops.
const PARTING: Duration = Duration::from_millis(300);

/// Answers the admin socket.
pub struct Control {
    /// For `status` and `leave`.
    pub sources: Arc<Sources>,
    /// Keys.
    pub identity: Arc<Identity>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Ends the node.
    pub stop: Stop,
    /// One at a time.
    pub leaving: Arc<Mutex<()>>,
    /// Has to be down before this node is no member any more.
    pub tree: Tree,
    /// Where it is noted that this node has left.
    pub data: DataDir,
    /// Where the mount is.
    pub place: Place,
}

#[async_trait]
impl Handler for Control {
    async fn handle(&self, request: Request, progress: mpsc::Sender<Value>) -> Result<Value> {
        match request {
            Request::Ping => Ok(json!({ "version": env!("CARGO_PKG_VERSION"), "pid": std::process::id() })),
            Request::Status => to_value(status::gather(&self.sources).await?),
            Request::TokenCreate { ttl_seconds } => self.token_create(ttl_seconds).await,
            Request::TokenList => {
                self.sources.meta.read_point(QUORUM_DEADLINE).await?;
                let tokens = self.sources.meta.read_stale().tokens()?;
                let now = self.clock.wall();
                Ok(tokens.iter().map(|t| describe(t, now)).collect())
            }
            Request::TokenRevoke { id } => self.token_revoke(&id).await,
            Request::Leave { force, dry_run } => self.leave(force, dry_run, progress).await,
            Request::Stop => {
                self.stop_soon();
                Ok(json!({ "stopping": true }))
            }
            Request::ShareSet { path, group, keep, dry_run } => {
                let (share, existing) = (Share { group }, Existing { keep, dry_run });
                let meta = self.sources.meta.as_ref();
                to_value(share::set(meta, &self.place, &path, share, existing, &progress).await?)
            }
            Request::ShareList => to_value(share::list(self.sources.meta.as_ref(), &self.place).await?),
            Request::ShareClear { path } => {
                share::clear(self.sources.meta.as_ref(), &self.place, &path).await?;
                Ok(json!({ "cleared": path }))
            }
            Request::Du { paths } => {
                to_value(usage::du(self.sources.meta.as_ref(), &self.place, &paths).await?)
            }
            Request::QuotaSet { whose, bytes, inodes } => {
                let meta = self.sources.meta.as_ref();
                to_value(usage::set(meta, &self.place, &whose, bytes, inodes).await?)
            }
            Request::QuotaGet { whose } => {
                to_value(usage::get(self.sources.meta.as_ref(), &self.place, &whose).await?)
            }
            Request::QuotaList => to_value(usage::list(self.sources.meta.as_ref(), &self.place).await?),
            Request::RateSet { whose, change } => {
                to_value(rate::set(self.sources.meta.as_ref(), &whose, change).await?)
            }
            Request::RateGet { whose } => to_value(rate::get(self.sources.meta.as_ref(), &whose).await?),
            Request::RateList => to_value(rate::list(self.sources.meta.as_ref()).await?),
            Request::TrashList { path } => {
                let (meta, place) = (self.sources.meta.as_ref(), &self.place);
                to_value(trash::list(meta, place, path.as_deref(), &progress).await?)
            }
            Request::TrashRestore { path, to, dry_run } => {
                let (meta, place) = (self.sources.meta.as_ref(), &self.place);
                to_value(trash::restore(meta, place, &path, to.as_deref(), dry_run, &progress).await?)
            }
            Request::TrashEmpty { path, older_seconds, dry_run } => {
                let (meta, place) = (self.sources.meta.as_ref(), &self.place);
                let before = earlier(self.clock.wall(), Duration::from_secs(older_seconds));
                to_value(trash::empty(meta, place, path.as_deref(), before, dry_run, &progress).await?)
            }
            Request::TrashRetention { set } => {
                let retention = trash::retention(self.sources.meta.as_ref(), set).await?;
                Ok(json!({ "retention": retention }))
            }
        }
    }
}

impl Control {
    async fn token_create(&self, ttl_seconds: u64) -> Result<Value> {
        let ttl = Duration::from_secs(ttl_seconds);
        if ttl.is_zero() || ttl > TTL_MAX {
            return Err(Error::new(Kind::Invalid, "a token is good for 1 second to 3650 days"));
        }
        let expires = later(self.clock.wall(), ttl);
        let token = JoinToken::new(&self.identity, self.seeds(), expires)?;
        self.sources
            .meta
            .commit(Op::CreateToken(token.record()))
            .await
            .map_err(|e| e.context("create token"))?;
        tracing::info!(token = %token.id, "join token created");
        Ok(json!({ "token": token.to_string(), "id": token.id, "expires": time::utc(expires) }))
    }

    /// Storage nodes, because only they can sign; this one first, and the leader.
    fn seeds(&self) -> Vec<SocketAddr> {
        let map = self.sources.meta.map();
        let (me, leader) = (self.sources.net.me(), self.sources.meta.status().leader);
        let mut nodes: Vec<_> = map.storage_nodes().collect();
        nodes.sort_by_key(|n| (n.id != me, Some(n.id) != leader, n.id));
        nodes.into_iter().take(SEEDS).map(|n| n.addr).collect()
    }

    async fn token_revoke(&self, said: &str) -> Result<Value> {
        // Who has only the token itself at hand may give that.
        let id = said.parse::<JoinToken>().map_or_else(|_| said.to_owned(), |t| t.id);
        match self.sources.meta.commit(Op::RevokeToken(id.clone())).await {
            Ok(_) => {
                tracing::info!(token = %id, "join token revoked");
                Ok(json!({ "revoked": id }))
            }
            Err(e) if e.kind() == Kind::NotFound => Err(Error::new(
                Kind::NotFound,
                "there is no such token; `hfcache token list` shows the public names of all",
            )),
            Err(e) => Err(e.context("revoke token")),
        }
    }

    /// Goes on when the client hangs up: half-way out is no place to stay.
    async fn leave(&self, force: bool, dry_run: bool, progress: mpsc::Sender<Value>) -> Result<Value> {
        let busy =
            || Error::new(Kind::Busy, "this node is leaving already; `hfcache status` shows how far it is");
        let one = self.leaving.clone().try_lock_owned().map_err(|_| busy())?;
        let (sources, stop) = (self.sources.clone(), self.stop.clone());
        let (tree, data) = (self.tree.clone(), self.data.clone());
        let work = tokio::spawn(async move {
            let last = || async move {
                let down = tree.take_down().await;
                down.map_err(|e| Error::new(Kind::Busy, format!("unmount before leaving: {e:#}")))
            };
            let plan = leave::leave(&sources, force, dry_run, &progress, last).await;
            if plan.is_ok() && !dry_run {
                if let Err(e) = data.note_left() {
                    tracing::warn!(error = format!("{e:#}"), "note that this node has left");
                }
                tokio::spawn(async move {
                    tokio::time::sleep(PARTING).await;
                    stop.request("it left the cluster");
                });
            }
            drop(one);
            plan
        });
        let plan =
            work.await.map_err(|e| Error::new(Kind::Internal, "leave the cluster").with_source(e))??;
        to_value(plan)
    }

    fn stop_soon(&self) {
        let stop = self.stop.clone();
        tokio::spawn(async move {
            tokio::time::sleep(PARTING).await;
            stop.request("asked to by the admin socket");
        });
    }
}

/// A token as `token list` prints it: all but the secret.
fn describe(token: &Token, now: Timestamp) -> Value {
    let state = match (token.revoked, token.expires <= now) {
        (true, _) => "revoked",
        (_, true) => "expired",
        _ => "valid",
    };
    json!({ "id": token.id, "state": state, "expires": time::utc(token.expires) })
}

fn to_value(value: impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(value).map_err(|e| Error::new(Kind::Internal, "encode answer").with_source(e))
}

/// Admits nodes: the replicated state decides about the token.
pub struct Admission {
    /// The namespace.
    pub meta: Arc<dyn Meta>,
    /// Time, only to word a refusal.
    pub clock: Arc<dyn Clock>,
}

#[async_trait]
impl JoinHandler for Admission {
    async fn join(&self, ask: JoinAsk) -> Result<JoinAdmit> {
        let op = Op::AddNode {
            name: ask.request.name,
            addr: ask.request.listen,
            domain: ask.request.domain,
            storage: ask.request.storage,
            key: ask.key,
            token: Some(ask.token.clone()),
        };
        let node = match self.meta.commit(op).await {
            Ok(Reply::Node(node)) => node.id,
            Ok(other) => return Err(Error::new(Kind::Internal, format!("admit node: {other:?}"))),
            Err(e) if e.kind() == Kind::Unauthorized => {
                let tokens = self.meta.read_stale().tokens().unwrap_or_default();
                return Err(Error::new(
                    Kind::Unauthorized,
                    why_refused(&tokens, &ask.token, self.clock.wall()),
                ));
            }
            Err(e) => return Err(e.context("admit node")),
        };
        let members = self.meta.map().nodes.values().map(|n| (n.id, n.addr)).collect();
        Ok(JoinAdmit { node, members })
    }
}

/// In words; who shows a wrong secret learns nothing about the token.
fn why_refused(tokens: &[Token], used: &TokenUse, now: Timestamp) -> String {
    match tokens.iter().find(|t| t.id == used.id && t.secret_hash == used.secret_hash) {
        Some(t) if t.revoked => "the token was revoked".into(),
        Some(t) if t.expires <= now => format!("the token expired at {}", time::utc(t.expires)),
        _ => "the cluster does not know this token".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_why_but_only_to_who_has_the_secret() {
        let token = |revoked| Token { id: "a".into(), secret_hash: [1; 32], expires: Timestamp(10), revoked };
        let used = TokenUse { id: "a".into(), secret_hash: [1; 32] };
        assert!(why_refused(&[token(true)], &used, Timestamp(0)).contains("revoked"));
        assert!(
            why_refused(&[token(false)], &used, Timestamp(10)).contains("expired at 1970-01-01T00:00:00Z")
        );
        let wrong = TokenUse { secret_hash: [2; 32], ..used };
        assert!(why_refused(&[token(true)], &wrong, Timestamp(0)).contains("does not know"));
    }

    #[test]
    fn the_state_of_a_token_is_told_and_its_secret_never() {
        let mut token =
            Token { id: "ab".into(), secret_hash: [7; 32], expires: Timestamp(10), revoked: false };
        assert_eq!(describe(&token, Timestamp(9))["state"], "valid");
        assert_eq!(describe(&token, Timestamp(10))["state"], "expired");
        token.revoked = true;
        let shown = describe(&token, Timestamp(9));
        assert_eq!(shown["state"], "revoked");
        assert_eq!(shown.as_object().map(serde_json::Map::len), Some(3));
    }
}
