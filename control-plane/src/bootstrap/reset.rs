//! The way back in when every admin token has expired or was lost. It needs what the mesh's keys need anyway: the
//! machine, the data, and the sealing key, while the control plane is stopped.

use super::create::first_admin;
use super::{ADMIN_TOKEN_FILE, STORE_FILE, StartError, open, write};
use crate::admin::auth;
use crate::clock::Clock;
use crate::registry::records::AdminTokenRecord;
use crate::registry::{Actor, keys};
use crate::settings::Settings;
use crate::store::{Expect, Op};

/// The subcommand of our program.
pub const SUBCOMMAND: &str = "reset-admin";
/// Rows of a kind that are looked at; there are never more.
const ROWS: usize = 10_000;

/// Revokes every admin token, voids all that waits for a second person, forgets who that is, and writes a new first token. It stands in the audit.
///
/// # Errors
/// There is no mesh, it is in use, or as [`StartError`] lists.
pub async fn reset_admin(settings: &Settings) -> Result<(), StartError> {
    if !settings.data.join(STORE_FILE).exists() {
        return Err(StartError::NoMesh(settings.data.display().to_string()));
    }
    let lock = aip_runtime::files::lock_dir(&settings.data)?;
    let mesh = open(settings, Clock::default(), lock).await?;
    let (registry, now) = (&mesh.registry, mesh.registry.clock.now());
    let admin = first_admin(mesh.record.mode, now);
    let draft = registry.change(&Actor::control_plane(), "admin_token.reset", &admin.jti);
    let mut draft = draft.put(keys::admin_token(&admin.jti), &admin, Expect::Absent);
    let tokens = registry.all::<AdminTokenRecord>(keys::ADMIN_TOKENS, ROWS).await?;
    let count = tokens
        .iter()
        .filter(|(_, held)| held.value.revoked_at.is_none())
        .count();
    for (key, held) in tokens {
        let revoked = AdminTokenRecord {
            revoked_at: held.value.revoked_at.or(Some(now)),
            ..held.value
        };
        draft = draft.put(key, &revoked, Expect::At(held.revision));
    }
    let claims = registry.store.scan(keys::CLAIMS, "", ROWS).await?;
    // The new token is of the name that a stolen one may have been of: who reads what waits would take it for their own.
    let proposals = registry.store.scan(keys::PROPOSALS, "", ROWS).await?;
    let void = proposals.len();
    let gone = claims
        .into_iter()
        .chain(proposals)
        .map(|e| e.key)
        .chain([keys::SECOND_PERSON.to_owned()]);
    let gone = gone.map(|key| Op::Delete {
        key,
        expect: Expect::Any,
    });
    let token = auth::token(&mesh.ca, &admin)?;
    let draft = draft.detail(format!("{count} admin tokens revoked, {void} proposals void"));
    draft.ops(gone).commit().await?;
    registry.store.close().await;
    write(&settings.data.join(ADMIN_TOKEN_FILE), token.as_bytes())
}
