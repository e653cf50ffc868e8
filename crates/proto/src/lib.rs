//! Code made from `proto/embermesh/v1/mesh.proto`, the contract between peers. Meanings and units stand there;
//! turning messages into the core's inputs is the node's business.

/// Version 1 of the contract.
pub mod v1 {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("embermesh.v1");
}

/// The contract's descriptors, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message;
    use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};

    use super::DESCRIPTORS;

    /// Numbers of descriptor.proto, of which paths in a file are made.
    const MESSAGES: i32 = 4;
    const ENUMS: i32 = 5;
    const MEMBERS: i32 = 2;

    #[test]
    fn every_field_and_every_value_of_the_contract_says_what_it_means() {
        let files = FileDescriptorSet::decode(DESCRIPTORS).expect("what the build has made").file;
        let silent: Vec<String> = files.iter().flat_map(silent_members).collect();
        assert!(files.iter().any(|file| file.name().ends_with("mesh.proto")));
        assert!(silent.is_empty(), "no comment in the .proto file: {silent:#?}");
    }

    fn silent_members(file: &FileDescriptorProto) -> Vec<String> {
        let info = file.source_code_info.as_ref().expect("comments are kept");
        let told = |l: &&prost_types::source_code_info::Location| {
            !l.leading_comments().trim().is_empty() || !l.trailing_comments().trim().is_empty()
        };
        let told: BTreeSet<&[i32]> = info.location.iter().filter(told).map(|l| l.path.as_slice()).collect();
        let of_message = |(at, message): (i32, &DescriptorProto)| {
            let name = message.name().to_owned();
            let fields = message.field.iter().map(|field| field.name().to_owned());
            (MESSAGES, at, name, fields.collect::<Vec<_>>())
        };
        let of_enum = |(at, values): (i32, &EnumDescriptorProto)| {
            let name = values.name().to_owned();
            (ENUMS, at, name, values.value.iter().map(|value| value.name().to_owned()).collect())
        };
        let messages = (0..).zip(&file.message_type).map(of_message);
        let all = messages.chain((0..).zip(&file.enum_type).map(of_enum));
        let members = all.flat_map(|(sort, at, of, members)| {
            (0..).zip(members).map(move |(n, member)| ([sort, at, MEMBERS, n], format!("{of}.{member}")))
        });
        members.filter(|(path, _)| !told.contains(path.as_slice())).map(|(_, name)| name).collect()
    }
}
