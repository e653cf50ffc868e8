//! What states share until one of them changes it: a move touches one node of several, so most of a state is the one
//! before it. Each part is hashed once, by the state that changed it or saw time go on.

use std::hash::{Hash, Hasher};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use embermesh_core::Time;

/// Older than this is all the same: no number of the configuration is as large.
const LONG_AGO: i128 = 16_000;

#[derive(Debug, Clone)]
pub(super) struct Part<T> {
    shared: Arc<T>,
    /// Its hash, and the moment that it is relative to.
    print: Option<(u64, Time)>,
}

impl<T: Hash> Part<T> {
    pub(super) fn new(part: T) -> Self {
        Self { shared: Arc::new(part), print: None }
    }

    pub(super) fn share(&self) -> Arc<T> {
        self.shared.clone()
    }

    /// Hashes it as it is at that moment, unless that was done.
    pub(super) fn settle(&mut self, now: Time) {
        if self.print.is_none_or(|(_, then)| then != now) {
            let mut hasher = Relative { sum: 0, now };
            self.shared.hash(&mut hasher);
            self.print = Some((hasher.sum, now));
        }
    }

    /// 0 unless it is settled.
    pub(super) fn print(&self) -> u64 {
        self.print.map_or(0, |(sum, _)| sum)
    }
}

impl<T> Deref for Part<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.shared
    }
}

/// The one that changes it has a copy of its own.
impl<T: Clone> DerefMut for Part<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.print = None;
        Arc::make_mut(&mut self.shared)
    }
}

/// Takes moments relative to now; see `Hash` of [`Time`]. Multiplies to 128 bits and folds, as foldhash does.
struct Relative {
    sum: u64,
    now: Time,
}

impl Relative {
    const SEED: u64 = 0x243f_6a88_85a3_08d3;
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
}

impl Hasher for Relative {
    fn finish(&self) -> u64 {
        self.sum
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, n: u64) {
        let product = u128::from(self.sum.rotate_left(23) ^ n ^ Self::SEED) * u128::from(Self::FACTOR);
        self.sum = (product as u64) ^ (product >> 64) as u64;
    }

    fn write_i128(&mut self, moment: i128) {
        let away = moment - i128::from(self.now.0);
        self.write_u64(away.clamp(-LONG_AGO, i128::from(i64::MAX)) as u64);
    }

    fn write_u8(&mut self, n: u8) {
        self.write_u64(n.into());
    }

    fn write_u32(&mut self, n: u32) {
        self.write_u64(n.into());
    }

    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }
}
