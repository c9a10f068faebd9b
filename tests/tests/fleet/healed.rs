//! What is found once everything is healed: what each sidecar holds, and what its log and the control plane's copy of it have.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::time::{Duration, Instant};

use aip_audit::record::{Decision, Event, Party};
use aip_tests::process::{ControlPlane, Sidecar};
use aip_tests::{http as wire, trail};
use futures_util::StreamExt as _;
use serde_json::Value;

use crate::history::{Member, Outcome};
use crate::judge::{Evidence, Recorded, Standing};
use crate::load::{self, call_of, peers};
use crate::members::{Fleet, One, SIDECARS, member, name};

/// How long all may take: a sidecar waits up to 15 s between two attempts and 30 s for an identity, signs every 4 s, and a
/// stream that was held up is given up after 40 s of silence.
const CONVERGES: Duration = Duration::from_secs(120);
/// Between two looks at all of them.
const LOOK: Duration = Duration::from_millis(250);
/// Looked at at once.
const AT_ONCE: usize = 8;
/// Calls of this one's numbers are nobody's in the history.
const PROBE: u64 = 1 << 60;

/// Waits until all stand as they should, or for as long as that may take.
pub(crate) async fn standing(fleet: &Fleet, revision: u64) -> (Standing, Vec<Standing>) {
    let began = Instant::now();
    loop {
        let kills = fleet.mesh.admin().get("/v1/kills").await;
        let expected = Standing {
            ready: true,
            acknowledged: true,
            policy: Some(revision),
            kill: version(&kills),
            orders: 0,
            reaches: true,
        };
        let acknowledged = acknowledged(fleet, revision).await;
        let looking = fleet.members.iter().enumerate().map(|(number, one)| {
            let acknowledged = acknowledged.contains(&number);
            async move { look(one, number, acknowledged).await }
        });
        let all: Vec<_> = futures_util::stream::iter(looking).buffered(AT_ONCE).collect().await;
        if all.iter().all(|one| *one == expected) || began.elapsed() > CONVERGES {
            eprintln!("{:>8.2?} until all stand as they should", began.elapsed());
            return (expected, all);
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn version(set: &Value) -> (u64, u64) {
    let number = |key: &str| set[key].as_u64().unwrap_or_default();
    (number("term"), number("epoch"))
}

/// Who has acknowledged this revision and the kill set in force, where nobody is missing or rejects anything.
async fn acknowledged(fleet: &Fleet, revision: u64) -> BTreeSet<Member> {
    let admin = fleet.mesh.admin();
    let acks = admin.get(&format!("/v1/revisions/{revision}/acks")).await;
    let progress = admin.get("/v1/kills/progress").await;
    let all = |list: &Value| -> BTreeSet<Member> {
        let list = list.as_array().into_iter().flatten();
        list.filter_map(|one| member(one.as_str().or(one["sidecar"].as_str())?))
            .collect()
    };
    let mut both = &all(&acks["acked"]) & &all(&progress["enforced"]);
    for late in [&acks["missing"], &acks["nacked"], &progress["missing"]] {
        both = &both - &all(late);
    }
    both
}

async fn look(one: &One, number: Member, acknowledged: bool) -> Standing {
    let sidecar = &one.sidecar;
    let is_ready = wire::get(sidecar.probes, "/readyz").await;
    let kill = json(sidecar, "/kill").await;
    let policies = json(sidecar, "/policies").await;
    let mut policies = policies.as_array().into_iter().flatten();
    let policy = policies.find(|policy| policy["name"] == "schedule");
    let mut reaches = true;
    for (nth, peer) in peers(number).enumerate() {
        let id = PROBE + nth as u64;
        reaches = reaches && load::call(sidecar.outbound, peer, id).await == Outcome::Answered;
    }
    Standing {
        ready: is_ready.is_ok_and(|answer| answer.status == 200),
        acknowledged,
        policy: policy.and_then(|policy| policy["revision"].as_u64()),
        kill: version(&kill),
        orders: kill["orders"].as_array().map_or(usize::MAX, Vec::len),
        reaches,
    }
}

async fn json(sidecar: &Sidecar, path: &str) -> Value {
    let answer = wire::get(sidecar.admin, path).await;
    answer.map_or(Value::Null, |answer| {
        serde_json::from_slice(&answer.body).unwrap_or_default()
    })
}

/// Everything that is left behind, once the control plane has all of it or had the time to.
pub(crate) async fn evidence(fleet: &Fleet, (expected, standing): (Standing, Vec<Standing>)) -> Evidence {
    let late = come_up(fleet).await;
    let report = trail::report_of_copies(&fleet.mesh).await.expect("the verifier ends");
    let mut faults: Vec<_> = report.faults.iter().map(|fault| format!("{fault:?}")).collect();
    faults.extend(report.unread.iter().map(|unread| format!("{unread} could not be read")));
    faults.extend(late);
    let mut svids = HashMap::new();
    for number in 0..SIDECARS {
        svids.extend(svids_of(fleet, number).await);
    }
    let recorded = fleet.members.iter().enumerate();
    let recorded = recorded.flat_map(|(number, one)| recorded_at(number, &audit(one)));
    let heard = fleet.agent.seen("/fleet/");
    Evidence {
        heard: heard.iter().filter_map(|seen| call_of(&seen.target)).collect(),
        recorded: recorded.collect(),
        svids,
        logs: report.logs.into_iter().map(|log| (log.log, log.signed)).collect(),
        faults,
        expected,
        standing,
    }
}

fn audit(one: &One) -> std::path::PathBuf {
    one.sidecar.dir.join("data/audit")
}

/// Waits until the control plane's copies are what the sidecars have; what is not.
async fn come_up(fleet: &Fleet) -> Vec<String> {
    let (began, copies) = (
        Instant::now(),
        ControlPlane::data(&fleet.mesh.control_plane.dir).join("audit"),
    );
    loop {
        let all = fleet.members.iter().enumerate();
        let lacking = |(number, one)| {
            let copies = copies.join(name(number));
            let logs = trail::logs(&audit(one)).into_iter();
            logs.flat_map(move |log| trail::lacking(&log, &copies))
                .collect::<Vec<_>>()
        };
        let late: Vec<_> = all.flat_map(lacking).collect();
        if late.is_empty() || began.elapsed() > CONVERGES {
            eprintln!("{:>8.2?} until all logs are up", began.elapsed());
            let late = late.iter().map(|path| format!("{} has not come up", path.display()));
            return late.collect();
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn svids_of(fleet: &Fleet, number: Member) -> Vec<(String, (Member, u64))> {
    let path = format!("/v1/agents/{}/svids?limit=500", name(number));
    let page = fleet.mesh.admin().get(&path).await;
    let items = page["items"].as_array().into_iter().flatten();
    let svid = |item: &Value| {
        Some((
            item["serial"].as_str()?.to_owned(),
            (number, item["generation"].as_u64()?),
        ))
    };
    items.filter_map(svid).collect()
}

fn recorded_at(at: Member, audit: &Path) -> Vec<Recorded> {
    let (mut decisions, mut completed) = (Vec::new(), BTreeSet::new());
    for event in trail::events(audit) {
        match event {
            Event::Decision(decision) => decisions.push(*decision),
            Event::End(end) if end.end == "complete" => drop(completed.insert(end.id.to_string())),
            _ => {}
        }
    }
    let recorded = |decision: Decision| {
        let serial = |party: Party| party.serial;
        Some(Recorded {
            at,
            call: call_of(&decision.path)?,
            allowed: decision.verdict == "allow",
            completed: completed.contains(&decision.id.to_string()),
            serials: [serial(decision.source), serial(decision.destination)],
            revision: decision.revision,
        })
    };
    decisions.into_iter().filter_map(recorded).collect()
}
