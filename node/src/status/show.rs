//! The status for people.

use super::{Role, State, Status};
use std::fmt;

/// Bytes in binary units.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Joined => "joined",
            Self::Leaving => "leaving",
        }
    }
}

impl Role {
    fn word(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Voter => "voter",
            Self::Learner => "learner",
            Self::None => "-",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", if self.healthy { "HEALTHY" } else { "DEGRADED" })?;
        for problem in &self.problems {
            writeln!(f, "  ! {problem}")?;
        }
        let head = ["ID", "NAME", "ADDRESS", "STATE", "ROLE", "STORAGE"].map(str::to_owned);
        let mut rows = vec![head];
        for n in &self.nodes {
            let storage = if n.storage {
                format!("{} of {}", bytes(n.used), bytes(n.capacity))
            } else {
                "mount only".into()
            };
            let name: String = n.name.chars().take(24).collect();
            rows.push([
                n.id.to_string(),
                name,
                n.addr.to_string(),
                n.state.word().into(),
                n.role.word().into(),
                storage,
            ]);
        }
        let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..6).map(width).collect();
        for row in &rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}  "));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        let r = &self.redundancy;
        let protection = match r {
            r if r.full => "full".to_owned(),
            r if r.missing_shards > 0 => format!("{} shards missing, being rebuilt", r.missing_shards),
            r if r.down_nodes > 0 => {
                format!("reduced: about {} are on nodes that do not answer", bytes(r.at_risk_bytes))
            }
            _ => "being checked".to_owned(),
        };
        writeln!(
            f,
            "redundancy  {protection}\nnew data    {} ({})",
            r.scheme,
            match r.tolerates {
                0 => "no storage node may be lost".to_owned(),
                1 => "any one storage node may be lost".to_owned(),
                n => format!("any {n} storage nodes may be lost"),
            }
        )?;
        let t = &self.totals;
        writeln!(
            f,
            "stored      {} in {} files and directories; {} of {} free",
            bytes(t.bytes),
            t.inodes,
            bytes(t.free),
            bytes(t.capacity)
        )?;
        if t.trash > 0 {
            writeln!(f, "trash       {} entries, stored as well; see `hfcache trash ls`", t.trash)?;
        }
        write!(
            f,
            "mount       {} ({})",
            self.mount.path.display(),
            if self.mount.ready { "ready" } else { "not ready" }
        )
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn bytes_are_readable() {
        let shown = [0, 1023, 1024, 1536 << 20, u64::MAX].map(super::bytes);
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 GiB", "16.0 EiB"]);
    }
}
