//! Process plumbing that all of AIP's binaries share. It knows how to be a process of the mesh, and nothing about
//! what the mesh decides.
//!
//! | for | modules |
//! |---|---|
//! | being a process | [`settings`], [`telemetry`], [`spans`], [`shutdown`], [`drain`], [`ready`], [`admin`], [`backoff`], [`files`], [`limits`], [`fault`] |
//! | keys and statements | [`signing`], [`jws`], [`signed`], [`kill`], [`sealing`] |
//! | identity | [`x509`], [`trust`], [`svid`] |
//! | the wire | [`sockets`], [`door`], [`tls`], [`preface`], [`grpc`] |
//! | policy admission in a child that may die | [`admission`] |
//!
//! This is the only crate that names rustls: everything else sees TLS as streams with a verified peer.
//!
//! Not here: the request pipeline (`aip-sidecar`), the CA and the store (`aip-control-plane`), Rego (`aip-policy`).

pub mod admin;
pub mod admission;
pub mod backoff;
pub mod door;
pub mod drain;
pub mod fault;
pub mod files;
pub mod grpc;
pub mod jws;
pub mod kill;
pub mod limits;
pub mod preface;
pub mod ready;
pub mod sealing;
pub mod settings;
pub mod shutdown;
pub mod signed;
pub mod signing;
pub mod sockets;
pub mod spans;
pub mod svid;
pub mod telemetry;
pub mod tls;
pub mod trust;
pub mod x509;

/// An error with its sources, innermost last, and nothing twice: some layers repeat what they wrap.
pub fn why(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let text = inner.to_string();
        if !out.contains(&text) {
            out.push_str(": ");
            out.push_str(&text);
        }
        source = inner.source();
    }
    out
}

/// Seconds since the Unix epoch; 0 on a clock set before it.
pub fn unix_now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

/// Time since this machine began to run, counting while it sleeps: nobody sets this clock, and a machine that was
/// suspended does not wake up with a lease that ended meanwhile.
pub fn boottime() -> std::time::Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    std::time::Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::io;

    #[derive(Debug, thiserror::Error)]
    enum Failure {
        #[error("the file f: {source}")]
        Says { source: io::Error },
        #[error("the start failed")]
        Wraps(#[source] Box<Failure>),
    }

    #[test]
    fn a_cause_is_said_once_whether_or_not_its_effect_says_it_too() {
        let source = io::Error::other("no such thing");
        let failure = Failure::Wraps(Box::new(Failure::Says { source }));
        assert_eq!(super::why(&failure), "the start failed: the file f: no such thing");
    }
}
