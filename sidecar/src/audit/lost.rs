//! Records that could not be written: counted in a file that is there before there is need, so that a crash of this process
//! does not forget them, and a full disk has room for the count.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

/// The file, beside the logs.
const NAME: &str = "lost";
/// Why records are lost, as gaps say it.
const WORDS: [&str; 4] = ["io", "disk_full", "quota", "share"];
/// Longest text of the file: a number of 20 digits and a word.
const MAX_TEXT: u64 = 64;

pub(super) struct Lost {
    file: Option<File>,
    /// Since the last record that could be written.
    unsaid: u64,
    because: &'static str,
    in_all: u64,
}

impl Lost {
    /// What an earlier life could not say any more.
    pub(super) fn open(root: &Path) -> Self {
        // Without the file the count is as good as this process' life.
        let _ = std::fs::create_dir_all(root);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(root.join(NAME)).ok();
        let mut text = String::new();
        if let Some(file) = &file {
            let _ = file.take(MAX_TEXT).read_to_string(&mut text);
        }
        let mut words = text.split_whitespace();
        let unsaid = words.next().and_then(|count| count.parse().ok()).unwrap_or(0);
        let because = words
            .next()
            .and_then(|word| WORDS.into_iter().find(|known| *known == word));
        let lost = Self {
            file,
            unsaid,
            because: because.unwrap_or("io"),
            in_all: unsaid,
        };
        // Takes its room on the disk now.
        lost.write();
        lost
    }

    pub(super) fn add(&mut self, why: &'static str, count: u64) {
        self.unsaid += count;
        self.in_all += count;
        self.because = why;
        self.write();
    }

    /// What the log does not say yet.
    pub(super) fn unsaid(&self) -> Option<(u64, &'static str)> {
        (self.unsaid > 0).then_some((self.unsaid, self.because))
    }

    /// The log says it now. A crash before the file knows says it twice: rather that than not at all.
    pub(super) fn said(&mut self) {
        self.unsaid = 0;
        self.write();
    }

    pub(super) const fn in_all(&self) -> u64 {
        self.in_all
    }

    fn write(&self) {
        let text = format!("{:020} {:<16}\n", self.unsaid, self.because);
        if let Some(file) = &self.file {
            let _ = file.write_all_at(text.as_bytes(), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_is_known_after_a_crash_until_it_was_said() {
        let dir = tempfile::tempdir().unwrap();
        let mut lost = Lost::open(dir.path());
        assert_eq!(lost.unsaid(), None);
        lost.add("disk_full", 7);
        drop(lost);
        let mut lost = Lost::open(dir.path());
        lost.add("disk_full", 1);
        assert_eq!((lost.unsaid(), lost.in_all()), (Some((8, "disk_full")), 8));
        lost.said();
        assert_eq!(Lost::open(dir.path()).unsaid(), None);
        std::fs::write(dir.path().join(NAME), "what?").unwrap();
        assert_eq!(Lost::open(dir.path()).unsaid(), None);
    }
}
