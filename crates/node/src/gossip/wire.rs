//! Looks through a chitchat 0.11 message before chitchat does.
//!
//! chitchat trusts its peers: some well-formed messages make it panic (a `SetMaxVersion` below the keys it
//! follows, a version near overflow before the next `set`, a digest that grows past a datagram), others
//! poison state for good. Its messages can't be inspected through its types, so this reads the bytes; the
//! format is fixed as long as the dependency is pinned. The profile accepted is narrower than chitchat's,
//! because Embermesh never deletes a key: no tombstones and no resets, which removes that machinery's traps.
//!
//! What can't be seen from here, and waits for authenticated datagrams: a plausible lie about *another*
//! node (a higher heartbeat, version or epoch than it has, a changed value).

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;

use super::counters::DropReason;
use super::{MAX_KEY_BYTES, MAX_KEYS, MAX_NODE_ID_BYTES, MAX_NODES, MAX_VALUE_BYTES};

/// Far above what a node can reach (a million changes a second for nine years), far below overflow.
const MAX_COUNT: u64 = 1 << 48;
/// A peer may know more nodes than we take in (it counts others), but not any number of them.
const MAX_ENTRIES: usize = 2 * MAX_NODES;
/// Unpacked size of a delta. A full mesh of 600 nodes with 40 keys each needs less than half.
const MAX_DELTA_BYTES: usize = 4 << 20;
/// chitchat packs at most this much into a block.
const MAX_BLOCK_BYTES: usize = u16::MAX as usize;

const MAGIC: u16 = 45_139;
const PROTOCOL_VERSION: u8 = 0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Syn,
    SynAck,
    Ack,
}

/// A message that chitchat may read.
#[derive(Debug)]
pub(super) struct Inspected {
    pub(super) kind: Kind,
    /// The nodes its digest tells of; empty for an Ack.
    pub(super) entries: Vec<Entry>,
}

/// Where one node's digest entry stands in the message.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) id: Range<usize>,
    pub(super) whole: Range<usize>,
}

/// Checks `message`. `cluster` is our cluster's name, `me` our own id as chitchat writes it.
pub(super) fn inspect(message: &[u8], cluster: &str, me: &[u8]) -> Result<Inspected, DropReason> {
    let mut reader = Reader { bytes: message, at: 0 };
    if reader.u16()? != MAGIC || reader.u8()? != PROTOCOL_VERSION {
        return Err(DropReason::Malformed);
    }
    let (kind, entries) = match reader.u8()? {
        0 => {
            let entries = digest(&mut reader)?;
            if reader.text()? != cluster {
                return Err(DropReason::Cluster);
            }
            (Kind::Syn, entries)
        }
        1 => {
            let entries = digest(&mut reader)?;
            delta(&mut reader, me)?;
            (Kind::SynAck, entries)
        }
        2 => {
            delta(&mut reader, me)?;
            (Kind::Ack, Vec::new())
        }
        // 'Your Syn is of another cluster': chitchat would only log it.
        3 => return Err(DropReason::Cluster),
        _ => return Err(DropReason::Malformed),
    };
    if reader.at != message.len() {
        return Err(DropReason::Malformed);
    }
    Ok(Inspected { kind, entries })
}

/// The message without the digest entries that `keep` refuses. Leaving one out only says 'I have nothing of it'.
pub(super) fn without_entries(message: &[u8], entries: &[Entry], keep: &[bool]) -> Vec<u8> {
    let digest_start = 4;
    let digest_end = entries.last().map_or(digest_start + 2, |entry| entry.whole.end);
    let kept = keep.iter().filter(|kept| **kept).count() as u16;
    let mut shorter = Vec::with_capacity(message.len());
    shorter.extend_from_slice(&message[..digest_start]);
    shorter.extend_from_slice(&kept.to_le_bytes());
    for (entry, _) in entries.iter().zip(keep).filter(|(_, kept)| **kept) {
        shorter.extend_from_slice(&message[entry.whole.clone()]);
    }
    shorter.extend_from_slice(&message[digest_end..]);
    shorter
}

fn digest(reader: &mut Reader<'_>) -> Result<Vec<Entry>, DropReason> {
    let count = usize::from(reader.u16()?);
    if count > MAX_ENTRIES {
        return Err(DropReason::Oversize);
    }
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        let start = reader.at;
        node_id(reader)?;
        let id = start..reader.at;
        let _heartbeat = reader.count()?;
        no_tombstones(reader.u64()?)?;
        let _max_version = reader.count()?;
        entries.push(Entry { id, whole: start..reader.at });
    }
    Ok(entries)
}

fn delta(reader: &mut Reader<'_>, me: &[u8]) -> Result<(), DropReason> {
    let unpacked = unpack(reader)?;
    let mut ops = Reader { bytes: &unpacked, at: 0 };
    let mut nodes = 0;
    let mut current: Option<NodeDelta> = None;
    while ops.at < unpacked.len() {
        match ops.u8()? {
            0 => {
                nodes += 1;
                if nodes > MAX_ENTRIES {
                    return Err(DropReason::Oversize);
                }
                let start = ops.at;
                node_id(&mut ops)?;
                if &unpacked[start..ops.at] == me {
                    return Err(DropReason::AboutSelf);
                }
                no_tombstones(ops.u64()?)?;
                current = Some(NodeDelta { version: ops.count()?, keys: 0, closed: false });
            }
            1 => current.as_mut().ok_or(DropReason::Malformed)?.key(&mut ops)?,
            2 => current.as_mut().ok_or(DropReason::Malformed)?.max_version(&mut ops)?,
            _ => return Err(DropReason::Malformed),
        }
    }
    Ok(())
}

/// What has been read of one node's part of a delta.
struct NodeDelta {
    version: u64,
    keys: usize,
    closed: bool,
}

impl NodeDelta {
    fn key(&mut self, ops: &mut Reader<'_>) -> Result<(), DropReason> {
        let key = ops.text()?;
        let value = ops.text()?;
        let version = ops.count()?;
        no_tombstones(u64::from(ops.u8()?))?;
        self.keys += 1;
        if key.len() > MAX_KEY_BYTES || value.len() > MAX_VALUE_BYTES || self.keys > MAX_KEYS {
            return Err(DropReason::Oversize);
        }
        if !is_name(key) || version <= self.version {
            return Err(DropReason::Implausible);
        }
        if self.closed {
            return Err(DropReason::Malformed);
        }
        self.version = version;
        Ok(())
    }

    /// chitchat writes it only for a node without keys; after keys it could lower the version, and panic.
    fn max_version(&mut self, ops: &mut Reader<'_>) -> Result<(), DropReason> {
        let version = ops.count()?;
        if self.closed || self.keys > 0 {
            return Err(DropReason::Malformed);
        }
        if version <= self.version {
            return Err(DropReason::Implausible);
        }
        self.closed = true;
        Ok(())
    }
}

/// Undoes chitchat's blocks, each plain or zstd, up to a bound that chitchat itself does not have.
fn unpack(reader: &mut Reader<'_>) -> Result<Vec<u8>, DropReason> {
    let mut unpacked = Vec::new();
    let mut buffer = Vec::new();
    loop {
        match reader.u8()? {
            0 => return Ok(unpacked),
            1 => {
                let length = usize::from(reader.u16()?);
                let block = reader.take(length)?;
                buffer.resize(MAX_BLOCK_BYTES, 0);
                let length =
                    zstd::bulk::decompress_to_buffer(block, &mut buffer[..]).map_err(|_| DropReason::Malformed)?;
                unpacked.extend_from_slice(&buffer[..length]);
            }
            2 => {
                let length = usize::from(reader.u16()?);
                unpacked.extend_from_slice(reader.take(length)?);
            }
            _ => return Err(DropReason::Malformed),
        }
        if unpacked.len() > MAX_DELTA_BYTES {
            return Err(DropReason::Oversize);
        }
    }
}

fn node_id(reader: &mut Reader<'_>) -> Result<(), DropReason> {
    let name = reader.text()?;
    if name.len() > MAX_NODE_ID_BYTES {
        return Err(DropReason::Oversize);
    }
    let _generation = reader.u64()?;
    let ip = match reader.u8()? {
        4 => IpAddr::from(reader.array::<4>()?),
        6 => IpAddr::from(reader.array::<16>()?),
        _ => return Err(DropReason::Malformed),
    };
    let port = reader.u16()?;
    if !is_name(name) || !is_usable(ip) || port == 0 {
        return Err(DropReason::Implausible);
    }
    Ok(())
}

/// Whether gossip may be sent there: chitchat sends to whatever address a digest names.
pub(super) fn is_usable(ip: IpAddr) -> bool {
    !ip.is_unspecified() && !ip.is_multicast() && ip != IpAddr::V4(Ipv4Addr::BROADCAST)
}

/// A node id or a key: printable ASCII without spaces.
pub(super) fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn no_tombstones(value: u64) -> Result<(), DropReason> {
    if value == 0 { Ok(()) } else { Err(DropReason::Implausible) }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], DropReason> {
        let taken = self.bytes.get(self.at..self.at + length).ok_or(DropReason::Truncated)?;
        self.at += length;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DropReason> {
        self.take(N)?.try_into().map_err(|_| DropReason::Truncated)
    }

    fn u8(&mut self) -> Result<u8, DropReason> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, DropReason> {
        self.array().map(u16::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, DropReason> {
        self.array().map(u64::from_le_bytes)
    }

    /// A heartbeat or version.
    fn count(&mut self) -> Result<u64, DropReason> {
        let count = self.u64()?;
        if count > MAX_COUNT { Err(DropReason::Implausible) } else { Ok(count) }
    }

    fn text(&mut self) -> Result<&'a str, DropReason> {
        let length = usize::from(self.u16()?);
        std::str::from_utf8(self.take(length)?).map_err(|_| DropReason::Malformed)
    }
}
