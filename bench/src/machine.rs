//! Where a measurement was made: figures from different machines are not comparable, and each report says so.

use std::path::Path;
use std::process::Command;

use serde::Serialize;

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    /// Its version, without what a distribution adds.
    pub(crate) kernel: String,
    /// Name and version of each program that was measured.
    pub(crate) versions: Vec<String>,
}

impl Machine {
    pub(crate) fn here(programs: &[(&Path, &str)]) -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Self {
            cpu: model.map_or("unknown", |(_, name)| name.trim()).to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .split('-')
                .next()
                .unwrap_or_default()
                .trim()
                .to_owned(),
            versions: programs
                .iter()
                .filter_map(|(program, flag)| version(program, flag))
                .collect(),
        }
    }
}

/// What the program says of itself, in one line without its path; nginx says it on standard error.
fn version(program: &Path, flag: &str) -> Option<String> {
    let output = Command::new(program).arg(flag).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find(|line| !line.trim().is_empty())?.trim();
    let said = line.split_once("version: ").map_or(line, |(_, version)| version);
    Some(format!("{}: {said}", program.file_name()?.display()))
}
