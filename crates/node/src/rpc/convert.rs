//! Between the wire's messages and the core's values. What is missing or malformed is an `InvalidArgument` that
//! names the field; unknown enum values are read the careful way.

use embermesh_core::input::{Advice, RemoteEnd};
use embermesh_core::output::{Attempt, Denial, IntentKind, IntentNotice, RunRefusal, SendReserve, SendRun};
use embermesh_core::{ActionHash, ActionId, ActivationId, ContainerId, Epoch, Fence, NodeId, RequestId, Revision};
use embermesh_proto::v1;
use tonic::Status;

/// Longest node id taken from the wire, in bytes.
const MAX_NODE_ID: usize = 64;
/// Longest namespace or action name.
const MAX_NAME: usize = 256;

pub(crate) fn node_id(text: &str, field: &'static str) -> Result<NodeId, Status> {
    let sound = !text.is_empty() && text.len() <= MAX_NODE_ID && text.is_ascii();
    if sound { Ok(NodeId::new(text)) } else { Err(bad(field, "1 to 64 ASCII characters")) }
}

pub(crate) fn request_id(message: Option<v1::RequestId>) -> Result<RequestId, Status> {
    let message = message.ok_or_else(|| missing("request"))?;
    // Without its number one request would get the answer of another.
    if message.epoch == 0 || message.number == 0 {
        return Err(bad("request", "an epoch and a number from 1"));
    }
    Ok(RequestId {
        holder: node_id(&message.holder, "request.holder")?,
        epoch: Epoch(message.epoch),
        number: message.number,
    })
}

pub(crate) fn action(message: Option<v1::ActionRef>) -> Result<(ActionId, Revision), Status> {
    let message = message.ok_or_else(|| missing("action"))?;
    for name in [&message.namespace, &message.name] {
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(bad("action", "a namespace and a name of 1 to 256 bytes"));
        }
    }
    let node = node_id(&message.revision_node, "action.revision_node")?;
    Ok((ActionId::new(&message.namespace, &message.name), Revision { counter: message.revision_counter, node }))
}

pub(crate) fn action_message(action: &ActionId, revision: &Revision) -> v1::ActionRef {
    v1::ActionRef {
        namespace: action.namespace().to_owned(),
        name: action.name().to_owned(),
        revision_counter: revision.counter,
        revision_node: revision.node.to_string(),
    }
}

pub(crate) fn container(message: Option<v1::ContainerId>) -> Result<ContainerId, Status> {
    let message = message.ok_or_else(|| missing("container"))?;
    Ok(ContainerId {
        owner: node_id(&message.owner, "container.owner")?,
        epoch: Epoch(message.epoch),
        number: message.number,
    })
}

pub(crate) fn container_message(id: &ContainerId) -> v1::ContainerId {
    v1::ContainerId { owner: id.owner.to_string(), epoch: id.epoch.0, number: id.number }
}

pub(crate) fn fence(message: Option<v1::Fence>) -> Result<Fence, Status> {
    let message = message.ok_or_else(|| missing("fence"))?;
    Ok(Fence { epoch: Epoch(message.epoch), counter: message.counter })
}

pub(crate) fn fence_message(fence: Fence) -> v1::Fence {
    v1::Fence { epoch: fence.epoch.0, counter: fence.counter }
}

pub(crate) fn attempt(message: &v1::Activation) -> Result<Attempt, Status> {
    Ok(Attempt { activation: activation_id(&message.activation_id)?, attempt: message.attempt })
}

pub(crate) fn activation_id(bytes: &[u8]) -> Result<ActivationId, Status> {
    let bytes: [u8; 16] = bytes.try_into().map_err(|_| bad("activation_id", "16 bytes"))?;
    Ok(ActivationId(u128::from_be_bytes(bytes)))
}

/// None: of a kind that only a newer version knows, and can object to.
pub(crate) fn intent(message: v1::IntentRequest) -> Result<Option<IntentNotice>, Status> {
    let proposed = message.kind();
    let container = container(message.container)?;
    let kind = match proposed {
        v1::IntentKind::Pause => IntentKind::Pause,
        v1::IntentKind::Remove => IntentKind::Remove,
        v1::IntentKind::Unspecified => return Ok(None),
    };
    Ok(Some(IntentNotice {
        container,
        hash: ActionHash(message.action_hash),
        round: message.round,
        kind,
        urgent: message.urgent,
        window_us: message.window_us,
        last_copy: message.last_copy,
    }))
}

pub(crate) fn intent_message(notice: &IntentNotice) -> v1::IntentRequest {
    let kind = match notice.kind {
        IntentKind::Pause => v1::IntentKind::Pause,
        IntentKind::Remove => v1::IntentKind::Remove,
    };
    v1::IntentRequest {
        container: Some(container_message(&notice.container)),
        action_hash: notice.hash.0,
        round: notice.round,
        kind: kind.into(),
        urgent: notice.urgent,
        window_us: notice.window_us,
        last_copy: notice.last_copy,
    }
}

pub(crate) fn reserve_message(send: &SendReserve, run: Option<v1::Activation>) -> v1::ReserveRequest {
    v1::ReserveRequest {
        request: Some(request_message(&send.request)),
        owner_epoch: send.owner_epoch.0,
        open_from: send.open_from,
        action: Some(action_message(&send.action, &send.revision)),
        slots: send.slots,
        wait_us: send.wait_us,
        start: send.start,
        run,
    }
}

pub(crate) fn run_message(send: &SendRun, run: v1::Activation) -> v1::RunRequest {
    v1::RunRequest {
        request: Some(request_message(&send.request)),
        owner_epoch: send.owner_epoch.0,
        open_from: send.open_from,
        container: Some(container_message(&send.container)),
        fence: Some(fence_message(send.fence)),
        action: Some(action_message(&send.action, &send.revision)),
        keep: send.keep,
        run: Some(run),
    }
}

fn request_message(request: &RequestId) -> v1::RequestId {
    v1::RequestId { holder: request.holder.to_string(), epoch: request.epoch.0, number: request.number }
}

pub(crate) fn denial(message: v1::Denial) -> Denial {
    match message {
        v1::Denial::WrongEpoch => Denial::WrongEpoch,
        v1::Denial::StaleRequest => Denial::StaleRequest,
        v1::Denial::StaleRevision => Denial::StaleRevision,
        v1::Denial::UnknownAction => Denial::UnknownAction,
        v1::Denial::Busy => Denial::Busy,
        v1::Denial::Draining => Denial::Draining,
        v1::Denial::Full => Denial::Full,
        v1::Denial::StillComing => Denial::StillComing,
        v1::Denial::NotTaken => Denial::NotTaken,
        // A reason of a newer version: refused all the same, for a denial is certain whatever its reason.
        v1::Denial::NoCapacity | v1::Denial::Unspecified => Denial::NoCapacity,
    }
}

pub(crate) fn denial_message(denial: Denial) -> v1::Denial {
    match denial {
        Denial::WrongEpoch => v1::Denial::WrongEpoch,
        Denial::StaleRequest => v1::Denial::StaleRequest,
        Denial::StaleRevision => v1::Denial::StaleRevision,
        Denial::UnknownAction => v1::Denial::UnknownAction,
        Denial::NoCapacity => v1::Denial::NoCapacity,
        Denial::Busy => v1::Denial::Busy,
        Denial::Draining => v1::Denial::Draining,
        Denial::Full => v1::Denial::Full,
        Denial::StillComing => v1::Denial::StillComing,
        Denial::NotTaken => v1::Denial::NotTaken,
    }
}

/// A refusal is certain whatever its reason (an end that is not is an error of the call); one that this version does not
/// know is taken as a lost lease.
pub(crate) fn refusal(message: v1::RunRefusal) -> RemoteEnd {
    RemoteEnd::Refused(match message {
        v1::RunRefusal::WrongEpoch => RunRefusal::WrongEpoch,
        v1::RunRefusal::StaleRequest => RunRefusal::StaleRequest,
        v1::RunRefusal::StaleRevision => RunRefusal::StaleRevision,
        v1::RunRefusal::UnknownContainer => RunRefusal::UnknownContainer,
        v1::RunRefusal::UnknownLease | v1::RunRefusal::Unspecified => RunRefusal::UnknownLease,
        v1::RunRefusal::NoSlot => RunRefusal::NoSlot,
        v1::RunRefusal::Retiring => RunRefusal::Retiring,
        v1::RunRefusal::Full => RunRefusal::Full,
        v1::RunRefusal::NotStarted => RunRefusal::NotStarted,
    })
}

pub(crate) fn refusal_message(refusal: RunRefusal) -> v1::RunReply {
    let reason = match refusal {
        RunRefusal::WrongEpoch => v1::RunRefusal::WrongEpoch,
        RunRefusal::StaleRequest => v1::RunRefusal::StaleRequest,
        RunRefusal::StaleRevision => v1::RunRefusal::StaleRevision,
        RunRefusal::UnknownContainer => v1::RunRefusal::UnknownContainer,
        RunRefusal::UnknownLease => v1::RunRefusal::UnknownLease,
        RunRefusal::NoSlot => v1::RunRefusal::NoSlot,
        RunRefusal::Retiring => v1::RunRefusal::Retiring,
        RunRefusal::Full => v1::RunRefusal::Full,
        RunRefusal::NotStarted => v1::RunRefusal::NotStarted,
    };
    v1::RunReply { end: Some(v1::run_reply::End::Refusal(reason.into())) }
}

pub(crate) fn advice(message: &v1::NoticeReply) -> Advice {
    if message.reserve_at.is_empty() {
        Advice::Start
    } else {
        Advice::ReserveAt { peer: NodeId::new(&message.reserve_at), epoch: Epoch(message.reserve_at_epoch) }
    }
}

pub(crate) fn advice_message(advice: Advice) -> v1::NoticeReply {
    match advice {
        Advice::Start => v1::NoticeReply { reserve_at: String::new(), reserve_at_epoch: 0 },
        Advice::ReserveAt { peer, epoch } => {
            v1::NoticeReply { reserve_at: peer.to_string(), reserve_at_epoch: epoch.0 }
        }
    }
}

pub(crate) fn missing(field: &'static str) -> Status {
    Status::invalid_argument(format!("`{field}` is missing"))
}

fn bad(field: &'static str, wanted: &'static str) -> Status {
    Status::invalid_argument(format!("`{field}` is malformed: it should be {wanted}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value that a newer version may send.
    const NEWER: i32 = 99;

    #[test]
    fn what_a_newer_peer_says_is_read_carefully() {
        assert_eq!(denial(v1::Denial::try_from(NEWER).unwrap_or_default()), Denial::NoCapacity);
        let refused = refusal(v1::RunRefusal::try_from(NEWER).unwrap_or_default());
        assert_eq!(refused, RemoteEnd::Refused(RunRefusal::UnknownLease));
        let proposed = v1::IntentRequest {
            container: Some(v1::ContainerId { owner: "n1".to_owned(), epoch: 1, number: 1 }),
            kind: NEWER,
            ..v1::IntentRequest::default()
        };
        let read = intent(proposed).map_err(|status| status.to_string());
        assert_eq!(read, Ok(None), "it is no mistake, and nothing that this version could object to");
    }

    #[test]
    fn a_request_whose_number_or_epoch_is_missing_is_refused() {
        let whole = v1::RequestId { holder: "n1".to_owned(), epoch: 7, number: 1 };
        assert!(request_id(Some(whole.clone())).is_ok());
        for less in [
            None,
            Some(v1::RequestId { number: 0, ..whole.clone() }),
            Some(v1::RequestId { epoch: 0, ..whole.clone() }),
            Some(v1::RequestId { holder: String::new(), ..whole }),
        ] {
            assert!(request_id(less.clone()).is_err(), "{less:?}");
        }
    }

    /// A message in which everything is missing that may be.
    #[test]
    fn what_is_missing_grants_renews_and_promises_nothing() {
        let nothing = advice(&v1::NoticeReply::default());
        assert_eq!(nothing, Advice::Start);
        let bare = v1::IntentRequest { container: None, kind: v1::IntentKind::Remove.into(), ..Default::default() };
        assert!(intent(bare).is_err() && fence(None).is_err() && container(None).is_err() && action(None).is_err());
        assert!(attempt(&v1::Activation::default()).is_err());
    }

    #[test]
    fn every_reason_comes_out_as_it_went_in() {
        use Denial as D;
        use RunRefusal as R;
        let denials = [D::WrongEpoch, D::StaleRequest, D::StaleRevision, D::UnknownAction, D::NoCapacity, D::Busy];
        for reason in denials.into_iter().chain([D::Draining, D::Full, D::StillComing, D::NotTaken]) {
            assert_eq!(denial(denial_message(reason)), reason);
        }
        let refusals = [R::WrongEpoch, R::StaleRequest, R::StaleRevision, R::UnknownContainer, R::UnknownLease];
        for reason in refusals.into_iter().chain([R::NoSlot, R::Retiring, R::Full, R::NotStarted]) {
            let Some(v1::run_reply::End::Refusal(sent)) = refusal_message(reason).end else { panic!("{reason:?}") };
            assert_eq!(refusal(v1::RunRefusal::try_from(sent).unwrap_or_default()), RemoteEnd::Refused(reason));
        }
    }
}
