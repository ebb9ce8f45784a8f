//! The state machine: pure functions of a transaction and a command.
