//! What comes over the wire is checked: nonsense is refused, and nothing panics.

mod double;

use double::{Cluster, bytes};
use hfcache_base::meta::ChunkRef;
use hfcache_base::seam::{Call, ServiceId};
use hfcache_base::{ChunkId, Epoch, Kind, Scheme, ShardIndex, placement::mix, wire};
use hfcache_storage::codec;
use hfcache_storage::service::{Reply, Request};
use hfcache_storage::shard::{Header, ShardKey};
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(5);

fn call(request: &Request, body: Vec<u8>) -> Call {
    let mut call = Call::new(ServiceId::Shards, wire::encode(request));
    call.body = vec![body.into()];
    call
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_refused() {
    let cluster = Cluster::new(2).await;
    let net = cluster.net(1);
    let to = hfcache_base::NodeId(2);
    let ask = |c: Call| {
        let net = net.clone();
        async move { net.call(to, c, WAIT).await }
    };
    let mut x = 1;
    for len in 0..300usize {
        x = mix(x);
        let mut head = bytes(x, len);
        assert!(ask(Call::new(ServiceId::Shards, head.clone())).await.is_err());
        if let Some(first) = head.first_mut() {
            *first = wire::FORMAT;
        }
        // May by chance be a fair question; must only never end the service.
        let _ = ask(Call::new(ServiceId::Shards, head)).await;
    }
    let scheme = Scheme { data: 2, parity: 1 };
    let data = bytes(4, 3 << 20);
    let shards = codec::encode(scheme, &[data.into()]).unwrap();
    let chunk = ChunkRef { id: ChunkId(4), len: 3 << 20, scheme };
    let key = ShardKey::at(chunk.id, scheme, 1);
    let good = Header::new(key, chunk, shards[1].crcs()).unwrap();
    let body = shards[1].parts().concat();
    let mut flipped = body.clone();
    flipped[77] ^= 1;
    let mut bad = vec![
        (good.clone(), flipped),
        (good.clone(), body[1..].to_vec()),
        (good.clone(), Vec::new()),
        (Header { chunk_len: 0, ..good.clone() }, body.clone()),
        (Header { chunk_len: u32::MAX, ..good.clone() }, body.clone()),
        (Header { crcs: vec![0; 100_000], ..good.clone() }, body.clone()),
        (Header { parity: 255, ..good.clone() }, body.clone()),
    ];
    for (data, index) in [(0, 0), (1, 1), (2, 3), (255, 255)] {
        bad.push((
            Header { key: ShardKey { data, index: ShardIndex(index), ..key }, ..good.clone() },
            body.clone(),
        ));
    }
    for (header, body) in bad {
        let error = ask(call(&Request::Put(header.clone()), body)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Protocol, "{header:?}");
    }
    assert!(cluster.files(2, 4).is_empty());
    ask(call(&Request::Put(good), body)).await.unwrap();
    assert_eq!(cluster.files(2, 4).len(), 1);
    for (first, count) in [(0, 3), (2, 1), (u32::MAX, 1), (1, u32::MAX), (0, 64)] {
        let request = Request::Get { key, first, count };
        assert!(ask(call(&request, Vec::new())).await.is_err(), "{first}+{count}");
    }
    let many = vec![key; 5_000];
    assert!(ask(call(&Request::Has(many.clone()), Vec::new())).await.is_err());
    assert!(ask(call(&Request::Confirm { epoch: Epoch(2), keys: many }, Vec::new())).await.is_err());
    assert!(ask(call(&Request::Drop(vec![ChunkId(1); 5_000]), Vec::new())).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_have_answers() {
    let cluster = Cluster::new(2).await;
    let net = cluster.net(1);
    let chunk = cluster.put(1, 9, 20_000).await;
    let key = ShardKey::at(chunk.id, chunk.scheme, 1);
    let absent = ShardKey { chunk: ChunkId(10), ..key };
    let ask = |request: Request| {
        let net = net.clone();
        async move {
            let answer = net.call(hfcache_base::NodeId(2), call(&request, Vec::new()), WAIT).await?;
            wire::decode::<Reply>(&answer.head)
        }
    };
    let Reply::Has(has) = ask(Request::Has(vec![key, absent])).await.unwrap() else { panic!() };
    assert_eq!(has, [true, false]);
    let epoch = cluster.world.map().epoch;
    let Reply::Has(has) = ask(Request::Confirm { epoch, keys: vec![absent, key] }).await.unwrap() else {
        panic!()
    };
    assert_eq!(has, [false, true]);
    // On another map nobody may rely on the answer.
    for other in [Epoch(epoch.0 - 1), Epoch(epoch.0 + 1)] {
        assert!(ask(Request::Confirm { epoch: other, keys: vec![key] }).await.is_err());
    }
    let Reply::List(list) = ask(Request::List { after: None, limit: 10 }).await.unwrap() else { panic!() };
    assert_eq!(list, [(key, 20_000)]);
    let Reply::List(list) = ask(Request::List { after: Some(key), limit: 10 }).await.unwrap() else {
        panic!()
    };
    assert!(list.is_empty());
    let Reply::Status(status) = ask(Request::Status).await.unwrap() else { panic!() };
    assert_eq!((status.shards, status.bytes, status.missing), (1, 20_000, 0));
}
