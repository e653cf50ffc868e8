//! L4_one_grant_per_request_id

use super::{Checked, Invariant};
use crate::history::{Ledger, Record, What};

pub(super) const INVARIANT: Invariant = Invariant {
    observe,
    ..Invariant::named(
        "L4_one_grant_per_request_id",
        "one grant for a request in an owner's life, however late a copy arrives",
    )
};

fn observe(before: &Ledger, record: &Record) -> Checked {
    let Some(life) = before.life(record) else { return Ok(()) };
    match &record.what {
        What::Granted { request, fence, .. } => match life.grants.get(request) {
            Some(first) => Err(format!("{request:?} was granted {first:?} and gets {fence:?} as well")),
            None => Ok(()),
        },
        What::GrantRepeated { request, fence } if life.grants.get(request) != Some(fence) => {
            Err(format!("a copy of {request:?} is told {fence:?}, granted was {:?}", life.grants.get(request)))
        }
        _ => Ok(()),
    }
}
