//! A file-system exerciser of our own: random operations on one file, next to the bytes it must have.
//!
//! It does what `fsx` has no mode for: O_DIRECT beside buffered reads, `FALLOC_FL_ZERO_RANGE`, holes that
//! `lseek` tells of, and nodes that take turns on one file.

use super::calls::{self, Space};
use crate::random::Random;
use crate::sys::{Map, MapKind};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

/// Alignment that O_DIRECT asks for.
const SECTOR: u64 = 4096;
/// A file lives this many operations; then the next one has another greatest size.
const LIFE: u64 = 5_000;
/// Greatest sizes, in turn: within one chunk, and over several.
const SIZES: [u64; 3] = [256 << 10, 40 << 10, 3 << 20];
/// Most bytes of one operation.
const SPAN: u64 = 64 << 10;
/// Operations that are told when it fails.
const TOLD: usize = 40;

/// What shall be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The directory, through one node after the other.
    pub views: Vec<PathBuf>,
    /// With O_DIRECT, beside a buffered descriptor.
    pub direct: bool,
    /// How many operations.
    pub operations: u64,
    /// Where they come from.
    pub seed: u64,
    /// Expects a wrong byte from this operation on: shows that it would be found.
    pub sabotage: Option<u64>,
}

/// Bytes that begin at an address O_DIRECT takes.
struct Aligned {
    bytes: Vec<u8>,
    skip: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let bytes = vec![0; len + SECTOR as usize];
        let skip = bytes.as_ptr().align_offset(SECTOR as usize);
        Self { bytes, skip, len }
    }

    fn get(&self) -> &[u8] {
        &self.bytes[self.skip..self.skip + self.len]
    }

    fn get_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.skip..self.skip + self.len]
    }
}

/// What went wrong, in words.
type Wrong = String;

fn said<T>(what: &str, result: io::Result<T>) -> Result<T, Wrong> {
    result.map_err(|why| format!("{what}: {why}"))
}

struct Exerciser<'a> {
    plan: &'a Plan,
    random: Random,
    told: VecDeque<String>,
    /// What the file must hold.
    model: Vec<u8>,
    size_max: u64,
    name: String,
    view: usize,
    file: File,
    buffered: File,
    /// Operations until the next node has its turn.
    turn: u64,
}

/// Does it.
///
/// # Errors
/// With the seed, the operation that was wrong, and those before it.
pub fn exercise(plan: &Plan) -> Result<(), Wrong> {
    let mut random = Random::new(plan.seed);
    let mut done = 0;
    let mut round = 0;
    while done < plan.operations {
        let count = LIFE.min(plan.operations - done);
        let seed = random.number();
        let mut told = VecDeque::new();
        life(plan, seed, round, done, count, &mut told).map_err(|why| {
            let before: Vec<String> = told.into_iter().collect();
            format!("seed {} (HFCACHE_SEED): {why}\nthe last operations:\n{}", plan.seed, before.join("\n"))
        })?;
        done += count;
        round += 1;
    }
    Ok(())
}

/// One file, from its making to its end.
fn life(
    plan: &Plan,
    seed: u64,
    round: u64,
    done: u64,
    count: u64,
    told: &mut VecDeque<String>,
) -> Result<(), Wrong> {
    let name = format!("exercised-{round}");
    let path = plan.views[0].join(&name);
    said("create", File::create_new(&path))?;
    let (file, buffered) = open(plan, 0, &name)?;
    let mut it = Exerciser {
        plan,
        random: Random::new(seed),
        told: std::mem::take(told),
        model: Vec::new(),
        size_max: SIZES[(round % 3) as usize],
        name,
        view: 0,
        file,
        buffered,
        turn: 20,
    };
    let mut result = Ok(());
    for step in done..done + count {
        if plan.sabotage.is_some_and(|from| step >= from)
            && let Some(byte) = it.model.first_mut()
        {
            *byte ^= 1;
        }
        result = it.step(step);
        if result.is_err() {
            break;
        }
    }
    result = result.and_then(|()| it.next_view()).and_then(|()| it.compare_all());
    *told = it.told;
    result?;
    said("remove", std::fs::remove_file(path))
}

/// The descriptor under test and a buffered one.
fn open(plan: &Plan, view: usize, name: &str) -> Result<(File, File), Wrong> {
    let path = plan.views[view].join(name);
    let flags = if plan.direct { libc::O_DIRECT } else { 0 };
    let file = said("open", File::options().read(true).write(true).custom_flags(flags).open(&path))?;
    let buffered = said("open", File::options().read(true).write(true).open(&path))?;
    Ok((file, buffered))
}

impl Exerciser<'_> {
    fn tell(&mut self, step: u64, what: &str) {
        if self.told.len() == TOLD {
            self.told.pop_front();
        }
        self.told.push_back(format!("  {step} on view {}: {what}", self.view));
    }

    fn size(&self) -> u64 {
        self.model.len() as u64
    }

    /// Down to a sector's start where O_DIRECT needs that.
    fn align(&self, at: u64) -> u64 {
        if self.plan.direct { at / SECTOR * SECTOR } else { at }
    }

    /// A range that may lie past the end, and is within the greatest size. Small ones are as likely as large ones.
    fn range(&mut self) -> (u64, u64) {
        let at = self.random.below(self.size_max);
        let span = [16, 5_000, SPAN][self.random.below(3) as usize];
        let len = (self.random.below(span) + 1).min(self.size_max - at);
        let (at, len) = (self.align(at), self.align(len + SECTOR - 1));
        (at, if self.plan.direct { len } else { len.min(self.size_max - at) })
    }

    /// A range of what is there.
    fn inside(&mut self) -> (u64, u64) {
        let size = self.size();
        let at = self.random.below(size);
        let at = self.align(at);
        let (_, len) = self.range();
        (at, len.min(size - at))
    }

    fn grow(&mut self, to: u64) {
        if to > self.size() {
            self.model.resize(to as usize, 0);
        }
    }

    fn zero(&mut self, at: u64, len: u64) {
        let (from, to) = (at.min(self.size()) as usize, (at + len).min(self.size()) as usize);
        self.model[from..to].fill(0);
    }

    fn fresh(&mut self, len: u64) -> Aligned {
        let mut bytes = Aligned::new(len as usize);
        let word = self.random.number() | 1;
        let mut state = word;
        for chunk in bytes.get_mut().chunks_mut(8) {
            state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(word);
            chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
        }
        bytes
    }

    fn step(&mut self, step: u64) -> Result<(), Wrong> {
        let choice = self.random.below(100);
        match choice {
            0..25 => self.read(step)?,
            25..50 => self.write(step)?,
            50..56 => self.map_read(step)?,
            56..64 => self.map_write(step)?,
            64..70 => self.truncate(step)?,
            70..82 => self.space(step, choice)?,
            82..88 => self.copy(step)?,
            88..92 => self.sync(step, choice)?,
            92..96 => self.seek(step)?,
            _ => self.reopen(step)?,
        }
        let len = said("fstat", self.file.metadata())?.len();
        if len != self.size() {
            return Err(format!("operation {step}: the size is {len} and should be {}", self.size()));
        }
        self.turn -= 1;
        if self.turn == 0 {
            self.turn = self.random.below(40) + 1;
            if self.plan.views.len() > 1 {
                self.next_view()?;
                let view = self.view;
                self.tell(step, &format!("view {view} has its turn"));
                self.compare_all().map_err(|why| format!("after operation {step}, at a turn: {why}"))?;
            }
        }
        Ok(())
    }

    fn compare(&self, at: u64, got: &[u8]) -> Result<(), Wrong> {
        let want = &self.model[at as usize..at as usize + got.len()];
        match want.iter().zip(got).position(|(w, g)| w != g) {
            None => Ok(()),
            Some(first) => {
                let bad = want.iter().zip(got).filter(|(w, g)| w != g).count();
                let zeros = want.iter().zip(got).filter(|(w, g)| w != g && **g == 0).count();
                Err(format!(
                    "byte {:#x} is {:#04x} and should be {:#04x}; {bad} of {} bytes from {at:#x} on are wrong, {zeros} of \
                     them are 0",
                    at as usize + first,
                    got[first],
                    want[first],
                    got.len()
                ))
            }
        }
    }

    fn compare_all(&self) -> Result<(), Wrong> {
        let got = said("read all", std::fs::read(self.plan.views[self.view].join(&self.name)))?;
        if got.len() != self.model.len() {
            return Err(format!(
                "the whole file has {} bytes and should have {}",
                got.len(),
                self.model.len()
            ));
        }
        self.compare(0, &got)
    }

    fn read(&mut self, step: u64) -> Result<(), Wrong> {
        if self.size() == 0 {
            return Ok(());
        }
        let other = self.plan.direct && self.random.below(4) == 0;
        let (at, len) = self.inside();
        self.tell(step, &format!("read {len:#x} at {at:#x}{}", if other { ", buffered" } else { "" }));
        // O_DIRECT reads whole sectors, and stops at the end of the file.
        let room = if self.plan.direct { len.div_ceil(SECTOR) * SECTOR } else { len };
        let mut bytes = Aligned::new(room as usize);
        let file = if other { &self.buffered } else { &self.file };
        let mut got = 0;
        while got < len as usize {
            let n = said("read", file.read_at(&mut bytes.get_mut()[got..], at + got as u64))?;
            if n == 0 {
                return Err(format!("operation {step}: read ends after {got:#x} bytes of {len:#x}"));
            }
            got += n;
        }
        let got = got.min((self.size() - at) as usize);
        self.compare(at, &bytes.get()[..got]).map_err(|why| format!("operation {step}, read: {why}"))
    }

    fn write(&mut self, step: u64) -> Result<(), Wrong> {
        let (at, len) = self.range();
        self.tell(step, &format!("write {len:#x} at {at:#x}"));
        let bytes = self.fresh(len);
        said("write", self.file.write_all_at(bytes.get(), at))?;
        self.put(at, bytes.get());
        Ok(())
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.grow(at + bytes.len() as u64);
        self.model[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    }

    fn map_read(&mut self, step: u64) -> Result<(), Wrong> {
        if self.size() == 0 {
            return Ok(());
        }
        let (at, len) = self.inside();
        self.tell(step, &format!("read {len:#x} at {at:#x} of a mapping"));
        let map = said("map", Map::new(&self.buffered, (at + len) as usize, MapKind::Read))?;
        self.compare(at, &map[at as usize..]).map_err(|why| format!("operation {step}, mapping: {why}"))
    }

    fn map_write(&mut self, step: u64) -> Result<(), Wrong> {
        let (at, len) = self.range();
        self.tell(step, &format!("write {len:#x} at {at:#x} of a mapping"));
        let end = at + len;
        if end > self.size() {
            said("make it larger", self.buffered.set_len(end))?;
            self.grow(end);
        }
        let bytes = self.fresh(len);
        let mut map = said("map", Map::new(&self.buffered, end as usize, MapKind::SharedWrite))?;
        map[at as usize..].copy_from_slice(bytes.get());
        said("msync", map.sync())?;
        drop(map);
        self.put(at, bytes.get());
        Ok(())
    }

    fn truncate(&mut self, step: u64) -> Result<(), Wrong> {
        let size = self.random.below(self.size_max + 1);
        self.tell(step, &format!("truncate from {:#x} to {size:#x}", self.size()));
        said("truncate", self.file.set_len(size))?;
        self.model.resize(size as usize, 0);
        Ok(())
    }

    fn space(&mut self, step: u64, choice: u64) -> Result<(), Wrong> {
        let what = match choice {
            70..73 => Space::Allocate,
            73..75 => Space::AllocateKeep,
            75..78 => Space::Punch,
            78..80 => Space::Zero,
            _ => Space::ZeroKeep,
        };
        // Any edge, also in O_DIRECT's turn: what is between sectors is where it goes wrong.
        let at = self.random.below(self.size_max);
        let len = (self.random.below(SPAN) + 1).min(self.size_max - at);
        self.tell(step, &format!("{what:?} {len:#x} at {at:#x}"));
        said(&format!("{what:?}"), calls::fallocate(&self.file, what, at, len))?;
        match what {
            Space::Allocate => self.grow(at + len),
            Space::AllocateKeep => {}
            Space::Punch | Space::ZeroKeep => self.zero(at, len),
            Space::Zero => {
                self.zero(at, len);
                self.grow(at + len);
            }
        }
        Ok(())
    }

    fn copy(&mut self, step: u64) -> Result<(), Wrong> {
        if self.size() == 0 {
            return Ok(());
        }
        let (from, mut len) = self.inside();
        let to = self.random.below(self.size_max);
        len = len.min(self.size_max - to);
        // One file may not overlap itself.
        len = len.min(from.abs_diff(to));
        self.tell(step, &format!("copy {len:#x} from {from:#x} to {to:#x}"));
        let mut done = 0;
        while done < len {
            let rest = (len - done) as usize;
            let file = &self.buffered;
            let n = said("copy_file_range", calls::copy_range(file, from + done, file, to + done, rest))?;
            if n == 0 {
                return Err(format!("operation {step}: copy_file_range stops after {done:#x} of {len:#x}"));
            }
            done += n as u64;
        }
        let bytes = self.model[from as usize..(from + len) as usize].to_vec();
        if !bytes.is_empty() {
            self.put(to, &bytes);
        }
        Ok(())
    }

    fn sync(&mut self, step: u64, choice: u64) -> Result<(), Wrong> {
        self.tell(step, "sync");
        if choice.is_multiple_of(2) {
            said("fsync", self.file.sync_all())
        } else {
            said("fdatasync", self.file.sync_data())
        }
    }

    /// Wherever `lseek` tells of a hole, there must be zeros.
    fn seek(&mut self, step: u64) -> Result<(), Wrong> {
        self.tell(step, "look for holes");
        let size = self.size();
        let mut at = 0;
        while at < size {
            let data = said("SEEK_DATA", calls::seek(&self.file, at, true))?.unwrap_or(size);
            if data < at || data > size {
                return Err(format!("operation {step}: SEEK_DATA from {at:#x} says {data:#x} of {size:#x}"));
            }
            if let Some(lost) = self.model[at as usize..data as usize].iter().position(|b| *b != 0) {
                let lost = at + lost as u64;
                return Err(format!(
                    "operation {step}: SEEK_DATA from {at:#x} says {data:#x}, past data at {lost:#x}"
                ));
            }
            if data == size {
                break;
            }
            let hole = said("SEEK_HOLE", calls::seek(&self.file, data, false))?
                .ok_or_else(|| format!("operation {step}: no SEEK_HOLE from {data:#x} of {size:#x} on"))?;
            if hole <= data || hole > size {
                return Err(format!(
                    "operation {step}: SEEK_HOLE from {data:#x} says {hole:#x} of {size:#x}"
                ));
            }
            at = hole;
        }
        Ok(())
    }

    fn reopen(&mut self, step: u64) -> Result<(), Wrong> {
        self.tell(step, "close and open");
        (self.file, self.buffered) = self.opened_after_close(self.view)?;
        Ok(())
    }

    /// The next node's turn: close here, then open there.
    fn next_view(&mut self) -> Result<(), Wrong> {
        self.view = (self.view + 1) % self.plan.views.len();
        (self.file, self.buffered) = self.opened_after_close(self.view)?;
        Ok(())
    }

    /// Opens at a view, with what was open closed before: close-to-open promises nothing else.
    fn opened_after_close(&mut self, view: usize) -> Result<(File, File), Wrong> {
        let nothing = || said("open /dev/null", File::open("/dev/null"));
        (self.file, self.buffered) = (nothing()?, nothing()?);
        open(self.plan, view, &self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(name: &str, direct: bool, sabotage: Option<u64>) -> Result<(), Wrong> {
        let dir = crate::binary::target_dirs().0.join(format!("hfcache-tests/{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let plan = Plan {
            views: vec![dir.clone(), dir.clone()],
            direct,
            operations: 2_000,
            seed: super::super::seed(),
            sabotage,
        };
        let result = exercise(&plan);
        std::fs::remove_dir_all(dir).unwrap();
        result
    }

    #[test]
    fn the_local_file_system_passes() {
        local("exercise", false, None).unwrap();
        local("exercise-direct", true, None).unwrap();
    }

    #[test]
    fn one_wrong_byte_is_found() {
        let why = local("exercise-wrong", false, Some(500)).unwrap_err();
        assert!(why.starts_with("seed ") && why.contains("should be"), "{why}");
    }
}
