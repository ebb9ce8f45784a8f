//! The side that accepts QUIC connections: members may call, strangers may only join.

use crate::bounds;
use crate::bulk;
use crate::quic::code;
use crate::rpc;
use crate::shared::Shared;
use crate::stats::add;
use crate::tls;
use hfcache_base::NodeId;
use quinn::{Connection, Incoming};
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{debug, info};

/// Accepts until the endpoint is closed.
pub(crate) async fn accept(shared: Arc<Shared>) {
    let strangers = Arc::new(Semaphore::new(bounds::ANONYMOUS_MAX));
    let handshakes = Arc::new(Semaphore::new(bounds::HANDSHAKES_MAX));
    let mut connections = JoinSet::new();
    loop {
        let incoming = tokio::select! {
            incoming = shared.endpoint.accept() => incoming,
            Some(_) = connections.join_next() => continue,
        };
        let Some(incoming) = incoming else { break };
        let Ok(permit) = handshakes.clone().try_acquire_owned() else {
            add(&shared.counters.refused, 1);
            incoming.refuse();
            continue;
        };
        let (shared, strangers) = (shared.clone(), strangers.clone());
        connections.spawn(async move {
            let connection = handshake(&shared, incoming).await;
            drop(permit);
            if let Some(connection) = connection {
                serve(&shared, &strangers, connection).await;
            }
        });
    }
}

async fn handshake(shared: &Shared, incoming: Incoming) -> Option<Connection> {
    let from = incoming.remote_address();
    let done = match incoming.accept() {
        Ok(connecting) => tokio::time::timeout(bounds::CONNECTION_IDLE, connecting).await,
        Err(e) => Ok(Err(e)),
    };
    match done {
        Ok(Ok(connection)) => Some(connection),
        Ok(Err(e)) => {
            add(&shared.counters.refused, 1);
            debug!(%from, error = %e, "refuse handshake");
            None
        }
        Err(_) => {
            add(&shared.counters.refused, 1);
            debug!(%from, "handshake took too long");
            None
        }
    }
}

async fn serve(shared: &Arc<Shared>, strangers: &Semaphore, connection: Connection) {
    let from = connection.remote_address();
    match tls::peer_of(&connection) {
        Ok(None) => match strangers.try_acquire() {
            Ok(_permit) => serve_stranger(shared, connection).await,
            Err(_) => refuse(shared, &connection, "too many are joining"),
        },
        Ok(Some((node, cluster))) if cluster == shared.identity.cluster() && shared.admits(node) => {
            serve_member(shared, node, connection).await;
        }
        Ok(Some((node, _))) => {
            info!(op = "refuse_node", %node, %from, "it is not a member of the cluster any more");
            refuse(shared, &connection, "not a member");
        }
        Err(e) => {
            debug!(%from, error = %e, "refuse certificate");
            refuse(shared, &connection, "not a node of this cluster");
        }
    }
}

fn refuse(shared: &Shared, connection: &Connection, why: &str) {
    add(&shared.counters.refused, 1);
    connection.close(code::REFUSED, why.as_bytes());
}

async fn serve_member(shared: &Arc<Shared>, node: NodeId, connection: Connection) {
    let Ok(key) = bulk::session_key(&connection) else {
        refuse(shared, &connection, "no keys");
        return;
    };
    let calls = shared.add_incoming(node, key, &connection);
    add(&shared.counters.connections_accepted, 1);
    // It has just started, or the way to it is open again: there is no need to wait for the next attempt.
    if let Some(peer) = shared.peers.read().get(&node) {
        peer.nudge();
    }
    // The tasks of its calls end when the connection does: each waits for its stream to be stopped.
    while let Ok(stream) = connection.accept_bi().await {
        tokio::spawn(rpc::serve(shared.clone(), node, calls.clone(), stream));
    }
    shared.remove_incoming(node, key);
}

async fn serve_stranger(shared: &Arc<Shared>, connection: Connection) {
    let at = connection.remote_address().ip();
    let work = async {
        // One after the other: a stranger gets no concurrency.
        while let Ok(stream) = connection.accept_bi().await {
            rpc::serve_stranger(shared.clone(), stream, at).await;
        }
    };
    if tokio::time::timeout(bounds::ANONYMOUS_LIFE, work).await.is_err() {
        connection.close(code::REFUSED, b"took too long");
    }
}
