//! The sizes of chitchat 0.11's messages behind our header: what `embermesh-node`'s transport would send.
//!
//! A digest is written as it is. A delta is a row of operations in blocks of 16 KiB, each compressed by zstd where that
//! makes it smaller, and ends where the datagram would.

/// Our header, then chitchat's magic number, version and kind.
pub(super) const FRAME_BYTES: usize = 13 + 4;
/// The largest UDP payload over IPv4, which chitchat takes for its own.
const MAX_DATAGRAM_BYTES: usize = 65_507;
const BLOCK_BYTES: usize = 16_384;
/// A block's kind and length.
const BLOCK_HEAD_BYTES: usize = 3;

/// A node's id in a digest or a delta: name, generation, address.
fn id_bytes(name: &str) -> usize {
    2 + name.len() + 8 + (1 + 4 + 2)
}

/// How much a digest holds of one node: its id, heartbeat, and two versions.
pub(super) fn digest_entry_bytes(name: &str) -> usize {
    id_bytes(name) + 24
}

/// Writes a delta and counts the bytes that it has on the wire.
pub(super) struct Packer {
    packed: usize,
    block: Vec<u8>,
    limit: usize,
}

impl Packer {
    /// Beside a digest of that many bytes in the same datagram.
    pub(super) fn beside(digest_bytes: usize) -> Self {
        Self { packed: 0, block: Vec::new(), limit: MAX_DATAGRAM_BYTES.saturating_sub(1 + digest_bytes) }
    }

    /// False if there is no room for it.
    pub(super) fn node(&mut self, name: &str, from_version: u32) -> bool {
        let mut op = vec![0];
        text(&mut op, name);
        op.extend([0x2a; 8]);
        op.extend([4, 10, 0, 0, 1, 0xf3, 0x1c]);
        op.extend(0u64.to_le_bytes());
        op.extend(u64::from(from_version).to_le_bytes());
        self.append(&op)
    }

    pub(super) fn key_value(&mut self, key: &str, value: &str, version: u32) -> bool {
        let mut op = vec![1];
        text(&mut op, key);
        text(&mut op, value);
        op.extend(u64::from(version).to_le_bytes());
        op.push(0);
        self.append(&op)
    }

    /// Bytes of the whole delta.
    pub(super) fn finish(mut self) -> usize {
        let rest = self.block.len();
        self.flush(rest);
        self.packed + 1
    }

    fn append(&mut self, op: &[u8]) -> bool {
        let another = if self.block.len() + op.len() > BLOCK_BYTES { BLOCK_HEAD_BYTES } else { 0 };
        if BLOCK_HEAD_BYTES + self.packed + self.block.len() + another + op.len() + 1 > self.limit {
            return false;
        }
        self.block.extend_from_slice(op);
        if self.block.len() > BLOCK_BYTES {
            self.flush(BLOCK_BYTES);
        }
        true
    }

    fn flush(&mut self, bytes: usize) {
        if bytes > 0 {
            let block: Vec<u8> = self.block.drain(..bytes).collect();
            let compressed = zstd::bulk::compress(&block, 0).map_or(bytes, |c| c.len());
            self.packed += BLOCK_HEAD_BYTES + compressed.min(bytes);
        }
    }
}

fn text(to: &mut Vec<u8>, text: &str) {
    to.extend((text.len() as u16).to_le_bytes());
    to.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delta_ends_where_its_datagram_would() {
        let mut packer = Packer::beside(MAX_DATAGRAM_BYTES - 200);
        assert!(packer.node("n1", 0));
        let mut fitted = 0;
        while packer.key_value("a/1", "00000001,1,0,0,1", fitted) {
            fitted += 1;
        }
        assert_eq!(fitted, 4, "of 199 bytes, 40 go to the frame and the node and 33 to each value");
        assert!(packer.finish() < 199);
    }

    #[test]
    fn what_is_alike_is_compressed() {
        let mut packer = Packer::beside(0);
        packer.node("n1", 0);
        for version in 1..100 {
            packer.key_value("a/1", "00000001,1,0,0,1", version);
        }
        assert!(packer.finish() < 99 * 33 / 4);
    }
}
