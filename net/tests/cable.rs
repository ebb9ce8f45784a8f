//! What happens when the way to a peer is cut, and when it is there again.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::*;
use hfcache_base::seam::{Health, Net};
use hfcache_base::{Kind, NodeId};
use hfcache_net::{NetConfig, Network, RetryBudget};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// A cable to one node, UDP and TCP, that can be cut: nothing gets through then, and nobody is told.
struct Cable {
    at: SocketAddr,
    cut: Arc<AtomicBool>,
    tcp: Arc<AtomicUsize>,
    tcp_broken: tokio::sync::watch::Sender<bool>,
}

impl Cable {
    async fn to(target: SocketAddr) -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (Arc::new(udp), tcp);
            }
        };
        let at = udp.local_addr().unwrap();
        let cut = Arc::new(AtomicBool::new(false));
        let (tcp_broken, _) = tokio::sync::watch::channel(false);
        let connections = Arc::new(AtomicUsize::new(0));
        tokio::spawn(carry_udp(udp, target, cut.clone()));
        tokio::spawn(carry_tcp(tcp, target, cut.clone(), connections.clone(), tcp_broken.subscribe()));
        Self { at, cut, tcp: connections, tcp_broken }
    }
}

async fn carry_udp(udp: Arc<UdpSocket>, target: SocketAddr, cut: Arc<AtomicBool>) {
    let mut there: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut buf = vec![0; 65_536];
    loop {
        let Ok((len, from)) = udp.recv_from(&mut buf).await else { continue };
        let up = match there.get(&from) {
            Some(up) => up.clone(),
            None => {
                let up = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                tokio::spawn(carry_back(up.clone(), udp.clone(), from, cut.clone()));
                there.insert(from, up.clone());
                up
            }
        };
        if !cut.load(Ordering::SeqCst) {
            let _ = up.send_to(&buf[..len], target).await;
        }
    }
}

async fn carry_back(up: Arc<UdpSocket>, udp: Arc<UdpSocket>, to: SocketAddr, cut: Arc<AtomicBool>) {
    let mut buf = vec![0; 65_536];
    while let Ok((len, _)) = up.recv_from(&mut buf).await {
        if !cut.load(Ordering::SeqCst) {
            let _ = udp.send_to(&buf[..len], to).await;
        }
    }
}

async fn carry_tcp(
    tcp: TcpListener,
    target: SocketAddr,
    cut: Arc<AtomicBool>,
    connections: Arc<AtomicUsize>,
    broken: tokio::sync::watch::Receiver<bool>,
) {
    loop {
        let (mut near, _) = tcp.accept().await.unwrap();
        let (cut, connections, mut broken) = (cut.clone(), connections.clone(), broken.clone());
        tokio::spawn(async move {
            let mut far = TcpStream::connect(target).await.unwrap();
            connections.fetch_add(1, Ordering::SeqCst);
            let cut = async {
                while !cut.load(Ordering::SeqCst) {
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
            };
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                _ = broken.wait_for(|b| *b) => return,
                () = cut => {}
            }
            // Cut: both ends stay open and hear nothing.
            let _ = broken.wait_for(|b| *b).await;
        });
    }
}

/// n1 reaches n2 by the cable only.
async fn pair() -> (Arc<Network>, Arc<Network>, Cable) {
    let ids = identities(2);
    let two_at = loop {
        // The port of n2 must be known before it starts, because it advertises the cable.
        let probe = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = probe.local_addr().unwrap();
        if at.port() < u16::MAX {
            break at;
        }
    };
    let cable = Cable::to(two_at).await;
    let config_two = NetConfig { listen: two_at, advertise: Some(cable.at), ..config("two") };
    let two = Network::start(ids[1].clone(), config_two).await.unwrap();
    let one = Network::start(ids[0].clone(), config("one")).await.unwrap();
    one.set_members(vec![(NodeId(1), one.listen()), (NodeId(2), cable.at)]);
    (one, two, cable)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_fail_when_the_cable_is_cut_and_go_on_when_it_is_back() {
    let (one, two, cable) = pair().await;
    let echo = echo(&two);
    let mut large = shards(b"h");
    large.body = vec![pattern(1 << 20)];
    let running: Vec<_> = [shards(b"h"), large]
        .into_iter()
        .map(|call| {
            let one = one.clone();
            tokio::spawn(async move { one.call(NodeId(2), call, LONG).await })
        })
        .collect();
    until("both calls are served", || async { echo.running.load(Ordering::SeqCst) == 2 }).await;
    cable.cut.store(true, Ordering::SeqCst);
    until("the peer is suspect", || async { one.health(NodeId(2)) == Health::Suspect }).await;
    // New calls do not wait for it, and those under way end long before their deadline.
    let e = one.call(NodeId(2), shards(b"e"), LONG).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Unavailable, "{e}");
    for call in running {
        let e = call.await.unwrap().unwrap_err();
        assert_eq!(e.kind(), Kind::Unavailable, "{e}");
    }
    until("the other side drops them too", || async { echo.dropped.load(Ordering::SeqCst) == 2 }).await;
    cable.cut.store(false, Ordering::SeqCst);
    until("the peer is up", || async { one.health(NodeId(2)) == Health::Up }).await;
    let budget = RetryBudget::new(1_000);
    let mut call = shards(b"e");
    call.body = vec![pattern(1 << 20)];
    let answer = budget.call(&*one, NodeId(2), call.clone(), LONG).await.unwrap();
    assert!(answer.body == call.body[0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_is_noticed_by_its_tcp_connections() {
    let (one, two, cable) = pair().await;
    let echo = echo(&two);
    until("the lifeline is there", || async { cable.tcp.load(Ordering::SeqCst) > 0 }).await;
    let running = {
        let one = one.clone();
        tokio::spawn(async move { one.call(NodeId(2), shards(b"h"), LONG).await })
    };
    until("the call is served", || async { echo.running.load(Ordering::SeqCst) == 1 }).await;
    // The kernel closes the connections of a killed process; its UDP port just falls silent.
    cable.cut.store(true, Ordering::SeqCst);
    cable.tcp_broken.send_replace(true);
    let began = std::time::Instant::now();
    let e = running.await.unwrap().unwrap_err();
    eprintln!("noticed after {:?}", began.elapsed());
    assert_eq!(e.kind(), Kind::Unavailable, "{e}");
    until("the peer is suspect", || async { one.health(NodeId(2)) == Health::Suspect }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_peer_delays_nobody_else() {
    let (one, two, cable) = pair().await;
    echo(&one);
    echo(&two);
    one.call(NodeId(2), shards(b"e"), LONG).await.unwrap();
    cable.cut.store(true, Ordering::SeqCst);
    let hung: Vec<_> = (0..200)
        .map(|_| {
            let one = one.clone();
            tokio::spawn(async move { one.call(NodeId(2), shards(b"e"), LONG).await })
        })
        .collect();
    // A healthy member is served all the while.
    while one.health(NodeId(2)) == Health::Up {
        one.call(NodeId(1), shards(b"e"), LONG).await.unwrap();
        tokio::task::yield_now().await;
    }
    for call in hung {
        call.await.unwrap().unwrap_err();
    }
}
