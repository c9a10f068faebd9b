//! What processes have, sampled over time, and whether it grows.

use std::fmt;
use std::time::{Duration, Instant};

use aip_tests::process::{Mesh, Process, Sidecar};

/// Between two samples.
const EVERY: Duration = Duration::from_secs(2);
/// What is passed over at the beginning, in percent: caches, pools and logs fill.
const WARM: usize = 40;
/// By how much what is had in the end may be more than what was had when warm. Between the two lie 24 minutes of an hour: 150,000 hops
/// of each sidecar and six times as many records of the control plane, and a thousand each of agents and of versions of a policy.
/// So a sidecar is found that leaks 50 bytes a hop, or 8 KiB an agent or a policy, and a control plane that leaks 20 bytes a record. What
/// stays of each agent for a day, its revocation, is 1 MiB of this.
const MORE_BYTES: u64 = 6 << 20;
const MORE_BYTES_OF_PLANE: u64 = 12 << 20;
const MORE_FILES: u64 = 12;
/// How long all takes to be full: the ids of hops and the ends of them that wait are held for two times ten minutes. A run
/// that is not passed over for so long is judged by what those and the pages of the store may come to meanwhile.
const FILLS: Duration = Duration::from_secs(20 * 60);
const FILLING: u64 = 10 << 20;
const FILLING_OF_PLANE: u64 = 40 << 20;
/// Samples below which nothing can be said.
const FEW: usize = 15;

/// What one process had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sample {
    bytes: u64,
    files: u64,
}

/// One process over time.
#[derive(Debug, Default)]
struct Series {
    name: String,
    more: u64,
    filling: u64,
    samples: Vec<Sample>,
}

/// What is had once warm, and in the end: the medians of the first and the last third of what is not passed over.
#[derive(Debug, PartialEq, Eq)]
struct Ends {
    first: Sample,
    last: Sample,
}

impl Series {
    fn ends(&self) -> Ends {
        let warm = &self.samples[self.samples.len() * WARM / 100..];
        let third = warm.len() / 3;
        Ends {
            first: median(&warm[..third]),
            last: median(&warm[warm.len() - third..]),
        }
    }

    /// Why it is not flat, where all that fills was full at the beginning, or was not.
    fn grows(&self, full: bool) -> Option<String> {
        if self.samples.len() < FEW {
            return Some(format!("{}: {} samples say nothing", self.name, self.samples.len()));
        }
        let Ends { first, last } = self.ends();
        let filling = if full { 0 } else { self.filling };
        let grows = last.bytes > first.bytes + self.more + filling || last.files > first.files + MORE_FILES;
        grows.then(|| self.to_string())
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ends { first, last } = self.ends();
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        write!(
            f,
            "{}: {:.1} MiB once warm, {:.1} in the end; {} open files, {} in the end",
            self.name,
            mib(first.bytes),
            mib(last.bytes),
            first.files,
            last.files,
        )
    }
}

fn median(samples: &[Sample]) -> Sample {
    let middle = |of: fn(&Sample) -> u64| {
        let mut all: Vec<_> = samples.iter().map(of).collect();
        all.sort_unstable();
        all.get(all.len() / 2).copied().unwrap_or_default()
    };
    Sample {
        bytes: middle(|sample| sample.bytes),
        files: middle(|sample| sample.files),
    }
}

/// All that is measured.
pub(super) struct Meter {
    series: Vec<Series>,
    began: Instant,
    last: Instant,
}

/// In the order of the series: the control plane first.
fn processes<'a>(mesh: &'a Mesh, standing: &'a [Sidecar]) -> impl Iterator<Item = &'a Process> {
    let sidecars = standing.iter().map(|sidecar| &sidecar.process);
    std::iter::once(&mesh.control_plane.process).chain(sidecars)
}

impl Meter {
    pub(super) fn begin(mesh: &Mesh, standing: &[Sidecar]) -> Self {
        let series = |(number, process): (usize, &Process)| {
            let (more, filling) = match number {
                0 => (MORE_BYTES_OF_PLANE, FILLING_OF_PLANE),
                _ => (MORE_BYTES, FILLING),
            };
            Series {
                name: process.name.clone(),
                more,
                filling,
                samples: Vec::new(),
            }
        };
        Self {
            series: processes(mesh, standing).enumerate().map(series).collect(),
            began: Instant::now(),
            last: Instant::now(),
        }
    }

    /// A sample of each, if it is time for one.
    pub(super) fn look(&mut self, mesh: &Mesh, standing: &[Sidecar]) {
        if self.last.elapsed() < EVERY {
            return;
        }
        self.last = Instant::now();
        for (series, process) in self.series.iter_mut().zip(processes(mesh, standing)) {
            let files = format!("/proc/{}/fd", process.pid().as_raw_nonzero());
            series.samples.push(Sample {
                bytes: process.resident(),
                files: std::fs::read_dir(files).unwrap().count() as u64,
            });
        }
    }

    /// # Panics
    /// Something grows.
    pub(super) fn is_flat(&self) {
        let full = self.began.elapsed() * u32::try_from(WARM).unwrap() / 100 >= FILLS;
        let grow: Vec<_> = self.series.iter().filter_map(|series| series.grows(full)).collect();
        assert!(grow.is_empty(), "{grow:#?}");
    }
}

impl fmt::Display for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.series.iter().try_for_each(|series| writeln!(f, "{series}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(count: u64, sample: impl Fn(u64) -> (u64, u64)) -> Series {
        let samples = (0..count).map(sample).map(|(bytes, files)| Sample { bytes, files });
        Series {
            name: "a process".into(),
            more: MORE_BYTES,
            filling: FILLING,
            samples: samples.collect(),
        }
    }

    #[test]
    fn what_warms_up_and_then_wavers_is_flat() {
        // Up to 40 MiB in the first third, and then between 38 and 42.
        let warms = |n: u64| ((n * 4).min(120) * (1 << 20) / 3 + n % 5 * (1 << 20), 20 + n % 7);
        assert_eq!(series(100, warms).grows(true), None);
        let ends = series(100, |_| (7, 3)).ends();
        assert_eq!(ends.first, Sample { bytes: 7, files: 3 });
        assert_eq!(ends.first, ends.last);
    }

    /// An hour of a sample every two seconds.
    #[test]
    fn what_leaks_a_little_of_each_of_something_is_found() {
        let leaks = |bytes: u64| series(1_800, |n| ((40 << 20) + n * bytes, 20)).grows(true);
        let hops = 210;
        let of_agents = |bytes: u64| leaks(bytes * 7 / 5);
        let why = leaks(50 * hops).expect("50 bytes a hop");
        assert!(why.contains("MiB once warm"), "{why}");
        assert!(of_agents(8_192).is_some(), "8 KiB an agent");
        assert!(of_agents(1_024).is_none(), "what is held of each for a day");
        assert!(
            series(1_800, |n| (40 << 20, 20 + n / 36)).grows(true).is_some(),
            "a file in a minute"
        );
    }

    #[test]
    fn what_fills_may_be_more_and_not_more_than_that() {
        let fills = |by: u64| move |n: u64| ((40 << 20) + n * by, 20);
        assert_eq!(series(100, fills(3 << 17)).grows(false), None);
        assert!(series(100, fills(3 << 17)).grows(true).is_some());
        assert!(series(100, fills(1 << 19)).grows(false).is_some());
        assert!(series(100, |n| (1, n)).grows(false).is_some(), "files never fill");
    }

    #[test]
    fn of_few_samples_nothing_is_said() {
        assert!(series(10, |_| (1, 1)).grows(true).is_some());
    }
}
