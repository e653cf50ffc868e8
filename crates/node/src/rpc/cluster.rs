//! Which mesh a call belongs to: a peer names its cluster with each one, and those of another cluster are refused.
//! Addresses change hands faster than gossip hears of it.
//!
//! A call that names no cluster is taken: tools and older nodes do not.

use tonic::codegen::http::{HeaderName, HeaderValue};
use tonic::metadata::{AsciiMetadataValue, MetadataValue};
use tonic::{Request, Status};

const CLUSTER: &str = "embermesh-cluster";
pub(crate) const HEADER: HeaderName = HeaderName::from_static(CLUSTER);

/// What a caller says, made once for all of its calls.
pub(crate) fn header_value(cluster: &str) -> HeaderValue {
    // The configuration takes no other names.
    HeaderValue::from_str(cluster).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Refuses calls of another cluster before they are read.
pub(super) fn refuse_others(own: &str) -> impl FnMut(Request<()>) -> Result<Request<()>, Status> + Clone + use<> {
    let own = AsciiMetadataValue::try_from(header_value(own).as_bytes());
    let own = own.unwrap_or_else(|_| MetadataValue::from_static(""));
    move |request| match request.metadata().get(CLUSTER) {
        Some(theirs) if *theirs != own => {
            let mut refusal = Status::invalid_argument(format!(
                "`{CLUSTER}` is {theirs:?}, and this is a node of cluster {own:?}: ask one of your own"
            ));
            refusal.metadata_mut().insert(CLUSTER, own.clone());
            Err(refusal)
        }
        _ => Ok(request),
    }
}

/// Whether a call was refused by a node of another cluster.
pub(crate) fn was_foreign(status: &Status) -> bool {
    status.metadata().contains_key(CLUSTER)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn calls_of_another_cluster_are_refused_and_say_so() {
        let mut check = refuse_others("ours");
        let mut call = |cluster: Option<&'static str>| {
            let mut request = Request::new(());
            if let Some(cluster) = cluster {
                request.metadata_mut().insert(CLUSTER, MetadataValue::from_static(cluster));
            }
            check(request)
        };
        assert!(call(Some("ours")).is_ok() && call(None).is_ok());
        for foreign in ["theirs", "our", ""] {
            let refusal = call(Some(foreign)).unwrap_err();
            assert!(was_foreign(&refusal) && refusal.code() == tonic::Code::InvalidArgument, "{refusal}");
            assert!(refusal.message().contains("ours"), "{refusal}");
        }
        assert!(!was_foreign(&Status::invalid_argument("`run` is missing")));
    }
}
