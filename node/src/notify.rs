//! Telling systemd how it goes (`Type=notify`), without its library: one datagram to `NOTIFY_SOCKET`.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Says something like `READY=1` or `STOPPING=1`, if anyone listens.
pub fn say(words: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(e) = send(path.as_encoded_bytes(), words.as_bytes()) {
        tracing::warn!(error = %e, "tell systemd");
    }
}

fn send(path: &[u8], words: &[u8]) -> std::io::Result<()> {
    let address = match path.split_first() {
        Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(std::ffi::OsStr::new(&*String::from_utf8_lossy(path)))?,
    };
    UnixDatagram::unbound()?.send_to_addr(words, &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_arrive_at_a_path_and_at_an_abstract_name() {
        let dir = crate::data::tests::TempDir::new();
        let path = dir.path().join("n");
        let mut buf = [0; 16];
        let listener = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str().as_encoded_bytes(), b"READY=1").unwrap();
        assert_eq!(listener.recv(&mut buf).unwrap(), 7);
        let name = format!("hfcache-test-{}", std::process::id());
        let listener = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        send(format!("@{name}").as_bytes(), b"STOPPING=1").unwrap();
        assert_eq!(listener.recv(&mut buf).unwrap(), 10);
    }
}
