//! Whatever bytes come in as a request, decoding them ends in a request or an error, never in a panic.

#![expect(clippy::unwrap_used, reason = "a test that can not go on panics")]

use hfcache_fuse::kernel::abi::{IN_HEADER, op};
use hfcache_fuse::kernel::request::{Request, decode, header};

/// A small generator (SplitMix64), so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> usize {
        usize::try_from(self.next() % end).unwrap()
    }
}

fn request(opcode: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(IN_HEADER + body.len());
    bytes.extend_from_slice(&u32::try_from(IN_HEADER + body.len()).unwrap().to_ne_bytes());
    bytes.extend_from_slice(&opcode.to_ne_bytes());
    bytes.extend_from_slice(&[0; IN_HEADER - 8]);
    bytes.extend_from_slice(body);
    bytes
}

/// Decodes, and uses what came out.
fn take(bytes: &[u8]) -> bool {
    let Ok((head, body)) = header(bytes) else { return false };
    match decode(&head, body) {
        Err(_) => false,
        Ok(Request::BatchForget(inodes)) => inodes.count() <= bytes.len() / 16,
        Ok(Request::Write { data, .. }) => data.len() < bytes.len(),
        Ok(Request::Lookup { name } | Request::Unlink { name }) => {
            assert!(!name.is_empty() && !name.contains(&b'/') && !name.contains(&0));
            true
        }
        Ok(_) => true,
    }
}

#[test]
fn random_bytes_never_panic() {
    let mut random = Random(1);
    for _ in 0..200_000 {
        let len = random.below(160);
        let bytes: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
        take(&bytes);
    }
}

#[test]
fn random_arguments_of_real_operations_never_panic() {
    let mut random = Random(2);
    let mut good = 0;
    for round in 0..400_000_u32 {
        let len = random.below(128);
        // Many zeros, so that names end and counts are small now and then.
        let byte = |random: &mut Random| if random.below(3) == 0 { 0 } else { random.next() as u8 };
        let body: Vec<u8> = (0..len).map(|_| byte(&mut random)).collect();
        good += u32::from(take(&request(round % 60, &body)));
    }
    assert!(good > 10_000, "the arguments are not all refused: {good}");
}

#[test]
fn every_cut_of_a_good_request_is_an_error_or_a_request() {
    let mut write = Vec::new();
    write.extend_from_slice(&[0; 16]);
    write.extend_from_slice(&5_u32.to_ne_bytes());
    write.extend_from_slice(&[0; 20]);
    write.extend_from_slice(b"bytes");
    for (opcode, body) in [(op::WRITE, write), (op::RENAME2, [&[0; 16][..], b"a\0b\0"].concat())] {
        assert!(take(&request(opcode, &body)));
        for end in 0..body.len() {
            assert!(!take(&request(opcode, &body[..end])), "{opcode} cut at {end}");
        }
    }
    let whole = request(op::STATFS, &[]);
    assert!(take(&whole));
    assert!(!take(&[&whole[..], b"x"].concat()), "a length that is not the header's");
}

#[test]
fn counts_that_can_not_be_true_are_refused() {
    let mut body = u32::MAX.to_ne_bytes().to_vec();
    body.extend_from_slice(&[0; 36]);
    assert!(!take(&request(op::BATCH_FORGET, &body)));
    let mut body = vec![0; 16];
    body.extend_from_slice(&u32::MAX.to_ne_bytes());
    body.extend_from_slice(&[0; 20]);
    assert!(!take(&request(op::WRITE, &body)));
}
