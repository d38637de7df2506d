//! What a chart says of itself: `Chart.yaml`, and `requirements.yaml` of old ones.

use yaml::Value;

/// The most characters in a release's name, as in helm.
const RELEASE_LIMIT: usize = 53;

/// A chart's metadata, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Metadata {
    /// Its name.
    pub(crate) name: String,
    /// Whether it is made for other charts to use, and renders nothing itself.
    pub(crate) is_library: bool,
    /// The text of its annotation `helm.sh/images`, and the line on which that begins.
    pub(crate) images: Option<(String, usize)>,
    /// The charts that it depends on.
    pub(crate) dependencies: Vec<Dependency>,
}

/// A chart that another one depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dependency {
    /// The chart's name.
    pub(crate) name: String,
    /// What it is called here.
    pub(crate) alias: Option<String>,
    /// Where it comes from.
    pub(crate) repository: String,
    /// The line that names it.
    pub(crate) line: usize,
}

impl Metadata {
    /// Reads `Chart.yaml`.
    ///
    /// # Errors
    ///
    /// The line and what is wrong.
    pub(crate) fn read(text: &str) -> Result<Self, (usize, String)> {
        let parsed = yaml::parse(text);
        if let Some(error) = parsed.errors.first() {
            return Err((error.line, error.reason.clone()));
        }
        let Some(root) = parsed.documents.first().map(|document| document.root()) else {
            return Err((1, "it is empty".to_owned()));
        };
        let name = root.get("name").and_then(Value::text).filter(|name| is_name(name));
        let name = name.ok_or((root.line(), "it has no name that a chart can have".to_owned()))?.to_owned();
        let images = root.at_path(&["annotations", "helm.sh/images"]);
        let images = images.and_then(|images| Some((images.text()?.to_owned(), images.line())));
        let is_library = root.get("type").and_then(Value::text) == Some("library");
        Ok(Self { name, is_library, images, dependencies: dependencies(root) })
    }

    /// Adds what `requirements.yaml` says, where charts had their dependencies once.
    pub(crate) fn add_requirements(&mut self, text: &str) {
        for document in &yaml::parse(text).documents {
            self.dependencies.extend(dependencies(document.root()));
        }
    }

    /// A name for its release: any will do, charts put it into names of objects.
    pub(crate) fn release(&self) -> String {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let name: String =
            self.name.to_lowercase().chars().filter(|c| fits(*c)).take(RELEASE_LIMIT).collect();
        let name = name.trim_matches('-');
        if name.is_empty() { "release".to_owned() } else { name.to_owned() }
    }
}

/// Whether `name` can be a chart's, and part of a path.
fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', '\0'])
}

fn dependencies(root: Value<'_>) -> Vec<Dependency> {
    let entries = root.get("dependencies").into_iter().flat_map(Value::items);
    let read = |entry: Value<'_>| {
        let text = |key: &str| entry.get(key).and_then(Value::text).map(str::to_owned);
        let name = text("name").filter(|name| is_name(name))?;
        let repository = text("repository").unwrap_or_default();
        Some(Dependency { name, alias: text("alias"), repository, line: entry.line() })
    };
    entries.filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_says_who_it_is_and_what_it_needs() {
        let text = "apiVersion: v2\nname: web\ntype: application\ndependencies:\n- name: common\n  alias: base\n  \
                    repository: file://../common\nannotations:\n  helm.sh/images: |\n    - image: a\n";
        let metadata = Metadata::read(text).unwrap();
        assert_eq!((metadata.name.as_str(), metadata.is_library), ("web", false));
        assert_eq!(metadata.images, Some(("- image: a\n".to_owned(), 10)));
        let expected = Dependency {
            name: "common".to_owned(),
            alias: Some("base".to_owned()),
            repository: "file://../common".to_owned(),
            line: 5,
        };
        assert_eq!(metadata.dependencies, [expected]);
    }

    #[test]
    fn a_name_that_is_a_path_is_refused() {
        for text in ["name: ../x", "name: ''", "version: 1", "", "a: [", "name: .x"] {
            assert!(Metadata::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_release_has_a_name_that_helm_takes() {
        let release = |name: &str| Metadata { name: name.to_owned(), ..Metadata::default() }.release();
        assert_eq!(release("web"), "web");
        assert_eq!(release("My_Chart"), "mychart");
        assert_eq!(release("---"), "release");
        assert_eq!(release(&"a".repeat(90)).len(), RELEASE_LIMIT);
    }
}
