//! Secrets: made from the system's randomness, kept in files that only their owner reads.

use std::io::Read as _;
use std::path::Path;

use crate::exit::{Exit, Failure};

/// A fresh secret of `N` random bytes, as hex digits.
pub(crate) fn fresh<const N: usize>() -> Result<String, Failure> {
    let mut bytes = [0; N];
    let failed = |e: std::io::Error| Failure::new(Exit::Failed, "the system gives no randomness").why(e.to_string());
    std::fs::File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut bytes))
        .map_err(failed)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// Writes a secret to a file of mode 0600.
pub(crate) fn write(path: &Path, secret: &[u8]) -> Result<(), Failure> {
    aip_runtime::files::write_private(path, secret)
        .map_err(|e| Failure::new(Exit::Failed, format!("{} can't be written", path.display())).why(e.to_string()))
}
