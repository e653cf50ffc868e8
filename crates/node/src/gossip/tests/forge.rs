//! Writes gossip messages by hand, true and false ones.

use std::net::SocketAddr;

use chitchat::{ChitchatId, Serializable};

use super::super::transport::{HEADER_BYTES, header};
use super::*;

pub(super) fn datagram(body: &[u8]) -> Vec<u8> {
    [&header("test")[..], body].concat()
}

pub(super) fn body(datagram: &[u8]) -> &[u8] {
    &datagram[HEADER_BYTES..]
}

pub(super) fn id(name: &str, epoch: u64, address: SocketAddr) -> ChitchatId {
    ChitchatId::new(name, generation(epoch, 0), address)
}

pub(super) struct Seen {
    pub(super) id: ChitchatId,
    pub(super) heartbeat: u64,
    pub(super) last_gc: u64,
    pub(super) max_version: u64,
}

impl Seen {
    pub(super) fn of(id: ChitchatId) -> Self {
        Self { id, heartbeat: 1, last_gc: 0, max_version: 0 }
    }
}

pub(super) fn digest(seen: &[Seen]) -> Vec<u8> {
    let mut bytes = (seen.len() as u16).serialize_to_vec();
    for node in seen {
        node.id.serialize(&mut bytes);
        for count in [node.heartbeat, node.last_gc, node.max_version] {
            count.serialize(&mut bytes);
        }
    }
    bytes
}

pub(super) fn syn(cluster: &str, seen: &[Seen]) -> Vec<u8> {
    [start(0), digest(seen), cluster.to_owned().serialize_to_vec()].concat()
}

pub(super) fn syn_ack(seen: &[Seen], ops: &[Op]) -> Vec<u8> {
    [start(1), digest(seen), delta(ops)].concat()
}

pub(super) fn ack(ops: &[Op]) -> Vec<u8> {
    [start(2), delta(ops)].concat()
}

pub(super) enum Op {
    Node { id: ChitchatId, last_gc: u64, from: u64 },
    Key { key: String, value: String, version: u64, status: u8 },
    MaxVersion(u64),
}

impl Op {
    pub(super) fn node(id: ChitchatId) -> Self {
        Self::Node { id, last_gc: 0, from: 0 }
    }

    pub(super) fn key(key: &str, value: &str, version: u64) -> Self {
        Self::Key { key: key.into(), value: value.into(), version, status: 0 }
    }
}

pub(super) fn start(kind: u8) -> Vec<u8> {
    let mut bytes = 45_139u16.to_le_bytes().to_vec();
    bytes.extend([0, kind]);
    bytes
}

fn delta(ops: &[Op]) -> Vec<u8> {
    let mut plain = Vec::new();
    for op in ops {
        match op {
            Op::Node { id, last_gc, from } => {
                plain.push(0);
                id.serialize(&mut plain);
                last_gc.serialize(&mut plain);
                from.serialize(&mut plain);
            }
            Op::Key { key, value, version, status } => {
                plain.push(1);
                key.serialize(&mut plain);
                value.serialize(&mut plain);
                version.serialize(&mut plain);
                plain.push(*status);
            }
            Op::MaxVersion(version) => {
                plain.push(2);
                version.serialize(&mut plain);
            }
        }
    }
    let mut bytes = Vec::new();
    for block in plain.chunks(16_384) {
        bytes.push(2);
        bytes.extend((block.len() as u16).to_le_bytes());
        bytes.extend(block);
    }
    bytes.push(0);
    bytes
}

/// A delta of `blocks` zstd blocks that unpack to 64 KB each.
pub(super) fn bomb(blocks: usize) -> Vec<u8> {
    let packed = zstd::bulk::compress(&vec![0; 65_535], 19).unwrap();
    let mut bytes = start(2);
    for _ in 0..blocks {
        bytes.push(1);
        bytes.extend((packed.len() as u16).to_le_bytes());
        bytes.extend(&packed);
    }
    bytes.push(0);
    bytes
}
