//! Compiles proto/ without `protoc`.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from("../../proto");
    let files = ["embermesh/v1/mesh.proto", "embermesh/v1/bench.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={}", root.join(file).display());
    }
    let descriptors = protox::compile(files, [&root])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure()
        .bytes(".embermesh.v1.Activation.body")
        .bytes(".embermesh.v1.RunResult.body")
        .bytes(".embermesh.v1.CodeChunk.data")
        .bytes(".embermesh.v1.EchoMessage.body")
        .compile_fds(descriptors)?;
    Ok(())
}
