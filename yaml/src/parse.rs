//! From text to documents.

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle, ScanError};

use crate::{Content, Document, Node, NodeId, Parsed, SyntaxError};

/// What stands for a node: some 40 bytes each, for texts of up to 16 MiB.
const NODES_LIMIT: usize = 2_000_000;

/// Reads all documents of `text`. One that is broken is an error of its own and does not hide the others.
pub fn parse(text: &str) -> Parsed {
    let mut options = granit_parser::Options::default();
    options.set_emit_comments(false);
    let mut parser = Parser::new_from_str_with_options(text, options);
    let mut parsed = Parsed::default();
    let mut builder = Builder::default();
    let mut nodes = 0;
    while let Some(next) = parser.next() {
        let failed = match next {
            Ok((Event::StreamEnd, _)) => break,
            Ok((event, span)) => {
                nodes += 1;
                builder.event(event, span.start.line()).err()
            }
            Err(error) => Some(syntax_error(&error)),
        };
        // Counted over all documents of the file: ten thousand small ones take as much as a large one.
        if nodes > NODES_LIMIT {
            let reason = format!("more than {NODES_LIMIT} values in one file");
            parsed.errors.push(SyntaxError { line: 1, reason });
            break;
        }
        if let Some(error) = failed {
            parsed.errors.push(error);
            // What the broken document had begun belongs to no other one.
            builder = Builder::default();
            match parser.proceed_next_document() {
                Ok(true) => continue,
                Ok(false) | Err(_) => break,
            }
        }
        if let Some(document) = builder.done.take() {
            parsed.documents.push(document);
        }
    }
    parsed
}

fn syntax_error(error: &ScanError) -> SyntaxError {
    SyntaxError { line: error.marker().line(), reason: error.info() }
}

/// Makes a document of its events.
#[derive(Default)]
struct Builder {
    nodes: Vec<Node>,
    /// The collections that are not complete yet, the innermost last.
    open: Vec<Open>,
    /// The nodes that anchors name, once these are complete.
    anchors: HashMap<usize, NodeId>,
    root: Option<NodeId>,
    done: Option<Document>,
}

struct Open {
    id: NodeId,
    anchor: usize,
    /// The key that a value is to come for.
    key: Option<NodeId>,
}

impl Builder {
    fn event(&mut self, event: Event<'_>, line: usize) -> Result<(), SyntaxError> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && tag.is_none();
                let id = self.node(line, Content::Scalar { text: text.into(), plain });
                self.anchored(anchor, id);
                self.place(id);
            }
            Event::SequenceStart(_, anchor, _) => self.begin(line, Content::Sequence(Vec::new()), anchor),
            Event::MappingStart(_, anchor, _) => self.begin(line, Content::Mapping(Vec::new()), anchor),
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(open) = self.open.pop() {
                    self.anchored(open.anchor, open.id);
                }
            }
            Event::Alias(anchor) => {
                // A value gets its anchor when it ends. So an alias within it finds none, and no walk over the nodes can go
                // in a circle.
                let reason = "an alias of the value that it stands in".to_owned();
                let id = *self.anchors.get(&anchor).ok_or(SyntaxError { line, reason })?;
                self.place(id);
            }
            Event::DocumentEnd => {
                let nodes = std::mem::take(&mut self.nodes);
                if let Some(root) = self.root.take() {
                    self.done = Some(Document { nodes, root });
                }
                self.anchors.clear();
            }
            _ => {}
        }
        Ok(())
    }

    fn node(&mut self, line: usize, content: Content) -> NodeId {
        // Far below 2³²: see the limit above.
        let id = NodeId(u32::try_from(self.nodes.len()).unwrap_or(u32::MAX));
        self.nodes.push(Node { line, content });
        id
    }

    fn begin(&mut self, line: usize, content: Content, anchor: usize) {
        let id = self.node(line, content);
        self.place(id);
        self.open.push(Open { id, anchor, key: None });
    }

    fn anchored(&mut self, anchor: usize, id: NodeId) {
        if anchor != 0 {
            self.anchors.insert(anchor, id);
        }
    }

    /// Puts a node where the next one belongs.
    fn place(&mut self, id: NodeId) {
        let Some(open) = self.open.last_mut() else {
            self.root = Some(id);
            return;
        };
        match &mut self.nodes[open.id.0 as usize].content {
            Content::Sequence(items) => items.push(id),
            Content::Mapping(pairs) => match open.key.take() {
                Some(key) => pairs.push((key, id)),
                None => open.key = Some(id),
            },
            Content::Scalar { .. } => {}
        }
    }
}
