//! Reads a history record by record and says which invariant does not hold, and the story of it.

use std::collections::VecDeque;
use std::fmt;

use super::{INVARIANTS, Ledger, Record};
use crate::ids::NodeId;
use crate::input::Input;
use crate::node::Node;
use crate::time::Time;

/// Records of the recent past that may be told with a violation.
const LONGEST_STORY: usize = 40;

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Violation {
    /// Its name in docs/protocol.md.
    pub invariant: &'static str,
    pub what: String,
    /// What happened last, oldest first; empty unless the judge keeps stories.
    pub story: Vec<Record>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)?;
        for record in &self.story {
            write!(f, "\n  {record}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {} (epoch {}, step {}): {:?}", self.at, self.node, self.epoch.0, self.step, self.what)
    }
}

/// The nodes at one moment, where they are at hand.
#[derive(Debug)]
pub struct Glance<'a> {
    /// Each with what its clock shows.
    pub nodes: Vec<(&'a Node, Time)>,
    /// The step just made: the node before it, with all that was due fired, what it was given, and the node after.
    pub step: Option<(&'a Node, &'a Input, &'a Node)>,
}

/// Judges one history of one mesh, in the order in which it happened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Judge {
    ledger: Ledger,
    tells: bool,
    story: VecDeque<Record>,
}

impl Judge {
    /// One that tells with a violation what happened before it.
    pub fn with_story() -> Self {
        Self { tells: true, ..Self::default() }
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub fn observe(&mut self, record: &Record) -> Result<(), Violation> {
        self.tell(record);
        for invariant in INVARIANTS {
            (invariant.observe)(&self.ledger, record).map_err(|what| self.violation(invariant.name, what))?;
        }
        self.ledger.apply(record);
        Ok(())
    }

    /// Everything that this record breaks; it is taken in all the same, so that the rest can be judged.
    pub fn observe_all(&mut self, record: &Record) -> Vec<Violation> {
        self.tell(record);
        let broken = INVARIANTS.iter().filter_map(|invariant| {
            let what = (invariant.observe)(&self.ledger, record).err()?;
            Some(self.violation(invariant.name, what))
        });
        let broken = broken.collect();
        self.ledger.apply(record);
        broken
    }

    /// Forgets the requests of that node and its activations that have their end: for a model that knows that no
    /// record will name them again.
    pub fn forget_asker(&mut self, node: &NodeId) {
        self.ledger.forget_asker(node);
    }

    /// Looks at the nodes themselves.
    pub fn look(&self, glance: &Glance<'_>) -> Result<(), Violation> {
        for invariant in INVARIANTS {
            (invariant.look)(&self.ledger, glance).map_err(|what| self.violation(invariant.name, what))?;
        }
        Ok(())
    }

    /// Nothing new was asked for long enough, and all nodes are up: what should be over must be.
    pub fn at_rest(&self, glance: &Glance<'_>) -> Result<(), Violation> {
        for invariant in INVARIANTS {
            (invariant.at_rest)(&self.ledger, glance).map_err(|what| self.violation(invariant.name, what))?;
        }
        Ok(())
    }

    fn tell(&mut self, record: &Record) {
        if self.tells {
            if self.story.len() >= LONGEST_STORY {
                self.story.pop_front();
            }
            self.story.push_back(record.clone());
        }
    }

    fn violation(&self, invariant: &'static str, what: String) -> Violation {
        Violation { invariant, what, story: self.story.iter().cloned().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{End, Heard, Premises, What};
    use super::*;
    use crate::ids::{ActivationId, Epoch, RequestId};
    use crate::output::Attempt;

    const ONE: ActivationId = ActivationId(1);

    /// What is wrong with these, each a step of one node.
    fn violations(all: impl IntoIterator<Item = What>) -> Vec<&'static str> {
        let premises = Premises { accepts_us: 1, late_after_us: 1, max_hold_us: 1, memory_mb: 1 };
        let mut judge = Judge::default();
        let records = std::iter::once(What::Began(premises)).chain(all).zip(1..).map(|(what, step)| Record {
            at: Time(step),
            node: NodeId::new("n1"),
            epoch: Epoch(1),
            step,
            what,
        });
        records.flat_map(|record| judge.observe_all(&record)).map(|violation| violation.invariant).collect()
    }

    fn invoked() -> What {
        What::Invoked { activation: ONE, idempotent: false, attempt: 0 }
    }

    fn ended(end: End) -> What {
        What::Ended { activation: ONE, end }
    }

    #[test]
    fn an_activation_that_was_promised_is_asked_for_again_after_a_refusal() {
        assert_eq!(violations([invoked(), ended(End::Refused), invoked(), ended(End::Answered)]), [""; 0]);
        assert_eq!(violations([invoked(), ended(End::Withdrawn), invoked(), ended(End::Refused)]), [""; 0]);
    }

    #[test]
    fn what_an_earlier_life_sent_and_nobody_took_may_be_asked_for_again_and_refused() {
        let request = RequestId { holder: NodeId::new("n1"), epoch: Epoch(1), number: 1 };
        let sent = What::BodySent { attempt: Attempt { activation: ONE, attempt: 0 }, request, lease: None };
        let refused = violations([invoked(), sent.clone(), ended(End::Refused)]);
        assert_eq!(refused, ["A2_indeterminate_iff_unknown"], "it may have run");
        assert_eq!(violations([invoked(), sent, invoked(), ended(End::Refused)]), [""; 0]);
    }

    #[test]
    fn one_whose_earlier_attempt_may_have_run_is_put_off_as_often_as_need_be() {
        let again = What::Invoked { activation: ONE, idempotent: true, attempt: 1 };
        let kept = [again.clone(), ended(End::PutOff), again.clone(), ended(End::PutOff), again.clone()];
        assert_eq!(violations(kept.into_iter().chain([ended(End::Indeterminate)])), [""; 0]);
        assert_eq!(violations([again, ended(End::Refused)]), ["A2_indeterminate_iff_unknown"]);
    }

    #[test]
    fn what_is_heard_once_more_of_a_request_that_was_settled_says_nothing_of_the_next_one() {
        let sent = |number| {
            let request = RequestId { holder: NodeId::new("n1"), epoch: Epoch(1), number };
            What::BodySent { attempt: Attempt { activation: ONE, attempt: 0 }, request, lease: None }
        };
        let settled = || {
            let request = RequestId { holder: NodeId::new("n1"), epoch: Epoch(1), number: 1 };
            What::Heard { request, heard: Heard::Settled }
        };
        assert_eq!(violations([invoked(), sent(1), settled(), sent(2), settled(), ended(End::Indeterminate)]), [""; 0]);
        let told = violations([invoked(), sent(1), settled(), ended(End::Indeterminate)]);
        assert_eq!(told, ["A2_indeterminate_iff_unknown"]);
    }

    #[test]
    fn an_activation_that_ends_twice_is_flagged_each_time_and_judging_goes_on() {
        let twice = violations([invoked(), ended(End::Answered), ended(End::Answered), ended(End::Refused)]);
        assert_eq!(twice, ["A4_every_request_answered"; 2]);
        let again = violations([invoked(), ended(End::Answered), invoked(), ended(End::Answered)]);
        assert_eq!(again, ["A4_every_request_answered"]);
    }
}
