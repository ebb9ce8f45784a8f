//! A harness for tests against the real thing: it starts real `hfcache` processes with real mounts, kills,
//! stops, unplugs and restarts them, and leaves nothing behind, also when a test panics or is aborted.
//!
//! A test makes a [`Cluster`]; everything else hangs off it. All cluster tests of one user on one machine
//! take turns (see [`lab::Lab`]), so they never disturb each other's timing or ports.
//!
//! Everything here panics when it fails, with a sentence that says what it was doing: it is test code.

pub mod agent;
pub mod binary;
pub mod checks;
pub mod cluster;
pub mod conformance;
pub mod differential;
pub mod hf;
pub mod janitor;
pub mod lab;
pub mod listing;
pub mod measure;
pub mod mounts;
pub mod netns;
pub mod node;
pub mod pattern;
pub mod random;
pub mod sys;
pub mod two;
pub mod wait;
pub mod xattr;

pub use agent::Agent;
pub use checks::{Check, Checks};
pub use cluster::Cluster;
pub use lab::Lab;
pub use node::Node;
pub use wait::{eventually, within};
