//! The inbound port to a stranger: each fault of TLS or identity is refused, counted by its reason, and the process
//! goes on serving. The mesh's keys are the test's own, so that every fault can be forged.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use aip_api::resource::Revocation;
use aip_tests::agent::Agent;
use aip_tests::pki::{Leaf, LeafSpec, Pki, Statement};
use aip_tests::process::Sidecar;
use aip_tests::scripted::Scripted;
use aip_tests::wait;
use aip_tests::wire::{self, Outcome};

const FAILURES: &str = "aip_tls_handshake_failures_total";

struct Fixture {
    scripted: Scripted,
    sidecar: Sidecar,
    agent: Agent,
    _dir: tempfile::TempDir,
}

async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let scripted = Scripted::start();
    let agent = Agent::start();
    let sidecar = scripted.sidecar("callee", agent.address, dir.path()).await;
    Fixture {
        scripted,
        sidecar,
        agent,
        _dir: dir,
    }
}

impl Fixture {
    fn leaf(&self, spec: &LeafSpec) -> Leaf {
        self.scripted.with_pki(|pki| pki.leaf(spec))
    }

    async fn count(&self, reason: &str) -> f64 {
        self.sidecar.metric(FAILURES, &[&format!("reason=\"{reason}\"")]).await
    }

    /// Does `attack`, which must be refused; then `reason` was counted once more, and a good peer is served.
    async fn refuses(&self, what: &str, reason: &str, attack: impl Future<Output = Outcome>) {
        let before = self.count(reason).await;
        let outcome = attack.await;
        assert!(outcome.is_refused(), "{what} was served");
        wait::until_ok(&format!("{what} is counted as {reason}"), async || {
            let now = self.count(reason).await;
            let page = self.sidecar.look("/metrics").await.text();
            let counted: Vec<_> = page
                .lines()
                .filter(|l| l.starts_with(FAILURES))
                .map(str::to_owned)
                .collect();
            if now == before + 1.0 {
                Ok(())
            } else {
                Err(format!("counted: {counted:?}"))
            }
        })
        .await;
        self.serves(what).await;
    }

    async fn serves(&self, after: &str) {
        let good = self.leaf(&LeafSpec::good("caller"));
        assert_eq!(
            wire::attempt(self.sidecar.inbound, Some(&good)).await,
            Outcome::Served,
            "after {after}"
        );
    }

    /// Nothing that was refused reached the agent.
    fn untouched(&self) {
        assert!(self.agent.seen("").is_empty(), "the agent heard of a refused peer");
    }
}

/// What is wrong, the reason that is counted, and the certificate.
fn faults() -> Vec<(&'static str, &'static str, LeafSpec)> {
    let good = LeafSpec::good("caller");
    let with = |statement| LeafSpec {
        statement,
        ..good.clone()
    };
    vec![
        (
            "a name of another trust domain",
            "wrong_trust_domain",
            LeafSpec {
                trust_domain: "other.internal".into(),
                ..good.clone()
            },
        ),
        (
            "an expired certificate",
            "certificate_expired",
            LeafSpec {
                until: -1,
                ..good.clone()
            },
        ),
        (
            "a certificate of the future",
            "certificate_not_yet_valid",
            LeafSpec {
                from: 3600,
                until: 7200,
                ..good.clone()
            },
        ),
        (
            "no attestation extension",
            "attestation_missing",
            with(Statement::Missing),
        ),
        (
            "an altered attestation",
            "attestation_invalid",
            with(Statement::Altered),
        ),
        (
            "an attestation of another agent",
            "attestation_invalid",
            with(Statement::OtherAgent),
        ),
        (
            "an attestation by a key for another purpose",
            "attestation_invalid",
            with(Statement::WrongPurpose),
        ),
        (
            "an attestation for another key",
            "attestation_key_mismatch",
            with(Statement::OtherKey),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_with_a_fault_are_refused_and_counted() {
    let f = fixture().await;
    f.serves("its start").await;
    for (what, reason, spec) in faults() {
        let leaf = f.leaf(&spec);
        f.refuses(what, reason, wire::attempt(f.sidecar.inbound, Some(&leaf)))
            .await;
    }
    let stranger = Pki::new("aip.internal").leaf(&LeafSpec::good("caller"));
    f.refuses(
        "another mesh's certificate",
        "unknown_issuer",
        wire::attempt(f.sidecar.inbound, Some(&stranger)),
    )
    .await;
    f.refuses(
        "no certificate",
        "no_certificate",
        wire::attempt(f.sidecar.inbound, None),
    )
    .await;
    f.untouched();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_tls_1_3_is_refused_and_counted() {
    let f = fixture().await;
    let plain = async {
        let answer = wire::say(
            f.sidecar.inbound,
            b"GET / HTTP/1.1\r\nHost: callee.aip.internal\r\n\r\n",
        )
        .await;
        assert!(
            !answer.starts_with(b"HTTP/"),
            "plain HTTP was answered: {:?}",
            String::from_utf8_lossy(&answer)
        );
        Outcome::Refused(String::new())
    };
    f.refuses("plain HTTP", "not_tls", plain).await;
    let old = async {
        let answer = wire::say(f.sidecar.inbound, &wire::tls12_hello()).await;
        // A fatal alert, protocol_version (RFC 8446 section 6).
        assert_eq!(answer.first(), Some(&21), "an alert: {answer:?}");
        assert_eq!(answer[5..7], [2, 70], "fatal, protocol_version: {answer:?}");
        Outcome::Refused(String::new())
    };
    f.refuses("TLS 1.2", "tls_version", old).await;
    f.untouched();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoked_certificates_are_refused_from_the_push_on() {
    let f = fixture().await;
    let spec = LeafSpec::good("caller");
    let leaf = f.leaf(&spec);
    assert_eq!(wire::attempt(f.sidecar.inbound, Some(&leaf)).await, Outcome::Served);
    let issuer = f
        .scripted
        .with_pki(|pki| aip_runtime::x509::spki_digest(&pki.intermediate).unwrap());
    let expires = aip_runtime::unix_now() + 3600;
    let revision = f.scripted.put(&Revocation::Serial {
        issuer,
        serial: leaf.serial.clone(),
        expires,
    });
    acknowledged(&f, revision).await;
    f.refuses(
        "a revoked serial",
        "revoked_serial",
        wire::attempt(f.sidecar.inbound, Some(&leaf)),
    )
    .await;

    let revoked = f.leaf(&LeafSpec {
        agent: "other".into(),
        ..spec.clone()
    });
    assert_eq!(wire::attempt(f.sidecar.inbound, Some(&revoked)).await, Outcome::Served);
    let agent = "other".parse().unwrap();
    let revision = f.scripted.put(&Revocation::Generation {
        agent,
        below: 2,
        expires,
    });
    acknowledged(&f, revision).await;
    let attack = wire::attempt(f.sidecar.inbound, Some(&revoked));
    f.refuses("a revoked generation", "revoked_generation", attack).await;
    let next = f.leaf(&LeafSpec {
        agent: "other".into(),
        generation: 2,
        ..spec
    });
    assert_eq!(
        wire::attempt(f.sidecar.inbound, Some(&next)).await,
        Outcome::Served,
        "the next generation is good"
    );
    f.untouched();
}

/// Waits until the sidecar runs `revision`.
async fn acknowledged(f: &Fixture, revision: u64) {
    wait::until_ok(&format!("the sidecar runs revision {revision}"), async || {
        let snapshot = f.sidecar.snapshot().await;
        if snapshot["revision"].as_u64() >= Some(revision) {
            Ok(())
        } else {
            Err(snapshot["revision"].to_string())
        }
    })
    .await;
}

/// An endpoint answers with a good certificate of this mesh, but of another agent: the caller's sidecar says nothing
/// to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_speaks_to_no_other_agent_than_the_one_it_called() {
    let f = fixture().await;
    for (name, spec, reason) in [
        ("wrong", LeafSpec::good("somebody-else"), "wrong_agent"),
        (
            "late",
            LeafSpec {
                until: -1,
                ..LeafSpec::good("late")
            },
            "certificate_expired",
        ),
        (
            "bare",
            LeafSpec {
                statement: Statement::Missing,
                ..LeafSpec::good("bare")
            },
            "attestation_missing",
        ),
    ] {
        f.scripted.agent(name);
        f.scripted.endpoint(name, wire::impostor(&f.leaf(&spec)).await);
        let refused = async || {
            f.sidecar
                .metric("aip_refusals_total", &["reason=\"peer_not_verified\""])
                .await
        };
        let dials = async || {
            let label = format!("reason=\"{reason}\"");
            f.sidecar.metric("aip_dial_failures_total", &[&label]).await
        };
        let (before, dialled) = (refused().await, dials().await);
        let answer = f.sidecar.get(&format!("http://{name}.aip.internal/hello")).await;
        assert_eq!(
            (answer.status.as_u16(), answer.reason().as_str()),
            (502, "peer_not_verified"),
            "{answer:?}"
        );
        assert!(answer.text().contains(reason), "{name}: {}", answer.text());
        wait::until("it is counted", async || {
            (refused().await == before + 1.0 && dials().await == dialled + 1.0).then_some(())
        })
        .await;
        wait::until_ok("the access log says what is wrong, too", async || {
            let records = f.sidecar.records().of("outbound").0;
            let last = records.last().ok_or("nothing yet")?;
            let right = last.reason() == "peer_not_verified" && last.text("detail").contains(reason);
            if right { Ok(()) } else { Err(last.0.to_string()) }
        })
        .await;
    }
    f.untouched();
}
