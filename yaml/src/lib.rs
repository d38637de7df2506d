//! YAML as a tree that knows where each value stands, read from text that anybody may have written.
//!
//! Serde cannot say on which line a value stood, and a value tree that copies what an alias names grows without bound. Here
//! all nodes lie in one list, an alias is the number of the node that it names, and a node may not be within itself: a
//! document has no more nodes than its text has tokens, and whoever looks at each node once is done in that many steps.

#![forbid(unsafe_code)]

mod parse;

pub use parse::parse;

/// All documents of a text, and what is wrong with those that could not be read.
#[derive(Debug, Default)]
pub struct Parsed {
    /// The documents, in their order.
    pub documents: Vec<Document>,
    /// One for each document that is broken.
    pub errors: Vec<SyntaxError>,
}

/// Why a document cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong.
    pub reason: String,
}

/// One document.
#[derive(Debug)]
pub struct Document {
    nodes: Vec<Node>,
    root: NodeId,
}

/// A node's place in its document's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

#[derive(Debug)]
struct Node {
    line: usize,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Scalar { text: Box<str>, plain: bool },
    Sequence(Vec<NodeId>),
    Mapping(Vec<(NodeId, NodeId)>),
}

/// A node and the document that it is in.
#[derive(Clone, Copy, Debug)]
pub struct Value<'a> {
    document: &'a Document,
    id: NodeId,
}

impl Document {
    /// The document's one value.
    pub fn root(&self) -> Value<'_> {
        Value { document: self, id: self.root }
    }
}

impl<'a> Value<'a> {
    /// Which node this is: aliases of one node are that node.
    pub fn id(self) -> NodeId {
        self.id
    }

    /// The line, from 1.
    pub fn line(self) -> usize {
        self.node().line
    }

    /// A scalar's text, whatever type it has.
    pub fn text(self) -> Option<&'a str> {
        match &self.node().content {
            Content::Scalar { text, .. } => Some(text),
            Content::Sequence(_) | Content::Mapping(_) => None,
        }
    }

    /// The text of a scalar that is a string: quoted, or plain and neither null, boolean nor number.
    pub fn string(self) -> Option<&'a str> {
        match &self.node().content {
            Content::Scalar { text, plain } if !plain || !is_typed(text) => Some(text),
            _ => None,
        }
    }

    /// Whether this is nothing: an absent value, `~` or `null`.
    pub fn is_null(self) -> bool {
        matches!(&self.node().content, Content::Scalar { text, plain: true } if is_null(text))
    }

    /// The values of a sequence; none if this is no sequence.
    pub fn items(self) -> impl Iterator<Item = Value<'a>> {
        let items = match &self.node().content {
            Content::Sequence(items) => items.as_slice(),
            _ => &[],
        };
        items.iter().map(move |id| self.at(*id))
    }

    /// The keys and values of a mapping as they stand; none if this is no mapping.
    pub fn entries(self) -> impl Iterator<Item = (Value<'a>, Value<'a>)> {
        self.pairs().iter().map(move |(key, value)| (self.at(*key), self.at(*value)))
    }

    /// Whether this is a mapping.
    pub fn is_mapping(self) -> bool {
        matches!(self.node().content, Content::Mapping(_))
    }

    /// The value under `key`: the mapping's own, the last one where a key is there twice, else that of what it merges (`<<`).
    pub fn get(self, key: &str) -> Option<Value<'a>> {
        let mut seen = Vec::new();
        let mut todo = vec![self];
        while let Some(mapping) = todo.pop() {
            // Merges of merges may name the same mapping many times over.
            if seen.contains(&mapping.id) {
                continue;
            }
            seen.push(mapping.id);
            let own = mapping.entries().filter(|(name, _)| name.text() == Some(key)).last();
            if let Some((_, value)) = own {
                return Some(value);
            }
            let merged = mapping.entries().filter(|(name, _)| name.text() == Some("<<"));
            let merged = merged.flat_map(|(_, value)| [value].into_iter().chain(value.items()));
            let before = todo.len();
            todo.extend(merged.filter(|value| value.is_mapping()));
            // The first one counts most, and the last one pushed is looked at first.
            todo[before..].reverse();
        }
        None
    }

    /// The value at the end of `path`, through mappings.
    pub fn at_path(self, path: &[&str]) -> Option<Value<'a>> {
        path.iter().try_fold(self, |value, key| value.get(key))
    }

    fn at(self, id: NodeId) -> Self {
        Self { document: self.document, id }
    }

    fn node(self) -> &'a Node {
        &self.document.nodes[self.id.0 as usize]
    }

    fn pairs(self) -> &'a [(NodeId, NodeId)] {
        match &self.node().content {
            Content::Mapping(pairs) => pairs,
            _ => &[],
        }
    }
}

fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// Whether a plain scalar is something else than a string, by what Kubernetes' parser takes it for.
fn is_typed(text: &str) -> bool {
    let boolean = matches!(
        text,
        "true"
            | "True"
            | "TRUE"
            | "false"
            | "False"
            | "FALSE"
            | "yes"
            | "Yes"
            | "YES"
            | "no"
            | "No"
            | "NO"
            | "on"
            | "On"
            | "ON"
            | "off"
            | "Off"
            | "OFF"
    );
    // `inf` and `nan` are strings to YAML, and numbers to Rust.
    let number = text.starts_with(|first: char| first.is_ascii_digit() || matches!(first, '+' | '-' | '.'))
        && text.parse::<f64>().is_ok();
    is_null(text) || boolean || number
}

#[cfg(test)]
mod tests;
