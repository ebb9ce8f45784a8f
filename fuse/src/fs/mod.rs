//! What every operation means.
