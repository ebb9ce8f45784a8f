//! chitchat's transport, sealed.

use super::datagram::{MESSAGE_MAX, Sealer};
use crate::bounds::DATAGRAM_MAX;
use crate::shared::Shared;
use crate::stats::add;
use anyhow::{Result, anyhow};
use async_trait::async_trait;
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatMessage, Deserializable, Serializable};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UdpSocket;
use tracing::{debug, warn};

/// Gives away its one socket, which was bound before so that its errors are ours.
pub(super) struct SealedTransport {
    socket: Mutex<Option<SealedSocket>>,
}

impl SealedTransport {
    pub(super) fn new(socket: UdpSocket, sealer: Sealer, shared: Arc<Shared>) -> Self {
        let socket = SealedSocket { socket, sealer, shared, buf: vec![0; DATAGRAM_MAX], warned: false };
        Self { socket: Mutex::new(Some(socket)) }
    }
}

#[async_trait]
impl Transport for SealedTransport {
    async fn open(&self, _listen_addr: SocketAddr) -> Result<Box<dyn Socket>> {
        let socket = self.socket.lock().take().ok_or_else(|| anyhow!("gossip is open already"))?;
        Ok(Box::new(socket))
    }
}

struct SealedSocket {
    socket: UdpSocket,
    sealer: Sealer,
    shared: Arc<Shared>,
    buf: Vec<u8>,
    warned: bool,
}

#[async_trait]
impl Socket for SealedSocket {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> Result<()> {
        let plain = message.serialize_to_vec();
        let counters = &self.shared.counters;
        let Ok(datagram) = self.sealer.seal(&plain) else {
            add(&counters.gossip_dropped, 1);
            if !std::mem::replace(&mut self.warned, true) {
                warn!(
                    op = "gossip",
                    bytes = plain.len(),
                    max = MESSAGE_MAX,
                    "the cluster is too large for gossip"
                );
            }
            return Ok(());
        };
        // A peer that is gone, or a full buffer: gossip repeats itself.
        match self.socket.send_to(&datagram, to).await {
            Ok(_) => add(&counters.gossip_sent, 1),
            Err(e) => debug!(op = "gossip", %to, error = %e, "send datagram"),
        }
        Ok(())
    }

    async fn recv(&mut self) -> Result<(SocketAddr, ChitchatMessage)> {
        loop {
            let (len, from) = match self.socket.recv_from(&mut self.buf).await {
                Ok(received) => received,
                Err(e) => {
                    // Reports of unreachable peers arrive here too; an error that stays must not spin.
                    debug!(op = "gossip", error = %e, "receive datagram");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            };
            let counters = &self.shared.counters;
            let opened = self.sealer.open(&mut self.buf[..len]);
            let message = opened.filter(|(node, _)| self.shared.admits(*node)).and_then(|(_, mut plain)| {
                let message = ChitchatMessage::deserialize(&mut plain).ok()?;
                plain.is_empty().then_some(message)
            });
            match message {
                Some(message) => {
                    add(&counters.gossip_received, 1);
                    return Ok((from, message));
                }
                None => add(&counters.gossip_dropped, 1),
            }
        }
    }
}
