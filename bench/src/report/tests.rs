use super::*;

fn sample(round: u32, load: Load, subject: Subject, cpu: f64, errors: u64) -> Sample {
    let cost = Cost {
        name: "pair".to_owned(),
        cpu_seconds: cpu / 100.0,
        cpu_us_per_request: cpu,
        rss_bytes: 2 << 20,
        pss_bytes: 1 << 20,
    };
    let mut histogram = Histogram::<u64>::new(3).unwrap();
    histogram.record_n(250_000, 99).unwrap();
    histogram.record(9_000_000).unwrap();
    let measured = Measured {
        requests: 100,
        errors,
        first_error: (errors > 0).then(|| "answered 503".to_owned()),
        seconds: 1.0,
        per_second: 100.0,
        latency: Latency::of(&histogram),
        groups: vec![cost],
        buckets: histogram
            .iter_recorded()
            .map(|b| (b.value_iterated_to(), b.count_at_value()))
            .collect(),
    };
    Sample {
        round,
        load,
        subject,
        measured,
    }
}

/// Our pair at `ours` µs against an Envoy pair whose cost triples while the run goes on.
fn report(ours: f64, errors: u64) -> Report {
    let mut samples = Vec::new();
    for (round, drift) in [(0, 1.0), (1, 2.0), (2, 3.0)] {
        for load in LOADS {
            samples.push(sample(round, load, Subject::Envoy, 100.0 * drift, 0));
            samples.push(sample(round, load, Subject::Aip, ours * drift, errors));
        }
    }
    let machine = Machine {
        cpu: "a cpu".to_owned(),
        cores: 2,
        kernel: "6.1".to_owned(),
        versions: Vec::new(),
    };
    Report {
        machine,
        rounds: 3,
        seconds_each: 1.0,
        request_bytes: load::BODY.len(),
        samples,
    }
}

#[test]
fn ratios_are_taken_within_a_round_so_that_drift_cancels() {
    let ratio = report(75.0, 0)
        .ratio(Load::Fixed, Subject::Envoy, Measured::cpu)
        .unwrap();
    assert_eq!(
        ratio,
        Ratio {
            median: 0.75,
            low: 0.75,
            high: 0.75
        }
    );
    assert!(
        report(75.0, 0)
            .ratio(Load::Fixed, Subject::Nginx, Measured::cpu)
            .is_none()
    );
}

#[test]
fn the_check_fails_above_the_share_and_on_errors() {
    check(&report(79.0, 0), 0.8).unwrap();
    assert!(check(&report(81.0, 0), 0.8).unwrap_err().to_string().contains("0.81"));
    assert!(
        check(&report(79.0, 1), 0.8)
            .unwrap_err()
            .to_string()
            .contains("answered 503")
    );
}

#[test]
fn the_table_shows_what_was_measured_and_nothing_else() {
    let text = table::markdown(&report(75.0, 0));
    assert!(text.contains("| Envoy pair | 250 | 250 | 250 |"), "{text}");
    assert!(text.contains("| AIP pair |"), "{text}");
    assert!(!text.contains("nginx pair"), "{text}");
}

#[test]
fn a_page_keeps_what_is_outside_the_marks() {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("page.md");
    std::fs::write(&page, "above\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nbelow\n").unwrap();
    put_in_page(&page, "bench", &markdown(&report(75.0, 0))).unwrap();
    let text = std::fs::read_to_string(&page).unwrap();
    assert!(text.starts_with("above\n") && text.ends_with("\nbelow\n"), "{text}");
    assert!(text.contains("AIP pair") && !text.contains("old"), "{text}");
    std::fs::write(&page, "no marks").unwrap();
    assert!(put_in_page(&page, "bench", &markdown(&report(75.0, 0))).is_err());
}

#[test]
fn medians() {
    assert_eq!(median(&[]), None);
    assert_eq!(median(&[1.0]), Some(1.0));
    assert_eq!(median(&[1.0, 2.0]), Some(1.5));
    assert_eq!(median(&[1.0, 2.0, 9.0]), Some(2.0));
}
