//! What the JSON of all commands has in common. docs/images.md says what its words mean.

use rafs::check;
use rafs::digest::Digest;
use serde::Serialize;

/// The id of a blob: 64 hexadecimal digits, or `unknown` in a layer's own bootstrap.
pub(super) fn id(id: Option<Digest>) -> String {
    id.map_or_else(|| "unknown".to_owned(), |id| id.to_string())
}

/// Something that a check found, or could not look at.
#[derive(Debug, Serialize)]
pub(super) struct Finding<'a> {
    subject: &'a str,
    problem: &'a str,
}

/// Findings as JSON has them.
pub(super) fn findings(findings: &[check::Finding]) -> Vec<Finding<'_>> {
    findings.iter().map(|finding| Finding { subject: &finding.subject, problem: &finding.problem }).collect()
}
