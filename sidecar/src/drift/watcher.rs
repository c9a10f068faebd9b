//! Watches what is measured: by the kernel's notices, and at a slow pace by measuring again, in case one was missed.
//! Where there are no notices to be had, it looks over and over, and says so.

use std::time::{Duration, Instant};

use aip_runtime::ready::Readiness;
use tokio::task::spawn_blocking;

use super::alarm::Alarm;
use super::interest::Interest;
use super::notices::{Notices, Seen};
use super::stamps::Stamps;
use crate::config::Measured;
use crate::identity::{MeasureError, Measurement, measure};

/// Between two measurements without cause: what notices can't tell (a write through a mapping, another machine's write to
/// a shared file system) is found within this.
const MEASURE_EVERY: Duration = Duration::from_secs(60);
/// Measuring without cause takes at most one part in this many of a thread's time, however much is declared.
const MEASURE_SHARE: u32 = 100;
/// Between two looks where there are no notices: half of what a cut may take.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The same for looking.
const LOOK_SHARE: u32 = 50;
/// How long a notice may be on its way after what it tells of was seen.
const NOTICE_DELAY: Duration = Duration::from_millis(250);
/// Before a measurement that failed is tried once more: a machine can be short of memory or files for a moment.
const TRY_AGAIN: Duration = Duration::from_millis(200);

/// How long a shortage of files or memory may keep it from looking, which others may bring about. After that it is as if
/// something had changed: a file may, unseen. Notices are heard meanwhile.
const SHORTAGE: Duration = Duration::from_secs(60);

/// Batches of notices that are read without a pause: as many as the kernel keeps by default, so that one who makes more
/// without end holds up nothing.
const MAX_BATCHES: usize = 4;

/// The readiness gate that opens once it watches.
pub const GATE: &str = "watch";

/// Watches for one sidecar.
#[derive(Debug)]
pub struct Watcher {
    alarm: Alarm,
    declared: Measured,
    ready: Readiness,
}

/// How changes come to be known.
#[derive(Debug)]
enum Eyes {
    Notices(Box<Notices>),
    Looking,
}

/// What is there, and how long it took to find out.
struct Looked {
    stamps: Stamps,
    measured: Measurement,
    took: Duration,
}

impl Watcher {
    /// A watcher; what it is to find is what the alarm expects.
    pub fn new(alarm: Alarm, declared: Measured, ready: Readiness) -> Self {
        Self { alarm, declared, ready }
    }

    /// Watches until there is a drift, or this sidecar is suspended for another reason.
    pub async fn run(self) {
        let nothing = self.alarm.expected().is_some_and(|expected| expected.is_of_nothing());
        if nothing && self.declared.config.is_empty() {
            // Nothing that could drift. What is watched for is said at the start already.
            self.ready.set(GATE, true);
            return;
        }
        let mut suspended = self.alarm.suspension().subscribe();
        let other = async {
            let _ = suspended.wait_for(|on| *on).await;
        };
        tokio::select! {
            () = other => {}
            changed = self.watch() => self.alarm.raise(changed).await,
        }
        self.ready.set(GATE, false);
    }

    /// Resolves when something drifted; answers what.
    async fn watch(&self) -> Vec<String> {
        let mut eyes = self.open_eyes().await;
        // What was heard and not seen to yet.
        let mut heard = Seen::default();
        // The watch stands: what changed before it, since the SVID was issued, is found here.
        let (mut stamps, mut due) = match self.measured(&mut eyes, &mut heard).await {
            Ok(looked) => (looked.stamps, next(looked.took)),
            Err(changed) => return changed,
        };
        self.ready.set(GATE, true);
        loop {
            let seen = match std::mem::take(&mut heard) {
                seen if seen != Seen::default() => Ok(Some(seen)),
                _ => self.hear(&mut eyes, &stamps, due).await,
            };
            let seen = match seen {
                Ok(Some(seen)) => seen,
                Ok(None) => continue,
                Err(changed) => return changed,
            };
            if !seen.changed.is_empty() {
                return seen.changed.into_iter().collect();
            }
            let mut blind = seen.blind;
            if seen.again {
                match self.open_eyes_again(&mut eyes).await {
                    Ok(unheard) => blind |= unheard,
                    Err(changed) => return changed,
                }
            }
            if seen.look {
                let looked = match self.measured(&mut eyes, &mut heard).await {
                    Ok(looked) => looked,
                    Err(changed) => return changed,
                };
                let differing = looked.stamps.differing(&stamps);
                // Lost before these stamps were taken: the next look would find nothing any more.
                blind |= heard.blind;
                if blind && !differing.is_empty() {
                    tracing::warn!(
                        "notices were lost, or there are none here, and these files were touched meanwhile: that they hold \
                         what was approved does not say that they always did"
                    );
                    return differing;
                }
                (stamps, due) = (looked.stamps, next(looked.took));
            }
        }
    }

    /// What is heard next, and from `due` on a look without cause; nothing, where there is none yet. `Err`: what changed.
    async fn hear(&self, eyes: &mut Eyes, stamps: &Stamps, due: Instant) -> Result<Option<Seen>, Vec<String>> {
        match &*eyes {
            Eyes::Notices(notices) => tokio::select! {
                seen = notices.next() => Ok(Some(seen.unwrap_or_else(|error| {
                    *eyes = looking(&error);
                    unseeing()
                }))),
                () = tokio::time::sleep_until(due.into()) => self.unheard(notices, stamps).await.map(Some),
            },
            Eyes::Looking => match self.touched(stamps).await {
                Some(changed) => Err(changed),
                None => Ok((Instant::now() >= due).then(unseeing)),
            },
        }
    }

    /// Watches what there is to watch now, and hears all that the old watch heard meanwhile: what changed, else whether
    /// some of it was lost.
    async fn open_eyes_again(&self, eyes: &mut Eyes) -> Result<bool, Vec<String>> {
        let before = std::mem::replace(eyes, self.open_eyes().await);
        let Eyes::Notices(before) = before else {
            return Ok(true);
        };
        let mut blind = false;
        loop {
            let Ok((late, emptied)) = before.read() else {
                return Ok(true);
            };
            if !late.changed.is_empty() {
                return Err(late.changed.into_iter().collect());
            }
            blind |= late.blind;
            if emptied {
                return Ok(blind);
            }
        }
    }

    /// What is there, where it is what was approved; else what changed, as far as that is known.
    async fn measured(&self, eyes: &mut Eyes, heard: &mut Seen) -> Result<Looked, Vec<String>> {
        let looked = patiently(|| look(self.declared.clone()), eyes, heard).await?;
        hear_now(eyes, heard)?;
        match looked {
            Ok(looked) if self.alarm.fits(&looked.measured) => Ok(looked),
            Ok(_) => Err(Vec::new()),
            Err(error) => {
                tracing::error!(reason = error.reason(), %error, "what is measured can't be any more");
                Err(Vec::new())
            }
        }
    }

    /// A look without cause, while there are notices: were files touched of which none came?
    async fn unheard(&self, notices: &Notices, stamps: &Stamps) -> Result<Seen, Vec<String>> {
        let blind = Seen {
            look: true,
            blind: true,
            ..Seen::default()
        };
        let Ok(now) = stamps_of(self.declared.clone()).await else {
            return Ok(blind);
        };
        if now.differing(stamps).is_empty() {
            return Ok(blind);
        }
        match tokio::time::timeout(NOTICE_DELAY, notices.next()).await {
            // It was on its way.
            Ok(Ok(seen)) => Ok(Seen { look: true, ..seen }),
            _ => Err(now.differing(stamps)),
        }
    }

    /// Waits a while, then answers which files were touched. Nothing tells a touched file from one that was written and
    /// restored here, so the first counts as the second. A shortage is waited for: afterwards the stamps tell.
    async fn touched(&self, stamps: &Stamps) -> Option<Vec<String>> {
        let begun = Instant::now();
        let take = || stamps_of(self.declared.clone());
        let changed = match patiently(take, &mut Eyes::Looking, &mut Seen::default()).await {
            Ok(Ok(now)) => now.differing(stamps),
            // Which also measuring will say.
            Ok(Err(_)) | Err(_) => return Some(Vec::new()),
        };
        if !changed.is_empty() {
            return Some(changed);
        }
        tokio::time::sleep(LOOK_EVERY.max(begun.elapsed() * LOOK_SHARE)).await;
        None
    }

    async fn open_eyes(&self) -> Eyes {
        let declared = self.declared.clone();
        let interest = spawn_blocking(move || Interest::of(&declared)).await;
        let notices = match interest {
            Ok(Ok(interest)) => Notices::of(interest),
            Ok(Err(error)) => Err(std::io::Error::other(error)),
            Err(error) => Err(std::io::Error::other(error)),
        };
        match notices {
            Ok(notices) => {
                metrics::gauge!("aip_drift_watched").set(1.0);
                Eyes::Notices(Box::new(notices))
            }
            Err(error) => looking(&error),
        }
    }
}

async fn look(declared: Measured) -> Result<Looked, MeasureError> {
    let looked = spawn_blocking(move || {
        let begun = Instant::now();
        // Before: a write while it is measured leaves another stamp, or another measurement.
        let stamps = Stamps::take(&declared)?;
        let measured = measure(&declared)?;
        let took = begun.elapsed();
        Ok(Looked { stamps, measured, took })
    });
    looked
        .await
        .unwrap_or_else(|error| Err(MeasureError::Glob(error.to_string())))
}

async fn stamps_of(declared: Measured) -> Result<Stamps, MeasureError> {
    let taken = spawn_blocking(move || Stamps::take(&declared)).await;
    taken.unwrap_or_else(|error| Err(MeasureError::Glob(error.to_string())))
}

/// What `look` answers: once more where it fails, and over and over while there is a shortage of files or memory. What is
/// heard meanwhile of something that is drift for certain ends it at once, and is answered as the outer error; the rest
/// of it is put into `heard`.
async fn patiently<T, F: Future<Output = Result<T, MeasureError>>>(
    mut look: impl FnMut() -> F,
    eyes: &mut Eyes,
    heard: &mut Seen,
) -> Result<Result<T, MeasureError>, Vec<String>> {
    let mut looked = look().await;
    if looked.is_err() {
        hear_for(TRY_AGAIN, eyes, heard).await?;
        looked = look().await;
    }
    let begun = tokio::time::Instant::now();
    while let Err(error) = &looked
        && error.is_shortage()
        && begun.elapsed() < SHORTAGE
    {
        tracing::warn!(%error, "what is measured can't be read now; trying again");
        hear_for(LOOK_EVERY, eyes, heard).await?;
        looked = look().await;
    }
    Ok(looked)
}

/// Hears what there is to hear without waiting: answers what changed as an error.
fn hear_now(eyes: &mut Eyes, heard: &mut Seen) -> Result<(), Vec<String>> {
    for _ in 0..MAX_BATCHES {
        let Eyes::Notices(notices) = eyes else { break };
        match notices.read() {
            Ok((seen, _)) if !seen.changed.is_empty() => return Err(seen.changed.into_iter().collect()),
            Ok((seen, emptied)) => {
                heard.add(seen);
                if emptied {
                    break;
                }
            }
            Err(error) => {
                *eyes = looking(&error);
                heard.add(unseeing());
            }
        }
    }
    Ok(())
}

/// Waits so long, and hears notices meanwhile: answers what changed as an error.
async fn hear_for(wait: Duration, eyes: &mut Eyes, heard: &mut Seen) -> Result<(), Vec<String>> {
    let until = tokio::time::Instant::now() + wait;
    while let Eyes::Notices(notices) = eyes {
        match tokio::time::timeout_at(until, notices.next()).await {
            Err(_) => return Ok(()),
            Ok(Ok(seen)) if seen.changed.is_empty() => heard.add(seen),
            Ok(Ok(seen)) => return Err(seen.changed.into_iter().collect()),
            Ok(Err(error)) => {
                *eyes = looking(&error);
                heard.add(unseeing());
            }
        }
    }
    tokio::time::sleep_until(until).await;
    Ok(())
}

fn looking(error: &std::io::Error) -> Eyes {
    metrics::gauge!("aip_drift_watched").set(0.0);
    tracing::warn!(
        reason = "not_watched", %error,
        "the kernel gives no notices of changes here (fs.inotify.max_user_watches?); files are looked at every second \
         instead, and touching one counts as a change"
    );
    Eyes::Looking
}

fn next(took: Duration) -> Instant {
    Instant::now() + MEASURE_EVERY.max(took * MEASURE_SHARE)
}

/// All must be looked at, since nothing says what was done meanwhile.
fn unseeing() -> Seen {
    Seen {
        look: true,
        blind: true,
        ..Seen::default()
    }
}

#[cfg(test)]
mod tests;
