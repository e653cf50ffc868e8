//! Decisions that users of the library may want to replace: small traits with one method and a default.
//! Policies are stateless; what they may know is what their argument shows.

use std::fmt::Debug;

use crate::time::{MS, Micros};

/// Whether this node objects to an owner's intent, and for how long it needs the container.
pub trait VetoPolicy: Debug + Send + Sync {
    fn hold(&self, view: &VetoView) -> Option<Micros>;
}

/// What a node knows when it hears of an intent.
#[derive(Debug, Clone, Copy)]
pub struct VetoView {
    /// Own activations that wait for this action.
    pub queued: u32,
    /// Runs and idle slots that this node has by a lease on that very container.
    pub leased: u32,
    /// Free slots in own warm containers of the action.
    pub own_free: u32,
    /// Mean time between arrivals here, and since the last one.
    pub gap: Option<(Micros, Micros)>,
    /// What a start would cost instead.
    pub start_us: Micros,
    /// Whether the owner says that no other warm copy is known.
    pub last_copy: bool,
    pub max_hold_us: Micros,
}

/// Vetoes for work on the way, or when the forecast arrivals of this node pay for the memory: the next one is
/// expected within `max_hold`, and starts would otherwise cost at least a thousandth of the time between arrivals.
#[derive(Debug, Clone, Copy, Default)]
pub struct DemandVeto;

impl VetoPolicy for DemandVeto {
    fn hold(&self, view: &VetoView) -> Option<Micros> {
        if view.queued > 0 || view.leased > 0 {
            return Some(view.max_hold_us.min(10_000 * MS));
        }
        if view.own_free > 0 {
            return None;
        }
        let (gap, since_last) = view.gap?;
        let expected_soon = gap <= view.max_hold_us && since_last <= gap.saturating_mul(4).max(100 * MS);
        let pays = view.start_us.saturating_mul(1000) >= gap;
        (expected_soon && pays).then(|| gap.saturating_mul(2).max(500 * MS).min(view.max_hold_us))
    }
}

/// How much a warm container is worth keeping: the lowest goes first when memory is short, and how long a
/// paused one is kept when it is not.
pub trait KeepAlive: Debug + Send + Sync {
    fn value(&self, view: &KeepView) -> u64;

    /// How long a paused container stays before an intent to remove it.
    fn keep_paused(&self, view: &KeepView, idle_timeout_us: Micros) -> Micros;
}

#[derive(Debug, Clone, Copy)]
pub struct KeepView {
    /// Runs since it began.
    pub runs: u64,
    /// What a start would cost beyond a warm run.
    pub start_us: Micros,
    pub memory_mb: u64,
    /// Whether this node counts it as the last warm copy in the mesh.
    pub last_copy: bool,
    /// The value of the container evicted last: what was used before it ages against it.
    pub clock: u64,
}

/// Greedy dual, size, frequency (FaasCache): value = clock + frequency · cost / size. A copy that a peer also
/// has costs a quarter, and is kept half as long as the last one.
#[derive(Debug, Clone, Copy, Default)]
pub struct GreedyDual;

impl KeepAlive for GreedyDual {
    fn value(&self, view: &KeepView) -> u64 {
        let cost = if view.last_copy { view.start_us } else { view.start_us / 4 };
        view.clock.saturating_add(view.runs.saturating_mul(cost) / view.memory_mb.max(1))
    }

    fn keep_paused(&self, view: &KeepView, idle_timeout_us: Micros) -> Micros {
        if view.last_copy { idle_timeout_us } else { idle_timeout_us / 2 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: VetoView = VetoView {
        queued: 0,
        leased: 0,
        own_free: 0,
        gap: None,
        start_us: 300 * MS,
        last_copy: true,
        max_hold_us: 30_000 * MS,
    };

    #[test]
    fn queued_work_vetoes_and_its_absence_does_not() {
        assert!(DemandVeto.hold(&VetoView { queued: 1, ..IDLE }).is_some());
        assert_eq!(DemandVeto.hold(&IDLE), None);
    }

    #[test]
    fn a_forecast_vetoes_while_it_holds_and_pays() {
        let steady = VetoView { gap: Some((200 * MS, 100 * MS)), ..IDLE };
        assert_eq!(DemandVeto.hold(&steady), Some(500 * MS));
        let ended = VetoView { gap: Some((200 * MS, 5_000 * MS)), ..IDLE };
        assert_eq!(DemandVeto.hold(&ended), None);
        let own = VetoView { own_free: 1, ..steady };
        assert_eq!(DemandVeto.hold(&own), None);
        let cheap_start = VetoView { start_us: MS / 10, ..steady };
        assert_eq!(DemandVeto.hold(&cheap_start), None);
        let short_holds = VetoView { max_hold_us: 300 * MS, ..steady };
        assert_eq!(DemandVeto.hold(&short_holds), Some(300 * MS));
    }

    #[test]
    fn a_spare_copy_is_worth_less_and_goes_sooner_than_the_last() {
        let last = KeepView { runs: 10, start_us: 300 * MS, memory_mb: 256, last_copy: true, clock: 5 };
        let spare = KeepView { last_copy: false, ..last };
        assert!(GreedyDual.value(&spare) < GreedyDual.value(&last));
        assert!(GreedyDual.keep_paused(&spare, 600) < GreedyDual.keep_paused(&last, 600));
    }
}
