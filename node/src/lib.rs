//! The program: it builds the parts, starts and stops them in order, and talks with people.
//!
//! ```text
//! cli       one file a noun: what is typed and what is printed
//! config    DATA/hfcache.toml
//! data      the data directory: format, lock, who lives there
//! registry  which nodes run on this machine
//! found     makes a node: a new cluster, or a join
//! run       builds the parts and owns the order of start and stop
//! guard     takes the mount away when the node dies without a word; lists its directories ahead of who asks
//! admin     the Unix socket between the two: one JSON line a message
//! control   what that socket can ask, and who may join
//! status    what the whole cluster says of itself, and whether that is healthy
//! usage     du and quotas                                       size      numbers of bytes
//! rate      how fast users and groups may go
//! leave     the way out
//! share     shared trees                                        trash     what was deleted and is kept
//! place     paths in the mount, and what they name             accounts  users and groups by name
//! demo      the three-node story, with real processes
//! doctor    what will not work on this machine, and how to mend it
//! ```

pub mod accounts;
pub mod admin;
pub mod cli;
pub mod config;
pub mod control;
pub mod data;
pub mod demo;
pub mod doctor;
pub mod facts;
pub mod found;
pub mod guard;
pub mod leave;
pub mod log;
pub mod notify;
pub mod place;
pub mod preflight;
pub mod rate;
pub mod registry;
pub mod run;
pub mod share;
pub mod size;
pub mod status;
pub mod stop;
pub mod time;
pub mod trash;
pub mod usage;
pub mod world;
