//! The audit logs of a sidecar, as whoever looks at its files sees them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use aip_api::SpiffeId;
use aip_audit::checkpoint::{Checkpoint, LedgerBegins, Retired, TreeHead};
use aip_audit::log::{Kept, Reader, claims_of, name_of};
use aip_audit::record::{Decision, End, Event};
use aip_audit::verify::{Keys, Report, Sources, verify};
use http::Request;
use http_body_util::Full;

use crate::http as wire;

/// Who looks at files that it knows to be a sidecar's: that signatures hold is tested where they are checked.
pub struct Believed;

impl Keys for Believed {
    fn checkpoint(&self, kept: &Kept) -> Result<(Checkpoint, SpiffeId), String> {
        let claims = claims_of(&kept.statement).ok_or("not a checkpoint")?;
        let agent = claims.agent.clone();
        Ok((claims, agent))
    }
    fn tree_head(&self, _: &str) -> Result<TreeHead, String> {
        Err("there is none".into())
    }
    fn ledger_begins(&self, _: &str) -> Result<LedgerBegins, String> {
        Err("there is none".into())
    }
    fn retired(&self, _: &str) -> Result<Retired, String> {
        Err("there is none".into())
    }
}

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

/// What a verifier says of the logs.
pub fn report(audit: &Path) -> Report {
    let sources = Sources::find(audit).unwrap();
    verify(&sources, &Believed, &mut |_| ()).unwrap()
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
