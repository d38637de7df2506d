//! Objects of Flux that name images.

use super::Reader;
use yaml::Value;

impl Reader<'_> {
    /// An `OCIRepository`: manifests or a chart in a registry, by tag or digest.
    pub(super) fn oci_repository(&mut self, object: Value<'_>) {
        let Some(url) = object.at_path(&["spec", "url"]) else { return };
        let Some(name) = url.text().and_then(|url| url.strip_prefix("oci://")) else {
            self.requests.problem(&self.context.file, url.line(), "expected a URL that begins with oci://");
            return;
        };
        let at = |key: &str| {
            object.at_path(&["spec", "ref", key]).and_then(Value::text).filter(|text| !text.is_empty())
        };
        // The digest counts most, then the range, then the tag.
        let text = match (at("digest"), at("semver"), at("tag")) {
            (Some(digest), ..) => format!("{name}@{digest}"),
            (None, Some(range), _) => {
                let reason = format!(
                    "{name}: which version {range:?} is, only a registry knows: name a tag or digest"
                );
                self.requests.warning(&self.context.file, url.line(), reason);
                return;
            }
            (None, None, Some(tag)) => format!("{name}:{tag}"),
            (None, None, None) => name.to_owned(),
        };
        self.ask_text(&text, url.line(), self.context.way);
    }

    /// A `Kustomization` of Flux: the images that it puts in place of others.
    pub(super) fn flux_kustomization(&mut self, object: Value<'_>) {
        if let Some(images) = object.at_path(&["spec", "images"]) {
            self.replacements(images);
        }
    }
}
