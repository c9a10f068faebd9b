//! CPU time and memory of groups of processes, read from `/proc`.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Serialize;

/// Processes that are counted as one: a server with its workers, a pair of proxies.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub(crate) name: String,
    pids: Vec<u32>,
}

/// What a group has used since it began, and holds now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Usage {
    /// User and system time of all its threads, also those that ended. Steps of 10 ms.
    pub(crate) cpu: Duration,
    /// Resident bytes, summed: pages that processes share count in each.
    pub(crate) rss: u64,
    /// Proportional set size, summed: a page that n processes share counts 1/n in each.
    pub(crate) pss: u64,
}

impl Group {
    /// The processes `roots` and all their descendants, as they are now.
    pub(crate) fn of(name: &str, roots: &[u32]) -> anyhow::Result<Self> {
        let parents = parents()?;
        let mut pids: BTreeSet<u32> = roots.iter().copied().collect();
        for root in roots {
            ensure!(parents.iter().any(|(pid, _)| pid == root), "{name}: no process {root}");
        }
        loop {
            let before = pids.len();
            pids.extend(
                parents
                    .iter()
                    .filter(|(_, parent)| pids.contains(parent))
                    .map(|(pid, _)| *pid)
                    .collect::<Vec<_>>(),
            );
            if pids.len() == before {
                return Ok(Self {
                    name: name.to_owned(),
                    pids: pids.into_iter().collect(),
                });
            }
        }
    }

    /// One process without its descendants.
    pub(crate) fn alone(name: &str, pid: u32) -> Self {
        Self {
            name: name.to_owned(),
            pids: vec![pid],
        }
    }

    /// What the group has used; an error when one of its processes is gone, for then the sum would mean nothing.
    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        let mut sum = Usage::default();
        for pid in &self.pids {
            let gone = || format!("{}: process {pid} is gone", self.name);
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(gone)?;
            sum.cpu += cpu(&stat).with_context(|| format!("/proc/{pid}/stat: {stat:?}"))?;
            sum.rss += fs::read_to_string(format!("/proc/{pid}/statm"))
                .ok()
                .and_then(|s| rss(&s))
                .with_context(gone)?;
            // Another user's process may be closed to us; the resident size is what is left then.
            sum.pss += fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
                .ok()
                .and_then(|s| pss(&s))
                .unwrap_or(0);
        }
        Ok(sum)
    }
}

/// Every process with its parent.
fn parents() -> anyhow::Result<Vec<(u32, u32)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process may end between the listing and the reading.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        if let Some(parent) = field(&stat, 1) {
            found.push((pid, parent as u32));
        }
    }
    Ok(found)
}

/// A number of `/proc/<pid>/stat`, counted from the state, which follows the name: the name may hold blanks and brackets.
fn field(stat: &str, index: usize) -> Option<u64> {
    stat.rsplit_once(')')?
        .1
        .split_ascii_whitespace()
        .nth(index)?
        .parse()
        .ok()
}

fn cpu(stat: &str) -> Option<Duration> {
    let ticks = field(stat, 11)? + field(stat, 12)?;
    Some(Duration::from_micros(
        ticks * 1_000_000 / rustix::param::clock_ticks_per_second(),
    ))
}

fn rss(statm: &str) -> Option<u64> {
    Some(statm.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()? * rustix::param::page_size() as u64)
}

fn pss(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let stat = "42 (a) b (c)) S 7 42 42 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 100 1000 10 0";
        assert_eq!(field(stat, 1), Some(7));
        let expected = 300_000_000 / rustix::param::clock_ticks_per_second();
        assert_eq!(cpu(stat), Some(Duration::from_micros(expected)));
    }

    #[test]
    fn memory_is_in_bytes() {
        assert_eq!(rss("100 3 2 1 0 1 0"), Some(3 * rustix::param::page_size() as u64));
        assert_eq!(
            pss("00400000-7fff r\nRss:   900 kB\nPss:                 123 kB\n"),
            Some(123 * 1024)
        );
    }

    #[test]
    fn a_group_holds_descendants_and_counts_what_they_use() {
        let mut shell = std::process::Command::new("sh")
            .args(["-c", "sleep 60 & read line; kill $!"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        let group = loop {
            let group = Group::of("shell", &[shell.id()]).unwrap();
            if group.pids.len() == 2 {
                break group;
            }
            assert!(std::time::Instant::now() < deadline, "the child never showed");
        };
        let usage = group.usage().unwrap();
        assert!(usage.rss > 0 && usage.pss > 0 && usage.pss <= usage.rss, "{usage:?}");
        drop(shell.stdin.take());
        shell.wait().unwrap();
        assert!(group.usage().unwrap_err().to_string().contains("is gone"));
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        assert!(Group::of("nobody", &[u32::MAX]).is_err());
    }
}
