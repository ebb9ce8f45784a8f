//! The node's side of the admin socket.

use super::{Answer, CONNECTIONS_MAX, Envelope, Failure, LINE_MAX, Line, Request, VERSION, short_path};
use anyhow::{Context, Result};
use async_trait::async_trait;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};

/// How long a client may take to send its request, or to take a line.
const CLIENT_PATIENCE: Duration = Duration::from_secs(10);
/// Progress lines that may wait for a slow client; more are dropped.
const PROGRESS_QUEUE: usize = 16;

/// Answers requests.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Answers one; may say how far it is. Dropped when the client hangs up.
    async fn handle(&self, request: Request, progress: mpsc::Sender<Value>) -> hfcache_base::Result<Value>;
}

/// Binds the socket in a data directory. The caller holds the directory's lock, so a socket that is there
/// belongs to nobody.
///
/// # Errors
/// Whatever the disk says.
pub fn bind(data: &Path) -> Result<std::os::unix::net::UnixListener> {
    let doing = || format!("bind admin socket in {}", data.display());
    let (_dir, path) = short_path(data).with_context(doing)?;
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).with_context(doing),
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(&path).with_context(doing)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).with_context(doing)?;
    listener.set_nonblocking(true).with_context(doing)?;
    Ok(listener)
}

/// Serves until dropped.
///
/// # Errors
/// If the listener cannot be used.
pub async fn serve(listener: std::os::unix::net::UnixListener, handler: Arc<dyn Handler>) -> Result<()> {
    let listener = UnixListener::from_std(listener).context("listen on admin socket")?;
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = places.clone().acquire_owned().await.context("serve admin socket")?;
        match listener.accept().await {
            Ok((stream, _)) => {
                let handler = handler.clone();
                tokio::spawn(async move {
                    if let Err(e) = connection(stream, handler).await {
                        tracing::debug!(error = %e, "serve admin connection");
                    }
                    drop(place);
                });
            }
            Err(e) => {
                tracing::warn!(error = %e, "accept admin connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: UnixStream, handler: Arc<dyn Handler>) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let mut line = Vec::new();
    let limited = &mut (&mut read).take(LINE_MAX as u64);
    match tokio::time::timeout(CLIENT_PATIENCE, limited.read_until(b'\n', &mut line)).await {
        Ok(Ok(0)) => return Ok(()),
        Ok(result) => result?,
        Err(_) => return Ok(()),
    };
    let request = match parse(&line) {
        Ok(request) => request,
        Err(message) => {
            let failure = Failure { kind: "Protocol".into(), message };
            return send(&mut write, Line::Error(failure)).await;
        }
    };
    let (progress, mut told) = mpsc::channel(PROGRESS_QUEUE);
    let work = handler.handle(request, progress);
    tokio::pin!(work);
    let mut gone = [0; 1];
    let mut talking = true;
    let result = loop {
        tokio::select! {
            result = &mut work => break result,
            Some(value) = told.recv() => send(&mut write, Line::Progress(value)).await?,
            // A client that only shut its sending side still waits for the answer.
            n = read.read(&mut gone), if talking => match n {
                Ok(0) => talking = false,
                Ok(_) => {}
                Err(e) => return Err(e),
            },
        }
    };
    while let Ok(value) = told.try_recv() {
        send(&mut write, Line::Progress(value)).await?;
    }
    let line = match result {
        Ok(value) => Line::Ok(value),
        Err(e) => Line::Error(Failure { kind: format!("{:?}", e.kind()), message: e.to_string() }),
    };
    send(&mut write, line).await
}

fn parse(line: &[u8]) -> Result<Request, String> {
    if line.last() != Some(&b'\n') {
        return Err(format!("a request is one line of at most {LINE_MAX} bytes"));
    }
    // The version first: a later one may know requests that this one cannot even parse.
    let value: Value = serde_json::from_slice(line).map_err(|e| format!("parse request: {e}"))?;
    match value.get("v").and_then(Value::as_u64) {
        Some(v) if v == u64::from(VERSION) => {}
        v => return Err(format!("this node speaks version {VERSION} of the admin protocol, not {v:?}")),
    }
    let envelope: Envelope = serde_json::from_value(value).map_err(|e| format!("parse request: {e}"))?;
    Ok(envelope.request)
}

async fn send(write: &mut tokio::net::unix::OwnedWriteHalf, line: Line) -> std::io::Result<()> {
    let mut text = serde_json::to_vec(&Answer { v: VERSION, line })?;
    text.push(b'\n');
    tokio::time::timeout(CLIENT_PATIENCE, write.write_all(&text))
        .await
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::client::{Trouble, ask};
    use crate::data::{DataDir, tests::TempDir};
    use std::io::{BufRead, Write};

    struct Echo;

    #[async_trait]
    impl Handler for Echo {
        async fn handle(
            &self,
            request: Request,
            progress: mpsc::Sender<Value>,
        ) -> hfcache_base::Result<Value> {
            let _ = progress.send(serde_json::json!(1)).await;
            match request {
                Request::Stop => Err(hfcache_base::Error::new(hfcache_base::Kind::Busy, "not now")),
                other => Ok(serde_json::to_value(other).unwrap()),
            }
        }
    }

    async fn in_thread<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
        tokio::task::spawn_blocking(f).await.unwrap()
    }

    #[tokio::test]
    async fn a_deep_directory_is_no_obstacle_and_the_socket_is_private() {
        let dir = TempDir::new();
        let deep = (0..12).fold(dir.path().to_path_buf(), |p, i| p.join(format!("directory-number-{i}")));
        std::fs::create_dir_all(&deep).unwrap();
        assert!(deep.as_os_str().len() > 200);
        let server = tokio::spawn(serve(bind(&deep).unwrap(), Arc::new(Echo)));
        let mode = std::fs::metadata(deep.join("admin.sock")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        in_thread(move || {
            let data = DataDir::new(deep);
            let mut seen = 0;
            let wait = Duration::from_secs(20);
            let answer = ask(&data, Request::TokenList, wait, |_| seen += 1).unwrap();
            assert_eq!((answer["op"].as_str(), seen), (Some("token-list"), 1));
            match ask(&data, Request::Stop, wait, |_| ()).unwrap_err() {
                Trouble::Refused(f) => assert_eq!((f.kind.as_str(), f.message.as_str()), ("Busy", "not now")),
                other => panic!("{other}"),
            }
        })
        .await;
        server.abort();
    }

    #[tokio::test]
    async fn nonsense_is_answered_and_never_served() {
        let dir = TempDir::new();
        let server = tokio::spawn(serve(bind(dir.path()).unwrap(), Arc::new(Echo)));
        let path = dir.path().join("admin.sock");
        in_thread(move || {
            for bad in
                ["\n", "{}\n", "[1,2]\n", "{\"v\":2,\"op\":\"ping\"}\n", "{\"v\":1,\"op\":\"dance\"}\n", "\u{1}\n"]
            {
                let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
                stream.write_all(bad.as_bytes()).unwrap();
                let mut line = String::new();
                std::io::BufReader::new(stream).read_line(&mut line).unwrap();
                assert!(line.contains("\"error\"") && line.contains("Protocol"), "{bad:?}: {line}");
            }
        })
        .await;
        server.abort();
    }
}
