//! `aip audit verify`.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use aip_audit::verify::{self, CopyReport, Fault, Progress, Report};

use super::trust::Trust;
use super::{download, files};
use crate::Globals;
use crate::exit::{Exit, Failure};
use crate::output::{self, Table, brief, counted, one_line, timestamp};

/// Between two words about progress, and how long nothing is said at first.
const EVERY: Duration = Duration::from_secs(1);
/// Faults that a table shows; `--output json` has them all.
const SHOWN: usize = 20;

/// What a verification came to.
pub(crate) struct Verified(pub(crate) Report);

/// Verifies what is in `dir`.
pub(crate) async fn verified(globals: &Globals, dir: &Path, trust: Option<&Path>) -> Result<Verified, Failure> {
    let sources = files::logs(dir)?;
    let trust = Trust::find(globals, Some(dir), trust).await?;
    let started = Instant::now();
    let mut said = started;
    let terminal = std::io::stderr().is_terminal();
    let report = verify::verify(&sources, &trust, &mut |progress: Progress| {
        if said.elapsed() >= EVERY && terminal {
            said = Instant::now();
            let percent = progress.done.saturating_mul(100) / progress.all.max(1);
            let _ = write!(
                std::io::stderr(),
                "\rverifying {percent:>3} %, {} MiB ",
                progress.done >> 20
            );
        }
    });
    if said != started {
        let _ = write!(std::io::stderr(), "\r{}\r", " ".repeat(40));
    }
    Ok(Verified(report))
}

pub(super) async fn perform(globals: &Globals, dir: Option<&Path>, trust: Option<&Path>) -> anyhow::Result<ExitCode> {
    let Verified(report) = match dir {
        Some(dir) => verified(globals, dir, trust).await?,
        None => {
            let temp = tempfile::tempdir()?;
            let into = temp.path().join("export");
            let fetching = download::fetch(globals, &into);
            Box::pin(output::waiting("fetching what the control plane has", fetching)).await?;
            verified(globals, &into, trust).await?
        }
    };
    if globals.json() {
        output::json(&report);
    } else {
        print(&report);
    }
    Ok(if report.intact() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(Exit::Failed as u8)
    })
}

fn print(report: &Report) {
    logs(report);
    report.copies.iter().for_each(copy);
    let hops = &report.hops;
    output::line(format!(
        "hops: {} with both ends, {} agreed ({} with a body that one end did not see whole); {} cut, {} pending, {} refused \
         or unanswered at the caller, {} without the other end's log, {} dropped there, {} that the other end says it could not write",
        hops.both,
        hops.agreed,
        hops.unproven,
        hops.cut,
        hops.pending,
        hops.one_end,
        hops.no_log,
        hops.dropped,
        hops.lost
    ));
    if let Some(ledger) = &report.ledger {
        output::line(format!(
            "control plane: {} of {}, under {}",
            ledger.covered,
            counted(ledger.checkpoints, "checkpoint"),
            counted(ledger.heads, "signed tree head")
        ));
        if let Some(until) = ledger.dropped_until {
            let gone = counted(ledger.dropped, "checkpoint");
            let until = timestamp(until / 1000);
            output::line(format!(
                "  by its signed word, the first {gone} are kept no more, none signed after {until}"
            ));
        }
    }
    let all = report.faults.len() as u64 + report.more_faults;
    if all == 0 {
        return intact(report);
    }
    output::line(format!("NOT INTACT: {}", counted(all, "fault")));
    report.faults.iter().take(SHOWN).for_each(fault);
    if all > SHOWN as u64 {
        output::note(format!("{} more; --output json has them", all - SHOWN as u64));
    }
}

/// What it means that nothing is wrong with what is here.
fn intact(report: &Report) {
    if report.is_whole() {
        output::line("intact: nothing was changed, left out or cut");
        return;
    }
    output::line("intact, as far as it is here: nothing of it was changed");
    if report.ledger.as_ref().is_none_or(|ledger| ledger.heads == 0) {
        output::line("  no signed tree head is here: logs and ends of logs that were taken away do not show");
    }
    if report.hops.no_log > 0 {
        let hops = counted(report.hops.no_log, "hop");
        output::line(format!("  of {hops} the other end's log is not here"));
    }
    let lacking = [
        (report.hops.cut, "one end does not say how it ended, as after a crash"),
        (report.hops.dropped, "a quota took what one end recorded"),
    ];
    for (hops, lacks) in lacking.into_iter().filter(|(hops, _)| *hops > 0) {
        output::line(format!("  of {} {lacks}", counted(hops, "hop")));
    }
    for path in &report.unread {
        output::line(format!("  not read: {}", one_line(path)));
    }
    let gaps = report.logs.iter().map(|log| log.gaps).fold(0, u64::saturating_add);
    if gaps > 0 {
        let records = counted(gaps, "record");
        output::line(format!(
            "  {records} could not be written, by the signed word of their sidecars"
        ));
    }
}

fn logs(report: &Report) {
    let mut table = Table::new([
        "LOG",
        "AGENT",
        "RECORDS",
        "SIGNED",
        "UP TO",
        "CHECKPOINTS",
        "DROPPED",
        "GAPS",
    ]);
    for log in &report.logs {
        let agent = log.agent.as_deref().map_or("-", |a| a.rsplit('/').next().unwrap_or(a));
        table.row([
            log.log.clone(),
            brief(agent),
            log.records.to_string(),
            log.signed.to_string(),
            log.signed_at.map_or("-".into(), |at| timestamp(at / 1000)),
            log.checkpoints.to_string(),
            log.dropped.to_string(),
            log.gaps.to_string(),
        ]);
    }
    table.print("no logs");
}

/// A further copy of a log.
fn copy(copy: &CopyReport) {
    let (records, signed) = (counted(copy.records, "record"), copy.signed);
    let ahead = match copy.ahead {
        0 => String::new(),
        more => format!("; {} that the log above has not", counted(more, "record")),
    };
    let dir = one_line(&copy.dir);
    output::line(format!("also read: {dir}: {records}, {signed} signed{ahead}"));
}

fn fault(fault: &Fault) {
    let line = fault.line.map(|n| format!(" line {n}")).unwrap_or_default();
    let seq = fault.seq.map(|n| format!(", record {n}")).unwrap_or_default();
    let decision = fault.decision.as_ref().map(|d| format!(", decision {d}"));
    let decision = decision.unwrap_or_default();
    let file = one_line(&fault.file);
    output::line(format!("{}: {file}{line}{seq}{decision}", fault.kind.as_str()));
    output::line(format!("  {}", one_line(&fault.detail)));
    output::line(format!("  {}", fault.means));
}
