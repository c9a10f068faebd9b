//! Phase 4, decide: policy over the facts.

use aip_policy::{Decision, Obligations, Verdict};

use super::classify::Classified;
use super::refusal::{Refusal, Refused};
use super::{Arrived, told};

/// Asks policy, and carries out its verdict: this version knows allow and deny, and refuses what it does not know.
pub(crate) fn decide(arrived: &mut Arrived, classified: &mut Classified) -> Result<(), Refused> {
    let content = std::mem::take(&mut classified.content);
    let (pair, told, now) = (&classified.pair, &mut classified.told, classified.now);
    let record = &arrived.record;
    let (decision, said, kept) = told::decision(&arrived.proxy, record.direction, pair, told, content, now, true)?;
    // What the body was read into is gone; its bytes stay.
    if let Some(held) = &mut told.held {
        held.settle();
    }
    let record = &mut arrived.record;
    record.verdict = decision.verdict.as_str();
    record.rule = decision.rule().to_owned();
    record.cached = decision.cached;
    record.tags.clone_from(&decision.obligations.tags);
    record.protocol = said;
    record.audited(decision.obligations.audit, kept);
    let Some(refused) = refusal(&decision) else {
        return Ok(());
    };
    if pair.snapshot.me.mode.enforces(classified.now) {
        return Err(refused);
    }
    record.observed = true;
    record.reason = refused.refusal.reason().to_owned();
    arrived.proxy.metrics.observed(record.direction);
    Ok(())
}

/// Why it must not go on, if it must not: an allow with an obligation that nobody here carries out is none.
pub(crate) fn refusal(decision: &Decision) -> Option<Refused> {
    let refusal = match decision.verdict {
        Verdict::Allow if decision.obligations == kept(&decision.obligations) => return None,
        Verdict::Allow => Refusal::UnsupportedObligation,
        Verdict::Deny => Refusal::PolicyDenied,
        Verdict::Escalate | Verdict::Warn | Verdict::Restrict | Verdict::Transform => Refusal::UnsupportedVerdict,
    };
    Some(Refused {
        refusal,
        detail: Some(decision.reason().to_owned()),
        rule: Some(decision.rule().to_owned()),
        retry_after: None,
    })
}

/// The obligations that this version honours: how surely it is recorded, and words for the record.
fn kept(obligations: &Obligations) -> Obligations {
    Obligations {
        audit: obligations.audit,
        tags: obligations.tags.clone(),
        ..Obligations::default()
    }
}
