//! The traits through which the parts meet each other and the world. Each has one real implementation;
//! the simulator replaces those of the world (clock, network, disk, randomness).

pub mod chunks;
pub mod clock;
pub mod disk;
pub mod meta;
pub mod net;
pub mod rng;

pub use chunks::{Chunks, LocalFile, LocalKey};
pub use clock::{Clock, Moment};
pub use disk::{Disk, DiskFile, Space};
pub use meta::{ChangeSink, Meta, Unlocked, View};
pub use net::{Answer, Call, Health, Net, Service, ServiceId};
pub use rng::Rng;
