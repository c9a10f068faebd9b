//! What the audit says of a request: the decision before anybody hears of it, and how it ended before its caller learns
//! that.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use aip_api::resource::Durability;
use aip_audit::record::{self as said, MAX_RECORD_BYTES};
use aip_audit::record::{Event, Facts, Party, Passed};
use aip_audit::seal::seal;
use aip_policy::Direction;

use super::{Ends, Record, name};
use crate::audit::digest::{Salt, Tally, Way};
use crate::audit::{Place, Unrecorded, When};
use crate::request::refusal::{Refusal, Refused};

/// Resolves when a record is on disk: true; or false where it never will be.
pub(crate) type Wait = Pin<Box<dyn Future<Output = bool> + Send + Sync>>;

/// What a record needs beside the request.
#[derive(Default)]
pub(super) struct Audited {
    /// Policy was asked. What is refused before names no policies: they had no part in it.
    by_policy: bool,
    /// What policy asks for; the mesh's setting is the least.
    asked: Option<Durability>,
    kept: Option<Arc<aip_policy::Kept>>,
    decided: bool,
    /// Where the decision stands.
    place: Option<Place>,
    /// Resolves when the decision is on disk, where its answer waits for that.
    settles: Option<Wait>,
    /// The decision let it go on.
    went_out: bool,
    pub(super) over: bool,
    /// The body of the response did not come to its end because of whoever sent it.
    broke: bool,
    /// The request's body, where it was read and never sent on.
    unsent: Passed,
}

/// As policy saw it, with the serial of its certificate.
fn party(facts: &aip_policy::PeerFacts, serial: &str) -> Party {
    Party {
        id: match facts.port {
            0 => name(facts).to_owned(),
            port => format!("{}:{port}", name(facts)),
        },
        serial: serial.to_owned(),
    }
}

/// Whether a refusal is one that anybody can cause in any number: those are counted, and not recorded each.
const fn is_strangers(refusal: Refusal) -> bool {
    matches!(
        refusal,
        Refusal::ProxyAuth | Refusal::NotLoopback | Refusal::NotTheAgent | Refusal::RateLimited
    )
}

impl Record {
    /// Takes what policy said of the audit of this request, and the facts that it read.
    pub(crate) fn audited(&mut self, asked: Option<aip_policy::Durability>, kept: Option<Arc<aip_policy::Kept>>) {
        self.audit.by_policy = true;
        self.audit.asked = asked.map(|asked| match asked {
            aip_policy::Durability::Buffered => Durability::Buffered,
            aip_policy::Durability::Grouped => Durability::Grouped,
            aip_policy::Durability::Required => Durability::Required,
        });
        self.audit.kept = kept;
    }

    /// How surely this request is recorded: the stricter of what the mesh and policy ask for.
    fn durability(&self) -> Durability {
        let mesh = match &self.ends {
            Ends::Pair(pair) => pair.snapshot.mesh.audit.durability,
            _ => self.proxy.mesh.snapshot().mesh.audit.durability,
        };
        self.audit.asked.map_or(mesh, |asked| asked.max(mesh))
    }

    /// When its records are written: with those of the same turn, where all that goes out of it does so on connections that
    /// see to that first, and nobody waits for the disk.
    fn when(&self) -> When {
        match self.durability() {
            Durability::Buffered if !self.connect => When::WithOthers,
            _ => When::AtOnce,
        }
    }

    /// Records the decision. Nothing is sent on before.
    ///
    /// # Errors
    /// It can't be recorded as surely as it must be.
    pub(crate) async fn decided(&mut self) -> Result<(), Refused> {
        let (durability, written) = (self.durability(), self.write_decision());
        self.audit.went_out = true;
        let unavailable = |why: String| Err(Refusal::AuditUnavailable.because(why));
        match written {
            Ok(Some(place)) if durability == Durability::Required => {
                if self.proxy.settings.audit.on_disk(place).await {
                    return Ok(());
                }
                unavailable("the decision can't be brought to disk".to_owned())
            }
            // The agent works meanwhile.
            Ok(Some(place)) if durability == Durability::Grouped => {
                self.audit.settles = Some(Box::pin(self.proxy.settings.audit.on_disk(place)));
                Ok(())
            }
            Err(why) if durability > Durability::Buffered => unavailable(why.to_string()),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Waits until the decision is on disk, where nothing of the answer may leave before.
    ///
    /// # Errors
    /// It can't be brought there.
    pub(crate) async fn settled(&mut self) -> Result<(), Refused> {
        let Some(settles) = self.audit.settles.take() else {
            return Ok(());
        };
        match settles.await {
            true => Ok(()),
            false => Err(Refusal::AuditUnavailable.because("the decision can't be brought to disk")),
        }
    }

    /// Records that and why the request was refused.
    pub(super) fn audit_refusal(&mut self, refused: &Refused) {
        if self.audit.decided {
            return;
        }
        if is_strangers(refused.refusal) {
            self.audit.over = true;
            let sample = || match &self.ends {
                Ends::Caller(live) => live.peer.id.to_string(),
                _ => match &self.caller {
                    Some(live) => live.peer.id.to_string(),
                    None => String::new(),
                },
            };
            return self.proxy.settings.audit.stranger(refused.refusal.reason(), sample);
        }
        // A refusal is safe without its record, which is counted as lost.
        let _ = self.write_decision();
    }

    fn write_decision(&mut self) -> Result<Option<Place>, Unrecorded> {
        self.audit.decided = true;
        let audit = self.proxy.settings.audit.clone();
        if !audit.records() {
            return Ok(None);
        }
        let when = self.when();
        let written = audit.append(Event::Decision(Box::new(self.decision_record())), when);
        self.audit.place = written.ok().flatten();
        written
    }

    fn decision_record(&mut self) -> said::Decision {
        let facts = self.facts();
        let (source, destination) = self.parties();
        let (policies, mesh_revision, revision) = match &self.ends {
            Ends::Pair(pair) => (
                match self.audit.by_policy {
                    true => pair.policies.to_vec(),
                    false => Vec::new(),
                },
                pair.snapshot.mesh_revision,
                pair.snapshot.revision,
            ),
            _ => {
                let snapshot = self.proxy.mesh.snapshot();
                (Vec::new(), snapshot.mesh_revision, snapshot.revision)
            }
        };
        said::Decision {
            id: self.decision,
            hop: self.hop,
            trace: self.trace.clone(),
            direction: direction(self.direction),
            source,
            destination,
            method: clipped(self.method.as_str()),
            path: self.path.clone(),
            protocol: self.protocol.name.clone(),
            call: clipped(&self.protocol.method),
            tool: clipped(&self.protocol.tool),
            verdict: self.verdict.to_owned(),
            reason: self.reason.clone(),
            rule: self.rule.clone(),
            tags: self.tags.iter().map(|tag| clipped(tag)).collect(),
            observed: self.observed,
            policies,
            mesh_revision,
            revision,
            facts,
        }
    }

    /// Who asked whom, as far as that is known.
    fn parties(&self) -> (Party, Party) {
        if let Ends::Pair(pair) = &self.ends {
            let (source, destination) = pair.serials();
            return (party(&pair.source, source), party(&pair.destination, destination));
        }
        let me = Party {
            id: self.proxy.mesh.snapshot().id.to_string(),
            serial: String::new(),
        };
        match (&self.ends, &self.caller) {
            (Ends::Caller(live), _) | (_, Some(live)) => {
                let peer = Party {
                    id: live.peer.id.to_string(),
                    serial: live.peer.serial.clone(),
                };
                (peer, me)
            }
            (Ends::Asked(host), None) => {
                let asked = Party {
                    id: host.clone(),
                    serial: String::new(),
                };
                (me, asked)
            }
            _ => (me, Party::default()),
        }
    }

    /// The facts that policy read, so far as they are kept.
    fn facts(&mut self) -> Facts {
        let Some(kept) = self.audit.kept.take() else {
            return Facts::default();
        };
        let auditor = match &self.ends {
            Ends::Pair(pair) => pair.snapshot.mesh.audit.auditor_key(),
            _ => None,
        };
        let sealed = auditor
            .filter(|_| !kept.sensitive.is_null() && weight(&kept.sensitive) <= MAX_FACTS / 2)
            .and_then(|auditor| seal(&auditor, &self.decision.to_string(), &kept.sensitive).ok());
        bounded(Facts {
            kept: kept.kept.clone(),
            dropped: match sealed {
                Some(_) => Vec::new(),
                None => kept.dropped.clone(),
            },
            sealed,
        })
    }

    /// Notes that the response broke off, and not because of its reader.
    pub(crate) fn broke(&mut self) {
        self.audit.broke = true;
    }

    /// Notes the body of a request that was read and not sent on.
    pub(crate) fn unsent(&mut self, body: &[u8]) {
        if let Some(seed) = self.exchange.seed().filter(|_| !body.is_empty()) {
            self.audit.unsent = Tally::of(seed, Way::Request, body);
        }
    }

    /// Records that the response comes to its end now, of whose body `passed` has passed; once. What to wait for before
    /// anybody learns of the end, if there is something.
    pub(crate) fn over(&mut self, passed: &mut Option<Tally>) -> Option<Wait> {
        if self.audit.over {
            return None;
        }
        let sent = passed.take().map(Tally::passed).unwrap_or_default();
        let (durability, written) = (self.durability(), self.write_end("complete", sent, self.when()));
        let own = self.refusal.is_some();
        match written {
            Ok(Some(place)) if durability > Durability::Buffered => {
                let on_disk = self.proxy.settings.audit.on_disk(place);
                // A refusal says nothing of the agent's: it goes out in any case.
                Some(Box::pin(async move { on_disk.await || own }))
            }
            Err(_) if durability > Durability::Buffered && !own => Some(Box::pin(std::future::ready(false))),
            Ok(_) | Err(_) => None,
        }
    }

    /// Whether its end is recorded.
    pub(crate) fn is_over(&self) -> bool {
        self.audit.over
    }

    /// Records an end that nobody waits for.
    pub(super) fn audit_end(&mut self) {
        if self.audit.over {
            return;
        }
        let end = match self.exchange.is_cut() {
            Some(cut) => cut.reason(),
            None if self.completed => "complete",
            None => "aborted",
        };
        let sent = self.tunnelled.take().unwrap_or_else(|| Passed {
            bytes: self.exchange.sent.load(Ordering::Relaxed),
            digest: None,
        });
        let _ = self.write_end(end, sent, When::AtOnce);
    }

    fn write_end(&mut self, end: &str, sent: Passed, when: When) -> Result<Option<Place>, Unrecorded> {
        self.audit.over = true;
        let audit = self.proxy.settings.audit.clone();
        if !audit.records() {
            return Ok(None);
        }
        // An end without its decision would say nothing; the decision was counted as lost.
        let Some(decision) = self.audit.place else {
            return Ok(None);
        };
        audit.append_end(Event::End(Box::new(self.end_record(end, sent))), decision, when)
    }

    fn end_record(&self, end: &str, sent: Passed) -> said::End {
        let exchange = &self.exchange;
        let received = exchange.request_in.get().copied().unwrap_or_else(|| Passed {
            bytes: exchange.received.load(Ordering::Relaxed),
            digest: None,
        });
        let went_on = received.bytes > 0 || self.audit.unsent.bytes == 0;
        // What was decided and failed later says why here; what was refused said it in its decision.
        let failed = self.refusal.filter(|_| self.audit.went_out);
        let blame = match (failed.or(self.refusal), end) {
            (Some(refusal), _) => refusal.nature().blame.as_str(),
            (None, "aborted") if self.audit.broke && self.direction == Direction::Inbound => "agent",
            (None, "aborted") if self.audit.broke => "callee",
            (None, "aborted") => "caller",
            (None, _) => "",
        };
        let own = self.refusal.is_some() || self.own;
        said::End {
            id: self.decision,
            hop: self.hop,
            direction: direction(self.direction),
            status: self.status,
            end: failed.map_or_else(|| end.to_owned(), |refusal| refusal.reason().to_owned()),
            blame: blame.to_owned(),
            other: self.callee.as_deref().map(said::End::heard).unwrap_or_default(),
            ms: u64::try_from(exchange.elapsed().as_millis()).unwrap_or(u64::MAX),
            salt: exchange
                .used_salt()
                .filter(|_| received.bytes + sent.bytes + self.audit.unsent.bytes > 0)
                .map(Salt::named)
                .unwrap_or_default(),
            request_in: if went_on { received } else { self.audit.unsent },
            request_out: received,
            response_in: match exchange.response_in.get() {
                Some(passed) => *passed,
                None if own => Passed::default(),
                None => sent,
            },
            response_out: sent,
        }
    }
}

/// Longest text of a caller's own in a record, beside facts: names of tools and hosts are shorter.
const MAX_TEXT: usize = 1024;
/// Longest facts of a record, in bytes as JSON: a record is longer than this by less than its bound is.
const MAX_FACTS: usize = MAX_RECORD_BYTES - 128 * 1024;
/// Paths that a record names as not kept, one by one.
const MAX_DROPPED: usize = 64;

fn clipped(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_TEXT)].to_owned()
}

/// The facts, or that they were too long to be kept.
fn bounded(facts: Facts) -> Facts {
    let sealed = facts.sealed.as_ref().map_or(0, |sealed| sealed.data.len());
    let most = weight(&facts.kept) + facts.dropped.iter().map(String::len).sum::<usize>();
    // Text takes at most six times its bytes; only what might be too long is measured.
    let fits = facts.dropped.len() <= MAX_DROPPED
        && (6 * most + sealed <= MAX_FACTS || serde_json::to_vec(&facts).is_ok_and(|bytes| bytes.len() <= MAX_FACTS));
    if fits {
        return facts;
    }
    Facts {
        dropped: vec!["input".to_owned()],
        ..Facts::default()
    }
}

/// At most this many bytes, before anything is escaped.
fn weight(value: &serde_json::Value) -> usize {
    use serde_json::Value;
    match value {
        Value::String(text) => text.len() + 4,
        Value::Array(items) => 2 + items.iter().map(|item| weight(item) + 1).sum::<usize>(),
        Value::Object(map) => {
            2 + map
                .iter()
                .map(|(name, item)| name.len() + weight(item) + 4)
                .sum::<usize>()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => 32,
    }
}

const fn direction(direction: Direction) -> said::Direction {
    match direction {
        Direction::Inbound => said::Direction::Inbound,
        Direction::Outbound => said::Direction::Outbound,
    }
}
