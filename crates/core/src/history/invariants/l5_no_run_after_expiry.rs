//! L5_no_run_after_expiry

use super::{Checked, Invariant};
use crate::history::{Ledger, Record, What};

pub(super) const INVARIANT: Invariant = Invariant {
    observe,
    ..Invariant::named(
        "L5_no_run_after_expiry",
        "the owner accepts runs until ttl + grace after the grant or the last renewing run, and not from then on",
    )
};

fn observe(before: &Ledger, record: &Record) -> Checked {
    let What::RunBegan { container, lease: Some(shown), .. } = &record.what else { return Ok(()) };
    let Some(there) = before.container(record, *container) else { return Ok(()) };
    let Some(lease) = there.leases.get(&shown.fence) else {
        return Err(format!("a run begins on {:?}, which container {container} does not have", shown.fence));
    };
    if (&lease.holder, lease.holder_epoch) != (&shown.request.holder, shown.request.epoch) {
        return Err(format!("{:?} runs on a lease of {:?}", shown.request, lease.holder));
    }
    if lease.running >= lease.slots {
        return Err(format!("a run begins on {:?} with all its {} slots busy", shown.fence, lease.slots));
    }
    if record.at >= lease.expires_at {
        return Err(format!("a run begins on {:?}, which was over at {:?}", shown.fence, lease.expires_at));
    }
    Ok(())
}
