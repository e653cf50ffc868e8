//! Adverts and intents as texts, the way gossip carries them. What can't be read is `None`, never guessed; what a newer
//! version adds stands behind the rest, and is left out.

use std::fmt;

use crate::ids::{ActionHash, ContainerId, Epoch, NodeId};
use crate::output::{Advert, IntentKind, IntentNotice};

/// `warm,paused,starting,bucket`; the action's hash stands before it.
impl fmt::Display for Advert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Advert { warm, paused, starting, free_bucket } = self;
        write!(f, "{warm},{paused},{starting},{free_bucket}")
    }
}

/// The owner is whoever gossips it, in its present epoch.
impl fmt::Display for IntentNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            IntentKind::Pause => 'p',
            IntentKind::Remove => 'r',
        };
        let (urgent, last) = (u8::from(self.urgent), u8::from(self.last_copy));
        let IntentNotice { container, hash, round, window_us, .. } = self;
        write!(f, "{},{hash},{round},{kind},{urgent},{window_us},{last}", container.number)
    }
}

/// Reads an advert behind its action's hash.
pub fn advert(text: &str) -> Option<(ActionHash, Advert)> {
    let mut parts = text.split(',');
    let hash = parts.next()?.parse().ok()?;
    let mut number = || parts.next()?.parse::<u32>().ok();
    let (warm, paused, starting) = (number()?, number()?, number()?);
    let free_bucket = u8::try_from(number()?).ok().filter(|b| *b <= 3)?;
    Some((hash, Advert { warm, paused, starting, free_bucket }))
}

/// Reads an intent that its owner gossips.
pub fn intent(owner: NodeId, epoch: Epoch, text: &str) -> Option<IntentNotice> {
    let parts: Vec<&str> = text.split(',').collect();
    let [number, hash, round, kind, urgent, window, last, ..] = parts.as_slice() else { return None };
    Some(IntentNotice {
        container: ContainerId { owner, epoch, number: number.parse().ok()? },
        hash: hash.parse().ok()?,
        round: round.parse().ok()?,
        kind: match *kind {
            "p" => IntentKind::Pause,
            "r" => IntentKind::Remove,
            _ => return None,
        },
        urgent: *urgent == "1",
        window_us: window.parse().ok()?,
        last_copy: *last == "1",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_intent_survives_the_ring() {
        let notice = IntentNotice {
            container: ContainerId { owner: NodeId::new("n1"), epoch: Epoch(7), number: 3 },
            hash: ActionHash(12345),
            round: 2,
            kind: IntentKind::Remove,
            urgent: true,
            window_us: 1_000_000,
            last_copy: false,
        };
        assert_eq!(intent(NodeId::new("n1"), Epoch(7), &notice.to_string()), Some(notice));
    }

    #[test]
    fn what_a_newer_version_adds_behind_an_advert_or_an_intent_is_left_out() {
        let text = "00000001,1,2,3,1";
        assert!(advert(text).is_some());
        assert_eq!(advert(&format!("{text},9,new")), advert(text));
        let text = "3,00000001,2,r,1,1000000,0";
        let read = |text| intent(NodeId::new("n1"), Epoch(7), text);
        assert!(read(text).is_some());
        assert_eq!(read(&format!("{text},new")), read(text));
    }

    #[test]
    fn what_can_not_be_read_is_no_advert() {
        let read = Advert { warm: 1, paused: 0, starting: 2, free_bucket: 3 };
        assert_eq!(advert(&format!("{},{read}", ActionHash(1))), Some((ActionHash(1), read)));
        for text in ["", "00000001,1,2,3", "00000001,1,2,3,4", "1,0,0,0,0", "00000001,-1,0,0,0"] {
            assert_eq!(advert(text), None, "{text}");
        }
        assert_eq!(intent(NodeId::new("n1"), Epoch(1), "3,zzzz,x"), None);
    }
}
