//! Opening the data directory: the mesh that is there, or a new one.

mod create;
mod reset;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use aip_api::resource::MeshMode;
use aip_runtime::files::{DirLock, FilesError, write_private};
use aip_runtime::sealing::{SealError, SealingKey};

use crate::admin::socket::SocketError;
use crate::ca::material::Material;
use crate::ca::{Ca, CaError};
use crate::clock::Clock;
use crate::refusal::Refusal;
use crate::registry::records::MeshRecord;
use crate::registry::{Registry, Versioned, keys};
use crate::settings::Settings;
use crate::store::disk::DiskStore;
use crate::store::{Store, StoreError};

pub use create::baseline;
pub use reset::{SUBCOMMAND, reset_admin};

/// The database in the data directory.
pub const STORE_FILE: &str = "store.redb";
/// The first admin token.
pub const ADMIN_TOKEN_FILE: &str = "admin.jwt";
/// The sealing key that a `dev` mesh makes for itself.
pub const KEY_FILE: &str = "data.key";
/// The environment variable that holds the sealing key.
pub const KEY_VARIABLE: &str = "AIP_DATA_KEY";

/// Why the control plane can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// A file in it.
    #[error("{path} can't be written: {why}")]
    Write {
        /// Which.
        path: String,
        /// Why.
        why: std::io::Error,
    },
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The sealing key.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// No sealing key where one is required.
    #[error("a prod mesh needs a sealing key that is not made beside its data: --key-file FILE, or AIP_DATA_KEY")]
    KeyRequired,
    /// A sealing key beside what it seals.
    #[error(
        "the sealing key {0} lies in the data directory of a prod mesh: who copies the data would have the key; keep it elsewhere"
    )]
    KeyBesideData(String),
    /// There is no mesh to work on.
    #[error("{0} holds no mesh")]
    NoMesh(String),
    /// The CA.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// Fixed at the mesh's creation.
    #[error(
        "this mesh was created with {}, which never changes; start without {}, or make another mesh in another --data directory",
        .0.iter().map(|f| format!("{} {}", f.what, f.found)).collect::<Vec<_>>().join(" and "),
        .0.iter().map(|f| format!("--{}", f.flag)).collect::<Vec<_>>().join(" and ")
    )]
    Immutable(Vec<Fixed>),
    /// A setting.
    #[error(transparent)]
    Settings(#[from] aip_runtime::settings::SettingsError),
    /// The admin API's socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A document of the mesh.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A socket or thread.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl StartError {
    /// The stable reason.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Files(error) => error.reason(),
            Self::Write { .. } => "data_dir_not_writable",
            Self::Store(error) => error.reason(),
            Self::Seal(_) => "sealing_key",
            Self::KeyRequired => "sealing_key_required",
            Self::KeyBesideData(_) => "sealing_key_beside_data",
            Self::NoMesh(_) => "no_mesh",
            Self::Ca(error) => error.reason(),
            Self::Immutable(_) => "immutable",
            Self::Settings(error) => error.reason(),
            Self::Socket(error) => error.reason(),
            Self::Refused(refusal) => refusal.reason.row().reason,
            Self::Io(_) => "io",
        }
    }
}

/// A setting that was fixed at the mesh's creation, and differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fixed {
    /// Which.
    pub what: &'static str,
    /// The mesh's value.
    pub found: String,
    /// Its flag.
    pub flag: &'static str,
}

/// An opened mesh.
#[derive(Debug)]
pub struct Mesh {
    /// Its documents.
    pub registry: Registry,
    /// Its CA.
    pub ca: Arc<Ca>,
    /// What it is.
    pub record: MeshRecord,
    /// Held as long as the mesh is open.
    pub lock: DirLock,
}

/// Opens the mesh in the data directory, which `lock` holds, or makes one.
///
/// # Errors
/// As [`StartError`] lists.
pub async fn open(settings: &Settings, clock: Clock, lock: DirLock) -> Result<Mesh, StartError> {
    let path = settings.data.join(STORE_FILE);
    if !path.exists() {
        // Before anything is made.
        check_key(settings, settings.mode.unwrap_or(MeshMode::Dev))?;
    }
    let opened = tokio::task::spawn_blocking(move || DiskStore::open(&path)).await;
    let store = Store::new(opened.map_err(|e| StoreError::Failed(e.to_string()))??)?;
    let held = store.get(keys::MESH).await?;
    let record = held.as_ref().map(crate::registry::decode::<MeshRecord>).transpose()?;
    let addresses: Vec<IpAddr> = Some(settings.admin_listen.ip())
        .filter(|ip| !ip.is_unspecified())
        .into_iter()
        .collect();
    let Some(record) = record.map(|r| r.value) else {
        let mode = settings.mode.unwrap_or(MeshMode::Dev);
        let sealing = sealing_key(settings, mode, true)?;
        let registry = Registry { store, clock, mode };
        return create::create(settings, registry, sealing, addresses, lock).await;
    };
    check_unchanged(settings, &record)?;
    let sealing = sealing_key(settings, record.mode, false)?;
    let registry = Registry {
        store,
        clock,
        mode: record.mode,
    };
    let sealed: Option<Versioned<String>> = registry.record(keys::CA).await?;
    let absent = || CaError::Damaged("they are not in the store".into());
    let sealed = hex::decode(sealed.ok_or_else(absent)?.value).map_err(|_| absent())?;
    let material = Material::from_bytes(&sealing.open(keys::CA, &sealed).map_err(CaError::Sealed)?)?;
    let ca = Ca::new(record.trust_domain.clone(), sealing, material, addresses)?;
    Ok(Mesh {
        registry,
        ca: Arc::new(ca),
        record,
        lock,
    })
}

/// Every fixed setting that differs, at once.
fn check_unchanged(settings: &Settings, record: &MeshRecord) -> Result<(), StartError> {
    let mut differ = Vec::new();
    if settings.mode.is_some_and(|mode| mode != record.mode) {
        differ.push(Fixed {
            what: "mode",
            found: if record.mode == MeshMode::Dev { "dev" } else { "prod" }.to_owned(),
            flag: "mode",
        });
    }
    let other = |domain: &aip_api::TrustDomain| *domain != record.trust_domain;
    if settings.trust_domain.as_ref().is_some_and(other) {
        differ.push(Fixed {
            what: "trust domain",
            found: record.trust_domain.to_string(),
            flag: "trust-domain",
        });
    }
    if differ.is_empty() {
        return Ok(());
    }
    Err(StartError::Immutable(differ))
}

/// Whether the settings name a key that a mesh of this mode may be sealed with.
fn check_key(settings: &Settings, mode: MeshMode) -> Result<(), StartError> {
    if mode == MeshMode::Dev {
        return Ok(());
    }
    let Some(path) = &settings.key_file else {
        return match SealingKey::from_env(KEY_VARIABLE)? {
            Some(_) => Ok(()),
            None => Err(StartError::KeyRequired),
        };
    };
    let folder = path.parent().and_then(|p| p.canonicalize().ok());
    match (folder, settings.data.canonicalize()) {
        (Some(folder), Ok(data)) if folder.starts_with(&data) => {
            Err(StartError::KeyBesideData(path.display().to_string()))
        }
        _ => Ok(()),
    }
}

/// The key that seals. Only a new mesh makes one: a fresh key would open nothing of an old mesh, and take the place of
/// the one that does.
fn sealing_key(settings: &Settings, mode: MeshMode, new: bool) -> Result<SealingKey, StartError> {
    check_key(settings, mode)?;
    let read = |path: &Path| match new {
        true => SealingKey::from_file_or_new(path),
        false => SealingKey::from_file(path),
    };
    if let Some(path) = &settings.key_file {
        return Ok(read(path)?);
    }
    if let Some(key) = SealingKey::from_env(KEY_VARIABLE)? {
        return Ok(key);
    }
    let path = settings.data.join(KEY_FILE);
    if new {
        tracing::warn!(path = %path.display(), "secrets are sealed with a key beside the data: good for a dev mesh only");
    }
    Ok(read(&path)?)
}

/// Writes a private file of the data directory.
///
/// # Errors
/// Not writable.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), StartError> {
    write_private(path, bytes).map_err(|why| StartError::Write {
        path: path.display().to_string(),
        why,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_fixed_setting_that_differs_is_said_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let mut settings = Settings::on_loopback(&data, "unused".into());
        settings.trust_domain = None;
        let lock = aip_runtime::files::lock_dir(&data).unwrap();
        drop(open(&settings, Clock::default(), lock).await.unwrap());
        settings.mode = Some(MeshMode::Prod);
        settings.trust_domain = Some("other.example".parse().unwrap());
        let lock = aip_runtime::files::lock_dir(&data).unwrap();
        let refused = open(&settings, Clock::default(), lock).await.unwrap_err();
        assert_eq!(refused.reason(), "immutable");
        let said = refused.to_string();
        for part in [
            "mode dev and trust domain aip.internal",
            "without --mode and --trust-domain",
        ] {
            assert!(said.contains(part), "{said}");
        }
    }

    fn on_disk(dir: &Path, needle: &[u8]) -> bool {
        std::fs::read_dir(dir).unwrap().any(|entry| {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap_or_default();
            bytes.windows(needle.len()).any(|w| w == needle)
        })
    }

    #[tokio::test]
    async fn no_private_key_stands_on_disk_in_the_clear() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let mut settings = Settings::on_loopback(&data, "unused".into());
        settings.key_file = Some(dir.path().join("key"));
        let lock = aip_runtime::files::lock_dir(&data).unwrap();
        let mesh = open(&settings, Clock::default(), lock).await.unwrap();
        let sealed: Versioned<String> = mesh.registry.record(keys::CA).await.unwrap().unwrap();
        assert!(
            on_disk(&data, &sealed.value.as_bytes()[..64]),
            "the search finds what is there"
        );
        let key = SealingKey::from_file(&dir.path().join("key")).unwrap();
        let plain = key.open(keys::CA, &hex::decode(sealed.value).unwrap()).unwrap();
        let secrets = Material::from_bytes(&plain).unwrap().secrets();
        assert_eq!(secrets.len(), 8, "root, two slots, five purposes");
        for secret in secrets {
            // The scalar of a P-256 key and the seed of an Ed25519 key stand from byte 36 and 16 on.
            for part in [&secret[..], &secret[16..48], &secret[36..68]] {
                assert!(!on_disk(&data, part) && !on_disk(&data, hex::encode(part).as_bytes()));
            }
        }
    }
}
