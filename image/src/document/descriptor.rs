//! What documents name: descriptors, and what a layer of a nydus image says that it is.

use registry::client::Descriptor;
use registry::nydus::{ANNOTATION_BLOB, ANNOTATION_BOOTSTRAP, TRUE};
use serde::Deserialize as _;
use serde_json::Value;

use super::{DocumentError, Object};

/// What a layer of a nydus image says that it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// Chunks.
    Blob,
    /// The bootstrap.
    Bootstrap,
}

impl Role {
    /// What `layer` says; `None` of a layer of a plain image.
    pub fn of(layer: &Descriptor) -> Option<Self> {
        let annotations = layer.annotations().as_ref()?;
        let says = |name: &str| annotations.get(name).is_some_and(|value| value == TRUE);
        [(ANNOTATION_BOOTSTRAP, Self::Bootstrap), (ANNOTATION_BLOB, Self::Blob)]
            .into_iter()
            .find_map(|(name, role)| says(name).then_some(role))
    }

    /// `blob` or `bootstrap`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Blob => "blob",
            Self::Bootstrap => "bootstrap",
        }
    }
}

/// The descriptor that `document` has under this name.
pub(super) fn descriptor(
    document: &'static str,
    object: &Object,
    name: &str,
) -> Result<Descriptor, DocumentError> {
    let value = object.get(name).filter(|value| !value.is_null());
    let value = value.ok_or_else(|| DocumentError::new(document, format!("it has no {name}")))?;
    read(document, name, value)
}

/// The list of descriptors that `document` has under this name. Builders that write Go's empty lists write `null`.
pub(super) fn descriptors(
    document: &'static str,
    object: &Object,
    name: &str,
) -> Result<Vec<Descriptor>, DocumentError> {
    let values = match object.get(name) {
        Some(Value::Array(values)) => values,
        Some(Value::Null) => return Ok(Vec::new()),
        Some(_) => return Err(DocumentError::new(document, format!("{name}: expected a list"))),
        None => return Err(DocumentError::new(document, format!("it has no {name}"))),
    };
    (0..)
        .zip(values)
        .map(|(number, value): (usize, _)| read(document, &format!("{name}[{number}]"), value))
        .collect()
}

fn read(document: &'static str, place: &str, value: &Value) -> Result<Descriptor, DocumentError> {
    Descriptor::deserialize(value)
        .map_err(|error| DocumentError::new(document, format!("{place} is no descriptor: {error}")))
}
