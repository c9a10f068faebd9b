//! Whether this sidecar serves. A suspension outlives the process: its marker lies in the data directory until the agent
//! is let back in.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aip_api::Digest;
use aip_api::evidence::MAX_DRIFTED_NAMED;
use aip_api::resource::Measurement;
use aip_runtime::{fault, files};
use arc_swap::ArcSwapOption;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// The marker's name in the data directory.
pub const MARKER: &str = "drift.json";
/// The run that a marker names which can't be read: nobody's, so that the sidecar is let back in as after any drift.
const UNREADABLE: &str = "unreadable";

/// Why this sidecar is suspended, as it lies on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// The run of the agent that drifted.
    pub run: String,
    /// The generation that it ran under.
    pub generation: u64,
    /// The code digest that was approved.
    pub was: Digest,
    /// The code digest that was found; none where it can't be measured, or was not yet.
    #[serde(default)]
    pub found: Option<Digest>,
    /// What would have to be approved for it.
    #[serde(default)]
    pub measurement: Option<Measurement>,
    /// How many files were measured for `found`.
    #[serde(default)]
    pub files: usize,
    /// What changed, the first [`MAX_DRIFTED_NAMED`].
    pub paths: Vec<String>,
    /// How many changed.
    pub changed: u64,
    /// Unix seconds.
    pub at: u64,
    /// Whether the control plane has answered the report.
    #[serde(default)]
    pub reported: bool,
}

impl Marker {
    fn unreadable() -> Self {
        Self {
            run: UNREADABLE.into(),
            generation: 0,
            was: Digest::sha256(b""),
            found: None,
            measurement: None,
            files: 0,
            paths: Vec::new(),
            changed: 0,
            at: aip_runtime::unix_now(),
            reported: false,
        }
    }

    /// What changed, in a sentence's part.
    pub fn names(&self) -> String {
        let more = self.changed.saturating_sub(self.paths.len() as u64);
        match (self.paths.is_empty(), more) {
            (true, _) => "what it runs can't be told".into(),
            (false, 0) => self.paths.join(", "),
            (false, more) => format!("{} and {more} more", self.paths.join(", ")),
        }
    }
}

/// Whether this sidecar serves. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Suspension(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: Option<PathBuf>,
    on: AtomicBool,
    marker: ArcSwapOption<Marker>,
    changed: watch::Sender<bool>,
    /// Whether all is known that will be known of why.
    settled: watch::Sender<bool>,
}

impl Default for Suspension {
    /// Serves, and remembers nothing: for a sidecar that measures nothing.
    fn default() -> Self {
        Self::of(None, None)
    }
}

impl Suspension {
    fn of(file: Option<PathBuf>, marker: Option<Marker>) -> Self {
        let on = marker.is_some();
        Self(Arc::new(Inner {
            file,
            on: AtomicBool::new(on),
            marker: ArcSwapOption::from_pointee(marker),
            changed: watch::Sender::new(on),
            settled: watch::Sender::new(on),
        }))
    }

    /// As the process before left it. A marker that can't be read is a marker.
    pub fn open(data: &Path) -> Self {
        let file = data.join(MARKER);
        let marker = match std::fs::read(&file) {
            Ok(bytes) => Some(serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::error!(%error, file = %file.display(), "the drift marker can't be read; this sidecar stays suspended");
                Marker::unreadable()
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::error!(%error, file = %file.display(), "the drift marker can't be read; this sidecar stays suspended");
                Some(Marker::unreadable())
            }
        };
        Self::of(Some(file), marker)
    }

    /// Whether nothing may be served. Cheap: every request asks.
    pub fn is_on(&self) -> bool {
        self.0.on.load(Ordering::Acquire)
    }

    /// Why, where it is so.
    pub fn marker(&self) -> Option<Arc<Marker>> {
        self.0.marker.load_full()
    }

    /// Changes of [`Self::is_on`].
    pub fn subscribe(&self) -> watch::Receiver<bool> {
        self.0.changed.subscribe()
    }

    /// Suspends: from this line on no request begins. Answers false where it was so already; the first reason stays.
    pub fn begin(&self, mut marker: Marker) -> bool {
        marker.paths.truncate(MAX_DRIFTED_NAMED);
        if self.0.on.swap(true, Ordering::AcqRel) {
            return false;
        }
        self.0.marker.store(Some(Arc::new(marker)));
        self.0.changed.send_replace(true);
        true
    }

    /// Notes that no more will be known of why.
    pub fn settle(&self) {
        self.0.settled.send_replace(true);
    }

    /// Resolves when that is so.
    pub async fn settled(&self) {
        let _ = self.0.settled.subscribe().wait_for(|settled| *settled).await;
    }

    /// Says more of why.
    pub fn amend(&self, change: impl FnOnce(&mut Marker)) {
        if let Some(marker) = self.marker() {
            let mut next = Marker::clone(&marker);
            change(&mut next);
            self.0.marker.store(Some(Arc::new(next)));
        }
    }

    /// Writes the marker so that it outlives this process and a power loss. Blocks.
    ///
    /// # Errors
    /// The disk; this process stays suspended, its successor measures again.
    pub fn persist(&self) -> io::Result<()> {
        let (Some(file), Some(marker)) = (&self.0.file, self.marker()) else {
            return Ok(());
        };
        files::write_private(file, &serde_json::to_vec_pretty(&*marker)?)
    }

    /// Serves again: what runs is what was approved. Blocks.
    ///
    /// # Errors
    /// The disk; it stays suspended then.
    pub fn end(&self) -> io::Result<()> {
        if let Some(file) = &self.0.file {
            let at = |step: &str| fault::point(|| format!("{MARKER}:{step}"));
            at("removing");
            match std::fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => at("removed"),
            }
            std::fs::File::open(file.parent().unwrap_or(Path::new(".")))?.sync_all()?;
            at("forgotten");
        }
        self.0.marker.store(None);
        self.0.on.store(false, Ordering::Release);
        self.0.changed.send_replace(false);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marker(paths: usize) -> Marker {
        Marker {
            run: "one".into(),
            paths: (0..paths).map(|i| format!("f{i}")).collect(),
            changed: paths as u64,
            ..Marker::unreadable()
        }
    }

    #[test]
    fn a_suspension_outlives_the_process_and_its_first_reason_stays() {
        let dir = tempfile::tempdir().unwrap();
        let first = Suspension::open(dir.path());
        assert!(!first.is_on());
        assert!(first.begin(marker(30)));
        assert!(first.is_on(), "before anything was written");
        first.persist().unwrap();
        assert!(!first.begin(marker(1)));

        let next = Suspension::open(dir.path());
        assert!(next.is_on());
        let kept = next.marker().unwrap();
        assert_eq!((kept.paths.len(), kept.changed), (MAX_DRIFTED_NAMED, 30));
        assert!(kept.names().ends_with("and 10 more"), "{}", kept.names());
        next.amend(|m| m.reported = true);
        next.persist().unwrap();
        assert!(Suspension::open(dir.path()).marker().unwrap().reported);
        next.end().unwrap();
        assert!(!next.is_on() && !Suspension::open(dir.path()).is_on());
    }

    #[test]
    fn a_marker_that_cant_be_read_suspends() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "{}", "{\"run\":", "null"] {
            std::fs::write(dir.path().join(MARKER), text).unwrap();
            assert!(Suspension::open(dir.path()).is_on(), "{text:?}");
        }
        std::fs::remove_file(dir.path().join(MARKER)).unwrap();
        std::fs::create_dir(dir.path().join(MARKER)).unwrap();
        assert!(Suspension::open(dir.path()).is_on(), "a directory in its place");
    }

    #[test]
    fn a_disk_that_takes_no_marker_leaves_this_process_suspended() {
        let dir = tempfile::tempdir().unwrap();
        let suspension = Suspension::open(&dir.path().join("absent"));
        assert!(suspension.begin(marker(1)));
        assert!(suspension.persist().is_err());
        assert!(suspension.is_on());
    }
}
