//! An auditor's key pair.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::ExitCode;

use aip_audit::seal;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::Globals;
use crate::bounded;
use crate::exit::{Exit, Failure};
use crate::output;

/// Largest key file that is read: 44 digits of base64 and a line end, generously.
const MAX_KEY_FILE: u64 = 256;

pub(super) fn perform(globals: &Globals, file: &Path) -> anyhow::Result<ExitCode> {
    let (private, public) = seal::generate();
    let text = zeroize::Zeroizing::new(format!("{}\n", STANDARD.encode(*private)));
    let failed = |e: std::io::Error| {
        Failure::new(Exit::Failed, format!("no key was written to {}", file.display()))
            .why(e.to_string())
            .next("name a file that does not exist yet, in a directory that you can write")
    };
    let mut options = std::fs::OpenOptions::new();
    let mut open = options
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(file)
        .map_err(failed)?;
    open.write_all(text.as_bytes())
        .and_then(|()| open.sync_all())
        .map_err(failed)?;
    let public_text = STANDARD.encode(public);
    if globals.json() {
        output::json(&json!({ "public_key": public_text, "key": seal::key_id(&public), "file": file }));
    } else {
        output::line(format!("private key  {} (keep it off the mesh)", file.display()));
        output::line(format!("public key   {public_text}"));
        output::line(format!("in records   {}", seal::key_id(&public)));
        output::line("put the public key into the mesh's settings: audit.auditor_key");
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads a private key.
pub(super) fn read(file: &Path) -> Result<zeroize::Zeroizing<[u8; seal::KEY_BYTES]>, Failure> {
    let failed = |why: String| Failure::new(Exit::Usage, format!("{} holds no auditor's key", file.display())).why(why);
    let text = zeroize::Zeroizing::new(bounded::text(file, MAX_KEY_FILE).map_err(|e| failed(e.to_string()))?);
    let bytes = STANDARD.decode(text.trim()).map(zeroize::Zeroizing::new);
    let key: Option<[u8; seal::KEY_BYTES]> = bytes.ok().and_then(|b| b.as_slice().try_into().ok());
    key.map(zeroize::Zeroizing::new)
        .ok_or_else(|| failed(seal::SealError::Key.to_string()))
}
