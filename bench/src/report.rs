//! Rounds, figures, ratios.
//!
//! A small machine is noisy and drifts, so subjects are measured in turns within one run, forwards in one round and
//! backwards in the next, and what is compared is the ratio of neighbours in the same round. Its median is the result.

mod table;

pub(crate) use table::markdown;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::load::{self, Pace, Plan, Target};
use crate::machine::Machine;
use crate::meter::{Group, Usage};
use crate::rig::{Programs, Rig, Subject};

/// What a report is made with.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) subjects: Vec<Subject>,
    pub(crate) rounds: u32,
    pub(crate) length: Duration,
    pub(crate) warmup: Duration,
    pub(crate) programs: Programs,
    pub(crate) out: PathBuf,
}

/// The loads that every subject is put under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Load {
    /// One connection, the next request when the answer is there.
    One,
    /// 32 connections, each sends its next request when the answer is there: the most the machine can do.
    Many,
    /// 1,000 requests per second on a fixed schedule, over 32 connections: a server in use.
    Fixed,
}

pub(crate) const LOADS: [Load; 3] = [Load::One, Load::Many, Load::Fixed];

impl Load {
    pub(crate) fn plan(self, target: Target, settings: &Settings) -> Plan {
        let (connections, pace) = match self {
            Self::One => (1, Pace::Closed),
            Self::Many => (32, Pace::Closed),
            Self::Fixed => (32, Pace::Fixed { per_second: 1000 }),
        };
        Plan {
            target,
            connections,
            pace,
            warmup: settings.warmup,
            length: settings.length,
        }
    }
}

/// The figures of one measurement.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Measured {
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) first_error: Option<String>,
    pub(crate) seconds: f64,
    pub(crate) per_second: f64,
    pub(crate) latency: Latency,
    pub(crate) groups: Vec<Cost>,
    /// `[nanoseconds, count]` of every bucket that has some.
    pub(crate) buckets: Vec<(u64, u64)>,
}

/// Microseconds from the moment a request was due to the last byte of its answer.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

/// What a group of processes used in one measurement.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Cost {
    pub(crate) name: String,
    pub(crate) cpu_seconds: f64,
    pub(crate) cpu_us_per_request: f64,
    /// At the end of the measurement.
    pub(crate) rss_bytes: u64,
    pub(crate) pss_bytes: u64,
}

/// One measurement of one subject in one round.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    pub(crate) round: u32,
    pub(crate) load: Load,
    pub(crate) subject: Subject,
    #[serde(flatten)]
    pub(crate) measured: Measured,
}

/// All measurements of a run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) rounds: u32,
    pub(crate) seconds_each: f64,
    pub(crate) request_bytes: usize,
    pub(crate) samples: Vec<Sample>,
}

/// Runs one measurement and reads what `groups` (and the generator itself) used in it.
pub(crate) async fn measure(plan: &Plan, groups: &[Group]) -> anyhow::Result<Measured> {
    let mut groups = groups.to_vec();
    groups.push(Group::alone("generator", std::process::id()));
    let outcome = load::run(plan, || {
        groups.iter().map(Group::usage).collect::<anyhow::Result<Vec<Usage>>>()
    })
    .await?;
    let requests = outcome.latency.len();
    let seconds = outcome.window.as_secs_f64();
    let cost = |(group, (before, after)): (&Group, (&Usage, &Usage))| {
        let cpu_seconds = after.cpu.saturating_sub(before.cpu).as_secs_f64();
        Cost {
            name: group.name.clone(),
            cpu_seconds,
            cpu_us_per_request: cpu_seconds * 1e6 / requests.max(1) as f64,
            rss_bytes: after.rss,
            pss_bytes: after.pss,
        }
    };
    Ok(Measured {
        requests,
        errors: outcome.errors,
        first_error: outcome.first_error,
        seconds,
        per_second: requests as f64 / seconds,
        latency: Latency::of(&outcome.latency),
        groups: groups
            .iter()
            .zip(outcome.before.iter().zip(&outcome.after))
            .map(cost)
            .collect(),
        buckets: outcome
            .latency
            .iter_recorded()
            .map(|b| (b.value_iterated_to(), b.count_at_value()))
            .collect(),
    })
}

impl Latency {
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max() as f64 / 1000.0,
        }
    }
}

/// Starts everything, measures it in turns, and writes `report.json` and `report.md`.
pub(crate) async fn run(settings: &Settings) -> anyhow::Result<Report> {
    ensure!(!settings.subjects.is_empty(), "nothing to measure");
    let rig = Rig::start(&settings.subjects, &settings.programs).await?;
    let mut samples = Vec::new();
    for round in 0..settings.rounds {
        for load in LOADS {
            let mut turn: Vec<_> = rig.running.iter().collect();
            if round % 2 == 1 {
                turn.reverse();
            }
            for running in turn {
                let plan = load.plan(running.target.clone(), settings);
                let measured = measure(&plan, &running.groups)
                    .await
                    .with_context(|| format!("round {}, {load:?}, {:?}", round + 1, running.subject))?;
                eprintln!(
                    "{}",
                    table::progress(round + 1, settings.rounds, load, running.subject, &measured)
                );
                samples.push(Sample {
                    round,
                    load,
                    subject: running.subject,
                    measured,
                });
            }
        }
    }
    let report = Report {
        machine: settings.programs.machine(&settings.subjects),
        rounds: settings.rounds,
        seconds_each: settings.length.as_secs_f64(),
        request_bytes: load::BODY.len(),
        samples,
    };
    std::fs::create_dir_all(&settings.out)?;
    std::fs::write(settings.out.join("report.json"), serde_json::to_vec(&report)?)?;
    let text = table::markdown(&report);
    std::fs::write(settings.out.join("report.md"), &text)?;
    println!("{text}");
    Ok(report)
}

/// Fails when our pair costs more CPU per request than `max_ratio` times the Envoy pair, or when anything went wrong.
pub(crate) fn check(report: &Report, max_ratio: f64) -> anyhow::Result<()> {
    let mut faults = Vec::new();
    for load in LOADS {
        let ratio = report
            .ratio(load, Subject::Envoy, Measured::cpu)
            .context("not measured")?;
        println!(
            "{}: CPU per request {ratio} of the Envoy pair's; allowed {max_ratio}",
            table::title(load)
        );
        if ratio.median > max_ratio {
            faults.push(format!("{}: {ratio} is over {max_ratio}", table::title(load)));
        }
    }
    let errors: u64 = report.samples.iter().map(|sample| sample.measured.errors).sum();
    if errors > 0 {
        let first = report
            .samples
            .iter()
            .find_map(|sample| sample.measured.first_error.as_deref());
        faults.push(format!(
            "{errors} requests failed, first: {}",
            first.unwrap_or("unknown")
        ));
    }
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    Ok(())
}

/// Replaces the text between the marks `name` of `page` by tables.
pub(crate) fn put_in_page(page: &Path, name: &str, tables: &str) -> anyhow::Result<()> {
    let (begin, end) = (format!("<!-- {name}:begin -->"), format!("<!-- {name}:end -->"));
    let text = std::fs::read_to_string(page).with_context(|| page.display().to_string())?;
    let parts = text
        .split_once(&begin)
        .and_then(|(head, rest)| Some((head, rest.split_once(&end)?.1)));
    let (head, tail) = parts.with_context(|| format!("{}: no {begin} … {end}", page.display()))?;
    std::fs::write(page, format!("{head}{begin}\n\n{tables}\n{end}{tail}"))?;
    Ok(())
}

/// The median of the rounds' ratios, and their range.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Ratio {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} ({:.2} to {:.2})", self.median, self.low, self.high)
    }
}

impl Measured {
    /// CPU microseconds per request of the subject itself.
    pub(crate) fn cpu(&self) -> f64 {
        self.groups.first().map_or(0.0, |cost| cost.cpu_us_per_request)
    }

    /// Bytes of memory of the subject itself.
    pub(crate) fn memory(&self) -> f64 {
        self.groups.first().map_or(0.0, |cost| cost.pss_bytes as f64)
    }
}

impl Report {
    pub(crate) fn of(&self, load: Load, subject: Subject) -> impl Iterator<Item = &Sample> {
        self.samples
            .iter()
            .filter(move |sample| sample.load == load && sample.subject == subject)
    }

    /// Our pair's figure as a share of `peer`'s, round by round; `None` when one of them was not measured.
    pub(crate) fn ratio(&self, load: Load, peer: Subject, figure: impl Fn(&Measured) -> f64) -> Option<Ratio> {
        let pairs = self.of(load, Subject::Aip).filter_map(|ours| {
            let theirs = self.of(load, peer).find(|sample| sample.round == ours.round)?;
            Some(figure(&ours.measured) / figure(&theirs.measured))
        });
        let mut ratios: Vec<f64> = pairs.filter(|ratio| ratio.is_finite()).collect();
        ratios.sort_by(f64::total_cmp);
        Some(Ratio {
            median: median(&ratios)?,
            low: *ratios.first()?,
            high: *ratios.last()?,
        })
    }
}

/// The median of sorted values.
pub(crate) fn median(sorted: &[f64]) -> Option<f64> {
    let upper = sorted.get(sorted.len() / 2)?;
    let lower = sorted.get((sorted.len() - 1) / 2)?;
    Some((lower + upper) / 2.0)
}

#[cfg(test)]
mod tests;
