//! Clients as operators set them up: refused with `Retry-After`, or not connected, they go to the next node. Any other
//! failure is a failed call. Each makes blocking calls and, in turn with them, calls that it doesn't wait for.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use serde_json::{Value, json};

use super::api::{Answer, Api, action_path, blocking};
use super::{Mesh, Ran, soon, until};

const CLIENTS: usize = 4;

#[derive(Debug)]
pub(crate) struct Clients {
    nodes: Mutex<Vec<Api>>,
    stop: AtomicBool,
    answered: AtomicUsize,
}

/// All that was answered.
#[derive(Debug, Default)]
pub(crate) struct Answered {
    pub(crate) ran: Vec<Ran>,
    /// Activations that were accepted with a 202, and the number of the node that owes them.
    pub(crate) accepted: Vec<(usize, String)>,
}

impl Clients {
    pub(crate) fn of(mesh: &Mesh) -> Self {
        let nodes = mesh.agents.iter().map(|agent| **agent).collect();
        Self { nodes: Mutex::new(nodes), stop: AtomicBool::new(false), answered: AtomicUsize::new(0) }
    }

    /// Calls the action while `during` goes on.
    pub(crate) fn call(&self, action: &str, params: &Value, during: impl FnOnce()) -> Answered {
        thread::scope(|scope| {
            let client = |number| scope.spawn(move || self.call_again_and_again(number, action, params));
            let clients: Vec<_> = (0..CLIENTS).map(client).collect();
            let stopping = StopWhenDropped(&self.stop);
            during();
            drop(stopping);
            let each = clients.into_iter().map(|client| client.join().unwrap());
            each.fold(Answered::default(), |mut all, each| {
                all.ran.extend(each.ran);
                all.accepted.extend(each.accepted);
                all
            })
        })
    }

    /// Each restart takes another port.
    pub(crate) fn moved(&self, number: usize, to: Api) {
        self.nodes.lock().unwrap()[number - 1] = to;
    }

    #[track_caller]
    pub(crate) fn go_on(&self) {
        let from = self.answered.load(Ordering::Relaxed);
        until("calls are answered", || self.answered.load(Ordering::Relaxed) >= from + 5 * CLIENTS);
    }

    fn call_again_and_again(&self, number: usize, action: &str, params: &Value) -> Answered {
        let (mut answered, mut turn) = (Answered::default(), number);
        while !self.stop.load(Ordering::Relaxed) {
            let (_, answer) = self.taken(&mut turn, &blocking(action), params);
            answer.expect(200);
            answered.ran.push(answer.into_ran());
            let (node, answer) = self.taken(&mut turn, &action_path(action), params);
            answered.accepted.push((node, answer.expect(202)["activationId"].as_str().unwrap().to_owned()));
            self.answered.fetch_add(2, Ordering::Relaxed);
        }
        answered
    }

    /// Which node took it, and its answer.
    fn taken(&self, turn: &mut usize, path: &str, params: &Value) -> (usize, Answer) {
        soon("some node takes it", || {
            let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner).clone();
            *turn += 1;
            let at = *turn % nodes.len();
            match nodes[at].try_call("POST", path, params.to_string().as_bytes()) {
                Ok(answer) if answer.status == 503 && answer.header("retry-after").is_some() => None,
                Ok(answer) => Some((at + 1, answer)),
                Err(error) if error.kind() == io::ErrorKind::NotConnected => None,
                Err(error) => panic!("a call to n{} failed: {error}", at + 1),
            }
        })
    }
}

impl Answered {
    /// The activations that succeeded: all that were answered, each the action's own answer, and all that were accepted.
    #[track_caller]
    pub(crate) fn all_succeeded(&self, mesh: &Mesh) -> Vec<String> {
        for ran in &self.ran {
            assert_eq!(ran.text("activation_id"), ran.activation_id, "{}", ran.record);
        }
        for (node, id) in &self.accepted {
            let record = mesh[*node].record(id);
            assert_eq!(record["response"]["status"], json!("success"), "{record}");
        }
        let answered = self.ran.iter().map(|ran| &ran.activation_id);
        let mut all: Vec<String> = answered.chain(self.accepted.iter().map(|(_, id)| id)).cloned().collect();
        all.sort_unstable();
        all
    }
}

/// Also when its test fails: nobody waits for callers that nobody stops.
pub(crate) struct StopWhenDropped<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
