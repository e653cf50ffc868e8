//! The invariants of docs/protocol.md that a history can tell, one a file.

mod a1_started_at_most_once;
mod a2_indeterminate_iff_unknown;
mod a3_success_is_that_runs_result;
mod a4_every_request_answered;
mod beliefs;
mod g1_advert_is_hint_only;
mod g2_epoch_never_regresses;
mod history_is_faithful;
mod l0_runs_within_slots;
mod l1_owner_table_within_slots;
mod l1b_beliefs_within_slots;
mod l2_fence_monotonic;
mod l3_holder_stops_before_owner_frees;
mod l4_one_grant_per_request_id;
mod l5_no_run_after_expiry;
mod l6_release_matches_fence;
mod l7_no_slot_leak;
mod m1_memory_within_limit;
mod r1_nothing_begins_on_a_used_container;
mod r2_countable_veto_stops_commit;
mod r3_other_vetoes_change_nothing;
mod r4_intent_resolved_at_deadline;
mod r5_unopposed_intent_commits;
mod r6_removed_is_final;
mod r7_veto_bounded;
mod r8_nothing_between_commit_and_engine;
mod s1_container_never_rebound;

use super::{Glance, Ledger, Record};

type Checked = Result<(), String>;

/// One promise. Each check gets what is known before, and says what is wrong.
#[derive(Debug, Clone, Copy)]
pub struct Invariant {
    /// As docs/protocol.md calls it.
    pub name: &'static str,
    pub says: &'static str,
    /// Whether records alone can tell; if not, only a [`Glance`] at the nodes can.
    pub told: bool,
    pub(super) observe: fn(&Ledger, &Record) -> Checked,
    /// Where the nodes themselves are at hand, after each step.
    pub(super) look: fn(&Ledger, &Glance<'_>) -> Checked,
    /// When nothing new was asked for long.
    pub(super) at_rest: fn(&Ledger, &Glance<'_>) -> Checked,
}

impl Invariant {
    const fn named(name: &'static str, says: &'static str) -> Self {
        Self { name, says, told: true, observe: |_, _| Ok(()), look: |_, _| Ok(()), at_rest: |_, _| Ok(()) }
    }
}

/// In the order in which they are looked at.
pub const INVARIANTS: &[Invariant] = &[
    l0_runs_within_slots::INVARIANT,
    l1_owner_table_within_slots::INVARIANT,
    l1b_beliefs_within_slots::INVARIANT,
    l2_fence_monotonic::INVARIANT,
    l3_holder_stops_before_owner_frees::INVARIANT,
    l4_one_grant_per_request_id::INVARIANT,
    l5_no_run_after_expiry::INVARIANT,
    l6_release_matches_fence::INVARIANT,
    l7_no_slot_leak::INVARIANT,
    r1_nothing_begins_on_a_used_container::INVARIANT,
    r2_countable_veto_stops_commit::INVARIANT,
    r3_other_vetoes_change_nothing::INVARIANT,
    r4_intent_resolved_at_deadline::INVARIANT,
    r5_unopposed_intent_commits::INVARIANT,
    r6_removed_is_final::INVARIANT,
    r7_veto_bounded::INVARIANT,
    r8_nothing_between_commit_and_engine::INVARIANT,
    s1_container_never_rebound::INVARIANT,
    g1_advert_is_hint_only::INVARIANT,
    g2_epoch_never_regresses::INVARIANT,
    a1_started_at_most_once::INVARIANT,
    a2_indeterminate_iff_unknown::INVARIANT,
    a3_success_is_that_runs_result::INVARIANT,
    a4_every_request_answered::INVARIANT,
    m1_memory_within_limit::INVARIANT,
    history_is_faithful::INVARIANT,
];
