//! What a check says of a policy that is admitted: what it reads, what it denies without, and what to beware of.

use aip_policy::Admission;

use super::diagnostics::{self, Place};
use crate::output;

/// What every policy is asked about, wherever it is attached.
pub(super) const COVERED: &str = "Each covers all requests on the hops of what it is attached to (aip policy apply \
                                  --attach), at the caller and at the callee.";

/// Prints the warnings, with their lines.
pub(super) fn warn(admission: &Admission, place: &Place) {
    let mut warnings = admission.warnings.clone();
    for warning in &mut warnings {
        warning.message.insert_str(0, "warning: ");
    }
    if !warnings.is_empty() {
        output::note(diagnostics::render(&warnings, place));
    }
}

/// All that it reads, and what of that must be known.
pub(super) fn of(name: &str, admission: &Admission) -> String {
    let list = |paths: &[String]| match paths {
        [] => "nothing".to_owned(),
        paths => paths.join(", "),
    };
    let warnings = output::counted(admission.warnings.len() as u64, "warning");
    format!(
        "{name}: {warnings}\n  reads {}\n  denies where it is not known: {}\n",
        list(&admission.reads),
        list(&admission.denies_without)
    )
}
