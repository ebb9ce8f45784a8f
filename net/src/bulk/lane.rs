//! One TCP connection of the bulk lane after its greeting: messages in sealed records.

use super::buffers::{Buffers, SLACK};
use crate::bounds::{BULK_GATHER, BULK_STALL};
use crate::frame::{FRAME_LEN, Frame};
use bytes::Bytes;
use hfcache_base::limits::{BULK_IDLE, BULK_RECORD};
use hfcache_base::{Error, Kind, Result};
use ring::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use std::io::ErrorKind;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const LEN: usize = 4;
const TAG: usize = 16;

/// The key of one direction and how many records it has sealed or opened.
struct Direction {
    key: LessSafeKey,
    records: u64,
}

impl Direction {
    fn new(key: &[u8; 16]) -> Result<Self> {
        let key = UnboundKey::new(&AES_128_GCM, key).map_err(|_| Error::from(Kind::Internal))?;
        Ok(Self { key: LessSafeKey::new(key), records: 0 })
    }

    /// No nonce is used twice: 2^64 records do not happen.
    fn nonce(&mut self) -> Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.records.to_be_bytes());
        self.records += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

/// See the module. After an error it is out of step and must be dropped.
pub(super) struct Lane {
    stream: TcpStream,
    seal: Direction,
    open: Direction,
    /// Sealed records that are not sent yet.
    out: Vec<u8>,
    /// Received records that have no better place.
    scratch: Vec<u8>,
}

fn broken(e: std::io::Error) -> Error {
    Error::new(Kind::Unavailable, "bulk connection lost").with_source(e)
}

fn protocol(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Kind::Protocol, what).context("read bulk record")
}

fn idle() -> Error {
    Error::new(Kind::TimedOut, "no byte moved on the bulk connection")
}

/// Fills `buf`; each byte may take [`BULK_IDLE`].
async fn read_exact(stream: &mut TcpStream, buf: &mut [u8]) -> Result<()> {
    let mut at = 0;
    while at < buf.len() {
        match timeout(BULK_IDLE, stream.read(&mut buf[at..])).await {
            Ok(Ok(0)) => return Err(broken(ErrorKind::UnexpectedEof.into())),
            Ok(Ok(n)) => at += n,
            Ok(Err(e)) => return Err(broken(e)),
            Err(_) => return Err(idle()),
        }
    }
    Ok(())
}

impl Lane {
    pub(super) fn new(stream: TcpStream, seal: &[u8; 16], open: &[u8; 16]) -> Result<Self> {
        let (seal, open) = (Direction::new(seal)?, Direction::new(open)?);
        Ok(Self { stream, seal, open, out: Vec::new(), scratch: Vec::new() })
    }

    /// Whether nothing came and the other side has not closed it, as it must be between calls.
    pub(super) fn is_quiet(&self) -> bool {
        let mut byte = [0];
        matches!(self.stream.try_read(&mut byte), Err(e) if e.kind() == ErrorKind::WouldBlock)
    }

    /// Waits until the other side closes the connection, or sends what it must not send now.
    pub(super) async fn disturbed(&self) {
        let mut byte = [0];
        // Whatever it is, the call that is served now has no caller any more.
        let _ = self.stream.peek(&mut byte).await;
    }

    /// Begins a record in `out`.
    fn begin(&mut self) -> usize {
        let at = self.out.len();
        self.out.extend_from_slice(&[0; LEN]);
        at
    }

    /// Seals what was put to `out` since [`Self::begin`].
    fn end(&mut self, at: usize) -> Result<()> {
        let plain = self.out.len() - at - LEN;
        assert!(plain <= BULK_RECORD, "a record has its length");
        let len = (plain as u32).to_le_bytes();
        self.out[at..at + LEN].copy_from_slice(&len);
        let nonce = self.seal.nonce();
        let sealed =
            self.seal.key.seal_in_place_separate_tag(nonce, Aad::from(len), &mut self.out[at + LEN..]);
        let tag = sealed.map_err(|_| Error::new(Kind::Internal, "seal record"))?;
        self.out.extend_from_slice(tag.as_ref());
        Ok(())
    }

    async fn flush(&mut self) -> Result<()> {
        let mut at = 0;
        while at < self.out.len() {
            match timeout(BULK_STALL, self.stream.write(&self.out[at..])).await {
                Ok(Ok(0)) => return Err(broken(ErrorKind::WriteZero.into())),
                Ok(Ok(n)) => at += n,
                Ok(Err(e)) => return Err(broken(e)),
                Err(_) => return Err(idle()),
            }
        }
        self.out.clear();
        Ok(())
    }

    /// Sends a message.
    pub(super) async fn send(&mut self, frame: Frame, head: &[u8], body: &[Bytes]) -> Result<()> {
        let first = head.len().min(BULK_RECORD - FRAME_LEN);
        let at = self.begin();
        self.out.extend_from_slice(&frame.encode());
        self.out.extend_from_slice(&head[..first]);
        self.end(at)?;
        for part in head[first..].chunks(BULK_RECORD) {
            self.flush().await?;
            let at = self.begin();
            self.out.extend_from_slice(part);
            self.end(at)?;
        }
        let mut pieces = body.iter();
        let mut piece: &[u8] = &[];
        let mut left = frame.body;
        while left > 0 {
            if self.out.len() >= BULK_GATHER - BULK_RECORD {
                self.flush().await?;
            }
            let at = self.begin();
            let mut room = left.min(BULK_RECORD);
            left -= room;
            while room > 0 {
                if piece.is_empty() {
                    piece = pieces
                        .next()
                        .ok_or_else(|| Error::new(Kind::Internal, "the body is shorter than it said"))?;
                    continue;
                }
                let (now, later) = piece.split_at(room.min(piece.len()));
                self.out.extend_from_slice(now);
                room -= now.len();
                piece = later;
            }
            self.end(at)?;
        }
        self.flush().await
    }

    /// Waits for the first byte of a message, however long, and reads its frame and head.
    pub(super) async fn receive_head(&mut self) -> Result<(Frame, Bytes)> {
        let mut len = [0; LEN];
        let got = match self.stream.read(&mut len).await.map_err(broken)? {
            0 => return Err(broken(ErrorKind::UnexpectedEof.into())),
            got => got,
        };
        read_exact(&mut self.stream, &mut len[got..]).await?;
        let first = self.receive_sealed(u32::from_le_bytes(len) as usize).await?;
        let Some((start, rest)) = first.split_first_chunk::<FRAME_LEN>() else {
            return Err(protocol("the first record has no frame"));
        };
        let frame = Frame::decode(start)?;
        if rest.len() == frame.head {
            return Ok((frame, Bytes::copy_from_slice(rest)));
        }
        let mut head = rest.to_vec();
        while head.len() < frame.head {
            let more = self.receive_record().await?;
            if more.is_empty() {
                return Err(protocol("an empty record"));
            }
            head.extend_from_slice(more);
        }
        if head.len() != frame.head {
            return Err(protocol("the head is longer than it said"));
        }
        Ok((frame, head.into()))
    }

    async fn receive_len(&mut self) -> Result<usize> {
        let mut len = [0; LEN];
        read_exact(&mut self.stream, &mut len).await?;
        Ok(u32::from_le_bytes(len) as usize)
    }

    async fn receive_record(&mut self) -> Result<&[u8]> {
        let len = self.receive_len().await?;
        self.receive_sealed(len).await
    }

    async fn receive_sealed(&mut self, len: usize) -> Result<&[u8]> {
        if len > BULK_RECORD {
            return Err(protocol(format!("a record of {len} bytes")));
        }
        self.scratch.resize(len + TAG, 0);
        read_exact(&mut self.stream, &mut self.scratch).await?;
        let nonce = self.open.nonce();
        let opened =
            self.open.key.open_in_place(nonce, Aad::from((len as u32).to_le_bytes()), &mut self.scratch);
        Ok(opened.map_err(|_| protocol("a record that its sender did not seal"))?)
    }

    /// Reads a body of `len` bytes, each record in its place.
    pub(super) async fn receive_body(&mut self, len: usize, buffers: &Arc<Buffers>) -> Result<Bytes> {
        if len == 0 {
            return Ok(Bytes::new());
        }
        const _: () = assert!(SLACK >= TAG + LEN);
        let mut buffer = buffers.take(len);
        let room = buffer.room();
        let mut said = self.receive_len().await?;
        let mut at = 0;
        while at < len {
            let plain = BULK_RECORD.min(len - at);
            if said != plain {
                return Err(protocol(format!("a record of {said} bytes instead of {plain}")));
            }
            let last = at + plain == len;
            // The tag and the next length fall where the next record goes, or in the slack.
            let end = at + plain + TAG + if last { 0 } else { LEN };
            read_exact(&mut self.stream, &mut room[at..end]).await?;
            if !last {
                let next = &room[end - LEN..end];
                said = u32::from_le_bytes([next[0], next[1], next[2], next[3]]) as usize;
            }
            let nonce = self.open.nonce();
            let aad = Aad::from((plain as u32).to_le_bytes());
            let opened = self.open.key.open_in_place(nonce, aad, &mut room[at..at + plain + TAG]);
            opened.map_err(|_| protocol("a record that its sender did not seal"))?;
            at += plain;
        }
        Ok(buffer.into_bytes())
    }
}
