//! Policies: written with their history, rolled back, removed. They were admitted before they come here.

use aip_api::resource::{Kind, Policy, PolicyName};

use super::records::{Action, PolicyVersion};
use super::{Actor, Draft, Outcome, Registry, Versioned, decode, keys, retrying};
use crate::refusal::{Reason, Refusal};
use crate::store::{Expect, Op};

/// Versions of one policy that can be rolled back to.
pub const MAX_VERSIONS: usize = 50;
/// Policies of a mesh: every sidecar compiles those that are attached to it.
pub const MAX_POLICIES: usize = 500;
/// The policy that takes part in every hop; it can be replaced, not removed.
pub const BASELINE: &str = "baseline";

/// What a new mesh starts with.
pub const BASELINE_REGO: &str = include_str!("../../../policies/baseline.rego");

impl Registry {
    /// Writes an admitted policy, or proposes to.
    ///
    /// # Errors
    /// Mistakes, not at the expected revision, too many policies, or the store fails.
    pub async fn put_policy(&self, sub: &str, policy: Policy, expected: Option<u64>) -> Result<Outcome, Refusal> {
        retrying(async || {
            let held = self.resource::<Policy>(policy.name.as_str()).await?;
            let replaces = held.as_ref().map_or(0, |held| held.revision);
            super::agents::at_expected(replaces, expected)?;
            if held.is_some_and(|held| held.value == policy) {
                return Ok(Outcome::Unchanged { revision: replaces });
            }
            let policy = Box::new(policy.clone());
            self.do_or_propose(sub, Action::PutPolicy { policy, replaces }).await
        })
        .await
    }

    /// Whether the baseline stays as it is, if this policy is written.
    ///
    /// # Errors
    /// It is another baseline, or the store fails.
    pub async fn keeps_baseline(&self, policy: &Policy) -> Result<(), Refusal> {
        if policy.name.as_str() != BASELINE {
            return Ok(());
        }
        let held = self.resource::<Policy>(BASELINE).await?;
        if held.is_none_or(|held| held.value == *policy) {
            return Ok(());
        }
        let detail = "this replaces the baseline, which takes part in every hop: what it denied is decided anew. \
                      If that is meant: ?replace_baseline=true, `aip policy apply --replace-baseline`; \
                      otherwise give the policy a package of its own";
        Err(Refusal::new(Reason::BaselineReplacement, detail))
    }

    /// Removes a policy, or proposes to.
    ///
    /// # Errors
    /// Unknown, the baseline, or the store fails.
    pub async fn delete_policy(&self, sub: &str, name: &PolicyName) -> Result<Outcome, Refusal> {
        if name.as_str() == BASELINE {
            return Err(Reason::BaselineRequired.into());
        }
        retrying(async || {
            let removes = self.existing::<Policy>(name.as_str()).await?.revision;
            let name = name.clone();
            self.do_or_propose(sub, Action::DeletePolicy { name, removes }).await
        })
        .await
    }

    /// A policy's versions, newest first, each with the revision that wrote it.
    ///
    /// # Errors
    /// The store fails.
    pub async fn policy_versions(&self, name: &PolicyName) -> Result<Vec<Versioned<PolicyVersion>>, Refusal> {
        let rows = self
            .store
            .scan(format!("{}{name}/", keys::POLICY_VERSIONS), "", MAX_VERSIONS + 1)
            .await?;
        let mut versions = rows.iter().map(decode).collect::<Result<Vec<_>, _>>()?;
        versions.reverse();
        Ok(versions)
    }

    /// The policy as the transaction `revision` wrote it.
    ///
    /// # Errors
    /// No such version is kept, or the store fails.
    pub async fn policy_at(&self, name: &PolicyName, revision: u64) -> Result<Policy, Refusal> {
        let versions = self.policy_versions(name).await?;
        let found = versions
            .into_iter()
            .find(|v| v.revision == revision)
            .and_then(|v| v.value.policy);
        found.ok_or_else(|| {
            Refusal::new(
                Reason::NotFound,
                format!("policy {name} has no version of revision {revision}"),
            )
        })
    }

    /// Adds what writes a policy that is at revision `replaces` (0: there is none), with its next version.
    pub(super) async fn put_policy_ops(
        &self,
        draft: Draft,
        actor: &Actor,
        policy: &Policy,
        replaces: u64,
    ) -> Result<Draft, Refusal> {
        let expect = match replaces {
            0 => Expect::Absent,
            revision => Expect::At(revision),
        };
        if replaces == 0 {
            let all = keys::of_kind(Kind::Policy);
            if self.store.scan(all, "", MAX_POLICIES).await?.len() >= MAX_POLICIES {
                let detail = format!("a mesh has at most {MAX_POLICIES} policies");
                return Err(Refusal::new(Reason::LimitReached, detail));
            }
        }
        let held = self.resource::<Policy>(policy.name.as_str()).await?;
        let draft = match held.filter(|held| held.revision == replaces) {
            Some(held) => self.keep_former(draft, &held)?,
            None => draft,
        };
        let draft = draft.resource(policy, expect);
        self.version_ops(draft, actor, &policy.name, Some(policy)).await
    }

    /// Adds what removes a policy that is at revision `removes`; its versions stay.
    pub(super) async fn delete_policy_ops(
        &self,
        draft: Draft,
        actor: &Actor,
        name: &PolicyName,
        removes: u64,
    ) -> Result<Draft, Refusal> {
        let held = self.existing::<Policy>(name.as_str()).await?;
        let draft = self.keep_former(draft, &held)?;
        let draft = draft.delete_resource(Kind::Policy, name.as_str(), Expect::At(removes));
        self.version_ops(draft, actor, name, None).await
    }

    /// Adds the next version of a policy (`None`: it was removed), and forgets the oldest.
    async fn version_ops(
        &self,
        draft: Draft,
        actor: &Actor,
        name: &PolicyName,
        policy: Option<&Policy>,
    ) -> Result<Draft, Refusal> {
        let versions = self.policy_versions(name).await?;
        let record = PolicyVersion {
            version: versions.first().map_or(1, |v| v.value.version + 1),
            policy: policy.cloned(),
            by: actor.0.clone(),
            at: self.clock.now(),
        };
        let key = keys::policy_version(name.as_str(), record.version);
        let old = versions.iter().skip(MAX_VERSIONS - 1);
        let old = old.map(|v| keys::policy_version(name.as_str(), v.value.version));
        let old = old.map(|key| Op::Delete {
            key,
            expect: Expect::Any,
        });
        Ok(draft.put(key, &record, Expect::Absent).ops(old))
    }
}
