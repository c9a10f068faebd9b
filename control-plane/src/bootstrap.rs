//! Opening the data directory: the mesh that is there, or a new one.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use aip_api::resource::{MeshConfig, MeshMode, Policy, PolicyName, Traffic};
use aip_runtime::files::{DirLock, FilesError, lock_dir, write_private};
use aip_runtime::sealing::{SealError, SealingKey};

use crate::admin::auth::{self, FIRST_TTL_DEV, FIRST_TTL_PROD};
use crate::admin::roles::Role;
use crate::ca::material::Material;
use crate::ca::{Ca, CaError};
use crate::clock::Clock;
use crate::refusal::Refusal;
use crate::registry::records::{AdminTokenRecord, MeshRecord, PolicyVersion};
use crate::registry::{Actor, Registry, Versioned, keys, policies};
use crate::settings::{Settings, default_trust_domain};
use crate::store::disk::DiskStore;
use crate::store::{Expect, Store, StoreError};

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
    #[error("{path} can't be written: {source}")]
    Write {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
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
    /// The CA.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// Fixed at the mesh's creation.
    #[error(
        "this mesh was created with {what} {found}, which never changes; start without --{flag}, or make another mesh in another --data directory"
    )]
    Immutable {
        /// Which setting.
        what: &'static str,
        /// Its value.
        found: String,
        /// Its flag.
        flag: &'static str,
    },
    /// A setting.
    #[error(transparent)]
    Settings(#[from] aip_runtime::settings::SettingsError),
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
            Self::Ca(error) => error.reason(),
            Self::Immutable { .. } => "immutable",
            Self::Settings(error) => error.reason(),
            Self::Refused(refusal) => refusal.reason.row().reason,
            Self::Io(_) => "io",
        }
    }
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

/// Opens the mesh in the data directory, or makes one.
///
/// # Errors
/// As [`StartError`] lists.
pub async fn open(settings: &Settings, clock: Clock) -> Result<Mesh, StartError> {
    let lock = lock_dir(&settings.data)?;
    let path = settings.data.join(STORE_FILE);
    let opened = tokio::task::spawn_blocking(move || DiskStore::open(&path)).await;
    let store = Store::new(opened.map_err(|e| StoreError::Failed(e.to_string()))??)?;
    let held = store.get(keys::MESH).await?;
    let record = held
        .as_ref()
        .map(crate::registry::decode::<MeshRecord>)
        .transpose()?
        .map(|h| h.value);
    if let Some(record) = &record {
        check_unchanged(settings, record)?;
    }
    let mode = record
        .as_ref()
        .map(|r| r.mode)
        .or(settings.mode)
        .unwrap_or(MeshMode::Dev);
    let sealing = sealing_key(settings, mode)?;
    let addresses: Vec<IpAddr> = Some(settings.admin_listen.ip())
        .filter(|ip| !ip.is_unspecified())
        .into_iter()
        .collect();
    let registry = Registry { store, clock, mode };
    match record {
        Some(record) => {
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
        None => create(settings, registry, sealing, addresses, lock).await,
    }
}

fn check_unchanged(settings: &Settings, record: &MeshRecord) -> Result<(), StartError> {
    if settings.mode.is_some_and(|mode| mode != record.mode) {
        let found = if record.mode == MeshMode::Dev { "dev" } else { "prod" }.to_owned();
        return Err(StartError::Immutable {
            what: "mode",
            found,
            flag: "mode",
        });
    }
    if settings
        .trust_domain
        .as_ref()
        .is_some_and(|td| *td != record.trust_domain)
    {
        let found = record.trust_domain.to_string();
        return Err(StartError::Immutable {
            what: "trust domain",
            found,
            flag: "trust-domain",
        });
    }
    Ok(())
}

fn sealing_key(settings: &Settings, mode: MeshMode) -> Result<SealingKey, StartError> {
    if let Some(path) = &settings.key_file {
        return Ok(SealingKey::from_file_or_new(path)?);
    }
    if let Some(key) = SealingKey::from_env(KEY_VARIABLE)? {
        return Ok(key);
    }
    if mode == MeshMode::Prod {
        return Err(StartError::KeyRequired);
    }
    let path = settings.data.join(KEY_FILE);
    if !path.exists() {
        tracing::warn!(path = %path.display(), "secrets are sealed with a key beside the data: good for a dev mesh only");
    }
    Ok(SealingKey::from_file_or_new(&path)?)
}

/// What a new mesh's baseline policy is.
///
/// # Errors
/// Never: the constants are good, which a test holds.
pub fn baseline() -> Result<Policy, Refusal> {
    let name = PolicyName::try_from(policies::BASELINE.to_owned()).map_err(|e| Refusal::invalid(vec![e]))?;
    let rego = policies::BASELINE_REGO.to_owned();
    Ok(Policy {
        name,
        rego,
        data: serde_json::Value::Null,
        tests: None,
        attach: aip_api::resource::Attach::Mesh,
    })
}

async fn create(
    settings: &Settings,
    registry: Registry,
    sealing: SealingKey,
    addresses: Vec<IpAddr>,
    lock: DirLock,
) -> Result<Mesh, StartError> {
    let trust_domain = match &settings.trust_domain {
        Some(trust_domain) => trust_domain.clone(),
        None => default_trust_domain().map_err(|e| CaError::Damaged(e.to_string()))?,
    };
    let (mode, now) = (registry.mode, registry.clock.now());
    let record = MeshRecord {
        trust_domain: trust_domain.clone(),
        mode,
        created_at: now,
    };
    let material = Material::generate(&trust_domain)?;
    let plain = material.to_bytes()?;
    let ca = Ca::new(trust_domain.clone(), sealing, material, addresses)?;
    let sealed = hex::encode(ca.seal(keys::CA, &plain)?);
    let (bundle, signing) = ca.resources();
    let actor = Actor::control_plane();
    let baseline = baseline()?;
    let version = PolicyVersion {
        version: 1,
        policy: Some(baseline.clone()),
        by: actor.0.clone(),
        at: now,
    };
    let ttl = if mode == MeshMode::Dev {
        FIRST_TTL_DEV
    } else {
        FIRST_TTL_PROD
    };
    let admin = AdminTokenRecord {
        jti: uuid::Uuid::now_v7().hyphenated().to_string(),
        sub: "admin".into(),
        role: Role::Admin,
        issued_at: now,
        expires_at: now + ttl,
        issued_by: actor.0.clone(),
        revoked_at: None,
    };
    // The file first: a mesh whose only credential was never written would have to be thrown away.
    write(
        &settings.data.join(ADMIN_TOKEN_FILE),
        auth::token(&ca, &admin)?.as_bytes(),
    )?;
    let mut draft = registry
        .change(&actor, "mesh.create", trust_domain.as_str())
        .put(keys::MESH, &record, Expect::Absent)
        .put(keys::CA, &sealed, Expect::Absent)
        .put(keys::admin_token(&admin.jti), &admin, Expect::Absent)
        .resource(&MeshConfig::new(trust_domain.clone(), mode), Expect::Absent)
        .resource(&Traffic::defaults(), Expect::Absent)
        .resource(&bundle, Expect::Absent)
        .resource(&baseline, Expect::Absent)
        .put(keys::policy_version(policies::BASELINE, 1), &version, Expect::Absent);
    for key in &signing {
        draft = draft.resource(key, Expect::Absent);
    }
    draft.commit().await?;
    tracing::info!(%trust_domain, ?mode, root = %ca.root_digest(), "mesh created");
    Ok(Mesh {
        registry,
        ca: Arc::new(ca),
        record,
        lock,
    })
}

/// Writes a private file of the data directory.
///
/// # Errors
/// Not writable.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), StartError> {
    write_private(path, bytes).map_err(|source| StartError::Write {
        path: path.display().to_string(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let mesh = open(&settings, Clock::default()).await.unwrap();
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

    #[test]
    fn the_baseline_is_a_valid_document() {
        use aip_api::resource::Resource as _;
        assert_eq!(baseline().unwrap().validate(), []);
    }
}
