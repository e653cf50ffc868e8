//! Code made from `proto/embermesh/v1/mesh.proto`, the contract between peers. Meanings and units stand there;
//! turning messages into the core's inputs is the node's business.

/// Version 1 of the contract.
pub mod v1 {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("embermesh.v1");
}

/// The contract's descriptors, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
