//! The audit logs of a sidecar, as whoever looks at its files sees them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use aip_audit::log::{Reader, name_of, segment_path, segments};
use aip_audit::record::{Decision, End, Event};
use aip_audit::verify::Report;
use http::Request;
use http_body_util::Full;

use crate::http as wire;
use crate::process::Mesh;

/// The logs below `audit`, oldest first.
pub fn logs(audit: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir(audit)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| name_of(path).is_ok())
        .collect();
    found.sort();
    found
}

/// The segments of a log that are not in its copy below `copies` as they are here.
pub fn lacking(log: &Path, copies: &Path) -> Vec<PathBuf> {
    let copy = copies.join(log.file_name().unwrap());
    let mut all: Vec<_> = segments(log).unwrap();
    // One that a quota took meanwhile is there, or it would not have gone.
    all.retain(|number| {
        std::fs::read(segment_path(log, *number))
            .is_ok_and(|ours| std::fs::read(segment_path(&copy, *number)).unwrap_or_default() != ours)
    });
    all.iter().map(|number| segment_path(log, *number)).collect()
}

/// All that was recorded.
pub fn events(audit: &Path) -> Vec<Event> {
    let logs = logs(audit);
    let records = logs.iter().flat_map(|dir| Reader::open(dir).unwrap());
    records.map(|entry| entry.unwrap().record.event).collect()
}

/// Both records of each request, by path; an end where there is one by now.
pub fn requests(audit: &Path) -> BTreeMap<String, (Decision, Option<End>)> {
    let (mut decisions, mut ends) = (Vec::new(), BTreeMap::new());
    for event in events(audit) {
        match event {
            Event::Decision(decision) => decisions.push(*decision),
            Event::End(end) => drop(ends.insert(end.id.to_string(), *end)),
            _ => {}
        }
    }
    let with_end = |decision: Decision| {
        let end = ends.get(&decision.id.to_string()).cloned();
        (decision.path.clone(), (decision, end))
    };
    decisions.into_iter().map(with_end).collect()
}

/// What `aip audit verify` says of the logs in a folder, by the keys of this mesh.
///
/// # Errors
/// It can't verify them.
pub async fn report(mesh: &Mesh, audit: &Path) -> Result<Report, String> {
    said(mesh, &["--dir", audit.to_str().unwrap()]).await
}

/// The same of what the control plane has, under its signed tree head.
///
/// # Errors
/// As [`report`].
pub async fn report_of_copies(mesh: &Mesh) -> Result<Report, String> {
    said(mesh, &[]).await
}

async fn said(mesh: &Mesh, arguments: &[&str]) -> Result<Report, String> {
    let trust = mesh.dir("home").join("trust.json");
    if !trust.exists() {
        let document = mesh.admin().get("/v1/trust").await;
        std::fs::write(&trust, document.to_string()).unwrap();
    }
    let mut all = vec![
        "audit",
        "verify",
        "--output",
        "json",
        "--trust",
        trust.to_str().unwrap(),
    ];
    all.extend(arguments);
    let output = mesh.aip(&all);
    let said = |why: serde_json::Error| format!("{why}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).map_err(said)
}

/// Whether they hold.
///
/// # Errors
/// What is wrong.
pub async fn verifies(mesh: &Mesh, audit: &Path) -> Result<Report, String> {
    let report = report(mesh, audit).await?;
    match report.intact() {
        true => Ok(report),
        false => Err(format!("{:?}", report.faults)),
    }
}

/// Calls with paths of their own (`/work/<lane>/<n>`) until told to stop; notes those that were answered with 200.
pub async fn load(
    outbound: SocketAddr,
    host: &str,
    lane: usize,
    stop: Arc<AtomicBool>,
    answered: Arc<Mutex<Vec<String>>>,
) {
    for n in 0.. {
        if stop.load(Ordering::Acquire) {
            return;
        }
        let path = format!("/work/{lane}/{n}");
        let request = Request::post(format!("http://{host}{path}")).header("host", host);
        let sending = tokio::spawn(wire::send(outbound, request.body(Full::from("work")).unwrap()));
        // An answer that breaks off is none.
        if sending
            .await
            .is_ok_and(|answer| answer.is_ok_and(|answer| answer.status == 200))
        {
            answered.lock().unwrap().push(path);
        }
    }
}
