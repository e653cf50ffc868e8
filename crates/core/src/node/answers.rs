//! What was answered to which request of which holder: a late or repeated copy gets the same answer and
//! changes nothing.
//!
//! Nothing here is persisted: a request is meant for one owner epoch, and another epoch refuses it. Of a holder's
//! earlier epochs nothing new is taken, but what was run for them stays known: a holder that was killed asks for that
//! again, in its next life.
//!
//! Holders come and go, and each leaves answers. When there are too many, one that is gone is *closed*: of its answers
//! nothing is known any more, and all numbers that it has used are refused. When too many are closed, the oldest is
//! forgotten, and with it whoever is as old and not known here: it may be that one.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{Epoch, NodeId, RequestId, RunId};
use crate::output::{ReserveAnswer, RunRefusal};

/// Holders known, the closed ones included, for each whose answers may be kept.
const KNOWN_FOR_KEPT: usize = 4;
/// Earlier epochs of one holder whose runs are remembered.
const MOST_FORMER: usize = 4;

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Answers {
    holders: BTreeMap<NodeId, Holder>,
    /// The newest epoch of all holders that were forgotten.
    forgotten: Epoch,
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
    /// `most`: answers kept for one holder, and holders whose answers are kept.
    pub(super) fn admit(&mut self, request: &RequestId, open_from: u64, most: (usize, usize)) -> Admission {
        let (most_answers, most_holders) = most;
        let one_too_many = self.is_full_for(&request.holder, most_holders);
        let holder = match self.holders.entry(request.holder.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if request.epoch <= self.forgotten => return Admission::Stale,
            Entry::Vacant(new) => new.insert(Holder { dropped: self.forgotten, ..Holder::default() }),
        };
        if request.epoch < holder.epoch {
            return holder.admit_former(request);
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
        if one_too_many {
            // For good: a later copy of it must not be the first one.
            holder.open_from = number.saturating_add(1);
            return Admission::Full;
        }
        if let Some(answer) = holder.answers.get(&number) {
            return Admission::Again(answer.clone());
        }
        if let Some((first, last)) = holder.full
            && (first..=last).contains(&number)
        {
            return Admission::Full;
        }
        if holder.answers.len() >= most_answers {
            let (first, last) = holder.full.unwrap_or((number, number));
            holder.full = Some((first.min(number), last.max(number)));
            return Admission::Full;
        }
        Admission::New
    }

    /// Whether that holder, of whom no answer is kept, would be one too many.
    pub(super) fn is_full_for(&self, holder: &NodeId, most: usize) -> bool {
        self.holders.len() >= most
            && !self.holders.get(holder).is_some_and(Holder::is_kept)
            && self.holders.values().filter(|holder| holder.is_kept()).count() >= most
    }

    /// For one that asks: closes a holder that is not in use and has nothing under way here, the oldest of them; and
    /// forgets of the others that are closed what there is no room for.
    pub(super) fn make_room(
        &mut self,
        asks: &NodeId,
        most: usize,
        runs: &BTreeSet<RunId>,
        in_use: impl Fn(&NodeId, Epoch) -> bool,
    ) {
        let idle = self
            .holders
            .iter_mut()
            .filter(|(name, holder)| holder.is_kept() && !holder.has_under_way(runs) && !in_use(name, holder.epoch));
        if let Some((_, oldest)) = idle.min_by_key(|(_, holder)| holder.epoch) {
            oldest.close();
        }
        while self.holders.len() >= most * KNOWN_FOR_KEPT {
            let closed = self.holders.iter().filter(|(name, holder)| !holder.is_kept() && *name != asks);
            let oldest = closed.min_by_key(|(name, holder)| (in_use(name, holder.epoch), holder.epoch));
            let Some((name, epoch)) = oldest.map(|(name, holder)| (name.clone(), holder.epoch)) else { return };
            self.holders.remove(&name);
            self.forgotten = self.forgotten.max(epoch);
        }
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
        let answers = before.answers.into_iter().filter(|(_, answer)| answer.run().is_some()).collect();
        self.former.insert(before.epoch, Former { open_from: before.open_from, answers });
        while self.former.len() > MOST_FORMER
            && let Some((oldest, _)) = self.former.pop_first()
        {
            self.dropped = oldest;
        }
    }

    /// A request of an older epoch: what was run for it is known, and nothing else was.
    fn admit_former(&self, request: &RequestId) -> Admission {
        match self.former.get(&request.epoch) {
            Some(former) if request.number < former.open_from => Admission::Stale,
            Some(former) => former.answers.get(&request.number).cloned().map_or(Admission::NotTaken, Admission::Again),
            // An epoch that nothing came of.
            None if request.epoch > self.dropped => Admission::NotTaken,
            None => Admission::Stale,
        }
    }

    fn is_kept(&self) -> bool {
        !self.answers.is_empty() || self.former.values().any(|former| !former.answers.is_empty())
    }

    /// Whether it waits for something here, or one of these runs is its.
    fn has_under_way(&self, runs: &BTreeSet<RunId>) -> bool {
        let mut answers = self.answers.values().chain(self.former.values().flat_map(|former| former.answers.values()));
        answers.any(|answer| *answer == Answer::Waiting || answer.run().is_some_and(|run| runs.contains(&run)))
    }

    /// Keeps of it only what is refused from now on: all numbers that it has used, and all earlier epochs.
    fn close(&mut self) {
        let used = self.answers.last_key_value().map(|(number, _)| *number).max(self.full.map(|(_, last)| last));
        self.open_from = self.open_from.max(used.map_or(0, |number| number.saturating_add(1)));
        self.dropped = self.dropped.max(self.former.last_key_value().map_or(self.dropped, |(epoch, _)| *epoch));
        (self.answers, self.former, self.full) = Default::default();
    }
}

impl Answer {
    /// The run that it began.
    fn run(&self) -> Option<RunId> {
        match self {
            Answer::Run { run } | Answer::Reserve(ReserveAnswer::Granted { run: Some(run), .. }) => Some(*run),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Denial;

    const MOST: (usize, usize) = (10, 10);

    fn request(epoch: u64, number: u64) -> RequestId {
        of("n2", epoch, number)
    }

    fn of(holder: &str, epoch: u64, number: u64) -> RequestId {
        RequestId { holder: NodeId::new(holder), epoch: Epoch(epoch), number }
    }

    fn denied() -> Answer {
        Answer::Reserve(ReserveAnswer::Denied { denial: Denial::Busy, hint: None })
    }

    #[test]
    fn a_repeated_request_gets_the_answer_it_had() {
        let mut answers = Answers::default();
        assert_eq!(answers.admit(&request(1, 5), 5, MOST), Admission::New);
        answers.keep(&request(1, 5), denied());
        assert_eq!(answers.admit(&request(1, 5), 3, MOST), Admission::Again(denied()));
    }

    #[test]
    fn a_closed_number_and_an_older_epoch_of_the_holder_are_refused() {
        let mut answers = Answers::default();
        answers.admit(&request(2, 5), 5, MOST);
        assert_eq!(answers.admit(&request(2, 4), 1, MOST), Admission::Stale);
        assert_eq!(answers.admit(&request(1, 9), 9, MOST), Admission::NotTaken);
        assert_eq!(answers.admit(&request(3, 1), 1, MOST), Admission::New);
        assert!(!answers.is_open(&request(2, 5)));
    }

    #[test]
    fn what_was_run_for_an_earlier_life_of_a_holder_is_known_and_nothing_more_is_begun_for_it() {
        let mut answers = Answers::default();
        let run = Answer::Run { run: RunId(7) };
        for number in 4..=6 {
            assert_eq!(answers.admit(&request(1, number), 4, MOST), Admission::New);
        }
        answers.keep(&request(1, 4), run.clone());
        answers.keep(&request(1, 5), denied());
        answers.keep(&request(1, 6), Answer::Waiting);
        assert_eq!(answers.admit(&request(2, 1), 1, MOST), Admission::New);
        assert_eq!(answers.admit(&request(1, 4), 1, MOST), Admission::Again(run.clone()));
        for not_run in [5, 6, 9] {
            assert_eq!(answers.admit(&request(1, not_run), 1, MOST), Admission::NotTaken, "{not_run}");
        }
        assert_eq!(answers.admit(&request(1, 3), 1, MOST), Admission::Stale, "closed by its holder: nobody knows");
        assert_eq!(answers.admit(&request(3, 1), 1, MOST), Admission::New);
        assert_eq!(answers.admit(&request(1, 4), 1, MOST), Admission::Again(run), "two lives later as well");
    }

    #[test]
    fn of_the_lives_of_a_holder_only_the_last_few_are_remembered() {
        let mut answers = Answers::default();
        let last = MOST_FORMER as u64 + 2;
        for epoch in 1..=last {
            answers.admit(&request(epoch, 1), 1, MOST);
            answers.keep(&request(epoch, 1), Answer::Run { run: RunId(epoch) });
        }
        assert_eq!(answers.admit(&request(1, 1), 1, MOST), Admission::Stale);
        assert_eq!(answers.admit(&request(2, 1), 1, MOST), Admission::Again(Answer::Run { run: RunId(2) }));
    }

    #[test]
    fn a_request_refused_for_fullness_stays_refused_when_there_is_room_again() {
        let mut answers = Answers::default();
        for number in 1..=2 {
            assert_eq!(answers.admit(&request(1, number), 1, (2, 10)), Admission::New);
            answers.keep(&request(1, number), denied());
        }
        assert_eq!(answers.admit(&request(1, 3), 1, (2, 10)), Admission::Full);
        assert_eq!(answers.admit(&request(1, 3), 3, (2, 10)), Admission::Full);
        assert_eq!(answers.admit(&request(1, 4), 4, (2, 10)), Admission::New);
    }

    /// Asks in the name of a holder that is in use by nobody, where two are kept; what is admitted runs as `number`.
    fn ask(answers: &mut Answers, request: &RequestId) -> Admission {
        ask_beside(answers, request, &[], |_| false)
    }

    fn ask_beside(
        answers: &mut Answers,
        request: &RequestId,
        under_way: &[u64],
        in_use: impl Fn(&NodeId) -> bool,
    ) -> Admission {
        if answers.is_full_for(&request.holder, 2) {
            let under_way = under_way.iter().map(|run| RunId(*run)).collect();
            answers.make_room(&request.holder, 2, &under_way, |name, _| in_use(name));
        }
        let admission = answers.admit(request, request.number, (10, 2));
        if admission == Admission::New {
            answers.keep(request, Answer::Run { run: RunId(request.number) });
        }
        admission
    }

    #[test]
    fn a_holder_too_many_is_taken_and_the_oldest_of_those_that_are_gone_is_closed_for_it() {
        let mut answers = Answers::default();
        for n in 1..=7 {
            assert_eq!(ask(&mut answers, &of(&format!("n{n}"), n, 5)), Admission::New, "n{n}");
        }
        assert_eq!(answers.holders.values().filter(|holder| holder.is_kept()).count(), 2);
        assert_eq!(ask(&mut answers, &of("n7", 7, 5)), Admission::Again(Answer::Run { run: RunId(5) }));
        assert_eq!(ask(&mut answers, &of("n5", 5, 5)), Admission::Stale, "nobody knows");
        assert_eq!(ask(&mut answers, &of("n5", 4, 5)), Admission::NotTaken, "nothing ever came of that epoch");
        assert_eq!(ask(&mut answers, &of("n5", 5, 6)), Admission::New, "it was not gone");
    }

    #[test]
    fn a_closed_holder_that_asks_again_is_not_forgotten_to_make_room_for_itself() {
        let mut answers = Answers::default();
        for n in 1..=8 {
            assert_eq!(ask(&mut answers, &of(&format!("n{n}"), n, 5)), Admission::New, "n{n}");
        }
        assert_eq!(ask(&mut answers, &of("n1", 1, 6)), Admission::New);
        assert_eq!(ask(&mut answers, &of("n2", 2, 6)), Admission::Stale, "nobody knows what it was told");
    }

    #[test]
    fn runs_of_all_earlier_epochs_of_a_closed_holder_are_unknown() {
        let mut answers = Answers::default();
        for request in [of("n1", 3, 5), of("n1", 4, 1), of("n2", 6, 1), of("n3", 7, 1)] {
            assert_eq!(ask(&mut answers, &request), Admission::New);
        }
        assert_eq!(ask(&mut answers, &of("n1", 3, 5)), Admission::Stale);
        assert_eq!(ask(&mut answers, &of("n1", 8, 1)), Admission::New, "its next life");
        assert_eq!(ask(&mut answers, &of("n1", 4, 1)), Admission::Stale);
        assert_eq!(ask(&mut answers, &of("n1", 4, 2)), Admission::NotTaken);
    }

    #[test]
    fn a_holder_in_use_or_with_something_under_way_is_not_closed_and_one_too_many_is_refused_for_good() {
        let mut answers = Answers::default();
        ask(&mut answers, &of("n1", 1, 1));
        assert_eq!(answers.admit(&of("n2", 2, 1), 1, (10, 2)), Admission::New);
        answers.keep(&of("n2", 2, 1), Answer::Waiting);
        assert_eq!(ask_beside(&mut answers, &of("n3", 3, 8), &[1], |_| false), Admission::Full, "n1 runs, n2 waits");
        assert_eq!(ask_beside(&mut answers, &of("n3", 3, 9), &[], |name| name.as_str() == "n1"), Admission::Full);
        assert_eq!(ask(&mut answers, &of("n3", 3, 9)), Admission::Stale, "that one is refused for good");
        assert_eq!(ask(&mut answers, &of("n3", 3, 10)), Admission::New);
        assert_eq!(ask(&mut answers, &of("n1", 1, 1)), Admission::Stale);
    }

    #[test]
    fn what_is_known_of_holders_is_bounded_and_whoever_is_forgotten_begins_nothing_in_that_epoch() {
        let mut answers = Answers::default();
        for n in 1..=100 {
            assert_eq!(ask(&mut answers, &of(&format!("n{n}"), n, 1)), Admission::New, "n{n}");
            assert!(answers.holders.len() <= 2 * KNOWN_FOR_KEPT);
        }
        assert_eq!(ask(&mut answers, &of("n1", 1, 1)), Admission::Stale, "forgotten");
        assert_eq!(ask(&mut answers, &of("n1", 1, 2)), Admission::Stale, "it may be one that was forgotten");
        assert_eq!(ask(&mut answers, &of("n1", 101, 1)), Admission::New, "its next life");
        assert_eq!(ask(&mut answers, &of("n1", 1, 1)), Admission::Stale);
        assert_eq!(ask(&mut answers, &of("n98", 98, 1)), Admission::Stale, "closed, and known to be");
        assert_eq!(ask(&mut answers, &of("n98", 98, 2)), Admission::New);
    }
}
