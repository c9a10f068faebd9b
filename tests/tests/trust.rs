//! Whose signatures `aip audit verify` believes, from files alone: only those that the roots it was given stand behind.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use aip_api::Digest;
use aip_api::resource::KeyPurpose;
use aip_audit::checkpoint::{CHECKPOINT_TYP, RETIRED_TYP, Retired, TREE_HEAD_TYP, TreeHead};
use aip_audit::log::{CheckpointLines, Options, RETIRED_FILE, Writer, fresh_name};
use aip_audit::record::{Event, Strangers};
use aip_audit::verify::{Kind, LEDGER_DIR, Report};
use aip_audit::{Checkpoint, Closing, merkle};
use aip_runtime::jws;
use aip_tests::clients::aip;
use aip_tests::pki::{Leaf, LeafSpec, Pki};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

const DOMAIN: &str = "aip.internal";

/// An export: one log, under one checkpoint, and the control plane's log of checkpoints.
struct Export {
    home: tempfile::TempDir,
    writer: Writer,
    statement: String,
    chain: Vec<Vec<u8>>,
}

fn now() -> u64 {
    aip_runtime::unix_now() * 1_000
}

fn checkpoint(leaf: &Leaf, claims: &Checkpoint) -> String {
    jws::sign_es256(&leaf.pkcs8, CHECKPOINT_TYP, claims).unwrap()
}

fn claims(writer: &Writer, agent: &str) -> Checkpoint {
    let agent = format!("spiffe://{DOMAIN}/agent/{agent}").parse().unwrap();
    writer.unsigned(&agent, Closing::Periodic, now())
}

impl Export {
    /// One whose checkpoint speaks of `agent` and is signed by `leaf`.
    fn signed(pki: &Pki, agent: &str, leaf: &Leaf) -> Self {
        Self::under(pki, leaf, |writer| checkpoint(leaf, &claims(writer, agent)))
    }

    fn under(pki: &Pki, leaf: &Leaf, sign: impl FnOnce(&Writer) -> String) -> Self {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("planner").join(fresh_name());
        let (mut writer, _) = Writer::open(&dir, Options::default()).unwrap();
        for n in 0..3 {
            let event = Event::Strangers(Strangers {
                reason: "no_certificate".into(),
                count: n,
                sample: String::new(),
            });
            writer.append(event, now()).unwrap();
        }
        let statement = sign(&writer);
        let lines = CheckpointLines::default().add(&statement, &leaf.chain);
        fs::write(dir.join("checkpoints.jsonl"), &lines).unwrap();
        let export = Self {
            home,
            writer,
            statement,
            chain: leaf.chain.clone(),
        };
        fs::write(export.path("trust.json"), document(pki).to_string()).unwrap();
        export
    }

    fn path(&self, file: &str) -> PathBuf {
        self.home.path().join(file)
    }

    /// Puts the control plane's log of that checkpoint beside it, under this head.
    fn ledger(&self, head: &str) {
        let ledger = self.path(LEDGER_DIR);
        fs::create_dir_all(&ledger).unwrap();
        let lines = CheckpointLines::default().add(&self.statement, &self.chain);
        fs::write(ledger.join("checkpoints.jsonl"), lines).unwrap();
        fs::write(ledger.join("heads.jsonl"), format!("{head}\n")).unwrap();
    }

    fn head(&self, domain: &str) -> TreeHead {
        TreeHead {
            v: 1,
            iss: domain.into(),
            size: 1,
            root: merkle::leaf(self.statement.as_bytes()),
            at: now(),
        }
    }

    fn kinds(&self, arguments: &[&str]) -> Vec<Kind> {
        let output = self.verify(arguments);
        let report: Report =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", said(&output)));
        let kinds: Vec<_> = report.faults.iter().map(|fault| fault.kind).collect();
        assert_eq!(
            output.status.code(),
            Some(i32::from(!kinds.is_empty())),
            "{:?}",
            report.faults
        );
        kinds
    }

    fn verify(&self, arguments: &[&str]) -> Output {
        let dir = self.home.path().to_str().unwrap();
        let mut command = aip(&["audit", "verify", "--output", "json", "--dir", dir]);
        command.args(arguments).env("AIP_HOME", self.path("nobody's"));
        command.env_remove("AIP_ADMIN").env_remove("AIP_TOKEN_FILE");
        command.output().unwrap()
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What `GET /v1/trust` answers.
fn document(pki: &Pki) -> Value {
    let pem = |der: &[u8]| {
        let body = STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
    };
    let keys: Vec<_> = pki
        .keys
        .iter()
        .map(|(.., certificate)| json!({"certificate": pem(certificate)}))
        .collect();
    json!({"trust_domain": DOMAIN, "roots": [pem(&pki.root)], "keys": keys})
}

fn audit_key(pki: &Pki, head: &TreeHead) -> String {
    jws::sign_eddsa(pki.signer(KeyPurpose::Audit), TREE_HEAD_TYP, head).unwrap()
}

#[test]
fn a_root_that_is_known_here_stands_behind_every_signature() {
    let pki = Pki::new(DOMAIN);
    let export = Export::signed(&pki, "planner", &pki.leaf(&LeafSpec::good("planner")));
    let root = pki.root_digest().to_string();
    assert_eq!(export.kinds(&["--mesh-root", &root]), []);
    let trust = export.path("trust.json");
    assert_eq!(export.kinds(&["--trust", trust.to_str().unwrap()]), []);
    // The keys that lie beside the records are not believed by themselves, and not by another root.
    let alone = export.verify(&[]);
    assert_eq!(alone.status.code(), Some(2), "{}", said(&alone));
    let other = Pki::new(DOMAIN);
    let wrong = export.verify(&["--mesh-root", &other.root_digest().to_string()]);
    assert_eq!(wrong.status.code(), Some(6), "{}", said(&wrong));
    assert!(said(&wrong).contains("none of its roots"), "{}", said(&wrong));
    // Another mesh of the same name, whose keys somebody put in the place of these.
    let theirs = export.path("theirs.json");
    fs::write(&theirs, document(&other).to_string()).unwrap();
    let found = export.kinds(&["--trust", theirs.to_str().unwrap()]);
    assert_eq!(found, [Kind::CheckpointInvalid, Kind::Unsigned]);
}

#[test]
fn a_checkpoint_is_its_own_agents_and_of_the_time_of_its_certificate() {
    let pki = Pki::new(DOMAIN);
    let root = pki.root_digest().to_string();
    let pinned = ["--mesh-root", root.as_str()];
    // Another agent's key, in this one's name and in its own.
    let writer = pki.leaf(&LeafSpec::good("writer"));
    let stolen = Export::signed(&pki, "planner", &writer);
    assert_eq!(stolen.kinds(&pinned), [Kind::CheckpointOfAnother, Kind::Unsigned]);
    // This one's claims under a signature of another key than the certificate's.
    let planner = pki.leaf(&LeafSpec::good("planner"));
    let forged = Export::under(&pki, &planner, |log| checkpoint(&writer, &claims(log, "planner")));
    assert_eq!(forged.kinds(&pinned), [Kind::CheckpointInvalid, Kind::Unsigned]);
    // A key whose certificate had ended, or had not begun.
    for (from, until) in [(-900, -600), (600, 900)] {
        let spec = LeafSpec {
            from,
            until,
            ..LeafSpec::good("planner")
        };
        let late = Export::signed(&pki, "planner", &pki.leaf(&spec));
        assert_eq!(
            late.kinds(&pinned),
            [Kind::CheckpointInvalid, Kind::Unsigned],
            "{from} to {until}"
        );
    }
    // A checkpoint of another log of the same agent.
    let elsewhere = Export::under(&pki, &planner, |log| {
        let other = Checkpoint {
            log: fresh_name(),
            ..claims(log, "planner")
        };
        checkpoint(&planner, &other)
    });
    assert_eq!(elsewhere.kinds(&pinned), [Kind::CheckpointOfAnother, Kind::Unsigned]);
}

#[test]
fn a_tree_head_is_the_audit_keys_of_this_mesh() {
    let pki = Pki::new(DOMAIN);
    let root = pki.root_digest().to_string();
    let pinned = ["--mesh-root", root.as_str()];
    let export = Export::signed(&pki, "planner", &pki.leaf(&LeafSpec::good("planner")));
    let head = export.head(DOMAIN);
    export.ledger(&audit_key(&pki, &head));
    assert_eq!(export.kinds(&pinned), []);
    // By a key of another purpose, of another mesh, and of this one about another.
    let config = jws::sign_eddsa(pki.signer(KeyPurpose::Config), TREE_HEAD_TYP, &head).unwrap();
    let (other, elsewhere) = (Pki::new(DOMAIN), export.head("other.internal"));
    for forged in [config, audit_key(&other, &head), audit_key(&pki, &elsewhere)] {
        export.ledger(&forged);
        assert_eq!(export.kinds(&pinned), [Kind::TreeHeadInvalid, Kind::TreeHeadDiffers]);
    }
    // A good head over something else, and a log of checkpoints that was swapped for an empty one.
    let lied = TreeHead {
        root: Digest::sha256(b"x"),
        ..head.clone()
    };
    export.ledger(&audit_key(&pki, &lied));
    assert!(export.kinds(&pinned).contains(&Kind::TreeHeadDiffers));
    export.ledger(&audit_key(&pki, &head));
    let ledger = export.path(LEDGER_DIR);
    fs::write(ledger.join("checkpoints.jsonl"), "").unwrap();
    assert_eq!(export.kinds(&pinned), [Kind::TreeHeadDiffers]);
    fs::write(ledger.join("heads.jsonl"), "").unwrap();
    assert_eq!(
        export.kinds(&pinned),
        [Kind::TreeHeadDiffers],
        "nobody signed an empty one"
    );
}

#[test]
fn what_retention_took_is_said_by_the_audit_key_alone() {
    let pki = Pki::new(DOMAIN);
    let root = pki.root_digest().to_string();
    let pinned = ["--mesh-root", root.as_str()];
    let export = Export::signed(&pki, "planner", &pki.leaf(&LeafSpec::good("planner")));
    let retired = Retired {
        v: 1,
        iss: DOMAIN.into(),
        log: export.writer.log().into(),
        agent: claims(&export.writer, "planner").agent,
        records: 0,
        until: 1,
        at: 2,
    };
    let file = export.writer.dir().join(RETIRED_FILE);
    let put = |file: &Path, purpose| {
        fs::write(
            file,
            jws::sign_eddsa(pki.signer(purpose), RETIRED_TYP, &retired).unwrap(),
        )
    };
    put(&file, KeyPurpose::Audit).unwrap();
    assert_eq!(export.kinds(&pinned), []);
    put(&file, KeyPurpose::Config).unwrap();
    assert_eq!(export.kinds(&pinned), [Kind::CheckpointInvalid]);
}
