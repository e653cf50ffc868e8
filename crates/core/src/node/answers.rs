//! What was answered to which request of which holder: a late or repeated copy gets the same answer and
//! changes nothing.
//!
//! Nothing here is persisted: a request is meant for one owner epoch, and another epoch refuses it.

use std::collections::BTreeMap;

use crate::ids::{Epoch, NodeId, RequestId, RunId};
use crate::output::{ReserveAnswer, RunRefusal};

/// Holders remembered; the one heard of longest ago goes when a new one comes, unless answers of it are open.
const MOST_HOLDERS: usize = 4096;

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Answers {
    holders: BTreeMap<NodeId, Holder>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Holder {
    epoch: Epoch,
    open_from: u64,
    answers: BTreeMap<u64, Answer>,
    /// Numbers refused because too many answers were open: refused for good, with all unknown ones between.
    full: Option<(u64, u64)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Answer {
    /// A Reserve that waits for a slot.
    Waiting,
    Reserve(ReserveAnswer),
    Run {
        run: RunId,
    },
    RunRefused(RunRefusal),
}

/// What to do with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Admission {
    /// The first copy.
    New,
    Again(Answer),
    /// An older epoch of the holder, or a number that it has closed.
    Stale,
    Full,
}

impl Answers {
    pub(super) fn admit(&mut self, request: &RequestId, open_from: u64, most: usize) -> Admission {
        if !self.holders.contains_key(&request.holder) && self.holders.len() >= MOST_HOLDERS {
            let idle = self.holders.iter().find(|(_, h)| h.answers.is_empty()).map(|(n, _)| n.clone());
            match idle {
                Some(name) => self.holders.remove(&name),
                None => return Admission::Full,
            };
        }
        let holder = self.holders.entry(request.holder.clone()).or_default();
        if request.epoch < holder.epoch {
            return Admission::Stale;
        }
        if request.epoch > holder.epoch {
            *holder = Holder { epoch: request.epoch, ..Holder::default() };
        }
        if open_from > holder.open_from {
            holder.open_from = open_from;
            holder.answers = holder.answers.split_off(&open_from);
            if holder.full.is_some_and(|(_, last)| last < open_from) {
                holder.full = None;
            }
        }
        let number = request.number;
        if number < holder.open_from {
            return Admission::Stale;
        }
        if let Some(answer) = holder.answers.get(&number) {
            return Admission::Again(answer.clone());
        }
        if let Some((first, last)) = holder.full
            && (first..=last).contains(&number)
        {
            return Admission::Full;
        }
        if holder.answers.len() >= most {
            let (first, last) = holder.full.unwrap_or((number, number));
            holder.full = Some((first.min(number), last.max(number)));
            return Admission::Full;
        }
        Admission::New
    }

    /// Keeps the answer to a request that was admitted.
    pub(super) fn keep(&mut self, request: &RequestId, answer: Answer) {
        if let Some(holder) = self.holders.get_mut(&request.holder)
            && holder.epoch == request.epoch
            && request.number >= holder.open_from
        {
            holder.answers.insert(request.number, answer);
        }
    }

    /// Whether a newer epoch of the holder, or a closed number, has made this request void meanwhile.
    pub(super) fn is_open(&self, request: &RequestId) -> bool {
        self.holders.get(&request.holder).is_some_and(|h| h.epoch == request.epoch && request.number >= h.open_from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Denial;

    fn request(epoch: u64, number: u64) -> RequestId {
        RequestId { holder: NodeId::new("n2"), epoch: Epoch(epoch), number }
    }

    fn denied() -> Answer {
        Answer::Reserve(ReserveAnswer::Denied { denial: Denial::Busy, hint: None })
    }

    #[test]
    fn a_repeated_request_gets_the_answer_it_had() {
        let mut answers = Answers::default();
        assert_eq!(answers.admit(&request(1, 5), 5, 10), Admission::New);
        answers.keep(&request(1, 5), denied());
        assert_eq!(answers.admit(&request(1, 5), 3, 10), Admission::Again(denied()));
    }

    #[test]
    fn a_closed_number_and_an_older_epoch_of_the_holder_are_refused() {
        let mut answers = Answers::default();
        answers.admit(&request(2, 5), 5, 10);
        assert_eq!(answers.admit(&request(2, 4), 1, 10), Admission::Stale);
        assert_eq!(answers.admit(&request(1, 9), 9, 10), Admission::Stale);
        assert_eq!(answers.admit(&request(3, 1), 1, 10), Admission::New);
        assert!(!answers.is_open(&request(2, 5)));
    }

    #[test]
    fn a_request_refused_for_fullness_stays_refused_when_there_is_room_again() {
        let mut answers = Answers::default();
        for number in 1..=2 {
            assert_eq!(answers.admit(&request(1, number), 1, 2), Admission::New);
            answers.keep(&request(1, number), denied());
        }
        assert_eq!(answers.admit(&request(1, 3), 1, 2), Admission::Full);
        assert_eq!(answers.admit(&request(1, 3), 3, 2), Admission::Full);
        assert_eq!(answers.admit(&request(1, 4), 4, 2), Admission::New);
    }
}
