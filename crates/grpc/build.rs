//! Generates the greeter from its `.proto`; without `protoc`.

use std::path::PathBuf;
use std::{env, error, fs};

fn main() -> Result<(), Box<dyn error::Error>> {
    println!("cargo:rerun-if-changed=proto/greet.proto");
    let found = protox::compile(["greet.proto"], ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // For reflection.
    fs::write(out.join("greet.bin"), prost_bytes(&found))?;
    tonic_prost_build::configure().build_transport(false).compile_fds(found)?;
    Ok(())
}

fn prost_bytes(found: &impl prost::Message) -> Vec<u8> {
    found.encode_to_vec()
}
