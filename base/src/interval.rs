//! Sets of byte ranges: what of a file is present, dirty or on its way. Pure.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of bytes, as disjoint ranges that never touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IntervalSet {
    /// Start → end.
    ranges: BTreeMap<u64, u64>,
}

impl IntervalSet {
    /// Adds a range.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        // Everything that overlaps or touches melts into one.
        while let Some((&s, &e)) = self.ranges.range(..=end).next_back() {
            if e < start {
                break;
            }
            start = start.min(s);
            end = end.max(e);
            self.ranges.remove(&s);
        }
        self.ranges.insert(start, end);
    }

    /// Takes a range out.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        while let Some((&s, &e)) = self.ranges.range(..range.end).next_back() {
            if e <= range.start {
                break;
            }
            self.ranges.remove(&s);
            if s < range.start {
                self.ranges.insert(s, range.start);
            }
            if e > range.end {
                self.ranges.insert(range.end, e);
            }
        }
    }

    /// Whether every byte of the range is in the set.
    pub fn contains(&self, range: &Range<u64>) -> bool {
        range.is_empty()
            || self.ranges.range(..=range.start).next_back().is_some_and(|(_, &e)| e >= range.end)
    }

    /// The parts of the range that are in the set, in order.
    pub fn within(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        if range.is_empty() {
            return Vec::new();
        }
        let mut found: Vec<_> = self
            .ranges
            .range(..range.end)
            .rev()
            .take_while(|&(_, &e)| e > range.start)
            .map(|(&s, &e)| s.max(range.start)..e.min(range.end))
            .collect();
        found.reverse();
        found
    }

    /// The parts of the range that are not in the set, in order.
    pub fn gaps(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = range.start;
        for r in self.within(range) {
            if r.start > at {
                gaps.push(at..r.start);
            }
            at = r.end;
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        gaps
    }

    /// Whether a byte is in the set, and the first one after it of which the opposite is true.
    pub fn at(&self, at: u64) -> (bool, u64) {
        match self.ranges.range(..=at).next_back() {
            Some((_, &end)) if end > at => (true, end),
            _ => (false, self.ranges.range(at..).next().map_or(u64::MAX, |(&start, _)| start)),
        }
    }

    /// All ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges.iter().map(|(&s, &e)| s..e)
    }

    /// Takes every range of another set out.
    pub fn subtract(&mut self, other: &Self) {
        for r in other.iter() {
            self.remove(r);
        }
    }

    /// How many bytes.
    pub fn bytes(&self) -> u64 {
        self.iter().map(|r| r.end - r.start).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A generator with a fixed sequence, so that a failure repeats.
    struct Draw(u64);

    impl Draw {
        fn below(&mut self, n: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % n
        }
    }

    #[test]
    fn it_is_a_set_of_bytes() {
        for seed in 0..30 {
            let mut draw = Draw(seed);
            let mut set = IntervalSet::default();
            let mut model = [false; 64];
            for step in 0..60 {
                let (a, b) = (draw.below(65), draw.below(65));
                let range = a.min(b)..a.max(b);
                let add = draw.below(2) == 0;
                if add {
                    set.insert(range.clone());
                } else {
                    set.remove(range.clone());
                }
                model[range.start as usize..range.end as usize].fill(add);
                check(&set, &model, &format!("seed {seed} step {step}"));
            }
        }
    }

    fn check(set: &IntervalSet, model: &[bool; 64], what: &str) {
        let mut flat = [false; 64];
        let mut last_end = None;
        for r in set.iter() {
            assert!(r.start < r.end && last_end.is_none_or(|e| e < r.start), "{what}: {set:?}");
            last_end = Some(r.end);
            flat[r.start as usize..r.end as usize].fill(true);
        }
        assert_eq!(&flat, model, "{what}");
        assert_eq!(set.bytes(), model.iter().filter(|b| **b).count() as u64, "{what}");
        for start in 0..=64u64 {
            for end in start..=64u64 {
                let range = start..end;
                let part = &model[start as usize..end as usize];
                assert_eq!(set.contains(&range), part.iter().all(|b| *b), "{what} {range:?}");
                let inside: u64 = set.within(&range).iter().map(|r| r.end - r.start).sum();
                let outside: u64 = set.gaps(&range).iter().map(|r| r.end - r.start).sum();
                assert_eq!(inside, part.iter().filter(|b| **b).count() as u64, "{what} {range:?}");
                assert_eq!(inside + outside, end - start, "{what} {range:?}");
            }
        }
    }

    #[test]
    fn behaves_like_a_set_of_numbers() {
        for seed in 0..300u64 {
            let (mut set, mut model) = (IntervalSet::default(), [false; 64]);
            let mut x = seed;
            for _ in 0..60 {
                x = crate::placement::mix(x);
                let (a, b) = ((x % 64) as usize, ((x >> 8) % 65) as usize);
                let range = a.min(b)..b.max(a);
                let add = x >> 20 & 3 != 0;
                model[range.clone()].fill(add);
                let wide = range.start as u64..range.end as u64;
                if add {
                    set.insert(wide)
                } else {
                    set.remove(wide)
                }
                assert_eq!(set.bytes(), model.iter().filter(|p| **p).count() as u64);
                let (from, to) = ((x >> 30) % 64, (x >> 36) % 65);
                let (inside, until) = set.at(from);
                let change = (from as usize..64).find(|n| model[*n] != model[from as usize]);
                let never = if inside { 64 } else { u64::MAX };
                assert_eq!((inside, until), (model[from as usize], change.map_or(never, |n| n as u64)));
                let gaps = set.gaps(&(from..to));
                for n in 0..64u64 {
                    let absent = (from..to).contains(&n) && !model[n as usize];
                    assert_eq!(gaps.iter().any(|g| g.contains(&n)), absent, "{n} in {from}..{to}: {set:?}");
                }
                assert!(gaps.windows(2).all(|w| w[0].end < w[1].start));
                // Touching ranges are one, so the map never grows without need.
                let ranges: Vec<_> = set.ranges.iter().collect();
                assert!(ranges.windows(2).all(|w| w[0].1 < w[1].0));
            }
        }
    }
}
