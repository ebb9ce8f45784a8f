//! What will not work on this machine, and how to mend it.

mod cluster;
mod disk;
mod machine;

use crate::config::Config;
use crate::data::DataDir;
use serde::{Deserialize, Serialize};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Good.
    Ok,
    /// Works, but slower or with less comfort.
    Warn,
    /// Will not work.
    Fail,
}

impl Level {
    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at.
    pub check: String,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// How to mend it, unless it is good.
    pub mend: Option<String>,
}

impl Finding {
    fn ok(check: &str, found: impl Into<String>) -> Self {
        Self { check: check.into(), level: Level::Ok, found: found.into(), mend: None }
    }

    fn warn(check: &str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check: check.into(), level: Level::Warn, found: found.into(), mend: Some(mend.into()) }
    }

    fn fail(check: &str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check: check.into(), level: Level::Fail, found: found.into(), mend: Some(mend.into()) }
    }

    /// An error whose first line says what is wrong, and whose others say how to mend it.
    fn from_error(check: &str, e: &anyhow::Error) -> Self {
        let text = format!("{e:#}");
        let (found, mend) = text.split_once('\n').unwrap_or((&text, ""));
        let mend = (!mend.is_empty()).then(|| mend.split_whitespace().collect::<Vec<_>>().join(" "));
        Self { check: check.into(), level: Level::Fail, found: found.into(), mend }
    }
}

/// What to look at.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node, if there is one.
    pub data: Option<DataDir>,
}

/// Looks at everything.
pub fn examine(options: &Options) -> Vec<Finding> {
    let mut found = machine::examine();
    let Some(data) = &options.data else {
        found.extend(disk::examine(&[(
            "disk".into(),
            std::env::current_dir().unwrap_or_else(|_| "/".into()),
        )]));
        return found;
    };
    if let Err(e) = data.check().and_then(|()| data.check_state()) {
        found.push(Finding::from_error("data", &e));
        return found;
    }
    let config = match Config::load(data) {
        Ok(config) => config,
        Err(e) => {
            found.push(Finding::from_error("config", &e));
            return found;
        }
    };
    found.push(Finding::ok("config", data.config().display().to_string()));
    let mut disks = vec![("data".to_owned(), data.path().to_path_buf())];
    disks.extend(config.shard_dirs(data).into_iter().map(|d| ("shards".to_owned(), d)));
    found.extend(disk::examine(&disks));
    found.extend(cluster::examine(data, &config));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_node_is_examined() {
        let found = examine(&Options { data: None });
        for check in ["kernel", "fuse", "memory", "open files", "disk"] {
            assert!(found.iter().any(|f| f.check == check), "{check}: {found:?}");
        }
        for f in &found {
            assert_eq!(f.level == Level::Ok, f.mend.is_none(), "{f:?}");
        }
    }

    #[test]
    fn a_damaged_node_is_a_finding_and_no_error() {
        let dir = crate::data::tests::TempDir::new();
        let data = DataDir::new(dir.path());
        data.finish().unwrap();
        std::fs::write(data.config(), "colour = 1\n").unwrap();
        let found = examine(&Options { data: Some(data) });
        assert!(found.iter().any(|f| f.check == "config" && f.level == Level::Fail), "{found:?}");
    }
}
