//! `DATA/hfcache.toml`: written by `node init` and `node join`, read at every start. Every key is typed, an
//! unknown one is refused with its line, and [`KEYS`] says what each is for.

use crate::data::DataDir;
use crate::place;
use anyhow::{Context, Result, bail};
use hfcache_fuse::export::{self, IdMap, Ids, Who};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The port a node listens on unless told otherwise; gossip has the next one.
pub const DEFAULT_PORT: u16 = 7946;
/// Where the Hub endpoint will be unless told otherwise.
pub const DEFAULT_HTTP: &str = "127.0.0.1:8610";
/// Most numbers of users, and of groups, that can be mapped.
const IDS_MAX: usize = 1 << 20;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// For people.
    pub name: String,
    /// Failure domain.
    #[serde(default)]
    pub domain: String,
    /// Where the other nodes reach this one.
    pub listen: SocketAddr,
    /// Where the Hub endpoint is.
    #[serde(default = "default_http")]
    pub http: SocketAddr,
    /// Whether this node keeps shards.
    #[serde(default = "yes")]
    pub storage: bool,
    /// Directories for shards; empty means DATA/shards.
    #[serde(default)]
    pub disks: Vec<PathBuf>,
    /// The mount.
    pub mount: Mount,
    /// Logs.
    #[serde(default)]
    pub log: Log,
}

/// `[mount]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// Where the tree appears.
    pub point: PathBuf,
    /// Whether others than the user who runs hfcache may use it.
    #[serde(default = "yes")]
    pub allow_other: bool,
    /// Whether every change is refused here.
    #[serde(default)]
    pub read_only: bool,
    /// Whether reading changes when a file was last read.
    #[serde(default)]
    pub atime: Atime,
    /// The directory of the tree that appears.
    #[serde(default)]
    pub subdir: PathBuf,
    /// Whose rights are taken away.
    #[serde(default)]
    pub squash: Squash,
    /// The cluster's user that those act as.
    #[serde(default = "nobody")]
    pub anon_uid: u32,
    /// The cluster's group that those act as.
    #[serde(default = "nobody")]
    pub anon_gid: u32,
    /// Users of this machine who have another number in the cluster.
    #[serde(default)]
    pub users: IdRanges,
    /// Groups of this machine that have another number in the cluster.
    #[serde(default)]
    pub groups: IdRanges,
}

impl Mount {
    /// A mount that shows the whole tree as it is.
    pub fn plain(point: PathBuf, allow_other: bool) -> Self {
        Self {
            point,
            allow_other,
            read_only: false,
            atime: Atime::Relatime,
            subdir: PathBuf::new(),
            squash: Squash::None,
            anon_uid: nobody(),
            anon_gid: nobody(),
            users: IdRanges::default(),
            groups: IdRanges::default(),
        }
    }

    fn check(&self) -> Result<()> {
        if !self.point.is_absolute() {
            bail!("mount.point must be an absolute path, not {}", self.point.display());
        }
        if place::names(&self.subdir).is_none() {
            bail!("mount.subdir must be a path in the tree without .., not {}", self.subdir.display());
        }
        if self.anon_uid == u32::MAX || self.anon_gid == u32::MAX {
            bail!("mount.anon_uid and mount.anon_gid must be below {}", u32::MAX);
        }
        self.ids().map(|_| ())
    }

    /// Who is who in this mount.
    ///
    /// # Errors
    /// A map that is none.
    pub fn ids(&self) -> Result<Ids> {
        let squash = match self.squash {
            Squash::None => export::Squash::None,
            Squash::Root => export::Squash::Root,
            Squash::All => export::Squash::All,
        };
        let anon = Who { uid: self.anon_uid, gid: self.anon_gid };
        let users = self.users.map().context("mount.users")?;
        let groups = self.groups.map().context("mount.groups")?;
        Ok(Ids { squash, anon, users, groups })
    }
}

/// Whether reads are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Atime {
    /// The first one after a change, and one a day.
    #[default]
    Relatime,
    /// None.
    Noatime,
}

/// Whose rights are taken away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Squash {
    /// Nobody's
    #[default]
    None,
    /// Root's of this machine
    Root,
    /// Everyone's
    All,
}

/// `LOCAL:CLUSTER` or `LOCAL:CLUSTER:COUNT`, each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IdRanges(pub Vec<String>);

impl IdRanges {
    fn map(&self) -> Result<IdMap> {
        let mut pairs = Vec::new();
        for range in &self.0 {
            let (local, cluster, count) = id_range(range).with_context(|| {
                format!("{range:?} is no LOCAL:CLUSTER or LOCAL:CLUSTER:COUNT of numbers below {}", u32::MAX)
            })?;
            if pairs.len() + count as usize > IDS_MAX {
                bail!("more than {IDS_MAX} numbers");
            }
            pairs.extend((0..count).map(|n| (local + n, cluster + n)));
        }
        IdMap::new(pairs).map_err(|twice| anyhow::anyhow!("{twice} would stand for two"))
    }
}

fn id_range(text: &str) -> Option<(u32, u32, u32)> {
    let parts: Vec<u32> = text.split(':').map(|n| n.parse().ok()).collect::<Option<_>>()?;
    let (local, cluster, count) = match parts.as_slice() {
        [local, cluster] => (*local, *cluster, 1),
        [local, cluster, count] if *count > 0 => (*local, *cluster, *count),
        _ => return None,
    };
    // The largest number means nobody to the kernel.
    let ends = |first: u32| first.checked_add(count).is_some();
    (ends(local) && ends(cluster)).then_some((local, cluster, count))
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// How much.
    #[serde(default = "default_level")]
    pub level: String,
    /// How it looks.
    #[serde(default)]
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: default_level(), format: LogFormat::default() }
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What `config show` says of a key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its name, with its table.
    pub name: &'static str,
    /// What holds when it is left out; empty if it may not be.
    pub default: &'static str,
    /// What it is for.
    pub about: &'static str,
}

/// Every key there is. A test compares this with [`Config`].
pub const KEYS: &[Key] = &[
    Key {
        name: "name",
        default: "",
        about: "what people call this node; the host name unless --name was given",
    },
    Key {
        name: "domain",
        default: "\"\"",
        about: "failure domain (rack, room): nodes of one domain may fail together",
    },
    Key {
        name: "listen",
        default: "",
        about: "IP:PORT where the other nodes reach this one: QUIC on that UDP port, bulk data on that TCP \
                port, gossip on UDP PORT+1",
    },
    Key {
        name: "http",
        default: "127.0.0.1:8610",
        about: "IP:PORT of the Hub endpoint; kept for later, nothing is served there by this version",
    },
    Key { name: "storage", default: "true", about: "whether this node keeps shards; false: mount only" },
    Key {
        name: "disks",
        default: "[] (DATA/shards)",
        about: "directories for shards, one a disk; absolute, or relative to DATA",
    },
    Key { name: "mount.point", default: "", about: "where the tree appears on this node" },
    Key {
        name: "mount.allow_other",
        default: "true",
        about: "whether users other than the one who runs hfcache may use the mount; as non-root it needs \
                user_allow_other in /etc/fuse.conf",
    },
    Key {
        name: "mount.read_only",
        default: "false",
        about: "whether this node's mount refuses every change",
    },
    Key {
        name: "mount.atime",
        default: "relatime",
        about: "relatime: reading sets a file's atime once after each change and once a day; noatime: never",
    },
    Key {
        name: "mount.subdir",
        default: "\"\" (the whole tree)",
        about: "directory of the tree that appears at the mount point instead of its root; it must be there",
    },
    Key {
        name: "mount.squash",
        default: "none",
        about: "root: root of this machine has the rights of anon_uid only; all: everyone has",
    },
    Key {
        name: "mount.anon_uid",
        default: "65534",
        about: "user of the cluster that squashed ones act as, and who is not known shows as",
    },
    Key { name: "mount.anon_gid", default: "65534", about: "the same for groups" },
    Key {
        name: "mount.users",
        default: "[]",
        about: "users with other numbers here than in the cluster, as \"LOCAL:CLUSTER\" or \"LOCAL:CLUSTER:COUNT\"",
    },
    Key { name: "mount.groups", default: "[]", about: "the same for groups" },
    Key {
        name: "log.level",
        default: "info",
        about: "error, warn, info, debug, trace, or a filter such as info,hfcache_raft=debug",
    },
    Key { name: "log.format", default: "text", about: "text or json, one line an event, on stderr" },
];

fn yes() -> bool {
    true
}

fn nobody() -> u32 {
    65_534
}

fn default_level() -> String {
    "info".into()
}

#[expect(clippy::expect_used, reason = "a constant that a test parses")]
fn default_http() -> SocketAddr {
    DEFAULT_HTTP.parse().expect("constant address")
}

impl Config {
    /// Reads and checks the file of a data directory.
    ///
    /// # Errors
    /// A file that is missing, torn, or says something that cannot be.
    pub fn load(data: &DataDir) -> Result<Self> {
        let path = data.config();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => bail!(
                "{} is missing, so this is no data directory of a node, or it was damaged.\n\
                 Make a node with `hfcache node init` or `hfcache node join`, or put the file back from a backup \
                 (`hfcache config show --help` lists what belongs in it).",
                path.display()
            ),
            Err(e) => return Err(e).with_context(|| format!("read {}", path.display())),
        };
        Self::parse(&text).with_context(|| {
            format!(
                "{}: mend the line and start again; `hfcache config show` explains every key",
                path.display()
            )
        })
    }

    /// Parses and checks.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str) -> Result<Self> {
        let config: Self = toml::from_str(text)?;
        if config.name.is_empty() || config.name.len() > 63 || config.name.chars().any(char::is_control) {
            bail!("name must have 1 to 63 printable bytes");
        }
        if config.domain.len() > 63 || config.domain.chars().any(char::is_control) {
            bail!("domain must have at most 63 printable bytes");
        }
        check_listen(config.listen)?;
        config.mount.check()?;
        Ok(config)
    }

    /// Writes the file so that it is there whole or not at all.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub fn save(&self, data: &DataDir) -> Result<()> {
        let mut text = String::from("# hfcache node; `hfcache config show` explains every key.\n");
        text.push_str(&toml::to_string(self)?);
        data.write_atomic(&data.config(), text.as_bytes(), 0o644)
    }

    /// Where shards go.
    pub fn shard_dirs(&self, data: &DataDir) -> Vec<PathBuf> {
        match (self.storage, self.disks.is_empty()) {
            (false, _) => Vec::new(),
            (true, true) => vec![data.path().join("shards")],
            (true, false) => self.disks.iter().map(|d| data.path().join(d)).collect(),
        }
    }
}

/// Refuses an address that the other nodes could never use.
///
/// # Errors
/// Port 0 or 65535, or an unspecified address.
pub fn check_listen(listen: SocketAddr) -> Result<()> {
    if listen.port() == 0 || listen.port() == u16::MAX {
        bail!("listen {listen}: give a port from 1 to 65534; gossip takes the next one");
    }
    if listen.ip().is_unspecified() || listen.ip().is_multicast() {
        bail!("listen {listen}: the other nodes connect to this address, so give one of this node's own");
    }
    Ok(())
}

/// An absolute form of a path, without asking whether it is there.
///
/// # Errors
/// If there is no current directory.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("resolve {}", path.display()))
}

/// The address to listen on when none is given: the one packets to elsewhere would have as their source,
/// else the first that is not loopback, else 127.0.0.1.
pub fn default_listen() -> SocketAddr {
    let ip = route_source()
        .or_else(|| std::fs::read_to_string("/proc/net/fib_trie").ok().and_then(|t| first_local(&t)))
        .unwrap_or(std::net::Ipv4Addr::LOCALHOST);
    SocketAddr::new(ip.into(), DEFAULT_PORT)
}

/// No packet is sent: connecting a UDP socket only asks the kernel which source address it would take.
fn route_source() -> Option<std::net::Ipv4Addr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    match socket.local_addr().ok()?.ip() {
        std::net::IpAddr::V4(ip) if !ip.is_loopback() && !ip.is_unspecified() => Some(ip),
        _ => None,
    }
}

/// The first address in the kernel's table of its own addresses that is not loopback: an isolated network
/// often has no default route.
fn first_local(fib_trie: &str) -> Option<std::net::Ipv4Addr> {
    let mut last = None;
    for line in fib_trie.lines() {
        let line = line.trim();
        if let Some(ip) = line.strip_prefix("|-- ") {
            last = ip.parse::<std::net::Ipv4Addr>().ok();
        } else if line == "/32 host LOCAL"
            && let Some(ip) = last
            && !ip.is_loopback()
        {
            return Some(ip);
        }
    }
    None
}

/// The host name, for a node that was given none.
pub fn host_name() -> String {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy();
    let short: String = name.chars().filter(|c| !c.is_control()).take(63).collect();
    if short.is_empty() { "node".into() } else { short }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "name = \"a\"\nlisten = \"10.0.0.1:7946\"\n[mount]\npoint = \"/mnt/hf\"\n";

    #[test]
    fn what_is_left_out_has_its_default() {
        let config = Config::parse(GOOD).unwrap();
        assert_eq!(config.http.to_string(), DEFAULT_HTTP);
        assert!(config.storage && config.mount.allow_other);
        assert_eq!(config.log, Log::default());
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line() {
        let text = GOOD.replace("[mount]", "lisetn = 3\n[mount]");
        let error = format!("{:#}", Config::parse(&text).unwrap_err());
        assert!(error.contains("lisetn") && error.contains("line 3"), "{error}");
        let error = format!("{:#}", Config::parse(&format!("{GOOD}fast = true\n")).unwrap_err());
        assert!(error.contains("fast") && error.contains("line 5"), "{error}");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (from, to) in [
            ("10.0.0.1:7946", "0.0.0.0:7946"),
            ("10.0.0.1:7946", "10.0.0.1:0"),
            ("10.0.0.1:7946", "10.0.0.1:65535"),
            ("/mnt/hf", "mnt"),
            ("\"/mnt/hf\"", "\"/mnt/hf\"\nsubdir = \"a/../b\""),
            ("\"/mnt/hf\"", "\"/mnt/hf\"\nsquash = \"some\""),
            ("\"/mnt/hf\"", "\"/mnt/hf\"\nanon_uid = 4294967295"),
            ("\"/mnt/hf\"", "\"/mnt/hf\"\nusers = [\"1001\"]"),
            ("\"/mnt/hf\"", "\"/mnt/hf\"\nusers = [\"1:2:0\"]"),
            ("\"/mnt/hf\"", "\"/mnt/hf\"\nusers = [\"1:4294967290:6\"]"),
            ("\"/mnt/hf\"", "\"/mnt/hf\"\nusers = [\"1:5\", \"2:5\"]"),
            ("\"/mnt/hf\"", "\"/mnt/hf\"\ngroups = [\"0:0:2000000\"]"),
            ("name = \"a\"", "name = \"\""),
        ] {
            assert!(Config::parse(&GOOD.replace(from, to)).is_err(), "{to}");
        }
    }

    #[test]
    fn users_are_mapped_one_by_one_and_in_ranges() {
        let mount = "users = [\"1001:5001\", \"2000:7000:10\"]\nanon_uid = 99\nsquash = \"root\"\n";
        let config = Config::parse(&format!("{GOOD}{mount}")).unwrap();
        let ids = config.mount.ids().unwrap();
        assert_eq!((ids.users.stored(1001, 99), ids.users.stored(2009, 99)), (5001, 7009));
        assert_eq!((ids.users.shown(7009, 99), ids.users.stored(7009, 99)), (2009, 99));
        assert_eq!((ids.squash, ids.anon), (export::Squash::Root, Who { uid: 99, gid: 65_534 }));
        assert!(Config::parse(GOOD).unwrap().mount.ids().unwrap().is_plain());
    }

    #[test]
    fn what_is_saved_is_what_is_loaded() {
        let dir = crate::data::tests::TempDir::new();
        let data = DataDir::new(dir.path());
        let mut config = Config::parse(GOOD).unwrap();
        config.disks = vec!["/disk1".into()];
        config.save(&data).unwrap();
        assert_eq!(Config::load(&data).unwrap(), config);
    }

    #[test]
    fn every_key_is_explained() {
        fn names(prefix: &str, table: &toml::Table, out: &mut Vec<String>) {
            for (key, value) in table {
                match value {
                    toml::Value::Table(t) => names(&format!("{prefix}{key}."), t, out),
                    _ => out.push(format!("{prefix}{key}")),
                }
            }
        }
        let table: toml::Table =
            toml::from_str(&toml::to_string(&Config::parse(GOOD).unwrap()).unwrap()).unwrap();
        let mut there = Vec::new();
        names("", &table, &mut there);
        there.sort();
        let mut told: Vec<_> = KEYS.iter().map(|k| k.name.to_owned()).collect();
        told.sort();
        assert_eq!(there, told);
    }

    #[test]
    fn an_address_is_found_without_a_default_route() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 127.0.0.1\n        /32 host LOCAL\n     |-- 10.77.0.0\n        \
                    /24 link UNICAST\n     |-- 10.77.0.11\n        /32 host LOCAL\n";
        assert_eq!(first_local(trie), Some([10, 77, 0, 11].into()));
        assert_eq!(first_local("nothing"), None);
    }
}
