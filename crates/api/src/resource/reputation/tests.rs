use super::*;
use crate::TrustDomain;
use crate::resource::{MeshConfig, MeshMode, read};

#[test]
fn levels_begin_at_eight_six_four_and_two() {
    let words = [
        (10.0, "exemplary"),
        (8.0, "exemplary"),
        (7.99, "trusted"),
        (6.0, "trusted"),
        (5.99, "standard"),
        (4.0, "standard"),
        (3.99, "doubtful"),
        (2.0, "doubtful"),
        (1.99, "untrusted"),
        (0.0, "untrusted"),
    ];
    for (score, word) in words {
        assert_eq!(Score::clamped(score).level().as_str(), word, "{score}");
    }
}

#[test]
fn a_score_is_never_out_of_its_bounds() {
    for (value, score) in [
        (-1.0, 0),
        (f64::NAN, 0),
        (11.0, 1_000),
        (f64::INFINITY, 1_000),
        (3.333, 333),
    ] {
        assert_eq!(Score::clamped(value).hundredths(), score);
    }
    assert!(serde_json::from_str::<Score>("10.5").is_err());
    assert!(serde_json::from_str::<Score>("-0.5").is_err());
    for hundredths in 0..=1_000 {
        let score = Score::of_hundredths(hundredths);
        let text = serde_json::to_string(&score).unwrap();
        assert_eq!(serde_json::from_str::<Score>(&text).unwrap(), score);
    }
}

#[test]
fn evidence_has_one_spelling() {
    let id = "0198f2f0-7d2b-7c3e-8a11-3b7d5b1f0a42";
    let read = |text: &str| Evidence::try_from(text.to_owned());
    assert!(read(&format!("hop:{id}")).is_ok());
    assert!(read(&format!("decision:{id}")).is_ok());
    let upper = format!("hop:{}", id.to_uppercase());
    let plain = format!("hop:{}", id.replace('-', ""));
    let braces = format!("hop:{{{id}}}");
    let urn = format!("hop:urn:uuid:{id}");
    for bad in [
        upper.as_str(),
        &plain,
        &braces,
        &urn,
        id,
        "hop:",
        "hop:x",
        "url:http://x",
        "",
    ] {
        assert!(read(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_document_that_contradicts_itself_is_refused() {
    let name: AgentName = "planner".parse().unwrap();
    let good = Reputation::new(name, Score::clamped(5.0), 1);
    let bytes = |reputation: &Reputation| serde_json::to_vec(reputation).unwrap();
    assert!(read::<Reputation>("planner", 1, &bytes(&good)).is_ok());
    let mut bad = good.clone();
    bad.level = Level::Exemplary;
    assert_eq!(
        read::<Reputation>("planner", 1, &bytes(&bad)).unwrap_err().reason,
        "invalid"
    );
    let mut bad = good.clone();
    bad.factors.clear();
    assert_eq!(
        read::<Reputation>("planner", 1, &bytes(&bad)).unwrap_err().reason,
        "invalid"
    );
    assert_eq!(
        read::<Reputation>("ledger", 1, &bytes(&good)).unwrap_err().reason,
        "name_mismatch"
    );
}

#[test]
fn settings_that_would_let_one_reporter_or_hour_ban_an_agent_are_refused() {
    let mesh = |settings| MeshConfig {
        reputation: settings,
        ..MeshConfig::new("aip.internal".parse::<TrustDomain>().unwrap(), MeshMode::Dev)
    };
    let fields = |settings| -> Vec<String> { mesh(settings).validate().into_iter().map(|e| e.field).collect() };
    let defaults = ReputationSettings::default();
    assert_eq!(fields(defaults.clone()), Vec::<String>::new());
    let wide = ReputationSettings {
        hour_cap: 6,
        ..defaults.clone()
    };
    assert_eq!(fields(wide), ["reputation.hour_cap"]);
    let wide = ReputationSettings {
        reporter_cap: 6,
        ..defaults.clone()
    };
    assert_eq!(fields(wide), ["reputation.reporter_cap"]);
    let high = ReputationSettings {
        floor: Score::clamped(4.5),
        ..defaults
    };
    assert_eq!(fields(high), ["reputation.hour_cap", "reputation.reporter_cap"]);
}
