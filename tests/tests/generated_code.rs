//! The protobuf code that is checked in is what the `.proto` files say. `AIP_REGENERATE=1` rewrites it.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Generates into `out`: messages for `aip-api`, and stubs that use them for `aip-runtime`.
fn generate(out: &Path) {
    let proto = root().join("crates/api/proto");
    let files = ["identity", "config", "kill", "audit"].map(|name| format!("aip/mesh/v1/{name}.proto"));
    let descriptors = protox::compile(files, [&proto]).unwrap();
    for dir in ["api", "runtime"] {
        std::fs::create_dir_all(out.join(dir)).unwrap();
    }
    tonic_prost_build::configure()
        .build_client(false)
        .build_server(false)
        .bytes(".aip.mesh.v1.Resource.payload")
        .out_dir(out.join("api"))
        .compile_fds(descriptors.clone())
        .unwrap();
    tonic_prost_build::configure()
        .extern_path(".aip.mesh.v1", "::aip_api::wire")
        .out_dir(out.join("runtime"))
        .compile_fds(descriptors)
        .unwrap();
}

#[test]
fn checked_in_protobuf_code_is_fresh() {
    let fresh = tempfile::tempdir().unwrap();
    generate(fresh.path());
    for (made, kept) in [
        ("api/aip.mesh.v1.rs", "crates/api/src/gen/aip.mesh.v1.rs"),
        ("runtime/aip.mesh.v1.rs", "crates/runtime/src/gen/aip.mesh.v1.rs"),
    ] {
        let made = std::fs::read_to_string(fresh.path().join(made)).unwrap();
        let kept = root().join(kept);
        if std::env::var_os("AIP_REGENERATE").is_some() {
            std::fs::create_dir_all(kept.parent().unwrap()).unwrap();
            std::fs::write(&kept, &made).unwrap();
        }
        let found = std::fs::read_to_string(&kept).unwrap_or_default();
        assert!(made == found, "{} is stale: run `make proto`", kept.display());
    }
}
