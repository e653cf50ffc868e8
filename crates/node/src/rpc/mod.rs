//! gRPC between peers: `server` takes their calls, this file makes ours, `convert` is between the wire and the
//! core. Every call has a deadline; what a lost answer means is the core's business.

pub(crate) mod again;
pub(crate) mod channel;
pub(crate) mod cluster;
pub(crate) mod convert;
pub(crate) mod server;

use std::time::Duration;

use bytes::Bytes;
use embermesh_core::input::RemoteEnd;
use embermesh_core::output::{Denial, IntentNotice, RunRefusal, SendReserve, SendRun};
use embermesh_core::{ActionHash, ContainerId, Fence, Input, NodeId, RequestId};
use embermesh_proto::v1;
use tokio::time::timeout;
use tonic::{Request, Status};

use crate::node::Node;
use crate::outcome::Outcome;
use crate::peers::{Client, never_sent};

/// For calls that neither run nor wait.
const SHORT: Duration = Duration::from_secs(2);
/// How much longer than an action's time-out its origin waits.
const RUN_GRACE: Duration = Duration::from_secs(2);
/// For a message of an intent or a veto: later it is of no use.
const PROMPT: Duration = Duration::from_secs(1);

/// A run's result from a peer.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) outcome: Outcome,
    /// The lease's ttl counted from the send, 0 if it was not renewed.
    pub(crate) renewed_us: u64,
}

impl Node {
    /// Runs on a held lease.
    pub(crate) async fn call_run(&self, send: &SendRun, run: v1::Activation) -> Result<Answered, RemoteEnd> {
        let Some(mut client) = self.peers().client(&send.to) else { return Err(RemoteEnd::NeverSent) };
        let longest = Duration::from_micros(send.timeout_us) + RUN_GRACE;
        let message = convert::run_message(send, run);
        match timeout(longest, client.run(Request::new(message))).await {
            Ok(Ok(reply)) => {
                let end = run_end(reply.into_inner());
                if matches!(end, Err(RemoteEnd::Refused(RunRefusal::StaleRevision))) {
                    self.spawn_exchange(send.to.clone());
                }
                end
            }
            Ok(Err(status)) if never_sent(&status) => Err(RemoteEnd::NeverSent),
            Ok(Err(_)) | Err(_) => Err(RemoteEnd::Unknown),
        }
    }

    /// Sends a Reserve with a body. The grant is told to the core when it comes; the rest is how the run ended,
    /// or the input that says why there was none.
    pub(crate) async fn call_reserve_and_run(
        &self,
        send: &SendReserve,
        run: v1::Activation,
    ) -> Result<Answered, Input> {
        let request = send.request.clone();
        let Some(mut client) = self.peers().client(&send.to) else {
            return Err(Input::ReserveFailed { request, never_sent: true });
        };
        let longest = Duration::from_micros(send.timeout_us) + RUN_GRACE;
        let message = convert::reserve_message(send, Some(run));
        let mut granted = false;
        let stale = |input: &Input| matches!(input, Input::ReserveDenied { denial: Denial::StaleRevision, .. });
        let conversation = async {
            let mut replies = match client.reserve(Request::new(message)).await {
                Ok(replies) => replies.into_inner(),
                Err(status) => {
                    return Err(Input::ReserveFailed { request: request.clone(), never_sent: never_sent(&status) });
                }
            };
            loop {
                match replies.message().await {
                    Ok(Some(v1::ReserveReply { reply: Some(v1::reserve_reply::Reply::Run(reply)) })) if granted => {
                        return run_end(reply).map_err(|end| Input::RunAnswered { request: request.clone(), end });
                    }
                    Ok(Some(reply)) => match reserve_input(&request, reply) {
                        Some(grant @ Input::ReserveGranted { .. }) => {
                            granted = true;
                            self.tell(grant);
                        }
                        Some(denied) => {
                            if stale(&denied) {
                                self.spawn_exchange(send.to.clone());
                            }
                            return Err(denied);
                        }
                        None => return Err(Input::ReserveFailed { request: request.clone(), never_sent: false }),
                    },
                    Ok(None) | Err(_) => {
                        return Err(Input::ReserveFailed { request: request.clone(), never_sent: false });
                    }
                }
            }
        };
        match timeout(longest, conversation).await {
            Ok(end) => end,
            Err(_) => Err(Input::ReserveFailed { request, never_sent: false }),
        }
    }

    /// Sends a Reserve without a body; nobody waits for it but the core.
    pub(crate) fn spawn_reserve(&self, send: SendReserve) {
        let node = self.clone();
        tokio::spawn(async move {
            let request = send.request.clone();
            let input = node.call_reserve(&send).await;
            if matches!(input, Ok(Input::ReserveDenied { denial: Denial::StaleRevision, .. })) {
                // The peer knows a newer revision: fetched, so that it is resolved again.
                node.spawn_exchange(send.to.clone());
            }
            node.tell(input.unwrap_or_else(|never_sent| Input::ReserveFailed { request, never_sent }));
        });
    }

    async fn call_reserve(&self, send: &SendReserve) -> Result<Input, bool> {
        let mut client = self.peers().client(&send.to).ok_or(true)?;
        let message = convert::reserve_message(send, None);
        let answer = async {
            let mut replies = client.reserve(Request::new(message)).await.map_err(|s| never_sent(&s))?.into_inner();
            let first = replies.message().await.map_err(|_| false)?.ok_or(false)?;
            reserve_input(&send.request, first).ok_or(false)
        };
        timeout(Duration::from_micros(send.timeout_us), answer).await.unwrap_or(Err(false))
    }

    pub(crate) fn spawn_release(&self, to: NodeId, container: ContainerId, fence: Fence, keep: u32) {
        let message = v1::ReleaseRequest {
            holder: self.id().to_string(),
            holder_epoch: self.epoch().0,
            container: Some(convert::container_message(&container)),
            fence: Some(convert::fence_message(fence)),
            keep,
        };
        self.spawn_call(to, SHORT, "release", |mut c| async move { c.release(message).await.map(drop) });
    }

    pub(crate) fn spawn_recall(&self, to: NodeId, fence: Fence) {
        let message = v1::RecallRequest {
            owner: self.id().to_string(),
            owner_epoch: self.epoch().0,
            fence: Some(convert::fence_message(fence)),
        };
        self.spawn_call(to, SHORT, "recall", |mut c| async move { c.recall(message).await.map(drop) });
    }

    pub(crate) fn spawn_intent(&self, to: NodeId, notice: &IntentNotice) {
        let message = convert::intent_message(notice);
        self.spawn_call(to, PROMPT, "intent", |mut c| async move { c.intent(message).await.map(drop) });
    }

    pub(crate) fn spawn_veto(&self, to: NodeId, container: ContainerId, round: u32, hold_us: u64) {
        let message = v1::VetoRequest {
            from: self.id().to_string(),
            container: Some(convert::container_message(&container)),
            round,
            hold_us,
        };
        self.spawn_call(to, PROMPT, "veto", |mut c| async move { c.veto(message).await.map(drop) });
    }

    pub(crate) fn spawn_notice(
        &self,
        to: NodeId,
        hash: ActionHash,
        queued: u32,
        slots: u32,
        start_us: u64,
        service_us: u64,
    ) {
        let message = v1::NoticeRequest {
            from: self.id().to_string(),
            from_epoch: self.epoch().0,
            action_hash: hash.0,
            queued,
            slots,
            start_us,
            service_us,
        };
        let node = self.clone();
        self.spawn_call(to, SHORT, "notice", move |mut c| async move {
            let reply = c.notice(message).await?.into_inner();
            node.tell(Input::NoticeAnswered { hash, advice: convert::advice(&reply) });
            Ok(())
        });
    }

    /// Log lines of an activation that ran at a peer; none if it can't tell.
    pub(crate) async fn call_logs(&self, peer: &NodeId, activation: &str) -> Vec<String> {
        let Some(mut client) = self.peers().client(peer) else { return Vec::new() };
        let id = u128::from_str_radix(activation, 16).unwrap_or_default();
        let message = v1::LogsRequest { activation_id: id.to_be_bytes().to_vec() };
        match timeout(SHORT * 2, client.logs(message)).await {
            Ok(Ok(reply)) => reply.into_inner().lines,
            _ => Vec::new(),
        }
    }

    /// What a peer shows of itself; none if it does not answer in time.
    pub(crate) async fn call_inspect(&self, mut client: Client, what: &str) -> Option<Vec<u8>> {
        let message = v1::InspectRequest { what: what.to_owned() };
        match timeout(SHORT, client.inspect(message)).await {
            Ok(Ok(reply)) => Some(reply.into_inner().json),
            _ => None,
        }
    }

    /// A message whose loss the protocol stands.
    fn spawn_call<F>(
        &self,
        to: NodeId,
        longest: Duration,
        what: &'static str,
        call: impl FnOnce(Client) -> F + Send + 'static,
    ) where
        F: Future<Output = Result<(), Status>> + Send,
    {
        let Some(client) = self.peers().client(&to) else { return };
        tokio::spawn(async move {
            match timeout(longest, call(client)).await {
                Ok(Ok(())) => {}
                Ok(Err(status)) => tracing::debug!(peer = %to, what, %status, "a peer did not take a message"),
                Err(_) => tracing::debug!(peer = %to, what, "a peer did not answer in time"),
            }
        });
    }
}

fn run_end(reply: v1::RunReply) -> Result<Answered, RemoteEnd> {
    match reply.end {
        Some(v1::run_reply::End::Result(result)) => {
            let log_lines = (result.log_lines != u32::MAX).then_some(result.log_lines);
            let took = Duration::from_micros(result.took_us);
            Ok(Answered {
                outcome: Outcome {
                    timed_out: result.timed_out,
                    ..Outcome::of_parts(result.status, &result.body, took, log_lines)
                },
                renewed_us: result.renewed_us,
            })
        }
        Some(v1::run_reply::End::Refusal(reason)) => {
            Err(convert::refusal(v1::RunRefusal::try_from(reason).unwrap_or_default()))
        }
        // A newer version's way of ending: nobody here can tell what it means.
        None => Err(RemoteEnd::Unknown),
    }
}

fn reserve_input(request: &RequestId, reply: v1::ReserveReply) -> Option<Input> {
    match reply.reply? {
        v1::reserve_reply::Reply::Granted(granted) => Some(Input::ReserveGranted {
            request: request.clone(),
            container: convert::container(granted.container).ok()?,
            fence: convert::fence(granted.fence).ok()?,
            slots: granted.slots,
            ttl_us: granted.ttl_us,
        }),
        v1::reserve_reply::Reply::Denied(denied) => Some(Input::ReserveDenied {
            request: request.clone(),
            denial: convert::denial(v1::Denial::try_from(denied.denial).unwrap_or_default()),
            hint: convert::node_id(&denied.hint, "hint").ok(),
        }),
        v1::reserve_reply::Reply::Run(_) => None,
    }
}

/// For the wire.
pub(crate) fn result_message(outcome: &Outcome, renewed_us: u64) -> v1::RunReply {
    v1::RunReply {
        end: Some(v1::run_reply::End::Result(v1::RunResult {
            status: outcome.status.code().into(),
            body: Bytes::clone(&outcome.body()),
            took_us: u64::try_from(outcome.took.as_micros()).unwrap_or(u64::MAX),
            renewed_us,
            log_lines: outcome.log_lines_message(),
            timed_out: outcome.timed_out,
        })),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::ActivationStatus;
    use v1::reserve_reply::Reply;
    use v1::run_reply::End;

    fn request() -> RequestId {
        RequestId { holder: NodeId::new("n1"), epoch: embermesh_core::Epoch(7), number: 1 }
    }

    fn ended(end: Option<End>) -> Result<Answered, RemoteEnd> {
        run_end(v1::RunReply { end })
    }

    #[test]
    fn an_end_that_this_version_has_no_name_for_is_unknown_and_a_refusal_is_one() {
        assert_eq!(ended(None).unwrap_err(), RemoteEnd::Unknown);
        assert_eq!(ended(Some(End::Refusal(99))).unwrap_err(), RemoteEnd::Refused(RunRefusal::UnknownLease));
        let status = ended(Some(End::Result(v1::RunResult { status: 99, ..Default::default() }))).unwrap();
        assert_eq!(status.outcome.status, ActivationStatus::InternalError, "never told as a success");
    }

    #[test]
    fn a_run_reply_with_nothing_but_its_result_renews_no_lease() {
        let answered = ended(Some(End::Result(v1::RunResult { body: "{}".into(), ..Default::default() }))).unwrap();
        assert_eq!((answered.outcome.status, answered.renewed_us), (ActivationStatus::Success, 0));
    }

    #[test]
    fn an_answer_to_a_reserve_that_can_not_be_read_is_no_answer() {
        let read = |reply| reserve_input(&request(), v1::ReserveReply { reply });
        assert_eq!(read(None), None, "a newer version's way of answering");
        assert_eq!(read(Some(Reply::Granted(v1::Granted { slots: 1, ..Default::default() }))), None, "of what?");
        let denied = Input::ReserveDenied { request: request(), denial: Denial::NoCapacity, hint: None };
        assert_eq!(read(Some(Reply::Denied(v1::Denied { denial: 99, hint: String::new() }))), Some(denied));
    }
}
