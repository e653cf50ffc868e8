//! Asking, after a restart, for a run that was handed to a peer before: the same request, at the same owner epoch. It
//! joins the run if there was one, and is refused or begun now if there was none; refused in any case once the owner has
//! taken a request of this node's new epoch. So it does not matter what this node asked of that owner before.

use std::time::Duration;

use bytes::Bytes;
use embermesh_core::input::RemoteEnd;
use embermesh_core::output::{Denial, RunRefusal};
use embermesh_core::{Epoch, Input, NodeId, RequestId};
use embermesh_proto::v1;
use prost::Message as _;
use tokio::time::{Instant, timeout};
use tonic::Status;

use super::{Answered, RUN_GRACE, convert, reserve_input, run_end};
use crate::node::Node;
use crate::outcome::Outcome;
use crate::peers::Client;
use crate::store::journal::{Kept, Request, Started};

/// How long the owner may take to be seen.
const OWNER_PATIENCE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A lost answer is asked for once more.
const MOST_TRIES: u32 = 2;

/// What the owner says.
pub(crate) enum Asked {
    Answered(Outcome),
    /// It certainly did not run, and will not by this request.
    NotRun,
    Unknown,
    /// This node goes down meanwhile: the next start asks.
    Stopped,
}

impl Node {
    pub(crate) async fn ask_again(&self, kept: &Kept, started: &Started, longest: Duration) -> Asked {
        let owner = NodeId::new(&started.owner);
        let owner = tokio::select! {
            client = self.owner_at(&owner, Epoch(started.epoch)) => client,
            () = self.stopped() => return Asked::Stopped,
        };
        let Some(client) = owner else { return Asked::Unknown };
        let asking = async {
            let body = v1::Activation {
                activation_id: kept.id.0.to_be_bytes().to_vec(),
                attempt: started.attempt,
                body: kept.params.clone(),
                transaction_id: kept.transaction_id.clone(),
            };
            for _ in 0..MOST_TRIES {
                let answer = match &started.request {
                    Some(Request::Run(message)) => run(client.clone(), message, body.clone(), longest).await,
                    Some(Request::Reserve(message)) => reserve(client.clone(), message, body.clone(), longest).await,
                    None => return Asked::Unknown,
                };
                match answer {
                    Ok(answered) => return Asked::Answered(answered.outcome),
                    Err(RemoteEnd::Refused(RunRefusal::WrongEpoch | RunRefusal::StaleRequest)) => {
                        return Asked::Unknown;
                    }
                    Err(RemoteEnd::Refused(_)) => return Asked::NotRun,
                    Err(_) => {}
                }
            }
            Asked::Unknown
        };
        tokio::select! {
            asked = asking => asked,
            () = self.stopped() => Asked::Stopped,
        }
    }

    /// The owner, once it is seen; none if another epoch of it is, or it does not come.
    async fn owner_at(&self, owner: &NodeId, epoch: Epoch) -> Option<Client> {
        let until = Instant::now() + OWNER_PATIENCE;
        loop {
            match self.peers().epoch(owner) {
                Some(seen) if seen == epoch => return self.peers().client(owner),
                Some(seen) if seen > epoch => return None,
                _ if Instant::now() >= until => return None,
                _ => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }
}

async fn run(
    mut client: Client,
    message: &Bytes,
    body: v1::Activation,
    longest: Duration,
) -> Result<Answered, RemoteEnd> {
    let Ok(message) = v1::RunRequest::decode(message.clone()) else { return Err(RemoteEnd::Unknown) };
    let message = v1::RunRequest { run: Some(body), ..message };
    match timeout(longest + RUN_GRACE, client.run(message)).await {
        Ok(Ok(reply)) => run_end(reply.into_inner()),
        Ok(Err(_)) | Err(_) => Err(RemoteEnd::Unknown),
    }
}

async fn reserve(
    mut client: Client,
    message: &Bytes,
    body: v1::Activation,
    longest: Duration,
) -> Result<Answered, RemoteEnd> {
    let Ok(message) = v1::ReserveRequest::decode(message.clone()) else { return Err(RemoteEnd::Unknown) };
    let request: RequestId = convert::request_id(message.request.clone()).map_err(|_: Status| RemoteEnd::Unknown)?;
    let message = v1::ReserveRequest { run: Some(body), ..message };
    let conversation = async {
        let mut replies = client.reserve(message).await.map_err(|_| RemoteEnd::Unknown)?.into_inner();
        while let Ok(Some(reply)) = replies.message().await {
            if let Some(v1::reserve_reply::Reply::Run(reply)) = reply.reply {
                return run_end(reply);
            }
            match reserve_input(&request, reply) {
                // The lease was the old epoch's: it ends by itself.
                Some(Input::ReserveGranted { .. }) => {}
                Some(Input::ReserveDenied { denial: Denial::WrongEpoch, .. }) => {
                    return Err(RemoteEnd::Refused(RunRefusal::WrongEpoch));
                }
                Some(Input::ReserveDenied { denial: Denial::StaleRequest, .. }) => {
                    return Err(RemoteEnd::Refused(RunRefusal::StaleRequest));
                }
                Some(Input::ReserveDenied { .. }) => return Err(RemoteEnd::Refused(RunRefusal::NotStarted)),
                _ => break,
            }
        }
        Err(RemoteEnd::Unknown)
    };
    timeout(longest + RUN_GRACE, conversation).await.unwrap_or(Err(RemoteEnd::Unknown))
}
