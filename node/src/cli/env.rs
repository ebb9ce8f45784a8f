//! `hfcache env`.

use super::{Which, say, say_json};
use crate::config::Config;
use crate::{preflight, registry};
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};

/// A shell's way to set a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Shell {
    /// bash, zsh, sh, dash, ksh
    Bash,
    /// fish
    Fish,
    /// csh, tcsh
    Csh,
}

/// `hfcache env`.
#[derive(Debug, Args)]
#[command(after_help = "HF_HOME stays where it is: it has the user's own access token and settings.\n\n\
    EXAMPLES:\n  \
    eval \"$(hfcache env)\"\n  \
    hfcache env --mount /hf --shell fish | source")]
pub(super) struct Env {
    #[command(flatten)]
    which: Which,
    /// Mount to use, instead of asking which node runs here
    #[arg(long, value_name = "DIR", conflicts_with = "data")]
    mount: Option<PathBuf>,
    /// Shell to write for
    #[arg(long, value_enum, default_value_t = Shell::Bash)]
    shell: Shell,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Env {
    pub(super) fn run(self) -> Result<u8> {
        let mount = self.find_mount()?;
        let variables = variables(&mount);
        if self.json {
            let map: serde_json::Map<String, serde_json::Value> =
                variables.into_iter().map(|(k, v)| (k.to_owned(), v.into())).collect();
            return say_json(&map).map(|()| 0);
        }
        for (name, value) in &variables {
            say(export(self.shell, name, value))?;
        }
        if !preflight::mounts().iter().any(|m| m.point == mount) {
            eprintln!("hfcache: nothing is mounted at {} now; start the node first", mount.display());
        }
        Ok(0)
    }

    /// A researcher may not read the data directory of root's node, but may read the list of running nodes.
    fn find_mount(&self) -> Result<PathBuf> {
        if let Some(mount) = &self.mount {
            return crate::config::absolute(mount);
        }
        if self.which.data.is_some() {
            return Ok(Config::load(&self.which.resolve()?)?.mount.point);
        }
        let nodes = registry::running();
        match nodes.as_slice() {
            [one] => Ok(one.mount.clone()),
            [] => bail!("no running node was found on this machine; name its mount with --mount DIR"),
            several => {
                let list: Vec<String> =
                    several.iter().map(|e| format!("  --mount {}", e.mount.display())).collect();
                bail!("several nodes run on this machine; say which:\n{}", list.join("\n"))
            }
        }
    }
}

/// The caches go on the mount. Xet is switched off because it bypasses the files that are shared: a client
/// that finds it would go to the internet; its absence costs nothing for what is in the cache.
pub(crate) fn variables(mount: &Path) -> Vec<(&'static str, String)> {
    let on_mount = |name: &str| mount.join(name).to_string_lossy().into_owned();
    vec![
        ("HF_HUB_CACHE", on_mount("hub")),
        ("HF_DATASETS_CACHE", on_mount("datasets")),
        ("HF_ASSETS_CACHE", on_mount("assets")),
        ("HF_HUB_DISABLE_XET", "1".into()),
        ("HF_HUB_DISABLE_TELEMETRY", "1".into()),
        ("HF_HUB_DISABLE_UPDATE_CHECK", "1".into()),
    ]
}

fn export(shell: Shell, name: &str, value: &str) -> String {
    match shell {
        Shell::Bash => format!("export {name}='{}'", value.replace('\'', "'\\''")),
        Shell::Fish => format!("set -gx {name} '{}'", value.replace('\\', "\\\\").replace('\'', "\\'")),
        Shell::Csh => format!("setenv {name} '{}'", value.replace('\'', "'\\''").replace('!', "\\!")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_a_shell() {
        let mount = "/tmp/it's \"$HOME\" `x`";
        let script = format!("{}; printf %s \"$V\"", export(Shell::Bash, "V", mount));
        let out = std::process::Command::new("sh").arg("-c").arg(script).output().unwrap();
        assert_eq!(String::from_utf8(out.stdout).unwrap(), mount);
    }

    #[test]
    fn home_stays_private() {
        let names: Vec<_> = variables(Path::new("/hf")).into_iter().map(|(k, _)| k).collect();
        assert!(names.contains(&"HF_HUB_CACHE") && !names.contains(&"HF_HOME"));
    }
}
