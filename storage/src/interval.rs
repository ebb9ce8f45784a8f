//! A set of byte ranges: which parts of a sparse file are present. Pure.

use std::collections::BTreeMap;
use std::ops::Range;

/// Ranges that neither overlap nor touch, by their start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intervals(BTreeMap<u64, u64>);

impl Intervals {
    /// Adds a range.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        // Everything that overlaps or touches becomes part of the new range; from the back, so that only
        // the last one can begin before it.
        while let Some((&s, &e)) = self.0.range(..=end).next_back() {
            if e < start {
                break;
            }
            self.0.remove(&s);
            start = start.min(s);
            end = end.max(e);
        }
        self.0.insert(start, end);
    }

    /// Takes a range away.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        while let Some((&s, &e)) = self.0.range(..range.end).next_back() {
            if e <= range.start {
                break;
            }
            self.0.remove(&s);
            if s < range.start {
                self.0.insert(s, range.start);
            }
            if e > range.end {
                self.0.insert(range.end, e);
            }
        }
    }

    /// The parts of a range that are not in the set, in order.
    pub fn gaps(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        if range.is_empty() {
            return gaps;
        }
        let mut at = range.start;
        let before = self.0.range(..=range.start).next_back();
        let inside =
            self.0.range(range.start.saturating_add(1)..range.end.max(range.start.saturating_add(1)));
        for (&s, &e) in before.into_iter().chain(inside) {
            if s > at {
                gaps.push(at..s);
            }
            at = at.max(e);
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        gaps
    }

    /// Bytes in the set.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|(s, e)| e - s).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaves_like_a_set_of_numbers() {
        for seed in 0..300u64 {
            let (mut set, mut model) = (Intervals::default(), [false; 64]);
            let mut x = seed;
            for _ in 0..60 {
                x = hfcache_base::placement::mix(x);
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
                assert_eq!(set.total(), model.iter().filter(|p| **p).count() as u64);
                let (from, to) = ((x >> 30) % 64, (x >> 36) % 65);
                let gaps = set.gaps(from..to);
                for n in 0..64u64 {
                    let absent = (from..to).contains(&n) && !model[n as usize];
                    assert_eq!(gaps.iter().any(|g| g.contains(&n)), absent, "{n} in {from}..{to}: {set:?}");
                }
                assert!(gaps.windows(2).all(|w| w[0].end < w[1].start));
                // Touching ranges are one, so the map never grows without need.
                let ranges: Vec<_> = set.0.iter().collect();
                assert!(ranges.windows(2).all(|w| w[0].1 < w[1].0));
            }
        }
    }
}
