//! Whatever bytes come in as a request, decoding them ends in a request or an error, never in a panic.

#![expect(clippy::unwrap_used, reason = "a test that can not go on panics")]

use hfcache_base::limits::{XATTR_NAME_MAX, XATTR_VALUE_MAX};
use hfcache_base::meta::XattrMode;
use hfcache_fuse::kernel::abi::{IN_HEADER, cap, op};
use hfcache_fuse::kernel::request::{Request, decode, header};
use hfcache_fuse::kernel::xattr::Xattr;

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
    take_as(bytes, cap::SETXATTR_EXT)
}

/// As [`take`], with these flags agreed on.
fn take_as(bytes: &[u8], agreed: u64) -> bool {
    let Ok((head, body)) = header(bytes) else { return false };
    match decode(&head, body, agreed) {
        Err(_) => false,
        Ok(Request::BatchForget(inodes)) => inodes.count() <= bytes.len() / 16,
        Ok(Request::Write { data, .. }) => data.len() < bytes.len(),
        Ok(Request::Lookup { name } | Request::Unlink { name }) => {
            assert!(!name.is_empty() && !name.contains(&b'/') && !name.contains(&0));
            true
        }
        Ok(Request::Xattr(Xattr::Set { name, .. } | Xattr::Get { name, .. } | Xattr::Remove { name })) => {
            assert!(!name.is_empty() && name.len() <= XATTR_NAME_MAX && !name.contains(&0));
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
    let set = [&3_u32.to_ne_bytes()[..], &[0; 12], b"user.a\0val"].concat();
    let get = [&[0; 8][..], b"user.a\0"].concat();
    for (opcode, body) in [
        (op::WRITE, write),
        (op::RENAME2, [&[0; 16][..], b"a\0b\0"].concat()),
        (op::SETXATTR, set),
        (op::GETXATTR, get),
        (op::LISTXATTR, vec![0; 8]),
        (op::REMOVEXATTR, b"user.a\0".to_vec()),
    ] {
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

/// What a SETXATTR asks for, or the errno it is refused with.
fn set(
    extended: bool,
    how: u32,
    own: u32,
    name: &[u8],
    value: &[u8],
) -> Result<(XattrMode, bool, usize), i32> {
    let mut body = u32::try_from(value.len()).unwrap().to_ne_bytes().to_vec();
    body.extend_from_slice(&how.to_ne_bytes());
    if extended {
        body.extend_from_slice(&own.to_ne_bytes());
        body.extend_from_slice(&[0; 4]);
    }
    body.extend_from_slice(name);
    body.push(0);
    body.extend_from_slice(value);
    let bytes = request(op::SETXATTR, &body);
    let (head, body) = header(&bytes).unwrap();
    let agreed = if extended { cap::SETXATTR_EXT } else { 0 };
    match decode(&head, body, agreed).unwrap() {
        Request::Xattr(Xattr::Set { name: found, value: bytes, flags: Some(flags) }) => {
            assert_eq!((found, bytes), (name, value));
            Ok((flags.mode, flags.kill_sgid, value.len()))
        }
        // Both flags: answered without setting anything.
        Request::Xattr(Xattr::Set { flags: None, .. }) => Err(0),
        Request::Refused(errno) => Err(errno),
        other => panic!("{other:?}"),
    }
}

#[test]
fn extended_attributes_are_taken_within_their_bounds() {
    let big = vec![7; XATTR_VALUE_MAX + 1];
    let long = [b"user.".as_slice(), &[b'n'; 251]].concat();
    for extended in [false, true] {
        assert_eq!(set(extended, 0, 0, b"user.a", b""), Ok((XattrMode::Any, false, 0)));
        assert_eq!(set(extended, 1, 0, b"user.a", b"x"), Ok((XattrMode::Create, false, 1)));
        assert_eq!(set(extended, 2, 0, &long[..255], b"x"), Ok((XattrMode::Replace, false, 1)));
        assert_eq!(set(extended, 0, 1, b"user.a", b"x"), Ok((XattrMode::Any, extended, 1)));
        assert_eq!(set(extended, 3, 0, b"user.a", b"x"), Err(0));
        assert_eq!(set(extended, 4, 0, b"user.a", b"x"), Err(libc::EINVAL));
        assert_eq!(set(extended, 0, 0, &long, b"x"), Err(libc::ERANGE));
        let most = &big[..XATTR_VALUE_MAX];
        assert_eq!(set(extended, 0, 0, b"user.a", most), Ok((XattrMode::Any, false, XATTR_VALUE_MAX)));
        assert_eq!(set(extended, 0, 0, b"user.a", &big), Err(libc::E2BIG));
    }
    // A value that is longer than the request, and no name.
    let lie = [&u32::MAX.to_ne_bytes()[..], &[0; 12], b"user.a\0val"].concat();
    assert!(!take(&request(op::SETXATTR, &lie)));
    assert!(!take(&request(op::GETXATTR, &[0; 9])));
    assert!(!take(&request(op::REMOVEXATTR, b"\0")));
    // The longer arguments are only there if they were agreed on.
    let short = [&3_u32.to_ne_bytes()[..], &[0; 4], b"user.a\0val"].concat();
    assert!(take_as(&request(op::SETXATTR, &short), 0));
}
