//! Objects that nobody here knows: what has the shape of an image is a candidate.
//!
//! | shape | candidate |
//! |---|---|
//! | `image: TEXT` | `TEXT` |
//! | `image: TEXT`, `tag` beside it | `TEXT:TAG` |
//! | `repository`, and `tag` or `digest` (and `registry`) beside it | `[REGISTRY/]REPOSITORY[:TAG][@DIGEST]` |
//! | `repository`, `image`, and `tag`, `version` or `digest` beside it | `REPOSITORY/IMAGE[:TAG][@DIGEST]` |

use super::{Reader, Role};
use crate::discover::ask::Way;
use yaml::Value;

impl<'a> Reader<'_> {
    /// Looks through all of an object.
    pub(super) fn shapes(&mut self, object: Value<'a>) {
        let mut todo = vec![object];
        while let Some(value) = todo.pop() {
            if !self.first(Role::Shape, value) {
                continue;
            }
            if let Some((text, line)) = candidate(value) {
                self.ask_text(&text, line, Way::Shape);
            }
            todo.extend(value.items().chain(value.entries().map(|(_, value)| value)));
        }
    }
}

/// The image that a mapping has the shape of, and the line that says so.
fn candidate(mapping: Value<'_>) -> Option<(String, usize)> {
    let string = |key: &str| mapping.get(key).and_then(Value::string).filter(|text| !text.is_empty());
    // Tags are often numbers.
    let text = |key: &str| {
        mapping
            .get(key)
            .filter(|value| !value.is_null())
            .and_then(Value::text)
            .filter(|text| !text.is_empty())
    };
    let line = |key: &str| mapping.get(key).map_or(mapping.line(), Value::line);
    let (image, repository, tag, digest) =
        (string("image"), string("repository"), text("tag"), string("digest"));
    match (image, repository) {
        (Some(image), Some(repository)) => {
            let name = format!("{}/{image}", repository.trim_end_matches('/'));
            let tag = tag.or_else(|| text("version"));
            (tag.is_some() || digest.is_some()).then(|| (named(&name, tag, digest), line("image")))
        }
        (Some(image), None) => Some((named(image, tag, digest), line("image"))),
        (None, Some(repository)) if tag.is_some() || digest.is_some() => {
            let name = match string("registry") {
                Some(registry) => format!("{}/{repository}", registry.trim_end_matches('/')),
                None => repository.to_owned(),
            };
            Some((named(&name, tag, digest), line("repository")))
        }
        _ => None,
    }
}

/// `name` with the tag and digest that it does not have itself.
fn named(name: &str, tag: Option<&str>, digest: Option<&str>) -> String {
    let has_digest = name.contains('@');
    let has_tag = name
        .rsplit('/')
        .next()
        .is_some_and(|last| last.split('@').next().is_some_and(|last| last.contains(':')));
    let mut text = name.to_owned();
    if let Some(tag) = tag
        && !has_tag
        && !has_digest
    {
        text += &format!(":{tag}");
    }
    if let Some(digest) = digest
        && !has_digest
    {
        text += &format!("@{digest}");
    }
    text
}
