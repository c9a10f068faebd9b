//! A log that is brought back to what is surely on disk.

use std::fs::{self, OpenOptions};
use std::path::Path;

use super::{Head, LONGEST, Lines, LogError, Manifest, Options, Step, Writer, segment_path, segments};

/// Opens a log of which only the records of `durable` are surely on disk: what follows them is cut away, and what is left
/// is on disk when this returns.
///
/// # Errors
/// The disk does not allow it; or those records are not the ones that `durable` speaks of.
pub fn cut_to(dir: &Path, durable: &Head, options: Options) -> Result<Writer, LogError> {
    let mut manifest = Manifest::read(dir)?;
    let begins = manifest.begins();
    let gone = begins.checked_sub(1).and_then(|last| manifest.of(last));
    let mut at = gone.map_or(0, super::Closed::end);
    let mut present = segments(dir)?;
    present.retain(|number| *number >= begins);
    let mut ends = None;
    for number in &present {
        if let Some(end) = end_of(&segment_path(dir, *number), &mut at, durable.size)? {
            ends = Some((*number, end));
            break;
        }
    }
    if let Some((number, end)) = ends {
        // In this order the log can be opened whenever this ends half way.
        manifest.closed.retain(|closed| closed.segment < number);
        manifest.write(dir, options.step)?;
        for later in present.into_iter().rev().take_while(|later| *later > number) {
            let path = segment_path(dir, later);
            (options.step)("log:later_removing");
            fs::remove_file(&path).map_err(|e| LogError::io(&path, e))?;
            (options.step)("log:later_removed");
        }
        cut(&segment_path(dir, number), end, options.step)?;
    }
    let (writer, _) = Writer::open(dir, options)?;
    let found = writer.head();
    if found != *durable {
        let why = format!(
            "{} records with the root {} are not those that were written",
            found.size, found.root
        );
        return Err(LogError::damaged(dir, 0, Some(durable.size), why));
    }
    writer.sync_handle().sync()?;
    Ok(writer)
}

/// Cuts a segment, and brings that to disk.
pub(super) fn cut(path: &Path, end: u64, step: Step) -> Result<(), LogError> {
    let failed = |e| LogError::io(path, e);
    let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
    step("log:tail_cutting");
    file.set_len(end).map_err(failed)?;
    step("log:tail_cut");
    file.sync_all().map_err(failed)?;
    step("log:tail_synced");
    Ok(())
}

/// Where record `size` would begin in this segment, if there is one after it or no end; `at` counts records.
fn end_of(path: &Path, at: &mut u64, size: u64) -> Result<Option<u64>, LogError> {
    for line in Lines::open(path, LONGEST)? {
        let line = line?;
        if *at == size || !line.ended {
            return Ok(Some(line.offset));
        }
        *at += 1;
    }
    Ok(None)
}
