//! The inside of a container by itself, as `embermesh __container` runs it: for trying a runtime by hand.
//!
//! `cargo run -p embermesh-action --example container -- --socket /tmp/c.sock --runtime builtin --workdir /tmp`,
//! then `curl --unix-socket /tmp/c.sock -d '{}' http://c/init`. It ends when its stdin does.

use std::process::ExitCode;

use embermesh_action::proxy::{self, ContainerOptions};

fn main() -> ExitCode {
    match ContainerOptions::from_args(std::env::args().skip(1)) {
        Ok(options) => proxy::run(options),
        Err(e) => {
            eprintln!("{e}");
            ExitCode::from(2)
        }
    }
}
