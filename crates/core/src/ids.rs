//! Names of things, and what orders them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::time::Micros;

#[cfg(feature = "serde")]
mod as_text;

/// A node's short, stable name: `[a-z0-9-]`, at most 32 characters.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(Arc<str>);

impl NodeId {
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Rises at every start of a node.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// One container, for ever: no other ever has this id, restarts included.
/// Written `node-epoch-number`, the epoch in base 36.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId {
    pub owner: NodeId,
    pub epoch: Epoch,
    pub number: u64,
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.owner, Base36(self.epoch.0), self.number)
    }
}

impl fmt::Debug for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ContainerId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = || BadId { what: "container", text: text.to_owned(), form: "NODE-EPOCH-NUMBER" };
        let (owner, epoch, number) = split_id(text).ok_or_else(bad)?;
        Ok(Self { owner, epoch, number: number.parse().map_err(|_| bad())? })
    }
}

/// Grows with every grant of an owner, restarts included: a run on a lease shows it, the owner checks it.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence {
    pub epoch: Epoch,
    pub counter: u64,
}

/// A lease's name for people: the owner and the fence, written `node-epoch-Lcounter`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId {
    pub owner: NodeId,
    pub fence: Fence,
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-L{}", self.owner, Base36(self.fence.epoch.0), self.fence.counter)
    }
}

impl FromStr for LeaseId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = || BadId { what: "lease", text: text.to_owned(), form: "NODE-EPOCH-LNUMBER" };
        let (owner, epoch, counter) = split_id(text).ok_or_else(bad)?;
        let counter = counter.strip_prefix('L').and_then(|c| c.parse().ok()).ok_or_else(bad)?;
        Ok(Self { owner, fence: Fence { epoch, counter } })
    }
}

/// One round of an intent, written `container-rN`.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IntentId {
    pub container: ContainerId,
    pub round: u32,
}

impl fmt::Display for IntentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-r{}", self.container, self.round)
    }
}

impl FromStr for IntentId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = || BadId { what: "intent", text: text.to_owned(), form: "NODE-EPOCH-NUMBER-rROUND" };
        let (container, round) = text.rsplit_once("-r").ok_or_else(bad)?;
        Ok(Self { container: container.parse().map_err(|_| bad())?, round: round.parse().map_err(|_| bad())? })
    }
}

/// A text that should name something and doesn't.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no {what} id: it should look like {form}")]
pub struct BadId {
    what: &'static str,
    text: String,
    form: &'static str,
}

/// (holder, holder epoch, number): makes a Reserve or a Run one thing, however often it arrives.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId {
    pub holder: NodeId,
    pub epoch: Epoch,
    pub number: u64,
}

/// One run in an own container, unique in this node's epoch.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(pub u64);

/// One activation, unique across the mesh; shown as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActivationId(pub u128);

impl fmt::Display for ActivationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for ActivationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A registered action's namespace and name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActionId(Arc<(Box<str>, Box<str>)>);

impl ActionId {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self(Arc::new((namespace.into(), name.into())))
    }

    pub fn namespace(&self) -> &str {
        &self.0.0
    }

    pub fn name(&self) -> &str {
        &self.0.1
    }
}

impl fmt::Display for ActionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace(), self.name())
    }
}

impl fmt::Debug for ActionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Orders all states that an action ever had, across the mesh.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    pub counter: u64,
    pub node: NodeId,
}

/// The counter in base 36: it is an epoch, mostly.
impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", Base36(self.counter), self.node)
    }
}

/// What the core needs to know of one revision of an action.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ActionSpec {
    pub action: ActionId,
    pub revision: Revision,
    /// Slots of each of its containers.
    pub concurrency: u32,
    pub memory_mb: u64,
    pub timeout_us: Micros,
    /// Whether a run of unknown outcome may be made again.
    pub idempotent: bool,
    /// What start and resume estimates are kept by.
    pub image: Arc<str>,
}

impl ActionSpec {
    pub fn action_hash(&self) -> ActionHash {
        ActionHash::of(&self.action, &self.revision)
    }
}

/// 40 bits that stand for an action and its revision in gossip; a hint's key, so a clash costs a refusal only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActionHash(pub u64);

impl ActionHash {
    const BITS: u64 = (1 << 40) - 1;
    const DIGITS: &'static [u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

    pub fn of(action: &ActionId, revision: &Revision) -> Self {
        let mut hash = Fnv::default();
        for part in [action.namespace(), action.name(), revision.node.as_str()] {
            hash.add(part.as_bytes());
            hash.add(&[0]);
        }
        hash.add(&revision.counter.to_be_bytes());
        Self(hash.mixed() & Self::BITS)
    }

    /// A node's weight for this action in rendezvous hashing: the largest comes first.
    pub fn weight(self, node: &NodeId) -> u64 {
        let mut hash = Fnv::default();
        hash.add(&self.0.to_be_bytes());
        hash.add(node.as_str().as_bytes());
        hash.mixed()
    }
}

impl fmt::Display for ActionHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for digit in (0..8).rev() {
            let index = (self.0 >> (digit * 5)) & 31;
            write!(f, "{}", char::from(Self::DIGITS[index as usize]))?;
        }
        Ok(())
    }
}

impl FromStr for ActionHash {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = || BadId { what: "action hash", text: text.to_owned(), form: "eight base-32 digits" };
        if text.len() != 8 {
            return Err(bad());
        }
        let mut value = 0;
        for byte in text.bytes() {
            let digit = Self::DIGITS.iter().position(|&d| d == byte).ok_or_else(bad)?;
            value = value << 5 | digit as u64;
        }
        Ok(Self(value))
    }
}

/// FNV-1a with a finisher: stable across builds and machines, which std's hashers don't promise.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn mixed(&self) -> u64 {
        let mut x = self.0;
        x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        x ^ (x >> 33)
    }
}

struct Base36(u64);

impl fmt::Display for Base36 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = Vec::with_capacity(13);
        let mut rest = self.0;
        loop {
            digits.push(char::from_digit((rest % 36) as u32, 36).unwrap_or('0'));
            rest /= 36;
            if rest == 0 {
                break;
            }
        }
        f.write_str(&digits.into_iter().rev().collect::<String>())
    }
}

/// Splits `node-epoch-rest` from the right: a node's name may hold dashes.
fn split_id(text: &str) -> Option<(NodeId, Epoch, &str)> {
    let (head, rest) = text.rsplit_once('-')?;
    let (owner, epoch) = head.rsplit_once('-')?;
    let epoch = u64::from_str_radix(epoch, 36).ok()?;
    (!owner.is_empty()).then(|| (NodeId::new(owner), Epoch(epoch), rest))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ids_survive_being_written_and_read() {
        let container = ContainerId { owner: NodeId::new("a-b"), epoch: Epoch(1_763_757_444_000_123), number: 7 };
        assert_eq!(container.to_string().parse::<ContainerId>().unwrap(), container);
        let intent = IntentId { container, round: 3 };
        assert_eq!(intent.to_string().parse::<IntentId>().unwrap(), intent);
        let lease = LeaseId { owner: NodeId::new("n-1"), fence: Fence { epoch: Epoch(36), counter: 9 } };
        assert_eq!(lease.to_string(), "n-1-10-L9");
        assert_eq!(lease.to_string().parse::<LeaseId>().unwrap(), lease);
        let hash = ActionHash::of(&ActionId::new("guest", "hello"), &Revision { counter: 1, node: NodeId::new("n1") });
        assert_eq!(hash.to_string().parse::<ActionHash>().unwrap(), hash);
    }

    #[test]
    fn a_text_that_names_nothing_is_an_error_that_shows_the_form() {
        let error = "hello".parse::<ContainerId>().unwrap_err().to_string();
        assert!(error.contains("`hello`") && error.contains("NODE-EPOCH-NUMBER"), "{error}");
        assert!("n1-10-9".parse::<LeaseId>().is_err());
        assert!("n1-10-9".parse::<IntentId>().is_err());
    }
}
