//! The report as Markdown.

use std::fmt::Write as _;

use hdrhistogram::Histogram;

use super::{LOADS, Latency, Load, Measured, Report, median};
use crate::rig::Subject;

const SUBJECTS: [Subject; 4] = [Subject::Direct, Subject::Nginx, Subject::Envoy, Subject::Aip];
const MIB: f64 = 1024.0 * 1024.0;

pub(super) fn title(load: Load) -> &'static str {
    match load {
        Load::One => "1 connection, closed loop",
        Load::Many => "32 connections, closed loop",
        Load::Fixed => "1,000 requests per second over 32 connections, open loop",
    }
}

fn name(subject: Subject) -> &'static str {
    match subject {
        Subject::Direct => "agent alone",
        Subject::Nginx => "nginx pair",
        Subject::Envoy => "Envoy pair",
        Subject::Aip => "AIP pair",
    }
}

pub(super) fn progress(round: u32, rounds: u32, load: Load, subject: Subject, measured: &Measured) -> String {
    let Measured {
        per_second,
        latency,
        errors,
        ..
    } = measured;
    format!(
        "round {round}/{rounds} · {} · {}: {per_second:.0}/s, p50 {:.0} µs, p99 {:.0} µs, {:.1} µs CPU per request, {errors} errors",
        title(load),
        name(subject),
        latency.p50,
        latency.p99,
        measured.cpu(),
    )
}

pub(crate) fn markdown(report: &Report) -> String {
    let mut out = String::new();
    let machine = &report.machine;
    let _ = writeln!(
        out,
        "{} rounds of {:.0} s each, in turns, in one run. {} cores of {}, Linux {}.\n{}.\n",
        report.rounds,
        report.seconds_each,
        machine.cores,
        machine.cpu,
        machine.kernel,
        machine.versions.join(" · "),
    );
    for load in LOADS {
        figures(&mut out, report, load);
    }
    ratios(&mut out, report);
    out
}

fn figures(out: &mut String, report: &Report, load: Load) {
    let _ = writeln!(out, "**{}**\n", title(load));
    let _ = writeln!(
        out,
        "| | p50 µs | p90 µs | p99 µs | p99.9 µs | max µs | requests/s | CPU µs per request | memory MiB | errors |"
    );
    let _ = writeln!(out, "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    for subject in SUBJECTS {
        let Some(latency) = merged(report, load, subject) else {
            continue;
        };
        let middle = |figure: fn(&Measured) -> f64| {
            let mut values: Vec<f64> = report
                .of(load, subject)
                .map(|sample| figure(&sample.measured))
                .collect();
            values.sort_by(f64::total_cmp);
            median(&values).unwrap_or(0.0)
        };
        let errors: u64 = report.of(load, subject).map(|sample| sample.measured.errors).sum();
        let _ = writeln!(
            out,
            "| {} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.1} | {:.1} | {errors} |",
            name(subject),
            latency.p50,
            latency.p90,
            latency.p99,
            latency.p999,
            latency.max,
            middle(|m| m.per_second),
            middle(Measured::cpu),
            middle(Measured::memory) / MIB,
        );
    }
    out.push('\n');
}

fn ratios(out: &mut String, report: &Report) {
    let peers: Vec<Subject> = [Subject::Nginx, Subject::Envoy]
        .into_iter()
        .filter(|peer| report.ratio(Load::Fixed, *peer, Measured::cpu).is_some())
        .collect();
    if peers.is_empty() {
        return;
    }
    let _ = writeln!(
        out,
        "**The AIP pair as a share of its peers** (median of the rounds, lowest to highest)\n"
    );
    let _ = writeln!(
        out,
        "| load | peer | CPU per request | p50 | p99 | requests/s | memory |"
    );
    let _ = writeln!(out, "|---|---|---:|---:|---:|---:|---:|");
    for load in LOADS {
        for peer in &peers {
            let share = |figure: fn(&Measured) -> f64| {
                report
                    .ratio(load, *peer, figure)
                    .map_or_else(|| "–".to_owned(), |ratio| ratio.to_string())
            };
            // On a fixed schedule everyone answers as many as were asked.
            let rate = if load == Load::Fixed {
                "–".to_owned()
            } else {
                share(|m| m.per_second)
            };
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {} | {rate} | {} |",
                title(load),
                name(*peer),
                share(Measured::cpu),
                share(|m| m.latency.p50),
                share(|m| m.latency.p99),
                share(Measured::memory),
            );
        }
    }
}

/// Latency over all rounds: the histograms added up, never percentiles averaged.
fn merged(report: &Report, load: Load, subject: Subject) -> Option<Latency> {
    let mut all = Histogram::<u64>::new(3).ok()?;
    for sample in report.of(load, subject) {
        for (value, count) in &sample.measured.buckets {
            all.record_n(*value, *count).ok()?;
        }
    }
    (!all.is_empty()).then(|| Latency::of(&all))
}
