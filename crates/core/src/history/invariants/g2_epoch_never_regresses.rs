//! G2_epoch_never_regresses

use super::{Checked, Invariant};
use crate::history::{Ledger, Record, What};

pub(super) const INVARIANT: Invariant = Invariant {
    observe,
    ..Invariant::named("G2_epoch_never_regresses", "state of an older epoch never replaces that of a newer one")
};

fn observe(before: &Ledger, record: &Record) -> Checked {
    let (peer, epoch) = match &record.what {
        What::Began(_) => {
            return match before.lives.get(&record.node) {
                Some(life) if life.epoch >= record.epoch => {
                    Err(format!("{} begins epoch {} after {}", record.node, record.epoch.0, life.epoch.0))
                }
                _ => Ok(()),
            };
        }
        What::PeerUp { peer, epoch } | What::AdvertTaken { peer, epoch } => (peer, epoch),
        What::Asked { to, owner_epoch } => (to, owner_epoch),
        _ => return Ok(()),
    };
    match before.life(record).and_then(|life| life.shown.get(peer)) {
        Some(shown) if epoch < shown => Err(format!("{peer} is taken for epoch {} after {}", epoch.0, shown.0)),
        _ => Ok(()),
    }
}
