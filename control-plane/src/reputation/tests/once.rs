//! A hop counts once, by the worst that anybody says of it.

use std::collections::BTreeSet;

use super::*;
use crate::reputation::evidence::Seen;
use crate::reputation::reports::{NewReport, OfHop, worth};

/// Reporters with their weights.
const REPORTERS: [(&str, u8); 4] = [("whole", 100), ("half", 50), ("some", 7), ("none", 0)];

fn new_report(finding: Finding, severity: Severity) -> NewReport {
    NewReport {
        agent: planner(),
        finding,
        severity,
        evidence: "hop:0198f2f0-7d2b-7c3e-8a11-3b7d5b1f0a42"
            .to_owned()
            .try_into()
            .unwrap(),
        claim: String::new(),
        seen: Seen {
            hop: "0198f2f0-7d2b-7c3e-8a11-3b7d5b1f0a42".into(),
            by: vec![planner()],
        },
        signed: None,
    }
}

fn weighed() -> ReputationSettings {
    let mut settings = settings();
    settings.reporters = REPORTERS
        .iter()
        .map(|(name, weight)| ((*name).to_owned(), *weight))
        .collect();
    settings
}

proptest! {
    /// In whatever order its reports come: together they take off what the worst of them does, and each factor hears of it
    /// once.
    #[test]
    fn a_hop_counts_once_by_the_worst_of_its_reports(
        reports in prop::collection::vec(
            (
                prop::sample::select(Finding::ALL.to_vec()),
                prop::sample::select(Severity::ALL.to_vec()),
                0..REPORTERS.len(),
            ),
            1..20,
        ),
    ) {
        let settings = weighed();
        let (mut known, mut off, mut worst) = (None::<OfHop>, 0_u32, 0);
        let mut heard = BTreeSet::new();
        for (n, (finding, severity, by)) in reports.into_iter().enumerate() {
            let (name, weight) = REPORTERS[by];
            let worth = worth(known.as_ref(), name, &new_report(finding, severity), &settings, NOW);
            let alone = match finding {
                Finding::Confirmed => 0.0,
                _ => settings.slash.of(severity).value() * f64::from(weight) / 100.0,
            };
            worst = worst.max(Score::clamped(alone).hundredths());
            off += u32::from(worth.points.hundredths());
            prop_assert_eq!(off, u32::from(worst), "what all took off, and the worst of them");
            let counts = match finding {
                Finding::Confirmed => n == 0,
                _ => heard.insert(finding.factor()),
            };
            prop_assert_eq!(worth.weight, if counts { weight } else { 0 });
            known = Some(worth.of_hop);
        }
    }
}
