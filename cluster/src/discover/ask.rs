//! Requests: who asks for which image, where, and how surely.

use std::collections::BTreeMap;
use std::fmt;

use registry::Reference;
use serde::Serialize;

use super::layout::Layout;

/// A place that asks for an image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Origin {
    /// The file, as a path in the tree; what lies in an archive after the archive's own path.
    pub file: String,
    /// The line, from 1. Where the file was rendered, the line of the result.
    pub line: usize,
    /// What asks.
    pub way: Way,
    /// The set of values that a chart was rendered with, where it is not the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub values: Option<String>,
}

/// Why a place asks for an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// A list that people wrote.
    List,
    /// A Kubernetes object that describes a pod, or names an image by its meaning.
    Manifest,
    /// The same, rendered from a template.
    Template,
    /// The same, rendered from a chart.
    Chart,
    /// An annotation of a chart.
    Annotation,
    /// The shape of a value in an object whose meaning is not known: a candidate.
    Shape,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)?;
        if matches!(self.way, Way::Chart | Way::Template) {
            f.write_str(" (as rendered)")?;
        }
        self.values.as_ref().map_or(Ok(()), |values| write!(f, " (with {values})"))
    }
}

/// An archive in the tree that holds an image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Archive {
    /// What it is.
    pub kind: ArchiveKind,
    /// Its path in the tree.
    pub path: String,
}

/// Kinds of archives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArchiveKind {
    /// What `docker save` writes.
    DockerArchive,
    /// An OCI image layout in a tar.
    OciArchive,
}

impl fmt::Display for ArchiveKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DockerArchive => "docker-archive",
            Self::OciArchive => "oci-archive",
        })
    }
}

/// An image that is asked for.
#[derive(Clone, Debug)]
pub struct AskedImage {
    /// Its full name.
    pub reference: Reference,
    /// Whether it is asked for outright. A candidate is needed only if there is such an image.
    pub certain: bool,
    /// Who asks, in order.
    pub origins: Vec<Origin>,
    /// The archive of the tree that holds it.
    pub archive: Option<Archive>,
}

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// The file, as a path in the tree.
    pub file: String,
    /// The line, from 1, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// What is wrong.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.reason),
            None => write!(f, "{}: {}", self.file, self.reason),
        }
    }
}

/// All that was found.
#[derive(Clone, Debug)]
pub struct Discovery {
    /// Whose conventions the tree follows, if it shows any.
    pub layout: Option<Layout>,
    /// The images, by name.
    pub images: Vec<AskedImage>,
    /// What must not be: requests that are no references, files that cannot be read. Images may be missed.
    pub problems: Vec<Problem>,
    /// What a person should look at.
    pub warnings: Vec<Problem>,
}

impl Discovery {
    /// The images that `text` means: the one of that name, or all of a repository where it has neither tag nor digest.
    ///
    /// # Errors
    ///
    /// When `text` is no reference.
    pub fn why(&self, text: &str) -> Result<Vec<&AskedImage>, registry::reference::InvalidReference> {
        let wanted = Reference::parse(text)?;
        let repository = registry::Repository::parse(text).ok();
        let fits = |image: &&AskedImage| match &repository {
            Some(repository) => image.reference.repository() == repository,
            None if wanted.tag().is_none() => {
                image.reference.repository() == wanted.repository()
                    && image.reference.digest() == wanted.digest()
            }
            None => image.reference == wanted,
        };
        Ok(self.images.iter().filter(fits).collect())
    }
}

/// One request, as its source found it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Request {
    /// The text.
    pub(crate) text: String,
    /// Where it stands.
    pub(crate) origin: Origin,
    /// The archive that holds the image.
    pub(crate) archive: Option<Archive>,
}

/// Everything that sources give.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    pub(crate) requests: Vec<Request>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) warnings: Vec<Problem>,
}

impl Requests {
    pub(crate) fn problem(
        &mut self,
        file: impl Into<String>,
        line: impl Into<Option<usize>>,
        reason: impl ToString,
    ) {
        self.problems.push(Problem { file: file.into(), line: line.into(), reason: reason.to_string() });
    }

    pub(crate) fn warning(
        &mut self,
        file: impl Into<String>,
        line: impl Into<Option<usize>>,
        reason: impl ToString,
    ) {
        self.warnings.push(Problem { file: file.into(), line: line.into(), reason: reason.to_string() });
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.requests.extend(other.requests);
        self.problems.extend(other.problems);
        self.warnings.extend(other.warnings);
    }

    /// Brings together what asks for the same image. A candidate that is no reference is none; a request is an error.
    pub(crate) fn finish(mut self, layout: Option<Layout>) -> Discovery {
        let mut images: BTreeMap<String, AskedImage> = BTreeMap::new();
        for request in std::mem::take(&mut self.requests) {
            let certain = request.origin.way != Way::Shape;
            let reference = match Reference::parse(&request.text) {
                Ok(reference) => reference,
                Err(error) if certain => {
                    self.problem(request.origin.file, request.origin.line, error);
                    continue;
                }
                Err(_) => continue,
            };
            let image = images.entry(reference.to_string()).or_insert_with(|| AskedImage {
                reference,
                certain: false,
                origins: Vec::new(),
                archive: None,
            });
            image.certain |= certain;
            image.archive = image.archive.take().or(request.archive);
            image.origins.push(request.origin);
        }
        let mut images: Vec<AskedImage> = images.into_values().collect();
        for image in &mut images {
            image.origins.sort();
            image.origins.dedup();
        }
        for list in [&mut self.problems, &mut self.warnings] {
            list.sort();
            list.dedup();
        }
        Discovery { layout, images, problems: self.problems, warnings: self.warnings }
    }
}
