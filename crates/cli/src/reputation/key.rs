//! A verifier's key: by it the reports of one token are signed, which is then worth nothing to whoever steals it alone.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use aip_runtime::svid::PendingKey;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::json;
use zeroize::Zeroizing;

use crate::exit::{Exit, Failure};
use crate::{Globals, bounded, output, secret};

/// Largest key file that is read: a P-256 key in PKCS#8 has 138 bytes, in base64.
const MAX_KEY_FILE: u64 = 1_024;

#[derive(Debug, Args)]
pub(crate) struct Keygen {
    /// Write the private key to this file (0600); it must not exist
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl Keygen {
    pub(super) fn perform(&self, globals: &Globals) -> anyhow::Result<ExitCode> {
        if self.out.exists() {
            let what = format!("{} exists", self.out.display());
            return Err(Failure::new(Exit::Usage, what)
                .next("choose another file: a token may be bound to that key")
                .into());
        }
        let made = PendingKey::generate();
        let made = made.map_err(|e| Failure::new(Exit::Failed, "no key was made").why(e.to_string()))?;
        let text = Zeroizing::new(format!("{}\n", STANDARD.encode(&*made.pkcs8)));
        secret::write(&self.out, text.as_bytes())?;
        let public = STANDARD.encode(&made.key.point);
        if globals.json() {
            output::json(&json!({ "key": public, "file": self.out }));
        } else {
            output::line(&public);
            output::note(format!(
                "an admin enrolls it: aip admin issue PERSON --role verifier --key {public}\n\
                 then sign: aip reputation report … --key-file {}",
                self.out.display()
            ));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Reads a private key.
pub(super) fn read(file: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let failed =
        |why: String| Failure::new(Exit::Usage, format!("{} holds no verifier's key", file.display())).why(why);
    let text = Zeroizing::new(bounded::text(file, MAX_KEY_FILE).map_err(|e| failed(e.to_string()))?);
    let bytes = STANDARD.decode(text.trim()).map_err(|e| failed(e.to_string()))?;
    Ok(Zeroizing::new(bytes))
}
