//! Faults against a real cluster while clients work on it, a history of all they did, and a checker that
//! judges it. After Jepsen: a run counts only if its faults happened and its clients got work done.
//!
//! - [`history`]: what clients asked and what they were told, also as EDN for Knossos and Elle
//! - [`check`]: whether a history of registers is linearizable; exact and fast, because every value is
//!   written once
//! - [`register`]: registers in the file system, and the clients that use them
//! - [`counter`]: a counter under a lock, and the clients that raise it
//! - [`nemesis`]: kills, pauses and unplugs nodes, and puts everything right again

pub mod check;
pub mod counter;
pub mod history;
pub mod nemesis;
pub mod random;
pub mod register;
