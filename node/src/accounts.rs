//! Users and groups by name. They are asked of `getent`, which knows what this machine knows (files, LDAP,
//! SSSD), while a static binary would read `/etc/group` only.

use anyhow::{Context, Result, bail};
use std::process::Command;

/// What has a name and a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Database {
    /// Users.
    Passwd,
    /// Groups.
    Group,
}

impl Database {
    fn name(self) -> &'static str {
        match self {
            Self::Passwd => "passwd",
            Self::Group => "group",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Passwd => "user",
            Self::Group => "group",
        }
    }

    fn ask(self, key: &str) -> Option<String> {
        // A key that looks like an option would be taken for one.
        let asked = Command::new("getent").args(["--", self.name(), key]).output().ok()?;
        let text = String::from_utf8(asked.stdout).ok()?;
        text.lines().next().map(str::to_owned)
    }

    /// The number of a name, or the number that was given.
    ///
    /// # Errors
    /// A name that this machine does not know.
    pub fn id(self, said: &str) -> Result<u32> {
        let id = match said.parse::<u32>() {
            Ok(id) => id,
            Err(_) if said.is_empty() || said.contains(':') => bail!("{said:?} is no {}", self.word()),
            Err(_) => {
                let line = self.ask(said).with_context(|| {
                    format!("this machine knows no {} {said:?}; give its number", self.word())
                })?;
                let number = line.split(':').nth(2).and_then(|n| n.parse().ok());
                number.with_context(|| format!("getent says strange things of {} {said:?}", self.word()))?
            }
        };
        if id == u32::MAX {
            bail!("{id} is no {}", self.word());
        }
        Ok(id)
    }

    /// The name of a number, or the number.
    pub fn shown(self, id: u32) -> String {
        let named = self.ask(&id.to_string()).and_then(|line| line.split(':').next().map(str::to_owned));
        named.filter(|name| !name.is_empty()).unwrap_or_else(|| id.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        assert_eq!(Database::Group.id("77").unwrap(), 77);
        assert_eq!(Database::Group.id("root").unwrap(), 0);
        assert_eq!(Database::Passwd.id("root").unwrap(), 0);
        assert_eq!((Database::Passwd.shown(0), Database::Group.shown(0)), ("root".into(), "root".into()));
        assert_eq!(Database::Group.shown(3_999_999_999), "3999999999");
        for bad in ["", "4294967295", "no-such-group-here", "--help", "a:b"] {
            let error = Database::Group.id(bad).unwrap_err().to_string();
            assert!(error.contains("group"), "{bad}: {error}");
        }
    }
}
