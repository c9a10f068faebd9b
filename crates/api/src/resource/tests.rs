use super::*;

fn agent_json(extra: &str) -> Vec<u8> {
    format!(r#"{{"name":"planner"{extra}}}"#).into_bytes()
}

#[test]
fn every_kind_has_its_own_wire_value_and_unknown_ones_are_none() {
    for kind in Kind::ALL {
        assert_eq!(Kind::from_wire(kind.to_wire() as i32), Some(kind));
        assert_eq!(kind.as_str().parse::<Kind>().unwrap(), kind);
    }
    assert_eq!(Kind::from_wire(0), None, "unspecified is no kind");
    assert_eq!(Kind::from_wire(999), None);
}

#[test]
fn a_document_is_held_against_its_envelope() {
    assert!(read::<Agent>("planner", 1, &agent_json("")).is_ok());
    assert_eq!(
        read::<Agent>("ledger", 1, &agent_json("")).unwrap_err().reason,
        "name_mismatch"
    );
    assert_eq!(read::<Agent>("planner", 1, b"{").unwrap_err().reason, "malformed");
    assert_eq!(
        read::<Agent>("planner", 1, &agent_json(r#","nmae":1"#))
            .unwrap_err()
            .reason,
        "malformed"
    );
    let large = agent_json(&format!(r#","owner":"{}""#, "x".repeat(MAX_PAYLOAD_BYTES)));
    assert_eq!(read::<Agent>("planner", 1, &large).unwrap_err().reason, "oversized");
}

#[test]
fn all_mistakes_come_at_once_by_field_path() {
    let bad =
        agent_json(r#","generation":0,"manifest":{"trust_level":"best","capabilities":{"reversibility":"some"}}"#);
    let refused = read::<Agent>("planner", 7, &bad).unwrap_err();
    assert_eq!(refused.reason, "invalid");
    for field in [
        "generation",
        "manifest.trust_level",
        "manifest.capabilities.reversibility",
    ] {
        assert!(
            refused.detail.contains(field),
            "{field} is missing from: {}",
            refused.detail
        );
    }
}

#[test]
fn an_alias_is_a_name_in_dns_and_nothing_else() {
    let read = |aliases: &str| read::<Agent>("planner", 1, &agent_json(&format!(r#","aliases":[{aliases}]"#)));
    let good = read(r#""planner.corp","planner.corp:9000","a-b.c.example""#).unwrap();
    assert_eq!(good.aliases.len(), 3);
    for bad in [
        "10.0.0.7",
        "10.0.0.7:9000",
        "[::1]:80",
        "::1",
        "127.1",
        "0x7f.1",
        "a.0x7f",
        "localhost",
        "localhost:80",
        "x.localhost",
        "printer.local",
        "metadata",
        "Planner.corp",
        "planner.corp:0",
        "planner.corp:",
        "planner.corp:80:80",
        "planner.corp:99999",
        "planner.corp/x",
        "u@planner.corp",
        "*.corp",
        "planner.corp.",
        "",
    ] {
        let refused = read(&format!("{bad:?}")).unwrap_err();
        assert!(refused.detail.contains("aliases[0]"), "{bad}: {refused:?}");
    }
    let many: Vec<_> = (0..9).map(|n| format!("\"a{n}.corp\"")).collect();
    assert!(read(&many.join(",")).is_err());
}

#[test]
fn a_peer_has_half_unless_told_otherwise() {
    let share = |max, peer| {
        Traffic {
            max_concurrency: max,
            peer_max_concurrency: peer,
            ..Traffic::defaults()
        }
        .peer_concurrency()
    };
    assert_eq!((share(1, None), share(2, None), share(5, None)), (1, 1, 3));
    assert_eq!(share(5, Some(5)), 5);
    let nobody = Traffic {
        peer_max_concurrency: Some(0),
        ..Traffic::defaults()
    };
    assert_eq!(nobody.validate()[0].field, "peer_max_concurrency");
}

#[test]
fn no_two_resources_share_signed_bytes() {
    let base = signing_bytes(Kind::Agent, "a", 1, false, b"{}");
    for other in [
        signing_bytes(Kind::Policy, "a", 1, false, b"{}"),
        signing_bytes(Kind::Agent, "a{", 1, false, b"}"),
        signing_bytes(Kind::Agent, "a", 2, false, b"{}"),
        signing_bytes(Kind::Agent, "a", 1, true, b"{}"),
        signing_bytes(Kind::Agent, "a", 1, false, b"{} "),
    ] {
        assert_ne!(base, other);
    }
}

#[test]
fn measurements_match_field_by_field() {
    let d = |s: &str| crate::Digest::sha256(s.as_bytes());
    let evidence = crate::evidence::Evidence {
        v: 1,
        agent: "planner".parse().unwrap(),
        nonce: String::new(),
        jkt: d("key"),
        attestor: "files".into(),
        assurance: crate::evidence::Assurance::Declared,
        code: d("code"),
        files: vec![],
        config: None,
        executable: Some(d("exe")),
        argv: None,
        sidecar: d("sidecar"),
        enforcement: crate::evidence::Enforcement::Cooperative,
        run: None,
        drifted: None,
        drifted_generation: None,
        iat: 0,
    };
    let approved = Measurement::of(&evidence);
    assert!(approved.matches(&evidence));
    let any_executable = Measurement {
        executable: None,
        ..approved.clone()
    };
    assert!(any_executable.matches(&evidence));
    assert_ne!(any_executable.name(), approved.name());
    for other in [
        Measurement {
            code: d("x"),
            ..approved.clone()
        },
        Measurement {
            config: Some(d("x")),
            ..approved.clone()
        },
        Measurement {
            executable: Some(d("x")),
            ..approved.clone()
        },
        Measurement {
            sidecar: Some(d("x")),
            ..approved.clone()
        },
        Measurement {
            agent: "ledger".parse().unwrap(),
            ..approved.clone()
        },
        Measurement {
            attestor: "process".into(),
            ..approved.clone()
        },
    ] {
        assert!(!other.matches(&evidence), "{other:?}");
    }
}

#[test]
fn a_trust_domain_host_is_never_egress() {
    let mut config = MeshConfig::new("aip.internal".parse().unwrap(), MeshMode::Dev);
    for (host, good) in [
        ("api.example.com", true),
        ("*.example.com", true),
        ("10.0.0.1", true),
        ("x.aip.internal", false),
        ("*", false),
    ] {
        config.egress = vec![EgressRule {
            host: host.into(),
            port: 443,
            allow_private: false,
        }];
        assert_eq!(config.validate().is_empty(), good, "{host}");
    }
}
