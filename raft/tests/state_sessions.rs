//! Sessions, exactly-once replies, holds and reaping, members and tokens.

mod state_support;

use hfcache_base::meta::*;
use hfcache_base::seam::View as _;
use hfcache_base::{Kind, NodeId, NodeState, SessionId};
use hfcache_raft::kv::Table;
use hfcache_raft::state::apply;
use state_support::*;

const CLUSTER: SessionId = SessionId(0);

#[test]
fn a_reply_is_remembered_until_it_has_arrived() {
    let (mut w, s) = World::new();
    let command = w.command(s, create(ROOT, "d", NewNode::Directory));
    let first = apply(&mut w.store, &command).unwrap().reply;
    let again = apply(&mut w.store, &command).unwrap();
    assert_eq!(again.reply, first);
    assert!(first.is_ok() && again.applied.changes.is_empty());
    // Another command under the same number is answered with the first one's reply as well.
    let other = Command { op: unlink(ROOT, "nothing"), ..command.clone() };
    assert_eq!(apply(&mut w.store, &other).unwrap().reply, first);
    for n in 0..500 {
        assert_eq!(w.run(s, unlink(ROOT, &n.to_string())), Err(Kind::NotFound));
    }
    let kept = w.store.iter().filter(|(t, ..)| *t == Table::Reply).count();
    assert!(kept < 100, "{kept} replies are kept");
    // Its reply is forgotten, so a late copy is neither applied nor answered as if it were new.
    let before = w.store.clone();
    assert_eq!(apply(&mut w.store, &command).unwrap().reply, Err(Kind::Stale));
    assert_eq!(before, w.store);
}

#[test]
fn a_number_acknowledged_too_early_is_still_applied_once() {
    let (mut w, s) = World::new();
    let mut command = w.command(s, create(ROOT, "d", NewNode::Directory));
    command.acknowledged = u64::MAX;
    let first = apply(&mut w.store, &command).unwrap().reply;
    assert!(first.is_ok());
    assert_eq!(apply(&mut w.store, &command).unwrap().reply, first);
}

#[test]
fn time_never_runs_backwards() {
    let (mut w, s) = World::new();
    w.now = 5_000 * SECOND;
    let late = w.file(s, ROOT, "late");
    w.now = 3_000 * SECOND;
    let early = w.file(s, ROOT, "early");
    assert_eq!(w.view().attr(late).unwrap().mtime, w.view().attr(early).unwrap().mtime);
}

#[test]
fn a_node_has_one_session() {
    let (mut w, s) = World::new();
    let n = NodeId(1);
    assert_eq!(w.open(n, 1), s);
    let next = w.open(n, 2);
    assert_ne!(next, s);
    assert_eq!(w.run(s, unlink(ROOT, "x")), Err(Kind::Fenced));
    // A late copy of the first proposal does not end the newer session.
    assert_eq!(w.run(CLUSTER, Op::OpenSession { node: n, nonce: 1 }), Err(Kind::Fenced));
    assert_eq!(w.open(n, 2), next);
    assert_eq!(w.run(CLUSTER, Op::OpenSession { node: NodeId(9), nonce: 1 }), Err(Kind::NotFound));
    let live = w.view().sessions().unwrap();
    assert_eq!(live.len(), 1);
    assert_eq!((live[0].id, live[0].node, live[0].nonce), (next, n, 2));
    assert_eq!(w.run(CLUSTER, Op::CloseSessions(vec![next, s])), Ok(Reply::Count(1)));
    assert_eq!(w.run(CLUSTER, Op::CloseSessions(vec![next])), Ok(Reply::Count(0)));
    let of_sessions = |t| matches!(t, Table::Session | Table::Reply | Table::SessionItem | Table::Lock);
    assert_eq!(w.store.iter().filter(|(t, ..)| of_sessions(*t)).count(), 0);
}

#[test]
fn what_is_open_is_kept_and_what_is_not_goes() {
    let (mut w, s) = World::new();
    let t = w.join(2);
    let f = w.file(s, ROOT, "f");
    let chunk = w.chunk(s, 10);
    w.run(s, commit(f, vec![piece(chunk, 0, 0, 10)], 0)).unwrap();
    w.run(s, Op::Unlink { parent: ROOT, name: b"f".to_vec(), hold: true }).unwrap();
    w.run(t, Op::Hold { ino: f, hold: true }).unwrap();
    assert!(w.view().has_orphans().unwrap());
    w.now += 60 * SECOND;
    assert_eq!(w.run(CLUSTER, Op::Reap), Ok(Reply::Count(0)));
    w.run(s, Op::Hold { ino: f, hold: false }).unwrap();
    assert_eq!(w.run(CLUSTER, Op::Reap), Ok(Reply::Count(0)));
    // Still readable and writable; the other holder's node dies.
    w.run(t, commit(f, vec![Piece::Hole { offset: 3, len: 2 }], 20)).unwrap();
    w.run(CLUSTER, Op::CloseSessions(vec![t])).unwrap();
    let changes = w.changes(CLUSTER, Op::Reap);
    assert!(changes.contains(&Change::Reaped(f)) && changes.contains(&Change::ChunkFreed(chunk.id)));
    assert_eq!(w.view().attr(f).unwrap_err().kind(), Kind::NotFound);
    assert_eq!(w.run(s, commit(f, vec![], 30)), Err(Kind::Stale));
    assert_eq!(w.run(s, Op::Hold { ino: f, hold: true }), Err(Kind::Stale));
    assert_eq!(w.run(s, Op::Hold { ino: f, hold: false }), Ok(Reply::Done));
    assert!(!w.view().has_orphans().unwrap());
    // Nobody has it open: it still waits for those who may say so.
    w.file(s, ROOT, "g");
    w.run(s, unlink(ROOT, "g")).unwrap();
    assert_eq!(w.run(CLUSTER, Op::Reap), Ok(Reply::Count(0)));
    w.now += 10 * SECOND;
    assert_eq!(w.run(CLUSTER, Op::Reap), Ok(Reply::Count(1)));
}

#[test]
fn members_come_by_token_and_move_the_table() {
    let mut w = World::empty();
    let used = |id: &str, n: u8| Some(TokenUse { id: id.into(), secret_hash: [n; 32] });
    assert_eq!(w.run(CLUSTER, add_node(1, used("t", 7))), Err(Kind::Unauthorized));
    let s = w.join(1);
    assert_eq!(w.view().map().unwrap().epoch.0, 1);
    assert_eq!(w.run(CLUSTER, add_node(2, None)), Err(Kind::Unauthorized));
    let token =
        Token { id: "t".into(), secret_hash: [7; 32], expires: Timestamp(w.now + SECOND), revoked: false };
    w.run(s, Op::CreateToken(token.clone())).unwrap();
    w.run(s, Op::CreateToken(token.clone())).unwrap();
    let other = Token { secret_hash: [8; 32], ..token.clone() };
    assert_eq!(w.run(s, Op::CreateToken(other)), Err(Kind::Exists));
    assert_eq!(w.run(CLUSTER, add_node(2, used("t", 8))), Err(Kind::Unauthorized));
    assert_eq!(w.run(CLUSTER, add_node(2, used("u", 7))), Err(Kind::Unauthorized));
    let changes = w.changes(CLUSTER, add_node(2, used("t", 7)));
    assert_eq!(changes, [Change::Map]);
    let two = w.view().map().unwrap();
    assert!(two.table.iter().all(|row| row.len() == 2) && two.epoch.0 == 2);
    // The same key is the same node, whatever became of the token.
    w.now += 5 * SECOND;
    let again = w.run(CLUSTER, add_node(2, used("t", 7))).unwrap();
    assert!(matches!(again, Reply::Node(node) if node.id == NodeId(2)));
    assert_eq!(w.run(CLUSTER, add_node(3, used("t", 7))), Err(Kind::Unauthorized));
    let fresh = Token { id: "v".into(), expires: Timestamp(i64::MAX), ..token };
    w.run(s, Op::CreateToken(fresh)).unwrap();
    w.run(s, Op::RevokeToken("v".into())).unwrap();
    assert_eq!(w.run(s, Op::RevokeToken("w".into())), Err(Kind::NotFound));
    assert_eq!(w.run(CLUSTER, add_node(3, used("v", 7))), Err(Kind::Unauthorized));
    assert_eq!(w.view().tokens().unwrap().len(), 2);

    let update = |id, capacity, state| Op::UpdateNode { id: NodeId(id), addr: None, capacity, state };
    assert_eq!(w.run(CLUSTER, update(9, None, None)), Err(Kind::NotFound));
    assert_eq!(w.changes(CLUSTER, update(2, None, None)), []);
    assert_eq!(w.changes(CLUSTER, update(2, Some(5), Some(NodeState::Active))), [Change::Map]);
    assert_eq!(w.view().map().unwrap().table, two.table);
    w.run(CLUSTER, update(2, None, Some(NodeState::Leaving))).unwrap();
    assert!(w.view().map().unwrap().table.iter().all(|row| *row == [NodeId(1)]));
    let t = w.open(NodeId(2), 5);
    assert_eq!(w.changes(CLUSTER, Op::RemoveNode(NodeId(2))), [Change::SessionClosed(t), Change::Map]);
    assert_eq!(w.run(CLUSTER, Op::RemoveNode(NodeId(2))), Err(Kind::NotFound));
    assert_eq!(w.run(CLUSTER, add_node(2, used("v", 7))), Err(Kind::Unauthorized));
    let map = w.view().map().unwrap();
    assert_eq!((map.nodes.len(), map.epoch.0), (1, 5));
}
