//! What was answered to which request of which holder: a late or repeated copy gets the same answer and
//! changes nothing.
//!
//! Nothing here is persisted: a request is meant for one owner epoch, and another epoch refuses it. Of a holder's
//! earlier epochs nothing new is taken, but what was run for them stays known: a holder that was killed asks for that
//! again, in its next life.

use std::collections::BTreeMap;

use crate::ids::{Epoch, NodeId, RequestId, RunId};
use crate::output::{ReserveAnswer, RunRefusal};

/// Holders remembered; the one heard of longest ago goes when a new one comes, unless answers of it are open.
const MOST_HOLDERS: usize = 4096;
/// Earlier epochs of one holder whose runs are remembered.
const MOST_FORMER: usize = 4;

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Answers {
    holders: BTreeMap<NodeId, Holder>,
    /// Somebody had to be forgotten: of an epoch that is not remembered nothing is known any more.
    forgotten: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Holder {
    epoch: Epoch,
    /// Runs of earlier epochs, and from which number on all of them are there.
    former: BTreeMap<Epoch, Former>,
    /// The newest epoch of which that is not remembered.
    dropped: Epoch,
    open_from: u64,
    answers: BTreeMap<u64, Answer>,
    /// Numbers refused because too many answers were open: refused for good, with all unknown ones between.
    full: Option<(u64, u64)>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Former {
    open_from: u64,
    answers: BTreeMap<u64, Answer>,
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
    /// A number that the holder has closed, or of an older epoch of it that nobody remembers.
    Stale,
    /// Of an older epoch of the holder: nothing was begun for it, and nothing will be.
    NotTaken,
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
            self.forgotten = true;
        }
        let holder = self.holders.entry(request.holder.clone()).or_default();
        if request.epoch < holder.epoch {
            return holder.admit_former(request, self.forgotten);
        }
        if request.epoch > holder.epoch {
            holder.begin(request.epoch);
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

    pub(super) fn forget(&mut self, holder: &NodeId) {
        self.holders.remove(holder);
    }

    /// Whether a newer epoch of the holder, or a closed number, has made this request void meanwhile.
    pub(super) fn is_open(&self, request: &RequestId) -> bool {
        self.holders.get(&request.holder).is_some_and(|h| h.epoch == request.epoch && request.number >= h.open_from)
    }
}

impl Holder {
    /// A newer life of the holder: from here on nothing is begun for an older one.
    fn begin(&mut self, epoch: Epoch) {
        let before = std::mem::take(self);
        (self.former, self.dropped, self.epoch) = (before.former, before.dropped, epoch);
        if before.epoch == Epoch::default() {
            return;
        }
        let ran = |answer: &Answer| {
            matches!(answer, Answer::Run { .. } | Answer::Reserve(ReserveAnswer::Granted { run: Some(_), .. }))
        };
        let answers = before.answers.into_iter().filter(|(_, answer)| ran(answer)).collect();
        self.former.insert(before.epoch, Former { open_from: before.open_from, answers });
        while self.former.len() > MOST_FORMER
            && let Some((oldest, _)) = self.former.pop_first()
        {
            self.dropped = oldest;
        }
    }

    /// A request of an older epoch: what was run for it is known, and nothing else was.
    fn admit_former(&self, request: &RequestId, forgotten: bool) -> Admission {
        match self.former.get(&request.epoch) {
            Some(former) if request.number < former.open_from => Admission::Stale,
            Some(former) => former.answers.get(&request.number).cloned().map_or(Admission::NotTaken, Admission::Again),
            // An epoch that nothing came of.
            None if request.epoch > self.dropped && !forgotten => Admission::NotTaken,
            None => Admission::Stale,
        }
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
        assert_eq!(answers.admit(&request(1, 9), 9, 10), Admission::NotTaken);
        assert_eq!(answers.admit(&request(3, 1), 1, 10), Admission::New);
        assert!(!answers.is_open(&request(2, 5)));
    }

    #[test]
    fn what_was_run_for_an_earlier_life_of_a_holder_is_known_and_nothing_more_is_begun_for_it() {
        let mut answers = Answers::default();
        let run = Answer::Run { run: RunId(7) };
        for number in 4..=6 {
            assert_eq!(answers.admit(&request(1, number), 4, 10), Admission::New);
        }
        answers.keep(&request(1, 4), run.clone());
        answers.keep(&request(1, 5), denied());
        answers.keep(&request(1, 6), Answer::Waiting);
        assert_eq!(answers.admit(&request(2, 1), 1, 10), Admission::New);
        assert_eq!(answers.admit(&request(1, 4), 1, 10), Admission::Again(run.clone()));
        for not_run in [5, 6, 9] {
            assert_eq!(answers.admit(&request(1, not_run), 1, 10), Admission::NotTaken, "{not_run}");
        }
        assert_eq!(answers.admit(&request(1, 3), 1, 10), Admission::Stale, "closed by its holder: nobody knows");
        assert_eq!(answers.admit(&request(3, 1), 1, 10), Admission::New);
        assert_eq!(answers.admit(&request(1, 4), 1, 10), Admission::Again(run), "two lives later as well");
    }

    #[test]
    fn of_the_lives_of_a_holder_only_the_last_few_are_remembered() {
        let mut answers = Answers::default();
        let last = MOST_FORMER as u64 + 2;
        for epoch in 1..=last {
            answers.admit(&request(epoch, 1), 1, 10);
            answers.keep(&request(epoch, 1), Answer::Run { run: RunId(epoch) });
        }
        assert_eq!(answers.admit(&request(1, 1), 1, 10), Admission::Stale);
        assert_eq!(answers.admit(&request(2, 1), 1, 10), Admission::Again(Answer::Run { run: RunId(2) }));
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
