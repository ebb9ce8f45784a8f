//! Random namespace operations against a simple tree of files made of plain bytes.

#![expect(clippy::unwrap_used, reason = "a failure ends the test")]

mod state_support;

use hfcache_base::limits::*;
use hfcache_base::meta::*;
use hfcache_base::seam::View as _;
use hfcache_base::{ChunkId, InodeId, Kind, SessionId};
use hfcache_raft::kv::Memory;
use hfcache_raft::state::apply;
use state_support::*;
use std::collections::{BTreeMap, BTreeSet, HashMap};

#[derive(Clone, Debug, PartialEq)]
enum Body {
    File(Vec<u8>),
    Dir(BTreeMap<String, u64>),
    Other,
}

#[derive(Clone, Debug)]
struct Thing {
    body: Body,
    links: u32,
    /// The directory it is counted in.
    home: u64,
    uid: u32,
}

/// The tree as a first-year student would write it.
struct Model {
    things: HashMap<u64, Thing>,
    orphans: BTreeSet<u64>,
}

fn byte(chunk: ChunkId, at: u32) -> u8 {
    (hfcache_base::placement::mix(chunk.0 << 20 | u64::from(at)) as u8) | 1
}

fn end_of(piece: &Piece) -> u64 {
    match piece {
        Piece::Inline(bytes) => bytes.len() as u64,
        Piece::Chunk(e) => e.end(),
        Piece::Hole { offset, len } => offset + len,
    }
}

type Answer = Result<Option<u64>, Kind>;

impl Model {
    fn new() -> Self {
        let root = Thing { body: Body::Dir(BTreeMap::new()), links: 1, home: 1, uid: 0 };
        Self { things: HashMap::from([(1, root)]), orphans: BTreeSet::new() }
    }

    fn dir(&mut self, ino: u64) -> Result<&mut BTreeMap<String, u64>, Kind> {
        let thing = self.things.get_mut(&ino).ok_or(Kind::NotFound)?;
        match &mut thing.body {
            Body::Dir(_) if thing.links == 0 => Err(Kind::NotFound),
            Body::Dir(names) => Ok(names),
            _ => Err(Kind::NotDirectory),
        }
    }

    fn is_dir(&self, ino: u64) -> bool {
        matches!(self.things[&ino].body, Body::Dir(_))
    }

    fn drop_link(&mut self, ino: u64) {
        let thing = self.things.get_mut(&ino).unwrap();
        thing.links -= 1;
        if thing.links == 0 {
            self.orphans.insert(ino);
        }
    }

    /// Directories in which an inode has names, lowest number first.
    fn dirs_of(&self, ino: u64) -> Vec<u64> {
        let holds = |t: &Thing| matches!(&t.body, Body::Dir(names) if names.values().any(|i| *i == ino));
        let dirs: BTreeSet<u64> = self.things.iter().filter(|(_, t)| holds(t)).map(|(i, _)| *i).collect();
        dirs.into_iter().collect()
    }

    /// A name of `ino` has left; `to` is where it went.
    fn settle_home(&mut self, ino: u64, to: Option<u64>) {
        let dirs = self.dirs_of(ino);
        let thing = self.things.get_mut(&ino).unwrap();
        if !dirs.is_empty() && !dirs.contains(&thing.home) {
            thing.home = to.unwrap_or(dirs[0]);
        }
    }

    fn find_parent(&self, dir: u64) -> u64 {
        let holds = |t: &Thing| matches!(&t.body, Body::Dir(names) if names.values().any(|i| *i == dir));
        self.things.iter().find(|(_, t)| holds(t)).map_or(1, |(i, _)| *i)
    }

    fn below(&self, mut at: u64, above: u64) -> bool {
        while at != above && at != 1 {
            at = self.find_parent(at);
        }
        at == above
    }

    fn create(&mut self, parent: u64, name: &str, body: Body, made: u64) -> Answer {
        let names = self.dir(parent)?;
        if names.contains_key(name) {
            return Err(Kind::Exists);
        }
        names.insert(name.into(), made);
        self.things.insert(made, Thing { body, links: 1, home: parent, uid: 10 });
        Ok(Some(made))
    }

    fn link(&mut self, ino: u64, parent: u64, name: &str) -> Answer {
        if self.dir(parent)?.contains_key(name) {
            return Err(Kind::Exists);
        }
        if self.is_dir(ino) {
            return Err(Kind::NotPermitted);
        }
        let thing = self.things.get_mut(&ino).ok_or(Kind::NotFound)?;
        if thing.links == 0 {
            return Err(Kind::NotFound);
        }
        thing.links += 1;
        self.dir(parent)?.insert(name.into(), ino);
        Ok(Some(ino))
    }

    fn remove(&mut self, parent: u64, name: &str, want_dir: bool) -> Answer {
        let ino = *self.dir(parent)?.get(name).ok_or(Kind::NotFound)?;
        match (&self.things[&ino].body, want_dir) {
            (Body::Dir(_), false) => return Err(Kind::IsDirectory),
            (Body::Dir(names), true) if !names.is_empty() => return Err(Kind::NotEmpty),
            (Body::Dir(_), true) => {}
            (_, true) => return Err(Kind::NotDirectory),
            (_, false) => {}
        }
        self.dir(parent)?.remove(name);
        self.drop_link(ino);
        self.settle_home(ino, None);
        Ok(None)
    }

    /// Where a name is, if its directory is somewhere.
    fn path(&self, dir: u64, name: &str) -> Option<String> {
        let (mut path, mut at) = (name.to_owned(), dir);
        while at != 1 {
            let above = self.find_parent(at);
            let Body::Dir(names) = &self.things.get(&above)?.body else { return None };
            path = format!("{}/{path}", names.iter().find(|(_, ino)| **ino == at)?.0);
            at = above;
        }
        Some(path)
    }

    /// A file comes back as it was, a directory as a new and empty one.
    fn restore(&mut self, ino: u64, made: u64, parent: u64, name: &str) -> Answer {
        if self.dir(parent)?.contains_key(name) {
            return Err(Kind::Exists);
        }
        let mut thing = self.things[&ino].clone();
        (thing.links, thing.home) = (1, parent);
        if !self.is_dir(ino) {
            assert!(made == ino && self.orphans.remove(&ino));
        }
        self.dir(parent)?.insert(name.into(), made);
        self.things.insert(made, thing);
        Ok(Some(made))
    }

    fn rename(&mut self, from: (u64, &str), to: (u64, &str), mode: RenameMode) -> Answer {
        self.dir(from.0)?;
        self.dir(to.0)?;
        let ino = *self.dir(from.0)?.get(from.1).ok_or(Kind::NotFound)?;
        let target = self.dir(to.0)?.get(to.1).copied();
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Kind::Exists),
            (RenameMode::Exchange, None) => return Err(Kind::NotFound),
            _ => {}
        }
        if self.is_dir(ino) && self.below(to.0, ino) {
            return Err(Kind::Invalid);
        }
        if target == Some(ino) {
            return Ok(None);
        }
        if mode == RenameMode::Exchange {
            let target = target.unwrap();
            if self.is_dir(target) && self.below(from.0, target) {
                return Err(Kind::Invalid);
            }
            self.dir(from.0)?.insert(from.1.into(), target);
            self.dir(to.0)?.insert(to.1.into(), ino);
            self.settle_home(ino, Some(to.0));
            self.settle_home(target, Some(from.0));
            return Ok(None);
        }
        if let Some(target) = target {
            match (self.is_dir(ino), &self.things[&target].body) {
                (true, Body::Dir(names)) if !names.is_empty() => return Err(Kind::NotEmpty),
                (true, Body::Dir(_)) => {}
                (true, _) => return Err(Kind::NotDirectory),
                (false, Body::Dir(_)) => return Err(Kind::IsDirectory),
                (false, _) => {}
            }
            self.drop_link(target);
        }
        self.dir(from.0)?.remove(from.1);
        self.dir(to.0)?.insert(to.1.into(), ino);
        if let Some(target) = target {
            self.settle_home(target, None);
        }
        self.settle_home(ino, Some(to.0));
        Ok(None)
    }

    /// What a directory and all below it use, by a walk over everything that is at home there.
    fn walk(&self, dir: u64, allocated: &HashMap<u64, u64>) -> Usage {
        let mut used = Usage { bytes: 0, inodes: 1 };
        for (ino, thing) in self.things.iter().filter(|(i, t)| t.home == dir && t.links > 0 && **i != 1) {
            let below = match thing.body {
                Body::Dir(_) => self.walk(*ino, allocated),
                _ => Usage { bytes: allocated[ino], inodes: 1 },
            };
            used.bytes += below.bytes;
            used.inodes += below.inodes;
        }
        used
    }

    fn bytes(&mut self, ino: u64) -> Result<&mut Vec<u8>, Kind> {
        match &mut self.things.get_mut(&ino).ok_or(Kind::Stale)?.body {
            Body::File(bytes) => Ok(bytes),
            Body::Dir(_) => Err(Kind::IsDirectory),
            Body::Other => Err(Kind::Invalid),
        }
    }

    /// Appending is writing at the end, wherever that is.
    fn append(&mut self, ino: u64, pieces: &[Piece], len: u64) -> Answer {
        let bytes = self.bytes(ino)?;
        let start = bytes.len() as u64;
        if let [Piece::Inline(new)] = pieces {
            bytes.extend_from_slice(new);
            return Ok(Some(ino));
        }
        let moved: Vec<Piece> = pieces
            .iter()
            .map(|piece| match piece.clone() {
                Piece::Chunk(e) => Piece::Chunk(Extent { offset: e.offset + start, ..e }),
                Piece::Hole { offset, len } => Piece::Hole { offset: offset + start, len },
                inline @ Piece::Inline(_) => inline,
            })
            .collect();
        self.commit(ino, &moved, start + len)
    }

    fn clone_range(&mut self, from: (u64, u64), to: (u64, u64), len: u64) -> Answer {
        let source = self.bytes(from.0)?.clone();
        self.bytes(to.0)?;
        let stop = (from.1 + len).min(source.len() as u64);
        if from.1 >= stop {
            return Ok(None);
        }
        let part = &source[from.1 as usize..stop as usize];
        let end = to.1 as usize + part.len();
        if from.0 == to.0 && (from.1 as usize) < end && to.1 < stop {
            return Err(Kind::Invalid);
        }
        let target = self.bytes(to.0)?;
        target.resize(end.max(target.len()), 0);
        target[to.1 as usize..end].copy_from_slice(part);
        Ok(None)
    }

    fn commit(&mut self, ino: u64, pieces: &[Piece], size: u64) -> Answer {
        let bytes = self.bytes(ino)?;
        if let [Piece::Inline(new)] = pieces {
            bytes.clone_from(new);
        }
        let size = (size as usize).max(if matches!(pieces, [Piece::Inline(_)]) { 0 } else { bytes.len() });
        bytes.resize(size, 0);
        for piece in pieces {
            match piece {
                Piece::Inline(_) => {}
                Piece::Chunk(e) => {
                    let end = e.end() as usize;
                    bytes.resize(end.max(bytes.len()), 0);
                    for i in 0..e.len {
                        bytes[e.offset as usize + i as usize] = byte(e.chunk.id, e.chunk_offset + i);
                    }
                }
                Piece::Hole { offset, len } => {
                    let end = ((offset + len) as usize).min(bytes.len());
                    let start = (*offset as usize).min(end);
                    bytes[start..end].fill(0);
                }
            }
        }
        Ok(Some(ino))
    }
}

struct Run {
    world: World,
    session: SessionId,
    model: Model,
    dice: Dice,
    /// Chunks in the namespace, by what was announced.
    announced: BTreeMap<ChunkId, ChunkRef>,
    freed: BTreeSet<ChunkId>,
    /// Whether what is deleted is kept.
    trash: bool,
    versions: HashMap<u64, (u64, Vec<u8>)>,
}

impl Run {
    fn any_inode(&mut self) -> u64 {
        let mut all: Vec<u64> = self.model.things.keys().copied().collect();
        all.sort_unstable();
        all[self.dice.below(all.len() as u64) as usize]
    }

    /// Mostly a directory.
    fn place(&mut self) -> u64 {
        let mut dirs: Vec<u64> =
            self.model.things.keys().copied().filter(|i| self.model.is_dir(*i)).collect();
        dirs.sort_unstable();
        let dir = dirs[self.dice.below(dirs.len() as u64) as usize];
        if self.dice.one_in(20) { self.any_inode() } else { dir }
    }

    fn name(&mut self) -> String {
        format!("n{}", self.dice.below(5))
    }

    fn pieces(&mut self) -> (Vec<Piece>, u64) {
        if self.dice.one_in(4) {
            let bytes: Vec<u8> = (0..self.dice.below(40)).map(|i| i as u8 + 1).collect();
            let size = bytes.len() as u64 + self.dice.below(2) * 10;
            return (vec![Piece::Inline(bytes)], size);
        }
        let mut pieces = Vec::new();
        let mut at = self.dice.below(30);
        for _ in 0..1 + self.dice.below(4) {
            let old: Vec<ChunkRef> = self.announced.values().copied().collect();
            let len = 1 + self.dice.below(40) as u32;
            if self.dice.one_in(4) {
                pieces.push(Piece::Hole { offset: at, len: u64::from(len) });
            } else {
                let shared = !old.is_empty() && self.dice.one_in(4);
                let chunk = if shared {
                    old[self.dice.below(old.len() as u64) as usize]
                } else {
                    self.world.chunk(self.session, len + self.dice.below(10) as u32)
                };
                let len = len.min(chunk.len);
                let skip = self.dice.below(u64::from(chunk.len - len) + 1) as u32;
                pieces.push(piece(chunk, at, skip, len));
            }
            at += u64::from(len) + self.dice.below(2) * self.dice.below(20);
        }
        (pieces, self.dice.below(100))
    }

    fn step(&mut self) {
        let (parent, name) = (self.place(), self.name());
        let (other, new_name) = (self.place(), self.name());
        let ino = self.any_inode();
        let (dir, id) = (InodeId(parent), InodeId(ino));
        let kind = self.dice.below(if self.trash { 32 } else { 26 });
        let kept = self.world.view().trash(None, 1_000).unwrap();
        let op = match kind {
            26.. if kept.is_empty() => Op::ExpireTrash,
            26 => {
                self.world.now += if self.dice.one_in(2) { 300 * SECOND } else { 0 };
                Op::ExpireTrash
            }
            27 => {
                self.world.now += if self.dice.one_in(2) { 11 * SECOND } else { 0 };
                let from = self.dice.below(kept.len() as u64) as usize;
                Op::EmptyTrash(kept[from..].iter().take(2).map(|t| t.id).collect())
            }
            28.. => {
                let id = kept[self.dice.below(kept.len() as u64) as usize].id;
                Op::Restore { id, parent: dir, name: name.clone().into_bytes() }
            }
            0..=3 => create(dir, &name, NewNode::File),
            4..=6 => create(dir, &name, NewNode::Directory),
            7 => create(dir, &name, NewNode::Symlink(b"t".to_vec())),
            8 => link(id, dir, &name),
            9..=10 => unlink(dir, &name),
            11 => rmdir(dir, &name),
            12..=14 => {
                let modes = [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange];
                let mode = modes[self.dice.below(5).saturating_sub(2) as usize];
                rename(dir, &name, InodeId(other), &new_name, mode)
            }
            15..=17 => {
                let (pieces, size) = self.pieces();
                commit(id, pieces, size)
            }
            18 => truncate(id, self.dice.below(120)),
            19..=20 => chown(id, 10 + self.dice.below(3) as u32, 20 + self.dice.below(2) as u32),
            21..=22 => {
                let (pieces, size) = self.pieces();
                let end = pieces.iter().map(end_of).max().unwrap_or(0);
                let inline = matches!(pieces[..], [Piece::Inline(_)]);
                let len = if inline { end } else { size.max(end) };
                let token = self.world.chunk(self.session, 1).id;
                Op::Append { ino: id, token, pieces, len, mtime: None }
            }
            23..=24 => {
                let (from_offset, to_offset) = (self.dice.below(100), self.dice.below(100));
                let (to, len) = (InodeId(self.any_inode()), 1 + self.dice.below(60));
                Op::Clone { from: id, from_offset, to, to_offset, len }
            }
            _ => {
                self.world.now += if self.dice.one_in(2) { 11 * SECOND } else { 0 };
                Op::Reap
            }
        };
        let deleted = match &op {
            Op::Unlink { .. } | Op::Rmdir { .. } => self.model.path(parent, &name),
            Op::Rename { .. } => self.model.path(other, &new_name),
            _ => None,
        };
        let outcome = self.world.outcome(self.session, op.clone());
        for new in self.world.view().trash(None, 1_000).unwrap().iter().filter(|t| !kept.contains(t)) {
            if kept.iter().all(|old| old.id != new.id) {
                assert_eq!(Some(String::from_utf8(new.path.clone()).unwrap()), deleted, "{op:?}");
            }
        }
        let made = match &outcome.reply {
            Ok(Reply::Entry { attr, .. }) => attr.ino.0,
            _ => 0,
        };
        let expect: Answer = match &op {
            Op::Create { node, .. } => {
                let body = match node {
                    NewNode::File => Body::File(Vec::new()),
                    NewNode::Directory => Body::Dir(BTreeMap::new()),
                    _ => Body::Other,
                };
                self.model.create(parent, &name, body, made)
            }
            Op::Link { .. } => self.model.link(ino, parent, &name),
            Op::Restore { id, .. } => self.model.restore(id.ino.0, made, parent, &name),
            Op::Unlink { .. } => self.model.remove(parent, &name, false),
            Op::Rmdir { .. } => self.model.remove(parent, &name, true),
            Op::Rename { mode, .. } => self.model.rename((parent, &name), (other, &new_name), *mode),
            Op::Commit { pieces, size, .. } => self.model.commit(ino, pieces, *size),
            Op::SetAttr { set: SetAttr { uid: Some(uid), .. }, .. } => self
                .model
                .things
                .get_mut(&ino)
                .ok_or(Kind::Stale)
                .map(|thing| thing.uid = *uid)
                .map(|()| None),
            // Only the state knows whether it has extents, where inline bytes have no place behind.
            Op::Append { .. } if outcome.reply == Err(Kind::Changed) => Err(Kind::Changed),
            Op::Append { len: 0, .. } => self.model.bytes(ino).and(Err(Kind::Invalid)),
            Op::Append { pieces, len, .. } => self.model.append(ino, pieces, *len),
            Op::Clone { from_offset, to, to_offset, len, .. } => {
                self.model.clone_range((ino, *from_offset), (to.0, *to_offset), *len)
            }
            Op::SetAttr { set, .. } => {
                self.model.bytes(ino).map(|b| b.resize(set.size.unwrap() as usize, 0)).map(|()| None)
            }
            _ => Ok(None),
        };
        match (&outcome.reply, &expect) {
            (Ok(_), Ok(_)) => {}
            (Err(a), Err(b)) if a == b => {}
            other => panic!("{op:?}: {other:?}"),
        }
        for change in outcome.applied.changes {
            match change {
                Change::ChunkAdded(chunk) => {
                    assert!(self.announced.insert(chunk.id, chunk).is_none(), "{chunk:?} twice");
                    assert!(!self.freed.contains(&chunk.id), "{chunk:?} after it was freed");
                }
                Change::ChunkFreed(id) => {
                    assert!(self.announced.remove(&id).is_some(), "{id} freed twice");
                    self.freed.insert(id);
                }
                Change::Reaped(ino) => {
                    assert!(self.model.orphans.remove(&ino.0));
                    self.model.things.remove(&ino.0);
                    self.versions.remove(&ino.0);
                }
                _ => {}
            }
        }
    }

    /// Every counter is what a walk finds.
    fn compare_usage(&self) {
        let view = self.world.view();
        let mut allocated = HashMap::new();
        let mut owners: BTreeMap<Subject, Usage> = BTreeMap::new();
        for (ino, thing) in &self.model.things {
            let attr = view.attr(InodeId(*ino)).unwrap();
            assert_eq!(attr.uid, thing.uid);
            allocated.insert(*ino, attr.allocated);
            for owner in [Subject::User(attr.uid), Subject::Group(attr.gid)] {
                let used = owners.entry(owner).or_default();
                used.bytes += attr.allocated;
                used.inodes += 1;
            }
        }
        for (ino, thing) in self.model.things.iter().filter(|(_, t)| matches!(t.body, Body::Dir(_))) {
            let none = Usage::default();
            let walked = if thing.links == 0 { none } else { self.model.walk(*ino, &allocated) };
            assert_eq!(view.usage(Subject::Tree(InodeId(*ino))).unwrap(), walked, "{ino}");
        }
        for id in 0..30 {
            for owner in [Subject::User(id), Subject::Group(id)] {
                let walked = owners.get(&owner).copied().unwrap_or_default();
                assert_eq!(view.usage(owner).unwrap(), walked, "{owner:?}");
            }
        }
    }

    /// Everything the state says is what the model says.
    fn compare(&mut self) {
        let view = self.world.view();
        let (mut inline, mut refs) = (0, BTreeSet::new());
        for (ino, thing) in &self.model.things {
            let id = InodeId(*ino);
            let attr = view.attr(id).unwrap();
            match &thing.body {
                Body::Dir(names) => {
                    let rows = view.readdir(id, 0, 100).unwrap();
                    let there: BTreeMap<String, u64> = rows
                        .iter()
                        .map(|r| (String::from_utf8(r.name.clone()).unwrap(), r.attr.ino.0))
                        .collect();
                    assert_eq!(&there, names);
                    let subs = names.values().filter(|i| self.model.is_dir(**i)).count() as u32;
                    let links = if thing.links == 0 { 0 } else { 2 + subs };
                    assert_eq!((attr.nlink, attr.size), (links, names.len() as u64), "{id}");
                    for sub in names.values().filter(|i| self.model.is_dir(**i)) {
                        assert_eq!(view.parent(InodeId(*sub)).unwrap(), id);
                    }
                }
                Body::File(bytes) => {
                    let (same, content) = view.content(id).unwrap();
                    assert_eq!(same, attr);
                    assert_eq!((attr.nlink, attr.size), (thing.links, bytes.len() as u64));
                    let mut read = content.inline.clone();
                    assert!(read.len() <= INLINE_MAX && read.len() <= bytes.len());
                    read.resize(bytes.len(), 0);
                    let mut last = 0;
                    let mut held = content.inline.len() as u64;
                    for e in &content.extents {
                        assert!(e.len > 0 && e.offset >= last && e.end() <= attr.size, "{content:?}");
                        last = e.end();
                        held += u64::from(e.len);
                        refs.insert(e.chunk.id);
                        for i in 0..e.len {
                            read[e.offset as usize + i as usize] = byte(e.chunk.id, e.chunk_offset + i);
                        }
                    }
                    assert_eq!(&read, bytes, "{id}");
                    assert_eq!(attr.allocated, held);
                    inline += content.inline.len() as u64;
                    let before = self.versions.insert(*ino, (attr.data_version, bytes.clone()));
                    if let Some((version, old)) = before {
                        assert!(version != attr.data_version || old == *bytes);
                    }
                }
                Body::Other => assert_eq!(attr.nlink, thing.links),
            }
        }
        let announced: BTreeSet<ChunkId> = self.announced.keys().copied().collect();
        assert_eq!(refs, announced);
        let listed = view.chunks(ChunkId(0), 10_000).unwrap();
        assert_eq!(listed, self.announced.values().copied().collect::<Vec<_>>());
        let bytes = inline + listed.iter().map(|c| u64::from(c.len)).sum::<u64>();
        let kept = view.trash(None, 1_000).unwrap().len() as u64;
        assert_eq!(view.trash_entries().unwrap(), kept);
        let inodes = (self.model.things.len() - self.model.orphans.len()) as u64;
        let totals = Totals { inodes, bytes, chunks: listed.len() as u64 };
        assert_eq!(view.totals().unwrap(), totals);
    }
}

#[test]
fn the_namespace_is_a_tree_of_files_made_of_bytes() {
    for seed in 1..=60u64 {
        println!("seed {seed}");
        let trash = seed > 40;
        let (mut world, session) = World::new();
        if trash {
            world.run(session, Op::SetTrash { retention: 600 }).unwrap();
        }
        let mut run = Run {
            world,
            session,
            model: Model::new(),
            dice: Dice(seed << 32),
            announced: BTreeMap::new(),
            freed: BTreeSet::new(),
            trash,
            versions: HashMap::new(),
        };
        for _ in 0..250 {
            run.step();
            run.compare();
            run.compare_usage();
        }
        // The same commands leave the same bytes in another store.
        let mut twin = Memory::new();
        for command in &run.world.log {
            apply(&mut twin, command).unwrap();
        }
        assert_eq!(twin, run.world.store);
    }
}

#[test]
fn a_directory_is_listed_page_by_page_without_gaps() {
    let (mut w, s) = World::new();
    let names: BTreeSet<Vec<u8>> = (0..300).map(|n| format!("name-{n}").into_bytes()).collect();
    for name in &names {
        w.file(s, ROOT, std::str::from_utf8(name).unwrap());
    }
    for limit in [1, 2, 7, 100, 1_000] {
        let (mut seen, mut after) = (BTreeSet::new(), 0);
        loop {
            let page = w.view().readdir(ROOT, after, limit).unwrap();
            let Some(last) = page.last() else { break };
            assert!(page.iter().all(|row| row.cookie > after && row.cookie > 2));
            after = last.cookie;
            assert!(page.into_iter().all(|row| seen.insert(row.name)));
        }
        assert_eq!(seen, names);
    }
    assert!(w.view().readdir(ROOT, u64::MAX, 10).unwrap().is_empty());
}
