//! Checkpoints: this sidecar's signature, by the key of its SVID, under how far its log reaches and what it holds. Only
//! what is on disk is signed: after a power loss a log that ends before a checkpoint would look like one that was cut.

use std::time::Duration;

use aip_audit::checkpoint::CHECKPOINT_TYP;
use aip_runtime::jws;
use aip_runtime::svid::{Svid, SvidSource};
use tokio::time::MissedTickBehavior;

use super::book::{Place, Unsigned};
use super::{Audit, Shared, When, unix_millis};
use crate::mesh::Mesh;

/// How often: at least every 5 s is promised, and a flush and a signature come before each.
const EVERY: Duration = Duration::from_secs(4);

/// Signs for as long as the process lives. Without an SVID nothing can be signed; the next one signs it all.
pub async fn run(audit: Audit, svid: SvidSource, mesh: Mesh) {
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut renewed = svid.subscribe();
    loop {
        audit.flush_every(mesh.snapshot().mesh.audit.flush_ms);
        sign(&audit, &svid, false).await;
        tokio::select! {
            _ = tick.tick() => {}
            changed = renewed.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

/// The last one: the log ends here, and takes no record any more.
pub async fn close(audit: &Audit, svid: &SvidSource) {
    let Some(shared) = audit.shared() else { return };
    for event in shared.strangers.take() {
        let _ = shared.append(event, None, When::AtOnce);
    }
    // A recovery that was not signed yet comes first.
    sign(audit, svid, false).await;
    sign(audit, svid, true).await;
    let (life, seq) = {
        let book = shared.book();
        (book.life(), book.size().checked_sub(1))
    };
    // The checkpoint itself is a line in a file, too.
    if let Some(seq) = seq {
        audit.on_disk(Place::in_file(life, seq)).await;
    }
    shared.book().close();
    shared.kept.send_modify(|kept| *kept += 1);
}

/// Signs what is there and new. Failures are said and tried again: nothing is lost but time.
pub async fn sign(audit: &Audit, svid: &SvidSource, closes: bool) {
    let (Some(shared), Some(svid)) = (audit.shared(), svid.current()) else {
        return;
    };
    // Nobody believes what a key signs outside the time of its certificate.
    let (identity, now) = (&svid.identity, aip_runtime::unix_now());
    if now < identity.not_before || now >= identity.not_after {
        return;
    }
    sign_left(shared, &svid);
    let Some(unsigned) = shared.book().unsigned(svid.id(), closes, unix_millis()) else {
        return;
    };
    let last = Place::in_file(unsigned.life, unsigned.checkpoint.size.saturating_sub(1));
    if !audit.on_disk(last).await {
        return;
    }
    let statement = match jws::sign_es256(svid.pkcs8(), CHECKPOINT_TYP, &unsigned.checkpoint) {
        Ok(statement) => statement,
        Err(error) => {
            return tracing::error!(reason = "checkpoint_not_signed", %error, "an audit checkpoint can't be signed");
        }
    };
    let kept = shared.book().keep(&unsigned, &statement, &svid.chain);
    match kept {
        Ok(()) => shared.kept.send_modify(|kept| *kept += 1),
        Err(error) => tracing::error!(reason = error.reason(), %error, "an audit checkpoint can't be kept"),
    }
}

/// Signs the last word about a log that the disk took no more of. What it covers was on disk before that.
fn sign_left(shared: &Shared, svid: &Svid) {
    let mut book = shared.book();
    let Some(left) = book.left_mut() else { return };
    let unsigned = left.unsigned(svid.id(), unix_millis());
    let sign = |unsigned: &Unsigned| jws::sign_es256(svid.pkcs8(), CHECKPOINT_TYP, &unsigned.checkpoint);
    let kept = match unsigned.iter().map(sign).collect::<Result<Vec<_>, _>>() {
        Ok(statements) if statements.is_empty() => return,
        Ok(statements) => left.keep(&statements, &svid.chain).map_err(|e| e.to_string()),
        Err(error) => Err(error.to_string()),
    };
    drop(book);
    match kept {
        Ok(()) => shared.want(),
        Err(error) => tracing::error!(error, "the last word about an audit log can't be kept"),
    }
}
