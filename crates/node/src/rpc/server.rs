//! The calls of peers. Each becomes one input of the core; a run that it accepts is carried out here, to its end
//! even if the peer is gone by then.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use embermesh_core::mutations::{Mutation, on};
use embermesh_core::output::{Attempt, Output, ReserveAnswer, RunAnswer};
use embermesh_core::{Epoch, Input, RunId};
use embermesh_proto::v1;
use embermesh_proto::v1::mesh_server::{Mesh, MeshServer};
use futures::stream::{self, Stream, StreamExt};
use tokio::sync::watch;
use tonic::codegen::http;
use tonic::service::InterceptorLayer;
use tonic::{Request, Response, Status};
use tower::util::MapResponseLayer;

use super::{cluster, convert, result_message};
use crate::detached::Detached;
use crate::driver::Mine;
use crate::logbook::ContainerLog;
use crate::net::{Accepted, Listener};
use crate::node::Node;
use crate::outcome::Outcome;
use crate::peers::MAX_MESSAGE_BYTES;
use crate::registry::action::ActionEntry;

/// Outcomes kept for copies of a request that come late, in number and in bytes.
const MOST_OUTCOMES: usize = 4096;
const MOST_OUTCOME_BYTES: usize = 16 << 20;
const CODE_CHUNK_BYTES: usize = 256 << 10;
/// A copy of a request may overtake the first one between its acceptance and its start, not by much.
const JOIN_TRIES: u32 = 50;
const JOIN_PAUSE: Duration = Duration::from_millis(20);

type Ends = watch::Receiver<Option<v1::RunReply>>;

/// Runs for peers, under way and ended: what a repeated request joins.
#[derive(Debug, Default)]
pub(crate) struct RunsForPeers {
    runs: Mutex<Joinable>,
}

#[derive(Debug, Default)]
struct Joinable {
    ends: HashMap<RunId, Ends>,
    ended: VecDeque<(RunId, usize)>,
    bytes: usize,
}

impl RunsForPeers {
    /// The task that carries a run out, once: it tells the end to all who join.
    fn begin(&self, run: RunId) -> watch::Sender<Option<v1::RunReply>> {
        let (sender, receiver) = watch::channel(None);
        self.lock().ends.insert(run, receiver);
        sender
    }

    /// How a run ends that another copy of its request has started, or is about to.
    async fn join(&self, run: RunId) -> Option<Ends> {
        for _ in 0..JOIN_TRIES {
            let known = self.lock().ends.get(&run).cloned();
            if known.is_some() {
                return known;
            }
            tokio::time::sleep(JOIN_PAUSE).await;
        }
        None
    }

    fn ended(&self, run: RunId, bytes: usize) {
        let mut runs = self.lock();
        runs.ended.push_back((run, bytes));
        runs.bytes += bytes;
        while runs.ended.len() > MOST_OUTCOMES || runs.bytes > MOST_OUTCOME_BYTES {
            let Some((oldest, bytes)) = runs.ended.pop_front() else { break };
            runs.ends.remove(&oldest);
            runs.bytes -= bytes;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Joinable> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves peers until `shutdown` ends.
pub(crate) async fn serve(
    node: Node,
    listener: Box<dyn Listener>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<MeshServer<Service>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(embermesh_proto::DESCRIPTORS)
        .build_v1();
    let counting = node.clone();
    let count_malformed = MapResponseLayer::new(move |response: http::Response<_>| {
        if is_malformed(response.headers()) {
            counting.metrics().malformed_calls.add();
        }
        response
    });
    let refuse_others = InterceptorLayer::new(cluster::refuse_others(&node.config().node.cluster));
    let service = MeshServer::new(Service { node })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let mut router = tonic::transport::Server::builder()
        .layer(count_malformed)
        .layer(refuse_others)
        .http2_keepalive_interval(Some(Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .add_service(service)
        .add_service(health_service);
    match reflection {
        Ok(reflection) => router = router.add_service(reflection),
        Err(error) => tracing::warn!(%error, "no gRPC reflection"),
    }
    router.serve_with_incoming_shutdown(incoming(listener), shutdown).await
}

/// Whether a call was refused since it could not be read: a field that makes no sense, bytes that are no message or
/// too many, a method that is none of this version's; or since it was meant for another cluster.
fn is_malformed(headers: &http::HeaderMap) -> bool {
    let code = headers.get("grpc-status").map(|status| tonic::Code::from_bytes(status.as_bytes()));
    use tonic::Code::{Internal, InvalidArgument, OutOfRange, Unimplemented};
    matches!(code, Some(InvalidArgument | Internal | OutOfRange | Unimplemented))
}

/// Connections as they come. An error of one accept (too many files, say) is waited out, not fatal.
fn incoming(listener: Box<dyn Listener>) -> impl Stream<Item = Result<Accepted, io::Error>> {
    stream::unfold(listener, |mut listener| async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((Ok(Accepted(stream)), listener)),
                Err(error) => {
                    tracing::warn!(%error, "a peer's connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    })
}

struct Service {
    node: Node,
}

type Reply<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Mesh for Service {
    type ReserveStream = Pin<Box<dyn Stream<Item = Result<v1::ReserveReply, Status>> + Send>>;
    type FetchCodeStream = Pin<Box<dyn Stream<Item = Result<v1::CodeChunk, Status>> + Send>>;

    async fn reserve(&self, request: Request<v1::ReserveRequest>) -> Reply<Self::ReserveStream> {
        let message = request.into_inner();
        let id = convert::request_id(message.request)?;
        let (action, revision) = convert::action(message.action)?;
        let body = message.run;
        let run = body.as_ref().map(convert::attempt).transpose()?;
        let node = self.node.clone();
        let entry = node.known_at_least(&action, &revision, &id.holder).await;
        let spec = entry.as_ref().map(|e| node.spec(e));
        let input = Input::ReserveReceived {
            request: id.clone(),
            owner_epoch: Epoch(message.owner_epoch),
            open_from: message.open_from,
            action,
            revision,
            spec,
            slots: message.slots.max(1),
            wait_us: message.wait_us,
            start: message.start,
            run,
        };
        // A grant that nobody is there to hear still starts its run: the holder may ask again.
        let answered = Detached::new(async move {
            let answer = match node.tell_reserve(input, &id) {
                Mine::Now(answer) => answer,
                Mine::Later(later) => later.await.map_err(|_| Status::unavailable("this node goes down"))?,
            };
            Ok::<_, Status>(node.reserve_replies(answer, run, body))
        });
        Ok(Response::new(answered.await?))
    }

    async fn run(&self, request: Request<v1::RunRequest>) -> Reply<v1::RunReply> {
        let message = request.into_inner();
        let id = convert::request_id(message.request)?;
        let (action, revision) = convert::action(message.action)?;
        let activation = message.run.ok_or_else(|| convert::missing("run"))?;
        let attempt = convert::attempt(&activation)?;
        let input = Input::RunReceived {
            request: id,
            owner_epoch: Epoch(message.owner_epoch),
            open_from: message.open_from,
            container: convert::container(message.container)?,
            fence: convert::fence(message.fence)?,
            action,
            revision,
            keep: message.keep,
            attempt,
        };
        let node = self.node.clone();
        let pick = |output: &Output| match output {
            Output::AnswerRun { answer, .. } => Some(answer.clone()),
            _ => None,
        };
        let run = Detached::new(async move {
            match node.tell_and_pick(input, pick) {
                Some(RunAnswer::Accepted { run, container, renewed_us }) => {
                    node.run_for_peer(run, container, attempt, activation, renewed_us).await
                }
                Some(RunAnswer::Joined { run, .. }) => node.join_run(run).await,
                Some(RunAnswer::Refused(refusal)) => Ok(convert::refusal_message(refusal)),
                None => Err(not_answered("request")),
            }
        });
        Ok(Response::new(run.await?))
    }

    async fn release(&self, request: Request<v1::ReleaseRequest>) -> Reply<v1::Ack> {
        let message = request.into_inner();
        self.node.tell(Input::ReleaseReceived {
            holder: convert::node_id(&message.holder, "holder")?,
            holder_epoch: Epoch(message.holder_epoch),
            container: convert::container(message.container)?,
            fence: convert::fence(message.fence)?,
            keep: message.keep,
        });
        Ok(Response::new(v1::Ack {}))
    }

    async fn recall(&self, request: Request<v1::RecallRequest>) -> Reply<v1::Ack> {
        let message = request.into_inner();
        self.node.tell(Input::RecallReceived {
            owner: convert::node_id(&message.owner, "owner")?,
            owner_epoch: Epoch(message.owner_epoch),
            fence: convert::fence(message.fence)?,
        });
        Ok(Response::new(v1::Ack {}))
    }

    async fn intent(&self, request: Request<v1::IntentRequest>) -> Reply<v1::Ack> {
        if let Some(notice) = convert::intent(request.into_inner())? {
            self.node.tell(Input::IntentReceived { notice });
        }
        Ok(Response::new(v1::Ack {}))
    }

    async fn veto(&self, request: Request<v1::VetoRequest>) -> Reply<v1::Ack> {
        let message = request.into_inner();
        self.node.tell(Input::VetoReceived {
            from: convert::node_id(&message.from, "from")?,
            container: convert::container(message.container)?,
            round: message.round,
            hold_us: message.hold_us,
        });
        Ok(Response::new(v1::Ack {}))
    }

    async fn notice(&self, request: Request<v1::NoticeRequest>) -> Reply<v1::NoticeReply> {
        let message = request.into_inner();
        let input = Input::NoticeReceived {
            from: convert::node_id(&message.from, "from")?,
            from_epoch: Epoch(message.from_epoch),
            hash: embermesh_core::ActionHash(message.action_hash),
            queued: message.queued,
            slots: message.slots,
            start_us: message.start_us,
            service_us: message.service_us,
        };
        let advice = self.node.tell_and_pick(input, |output| match output {
            Output::AnswerNotice { advice, .. } => Some(advice.clone()),
            _ => None,
        });
        let advice = advice.ok_or_else(|| not_answered("notice"))?;
        Ok(Response::new(convert::advice_message(advice)))
    }

    async fn lookup_action(&self, request: Request<v1::LookupActionRequest>) -> Reply<v1::LookupActionReply> {
        let message = request.into_inner();
        let entry = self.node.registry().get_any(&message.namespace, &message.name);
        Ok(Response::new(v1::LookupActionReply { entry: entry.map_or_else(Vec::new, |e| entry_json(&e)) }))
    }

    async fn sync_actions(&self, request: Request<v1::SyncActionsRequest>) -> Reply<v1::SyncActionsReply> {
        let (entries, wanted) = self.node.take_exchange(request.into_inner()).await;
        Ok(Response::new(v1::SyncActionsReply { entries, wanted }))
    }

    async fn fetch_code(&self, request: Request<v1::FetchCodeRequest>) -> Reply<Self::FetchCodeStream> {
        let hash = request.into_inner().hash;
        let code = self.node.own_code(&hash).await;
        let code = code.ok_or_else(|| Status::not_found(format!("no code `{hash}` here")))?;
        let chunks: Vec<Bytes> = (0..code.len())
            .step_by(CODE_CHUNK_BYTES)
            .map(|from| code.slice(from..(from + CODE_CHUNK_BYTES).min(code.len())))
            .collect();
        let chunks = stream::iter(chunks).map(|data| Ok(v1::CodeChunk { data }));
        Ok(Response::new(Box::pin(chunks)))
    }

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Reply<v1::LogsReply> {
        let id = convert::activation_id(&request.into_inner().activation_id)?;
        let lines = self.node.logbook().fetch(&id.to_string()).await;
        Ok(Response::new(v1::LogsReply { lines }))
    }

    async fn inspect(&self, request: Request<v1::InspectRequest>) -> Reply<v1::InspectReply> {
        let what = request.into_inner().what;
        let json = match what.as_str() {
            "containers" => serde_json::to_vec(&self.node.own_containers()),
            "status" => serde_json::to_vec(&self.node.status()),
            _ => {
                return Err(Status::invalid_argument(format!("`{what}` can't be inspected: use containers or status")));
            }
        };
        let json = json.map_err(|e| Status::unknown(e.to_string()))?;
        Ok(Response::new(v1::InspectReply { json }))
    }

    async fn identify(&self, request: Request<v1::IdentifyRequest>) -> Reply<v1::IdentifyReply> {
        let node_id = request.into_inner().node_id;
        let own = node_id == self.node.id().as_str();
        let known = if own { Some((self.node.epoch(), None)) } else { self.node.peers().known(&node_id) };
        let (epoch, at) = known.unwrap_or((Epoch(0), None));
        Ok(Response::new(v1::IdentifyReply {
            node_id: self.node.id().to_string(),
            cluster: self.node.config().node.cluster.clone(),
            instance: self.node.instance().to_owned(),
            known_epoch: epoch.0,
            known_live: at.is_some(),
            known_at: at.map(|at| at.to_string()).unwrap_or_default(),
        }))
    }
}

impl Node {
    /// The stream that answers a Reserve: the grant, and the end of the run that came along.
    fn reserve_replies(
        &self,
        answer: ReserveAnswer,
        attempt: Option<Attempt>,
        body: Option<v1::Activation>,
    ) -> <Service as Mesh>::ReserveStream {
        let (container, fence, slots, ttl_us, run, is_first) = match answer {
            ReserveAnswer::Granted { container, fence, slots, ttl_us, run, first } => {
                (container, fence, slots, ttl_us, run, first)
            }
            ReserveAnswer::Denied { denial, hint } => {
                let denied = v1::Denied {
                    denial: convert::denial_message(denial).into(),
                    hint: hint.map_or_else(String::new, |h| h.to_string()),
                };
                return Box::pin(stream::iter([Ok(reply(v1::reserve_reply::Reply::Denied(denied)))]));
            }
        };
        let number = container.number;
        let granted = v1::Granted {
            container: Some(convert::container_message(&container)),
            fence: Some(convert::fence_message(fence)),
            slots,
            ttl_us,
            started: run.is_some(),
        };
        let first = stream::iter([Ok(reply(v1::reserve_reply::Reply::Granted(granted)))]);
        let (Some(run), Some(attempt), Some(body)) = (run, attempt, body) else { return Box::pin(first) };
        let node = self.clone();
        let is_first = is_first || on(Mutation::JoinedRunsAgain);
        // Detached from the stream: the run has been accepted, whoever still listens.
        let end = Detached::new(async move {
            if is_first { node.run_for_peer(run, number, attempt, body, 0).await } else { node.join_run(run).await }
        });
        let second = stream::once(async move { end.await.map(|r| reply(v1::reserve_reply::Reply::Run(r))) });
        Box::pin(first.chain(second))
    }

    /// Carries out a run that the core has accepted; called for the first copy of its request alone.
    async fn run_for_peer(
        &self,
        run: RunId,
        container: u64,
        attempt: Attempt,
        body: v1::Activation,
        renewed_us: u64,
    ) -> Result<v1::RunReply, Status> {
        let end = self.runs_for_peers().begin(run);
        self.metrics().served_for_peers.add();
        let owned = self.own_container(container);
        let place = (container, run);
        let (mut outcome, run_end) =
            self.run_in(owned.as_ref(), place, attempt.activation, &body.body, &body.transaction_id).await;
        if let (Some(outcome), Some(owned)) = (&mut outcome, owned) {
            self.leave_lines(&attempt.activation.to_string(), &owned.log, outcome);
        }
        self.tell(Input::RunFinished { container, run, end: run_end });
        let reply = match &outcome {
            Some(outcome) => result_message(outcome, renewed_us),
            None => convert::refusal_message(embermesh_core::output::RunRefusal::NotStarted),
        };
        let bytes = outcome.as_ref().map_or(0, |o| o.result.as_ref().map_or(0, |r| r.get().len()));
        end.send_replace(Some(reply.clone()));
        self.runs_for_peers().ended(run, bytes);
        Ok(reply)
    }

    /// Log lines of a run stay here until its origin asks for them, which it does unless it is told that there are none.
    fn leave_lines(&self, activation: &str, log: &Arc<ContainerLog>, outcome: &mut Outcome) {
        if !log.was_silent(activation, outcome.log_lines) {
            self.logbook().leave(activation, log, outcome.log_lines);
            outcome.log_lines.take_if(|own| *own == 0);
        }
    }

    async fn join_run(&self, run: RunId) -> Result<v1::RunReply, Status> {
        match self.runs_for_peers().join(run).await {
            Some(ends) => wait_for_end(ends).await,
            // Its outcome was dropped to make room: nobody can tell any more.
            None => Err(Status::data_loss("the outcome of this run is no longer kept")),
        }
    }
}

async fn wait_for_end(mut ends: Ends) -> Result<v1::RunReply, Status> {
    let ended = ends.wait_for(Option::is_some).await.map_err(|_| Status::aborted("the run was given up"))?;
    ended.clone().ok_or_else(|| Status::aborted("the run was given up"))
}

/// A mistake of this node, not of who asked: `Internal` is what tonic says of bytes that are no message.
fn not_answered(what: &str) -> Status {
    Status::unknown(format!("the {what} was not answered"))
}

fn reply(reply: v1::reserve_reply::Reply) -> v1::ReserveReply {
    v1::ReserveReply { reply: Some(reply) }
}

pub(crate) fn entry_json(entry: &Arc<ActionEntry>) -> Vec<u8> {
    serde_json::to_vec(entry.as_ref()).unwrap_or_default()
}
