//! Carries the core's outputs out and brings back what came of them. No decision is made here.
//!
//! The core stands behind one mutex and is called inline by whoever has an input: a request's own task takes
//! its assignment straight from its own step, without a channel. What a step wants of somebody else (another
//! waiting activation, the engine, a peer) is handed on after the lock is released.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use embermesh_core::output::{Output, Refusal, ReserveAnswer, SendReserve, SendRun, Served};
use embermesh_core::{ActivationId, Input, RequestId, RunId, Time};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::sleep_until;

use crate::clock::Clock;
use crate::node::Node;

/// Inputs go in here; one mutex, held for microseconds.
#[derive(Debug)]
pub(crate) struct Driver {
    core: Mutex<embermesh_core::Node>,
    /// How often somebody took the mutex.
    entered: AtomicU64,
    pub(crate) clock: Clock,
    /// The moment that the timer task sleeps until, so that most steps need not wake it.
    armed: AtomicU64,
    earlier: Notify,
    waiting: Mutex<Waiting>,
}

/// Who waits for an output that may come from somebody else's step.
#[derive(Debug, Default)]
struct Waiting {
    activations: HashMap<ActivationId, mpsc::Sender<Assignment>>,
    reserves: HashMap<RequestId, Vec<oneshot::Sender<ReserveAnswer>>>,
}

/// What an own activation's task is to do next.
#[derive(Debug)]
pub(crate) enum Assignment {
    Local { run: RunId, container: u64, attempt: u32, served: Served },
    Leased(SendRun),
    Reserve(SendReserve),
    Refused(Refusal),
    Indeterminate,
}

/// An output for the caller of the step, or where to wait for it.
#[derive(Debug)]
pub(crate) enum Mine<T, W> {
    Now(T),
    Later(W),
}

impl Driver {
    pub(crate) fn new(core: embermesh_core::Node, clock: Clock) -> Self {
        Self {
            core: Mutex::new(core),
            entered: AtomicU64::new(0),
            clock,
            armed: AtomicU64::new(u64::MAX),
            earlier: Notify::new(),
            waiting: Mutex::default(),
        }
    }

    /// A look at the state; nothing may be decided on it.
    pub(crate) fn look<T>(&self, with: impl FnOnce(&embermesh_core::Node) -> T) -> T {
        with(&self.lock())
    }

    /// The clock runs at another rate: what the timer task sleeps until is no longer right.
    pub(crate) fn clock_changed(&self) {
        self.earlier.notify_one();
    }

    /// One step.
    fn step(&self, core: &mut embermesh_core::Node, input: Input) -> Vec<Output> {
        let mut outputs = Vec::with_capacity(4);
        core.handle(self.clock.now(), input, &mut outputs);
        if let Some(at) = core.next_deadline()
            && at.0 < self.armed.load(Ordering::Relaxed)
        {
            self.earlier.notify_one();
        }
        outputs
    }

    /// A step of an activation's own task: its assignment, or where it will come.
    fn step_activation(
        &self,
        input: Input,
        id: ActivationId,
    ) -> (Mine<Assignment, mpsc::Receiver<Assignment>>, Vec<Output>) {
        let mut core = self.lock();
        let mut outputs = self.step(&mut core, input);
        let mine = outputs.iter().position(|o| assigned_to(o) == Some(id)).map(|at| outputs.remove(at));
        let mine = match mine.and_then(assignment) {
            Some((_, assignment)) => Mine::Now(assignment),
            None => {
                // Under the core's lock: whoever takes the next step finds us waiting.
                let (sender, receiver) = mpsc::channel(1);
                self.waiting().activations.insert(id, sender);
                Mine::Later(receiver)
            }
        };
        (mine, outputs)
    }

    /// How often the core was stepped or looked at.
    pub(crate) fn entered(&self) -> u64 {
        self.entered.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, embermesh_core::Node> {
        self.entered.fetch_add(1, Ordering::Relaxed);
        // A panic in the core is a bug that debug builds show; the state between steps is what it was.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    /// Takes an input whose outputs are all for others.
    pub(crate) fn tell(&self, input: Input) {
        let outputs = {
            let mut core = self.driver().lock();
            self.driver().step(&mut core, input)
        };
        self.carry_out(outputs);
    }

    /// Takes an input of an activation's own task.
    pub(crate) fn tell_for(&self, input: Input, id: ActivationId) -> Mine<Assignment, mpsc::Receiver<Assignment>> {
        let (mine, outputs) = self.driver().step_activation(input, id);
        self.carry_out(outputs);
        mine
    }

    /// The same for how a hand-over ended; and whether it has come back, certainly not run.
    pub(crate) fn tell_end(
        &self,
        input: Input,
        id: ActivationId,
    ) -> (Mine<Assignment, mpsc::Receiver<Assignment>>, bool) {
        let (mine, outputs) = self.driver().step_activation(input, id);
        let came_back = |output: &Output| matches!(output, Output::CameBack { activation } if *activation == id);
        let came_back = outputs.iter().any(came_back);
        self.carry_out(outputs);
        (mine, came_back)
    }

    /// The caller has left. `true` if the activation will not run: nobody has to wait for it any more.
    pub(crate) fn cancel(&self, id: ActivationId) -> bool {
        let (gone, outputs) = {
            let mut core = self.driver().lock();
            let outputs = self.driver().step(&mut core, Input::InvokeCancelled { activation: id });
            // One that may have run is told of as that: its task makes the record.
            let told = outputs.iter().any(|output| assigned_to(output) == Some(id));
            (!told && !core.knows_activation(id), outputs)
        };
        if gone {
            self.driver().waiting().activations.remove(&id);
        }
        self.carry_out(outputs);
        gone
    }

    /// Takes a peer's Reserve: the answer, or where it will come. A repeated copy gets the same one.
    pub(crate) fn tell_reserve(
        &self,
        input: Input,
        request: &RequestId,
    ) -> Mine<ReserveAnswer, oneshot::Receiver<ReserveAnswer>> {
        let (mine, outputs) = {
            let mut core = self.driver().lock();
            let mut outputs = self.driver().step(&mut core, input);
            let is_mine = |o: &Output| matches!(o, Output::AnswerReserve { request: r, .. } if r == request);
            let mine = outputs.iter().position(is_mine).map(|at| outputs.remove(at));
            let mine = match mine {
                Some(Output::AnswerReserve { answer, .. }) => Mine::Now(answer),
                _ => {
                    let (sender, receiver) = oneshot::channel();
                    self.driver().waiting().reserves.entry(request.clone()).or_default().push(sender);
                    Mine::Later(receiver)
                }
            };
            (mine, outputs)
        };
        if let Mine::Now(answer) = &mine {
            self.answer_waiting(request, &repeated(answer));
        }
        self.carry_out(outputs);
        mine
    }

    /// Takes an input and picks one output that is the caller's.
    pub(crate) fn tell_and_pick<T>(&self, input: Input, pick: impl Fn(&Output) -> Option<T>) -> Option<T> {
        let mut outputs = {
            let mut core = self.driver().lock();
            self.driver().step(&mut core, input)
        };
        let found = outputs.iter().enumerate().find_map(|(at, o)| Some((at, pick(o)?)));
        let picked = found.map(|(at, picked)| {
            outputs.remove(at);
            picked
        });
        self.carry_out(outputs);
        picked
    }

    /// Sleeps until the core's next deadline, for ever.
    pub(crate) async fn run_timer(self) {
        loop {
            let driver = self.driver();
            let deadline = driver.look(|core| core.next_deadline());
            let at = deadline.unwrap_or(Time::FAR);
            driver.armed.store(at.0, Ordering::Relaxed);
            let moved = driver.look(|core| core.next_deadline()).unwrap_or(Time::FAR) < at;
            if !moved {
                tokio::select! {
                    () = sleep_until(driver.clock.instant(at)) => {}
                    () = driver.earlier.notified() => continue,
                }
            }
            if driver.clock.now() >= at {
                self.tell(Input::Tick);
            }
        }
    }

    fn carry_out(&self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::SendReserve(reserve) if reserve.run.is_none() => self.spawn_reserve(reserve),
                output @ (Output::RunLocal { .. }
                | Output::SendRun(_)
                | Output::SendReserve(_)
                | Output::Refuse { .. }
                | Output::Indeterminate { .. }) => self.assign(output),
                Output::SendRelease { to, container, fence, keep } => self.spawn_release(to, container, fence, keep),
                Output::SendRecall { to, fence } => self.spawn_recall(to, fence),
                Output::SendIntent { to, gossip, notice } => self.spread_intent(to, gossip, notice),
                Output::SendVeto { to, container, round, hold_us } => self.spawn_veto(to, container, round, hold_us),
                Output::SendNotice { to, hash, queued, slots, start_us, service_us } => {
                    self.spawn_notice(to, hash, queued, slots, start_us, service_us);
                }
                Output::AnswerReserve { request, answer } => self.answer_waiting(&request, &answer),
                // Taken by the step that asked.
                Output::AnswerRun { .. } | Output::AnswerNotice { .. } | Output::IntentAnswer { .. } => {}
                // Taken by its own task.
                Output::CameBack { .. } => {}
                Output::StartContainer { container, action, revision } => {
                    self.spawn_start(container, action, revision);
                }
                // Taken by the step that found it.
                Output::AdoptContainer { .. } | Output::DiscardFound { .. } => {}
                Output::PauseContainer { container } => self.spawn_pause(container),
                Output::ResumeContainer { container } => self.spawn_resume(container),
                Output::RemoveContainer { container } => self.spawn_remove(container),
                Output::PublishAdvert { hash, .. } => self.publish_advert(hash),
                Output::Event(event) => self.publish_event(event),
                Output::Drained(end) => self.drain_ended(end),
                Output::History(record) => self.write_history(&record),
            }
        }
    }

    /// Hands an output to the activation's task that waits for it.
    fn assign(&self, output: Output) {
        let Some((id, assignment)) = assignment(output) else { return };
        let waiting = self.driver().waiting().activations.remove(&id);
        match waiting {
            // One assignment at a time: there is always room for it.
            Some(sender) if sender.try_send(assignment).is_ok() => {}
            _ => tracing::error!(activation = %id, "nobody waits for this activation's assignment"),
        }
    }

    fn answer_waiting(&self, request: &RequestId, answer: &ReserveAnswer) {
        let waiting = self.driver().waiting().reserves.remove(request);
        let again = repeated(answer);
        // One of the copies carries the run out, all others join it.
        for (n, sender) in waiting.into_iter().flatten().enumerate() {
            sender.send(if n == 0 { answer.clone() } else { again.clone() }).ok();
        }
    }
}

/// The same answer for another copy of the request.
fn repeated(answer: &ReserveAnswer) -> ReserveAnswer {
    let mut again = answer.clone();
    if let ReserveAnswer::Granted { first, .. } = &mut again {
        *first = false;
    }
    again
}

fn assigned_to(output: &Output) -> Option<ActivationId> {
    match output {
        Output::RunLocal { activation, .. }
        | Output::Refuse { activation, .. }
        | Output::Indeterminate { activation } => Some(*activation),
        Output::SendRun(send) => Some(send.activation),
        Output::SendReserve(send) => send.run.map(|run| run.activation),
        _ => None,
    }
}

fn assignment(output: Output) -> Option<(ActivationId, Assignment)> {
    let id = assigned_to(&output)?;
    let assignment = match output {
        Output::RunLocal { run, container, attempt, served, .. } => {
            Assignment::Local { run, container, attempt, served }
        }
        Output::SendRun(send) => Assignment::Leased(send),
        Output::SendReserve(send) => Assignment::Reserve(send),
        Output::Refuse { refusal, .. } => Assignment::Refused(refusal),
        Output::Indeterminate { .. } => Assignment::Indeterminate,
        _ => return None,
    };
    Some((id, assignment))
}
