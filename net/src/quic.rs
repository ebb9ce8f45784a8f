//! The QUIC endpoint: its sockets and the settings that are right for a cluster's network.

use crate::bounds;
use crate::sha256;
use hfcache_base::{Error, Kind, Result};
use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig, TransportConfig,
};
use quinn::{TokioRuntime, VarInt};
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

/// Codes that a connection or stream is closed with.
pub(crate) mod code {
    use quinn::VarInt;

    /// The node stops.
    pub(crate) const BYE: VarInt = VarInt::from_u32(0);
    /// The caller gave up.
    pub(crate) const CANCELED: VarInt = VarInt::from_u32(1);
    /// Not a member, or not any more.
    pub(crate) const REFUSED: VarInt = VarInt::from_u32(2);
    /// A newer connection took over, or this one does not answer.
    pub(crate) const REPLACED: VarInt = VarInt::from_u32(3);
}

/// The error for an address that cannot be listened on.
pub(crate) fn bind_failed(what: &str, addr: SocketAddr, e: std::io::Error) -> Error {
    let doing = format!("listen on {addr} ({what})");
    match e.kind() {
        ErrorKind::AddrInUse => {
            let message =
                "the port is in use; is another node running here? choose another with --listen IP:PORT";
            Error::new(Kind::Busy, message).context(doing)
        }
        ErrorKind::AddrNotAvailable => {
            Error::new(Kind::Invalid, "no such address on this machine; choose another with --listen IP:PORT")
                .context(doing)
        }
        _ => Error::io(e).context(doing),
    }
}

/// Binds a UDP socket with large buffers.
pub(crate) fn bind_udp(what: &str, addr: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(addr).map_err(|e| bind_failed(what, addr, e))?;
    // As much as the system allows; with less it is slower, not wrong.
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, bounds::UDP_SOCKET_BUFFER);
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, bounds::UDP_SOCKET_BUFFER);
    socket.set_nonblocking(true).map_err(|e| bind_failed(what, addr, e))?;
    Ok(socket)
}

fn transport() -> Arc<TransportConfig> {
    let mut cubic = CubicConfig::default();
    // A cluster's network carries this at once; slow start would cost a new connection many round trips.
    cubic.initial_window(1 << 20);
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(bounds::UDP_PAYLOAD_MAX);
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(bounds::STREAMS_PER_PEER_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(
            bounds::CONNECTION_IDLE.as_millis() as u32
        ))))
        .keep_alive_interval(Some(bounds::CONNECTION_IDLE / 5))
        .stream_receive_window(VarInt::from_u32(bounds::STREAM_WINDOW))
        .receive_window(VarInt::from_u32(bounds::CONNECTION_WINDOW))
        .send_window(bounds::CONNECTION_WINDOW.into())
        .initial_rtt(bounds::INITIAL_RTT)
        .mtu_discovery_config(Some(mtu))
        .congestion_controller_factory(Arc::new(cubic));
    Arc::new(transport)
}

/// Settings of the dialing side.
pub(crate) fn client(crypto: Arc<QuicClientConfig>) -> ClientConfig {
    let mut config = ClientConfig::new(crypto);
    config.transport_config(transport());
    config
}

fn endpoint_config(reset_secret: &[u8]) -> Result<EndpointConfig> {
    // The same key after a restart: a peer that still believes in a connection of the last run is told at
    // once that it is gone, instead of waiting for its idle timeout.
    let key = sha256(&[b"hfcache stateless reset\0", reset_secret].concat());
    let mut config = EndpointConfig::new(Arc::new(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key)));
    config
        .max_udp_payload_size(bounds::UDP_PAYLOAD_MAX)
        .map_err(|e| Error::new(Kind::Internal, "QUIC configuration").with_source(e))?
        .min_reset_interval(Duration::from_millis(5));
    Ok(config)
}

/// An endpoint that dials and, with a server configuration, accepts.
pub(crate) fn endpoint(
    socket: UdpSocket,
    server: Option<Arc<QuicServerConfig>>,
    reset_secret: &[u8],
) -> Result<Endpoint> {
    let server = server.map(|crypto| {
        let mut config = ServerConfig::with_crypto(crypto);
        config.transport_config(transport()).migration(false).max_incoming(bounds::HANDSHAKES_MAX);
        config
    });
    Endpoint::new(endpoint_config(reset_secret)?, server, socket, Arc::new(TokioRuntime)).map_err(Error::io)
}
