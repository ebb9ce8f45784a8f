//! The mount. Two halves that meet in [`ops`]: `kernel` speaks the FUSE protocol with the kernel and
//! knows no file; `fs` knows what every operation means, over the seams `Meta` and `Chunks`, and has
//! never heard of FUSE.

pub mod export;
pub mod fs;
pub mod kernel;
pub mod ops;
