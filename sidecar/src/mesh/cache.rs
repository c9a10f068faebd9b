//! The last good configuration on disk: the signed resources as they came, in the data directory, and a sealed note of
//! their digest and of the highest revision ever applied, in the runtime directory beside the identity.
//!
//! What loads is what was written last, as the note says. A cache that is older, cut or mixed does not load, nor does a
//! copy of the data directory that was made without the runtime directory in it. Whoever can write the runtime directory
//! can put back an older note, too, and with it what held then: no clock is signed that would tell.

use std::io;
use std::path::{Path, PathBuf};

use aip_api::{Digest, wire};
use aip_runtime::files;
use aip_runtime::sealing::SealingKey;
use prost::Message as _;
use serde::{Deserialize, Serialize};

/// Largest cache that is read back: 100,000 small resources.
const MAX_BYTES: u64 = 256 * 1024 * 1024;
/// What the note is sealed for.
const LABEL: &str = "aip-sidecar config floor";

/// Why a cache was not loaded. The sidecar then waits for its control plane.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// There is none.
    #[error("there is no cached configuration")]
    Absent,
    /// Can't be read or written.
    #[error("the cached configuration: {0}")]
    Io(#[from] io::Error),
    /// Not what was written last.
    #[error("the cached configuration is not the one that was written last ({0}); it is not loaded")]
    Altered(&'static str),
}

#[derive(Serialize, Deserialize)]
struct Floor {
    revision: u64,
    digest: Digest,
    /// Which of the two files it is the digest of.
    #[serde(default)]
    slot: usize,
}

/// Where the cache lies, and the key of its note.
#[derive(Debug)]
pub struct Cache {
    /// Written in turn, so that a crash between a file and its note leaves the earlier pair whole.
    resources: [PathBuf; 2],
    floor: PathBuf,
    key: std::sync::Arc<SealingKey>,
}

impl Cache {
    /// A cache in `data`, with its note in `runtime`, which is never backed up.
    pub fn new(data: &Path, runtime: &Path, key: std::sync::Arc<SealingKey>) -> Self {
        Self {
            resources: ["config.cache", "config.cache.1"].map(|name| data.join(name)),
            floor: runtime.join("config.floor"),
            key,
        }
    }

    /// Writes what is held. Readers see the old cache or the new one: the note names the file and its digest, is written
    /// after it, and the file of the note before is not touched.
    ///
    /// # Errors
    /// The disk.
    pub fn store<'a>(
        &self,
        revision: u64,
        resources: impl Iterator<Item = &'a wire::Resource> + Clone,
    ) -> Result<(), CacheError> {
        // All of it at once, and no more: this is done after every push.
        let all = resources.clone().map(|r| {
            let length = r.encoded_len();
            prost::length_delimiter_len(length) + length
        });
        let mut bytes = Vec::with_capacity(all.sum());
        for resource in resources {
            resource.encode_length_delimited(&mut bytes).map_err(io::Error::other)?;
        }
        let slot = self.note().map_or(0, |note| 1 - note.slot.min(1));
        let note = Floor {
            revision,
            digest: Digest::sha256(&bytes),
            slot,
        };
        let note = serde_json::to_vec(&note).map_err(io::Error::other)?;
        let sealed = self.key.seal(LABEL, &note).map_err(io::Error::other)?;
        files::write_private(&self.resources[slot], &bytes)?;
        files::write_private(&self.floor, &sealed)?;
        Ok(())
    }

    /// What was written last, and the revision floor.
    ///
    /// # Errors
    /// Absent, unreadable, or not what was written last.
    pub fn load(&self) -> Result<(u64, Vec<wire::Resource>), CacheError> {
        let floor = self.note()?;
        let path = self.resources.get(floor.slot);
        let path = path.ok_or(CacheError::Altered("its note names no file"))?;
        if std::fs::metadata(path)?.len() > MAX_BYTES {
            return Err(CacheError::Altered("it is too large"));
        }
        let bytes = std::fs::read(path)?;
        if Digest::sha256(&bytes) != floor.digest {
            return Err(CacheError::Altered("its digest is another"));
        }
        let mut rest = &bytes[..];
        let mut resources = Vec::new();
        while !rest.is_empty() {
            let resource = wire::Resource::decode_length_delimited(&mut rest);
            resources.push(resource.map_err(|_| CacheError::Altered("it can't be decoded"))?);
        }
        Ok((floor.revision, resources))
    }

    fn note(&self) -> Result<Floor, CacheError> {
        if !self.floor.exists() {
            return Err(CacheError::Absent);
        }
        let note = self.key.open(LABEL, &std::fs::read(&self.floor)?);
        let note = note.map_err(|_| CacheError::Altered("its note can't be opened"))?;
        serde_json::from_slice(&note).map_err(|_| CacheError::Altered("its note can't be read"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(name: &str) -> wire::Resource {
        wire::Resource {
            name: name.into(),
            revision: 3,
            ..Default::default()
        }
    }

    #[test]
    fn only_what_was_written_last_loads() {
        let (data, runtime) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let key = std::sync::Arc::new(SealingKey::generate().unwrap());
        let cache = Cache::new(data.path(), runtime.path(), key);
        assert!(matches!(cache.load(), Err(CacheError::Absent)));
        let (old, new) = ([resource("a")], [resource("a"), resource("b")]);
        cache.store(3, old.iter()).unwrap();
        let old_file = std::fs::read(&cache.resources[0]).unwrap();
        cache.store(4, new.iter()).unwrap();
        assert_eq!(cache.load().unwrap(), (4, new.to_vec()));
        let new_file = std::fs::read(&cache.resources[1]).unwrap();
        for bad in [old_file, new_file[..new_file.len() - 1].to_vec(), vec![]] {
            std::fs::write(&cache.resources[1], bad).unwrap();
            assert!(matches!(cache.load(), Err(CacheError::Altered(_))));
        }
    }

    #[test]
    fn a_file_without_its_note_leaves_the_earlier_cache() {
        let (data, runtime) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let key = std::sync::Arc::new(SealingKey::generate().unwrap());
        let cache = Cache::new(data.path(), runtime.path(), key);
        for revision in 3..6 {
            let note = std::fs::read(&cache.floor).ok();
            cache.store(revision, [resource("a")].iter()).unwrap();
            // As after a crash between the two.
            if let Some(note) = note {
                let newer = std::fs::read(&cache.floor).unwrap();
                std::fs::write(&cache.floor, note).unwrap();
                assert_eq!(cache.load().unwrap().0, revision - 1);
                std::fs::write(&cache.floor, newer).unwrap();
            }
            assert_eq!(cache.load().unwrap().0, revision);
        }
    }

    #[test]
    fn a_copy_of_the_whole_data_directory_does_not_bring_back_what_was_revoked() {
        let (data, runtime) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let key = std::sync::Arc::new(SealingKey::generate().unwrap());
        let cache = Cache::new(data.path(), runtime.path(), key.clone());
        cache.store(3, [resource("before")].iter()).unwrap();
        let copied = std::fs::read_dir(data.path()).unwrap().map(|e| e.unwrap().path());
        let copied: Vec<_> = copied
            .map(|path| (path.clone(), std::fs::read(path).unwrap()))
            .collect();
        cache.store(4, [resource("revoked")].iter()).unwrap();
        // Beside what is there, and in its place.
        for (path, bytes) in &copied {
            std::fs::write(path, bytes).unwrap();
        }
        assert_eq!(cache.load().unwrap().0, 4);
        std::fs::remove_dir_all(data.path()).unwrap();
        std::fs::create_dir(data.path()).unwrap();
        for (path, bytes) in copied {
            std::fs::write(path, bytes).unwrap();
        }
        assert!(cache.load().is_err());
        cache.store(5, [resource("next")].iter()).unwrap();
        assert_eq!(cache.load().unwrap().0, 5);

        // Nor does it load where there is no note: on another machine, or after the identity is gone.
        let elsewhere = tempfile::tempdir().unwrap();
        let cache = Cache::new(data.path(), elsewhere.path(), key);
        assert!(matches!(cache.load(), Err(CacheError::Absent)));
    }
}
