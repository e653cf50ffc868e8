//! L6_release_matches_fence

use super::{Checked, Invariant};
use crate::history::{Glance, Ledger, Record, What};
use crate::input::Input;

pub(super) const INVARIANT: Invariant = Invariant {
    observe,
    look,
    ..Invariant::named(
        "L6_release_matches_fence",
        "a release changes the lease whose fence it names, if it is of that life of its holder, and no other",
    )
};

fn observe(before: &Ledger, record: &Record) -> Checked {
    let What::Released { container, fence, holder, holder_epoch, slots } = &record.what else { return Ok(()) };
    let lease = before.container(record, *container).and_then(|c| c.leases.get(fence));
    match lease {
        Some(l) if (&l.holder, l.holder_epoch) == (holder, *holder_epoch) && (l.running..=l.slots).contains(slots) => {
            Ok(())
        }
        _ => Err(format!(
            "{holder:?} of epoch {} gives {fence:?} back down to {slots}, it was {lease:?}",
            holder_epoch.0
        )),
    }
}

/// The step itself: all other leases are what they were.
fn look(_: &Ledger, glance: &Glance<'_>) -> Checked {
    let Some((before, Input::ReleaseReceived { fence, holder, holder_epoch, .. }, after)) = &glance.step else {
        return Ok(());
    };
    for view in before.containers() {
        let now = after.containers().find(|c| c.id == view.id);
        for (of, lease) in view.container.leases() {
            let kept = now.as_ref().and_then(|c| c.container.leases().get(of));
            let named = of == fence && lease.holder == *holder && lease.holder_epoch == *holder_epoch;
            if !named && kept.map(|l| (l.slots, l.running)) != Some((lease.slots, lease.running)) {
                return Err(format!("{of:?} {lease:?} became {kept:?}"));
            }
        }
    }
    Ok(())
}
