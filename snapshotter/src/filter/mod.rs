//! containerd's filter language, as far as snapshots have fields.
//!
//! A filter is a comma-separated list of selectors that must all match; of several filters one must match. A selector is
//! a field path with an optional operator and value:
//!
//! | selector | matches |
//! |---|---|
//! | `kind==active` | the field has the value |
//! | `parent!=""` | the field has another value or is absent |
//! | `name~=^k8s\\.io/` | the regular expression is found in the field |
//! | `labels.l`, `labels."a.b/c"` | the field is there |
//!
//! Fields of a path and values may be quoted as in Go; after `~=` also by `/` or `|`.

mod parse;

#[cfg(test)]
mod tests;

use regex::Regex;

use crate::state::Record;

/// A filter that does not parse.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("filter {filter:?}, at character {position}: {problem}")]
pub struct FilterError {
    /// The filter.
    pub filter: String,
    /// Where in it, counted in characters from 0.
    pub position: usize,
    /// What is wrong and what was expected.
    pub problem: String,
}

/// Filters of one request.
#[derive(Debug)]
pub(crate) struct Filters(Vec<Vec<Selector>>);

#[derive(Debug)]
struct Selector {
    path: Vec<String>,
    condition: FieldCondition,
}

#[derive(Debug)]
enum FieldCondition {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

impl Filters {
    /// Parses the filters of a request. None, or an empty one, match everything.
    pub(crate) fn parse(filters: &[String]) -> Result<Self, FilterError> {
        filters.iter().map(|filter| parse::selectors(filter)).collect::<Result<_, _>>().map(Self)
    }

    /// Whether a snapshot is one of those asked for.
    pub(crate) fn matches(&self, key: &str, record: &Record) -> bool {
        let all = |selectors: &Vec<Selector>| selectors.iter().all(|selector| selector.matches(key, record));
        self.0.is_empty() || self.0.iter().any(all)
    }
}

impl Selector {
    fn matches(&self, key: &str, record: &Record) -> bool {
        let field = field(&self.path, key, record);
        match &self.condition {
            FieldCondition::Present => field.is_some(),
            FieldCondition::Equal(value) => field == Some(value),
            FieldCondition::NotEqual(value) => field.unwrap_or_default() != value,
            FieldCondition::Matches(expression) => expression.is_match(field.unwrap_or_default()),
        }
    }
}

/// The value that a path names. `parent` is there, empty, also for a snapshot without one.
fn field<'r>(path: &[String], key: &'r str, record: &'r Record) -> Option<&'r str> {
    let (first, rest) = path.split_first()?;
    match first.as_str() {
        "kind" => Some(record.kind.name()),
        "name" => Some(key),
        "parent" => Some(record.parent.as_deref().unwrap_or_default()),
        "labels" => record.labels.get(&rest.join(".")).map(String::as_str),
        _ => None,
    }
}
