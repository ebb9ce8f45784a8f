//! Buffers for received bodies, used again and again: fresh memory costs page faults and zeroing, about as
//! much as decrypting what is put there.

use crate::bounds::BUFFERS_KEPT_MAX;
use bytes::Bytes;
use hfcache_base::limits::CALL_BODY_MAX;
use parking_lot::Mutex;
use std::sync::Arc;

/// Room behind the body for the last tag and the length of a following record.
pub(super) const SLACK: usize = 64;
/// Smallest buffer kept, as a power of two.
const CLASS_MIN: u32 = 16;

/// See the module.
#[derive(Default)]
pub(crate) struct Buffers {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// Initialised buffers, oldest first.
    free: Vec<Vec<u8>>,
    bytes: usize,
}

/// A buffer that goes back when the last [`Bytes`] of it is dropped.
pub(super) struct Buffer {
    data: Vec<u8>,
    len: usize,
    home: Arc<Buffers>,
}

impl Buffers {
    /// A buffer for `len` bytes with unknown content.
    pub(super) fn take(self: &Arc<Self>, len: usize) -> Buffer {
        assert!(len <= CALL_BODY_MAX, "the frame was checked");
        let size = len.next_power_of_two().max(1 << CLASS_MIN) + SLACK;
        let mut kept = self.kept.lock();
        let found = kept.free.iter().rposition(|b| b.len() == size);
        let data = found.map(|at| kept.free.remove(at));
        if data.is_some() {
            kept.bytes -= size;
        }
        drop(kept);
        Buffer { data: data.unwrap_or_else(|| vec![0; size]), len, home: self.clone() }
    }

    fn give_back(&self, data: Vec<u8>) {
        let mut dropped = Vec::new();
        let mut kept = self.kept.lock();
        kept.bytes += data.len();
        kept.free.push(data);
        while kept.bytes > BUFFERS_KEPT_MAX && !kept.free.is_empty() {
            let oldest = kept.free.remove(0);
            kept.bytes -= oldest.len();
            dropped.push(oldest);
        }
        // Memory is given back to the system with the lock released.
        drop(kept);
    }

    /// Frees the oldest buffer: called now and then, so that an idle node keeps nothing.
    pub(crate) fn shrink(&self) {
        let mut kept = self.kept.lock();
        if !kept.free.is_empty() {
            let oldest = kept.free.remove(0);
            kept.bytes -= oldest.len();
            drop(kept);
            drop(oldest);
        }
    }
}

impl Buffer {
    /// All of it, slack included.
    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.data
    }

    /// The body.
    pub(super) fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.data[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.home.give_back(std::mem::take(&mut self.data));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_and_memory_is_bounded() {
        let buffers = Arc::new(Buffers::default());
        let mut first = buffers.take(1_000_000);
        first.room()[0] = 7;
        let bytes = first.into_bytes();
        assert_eq!((bytes.len(), bytes[0]), (1_000_000, 7));
        let part = bytes.slice(10..20);
        drop(bytes);
        assert_eq!(buffers.kept.lock().bytes, 0);
        drop(part);
        assert_eq!(buffers.kept.lock().bytes, (1 << 20) + SLACK);
        assert_eq!(buffers.take(1 << 20).into_bytes()[0], 7);
        let many: Vec<_> = (0..10).map(|_| buffers.take(16 << 20)).collect();
        drop(many);
        assert!(buffers.kept.lock().bytes <= BUFFERS_KEPT_MAX);
        for _ in 0..20 {
            buffers.shrink();
        }
        assert_eq!(buffers.kept.lock().bytes, 0);
    }
}
