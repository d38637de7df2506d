//! The fields of Control's messages that matter here, by number; everything else is passed on as it is.
//!
//! | message | field | meaning |
//! |---|---|---|
//! | SolveRequest | 1 | `Ref`, the build's name |
//! | | 3, 4 | exporter type and attributes before v0.13; later a mirror of the first exporter |
//! | | 5 | `Session` |
//! | | 8 | `CacheOptions`, of which 4 are the repeated exports, with the fields of Exporter |
//! | | 13 | repeated `Exporter`, from v0.13 |
//! | Exporter | 1, 2 | `Type`, map `Attrs` |
//! | SolveResponse | 1 | map `ExporterResponse` |
//! | StatusRequest | 1 | `Ref` |
//! | StatusResponse | 1, 2 | repeated `Vertex`, repeated `VertexStatus` |
//! | Vertex | 1, 3 | `digest`, `name` |

use std::collections::BTreeMap;

use crate::grpc::wire::field::{self, put_bytes};
use crate::grpc::wire::{Field, Fields, WireError, map};

mod solve_request {
    pub(super) const REF: u64 = 1;
    pub(super) const EXPORTER_TYPE: u64 = 3;
    pub(super) const EXPORTER_ATTRS: u64 = 4;
    pub(super) const SESSION: u64 = 5;
    pub(super) const CACHE: u64 = 8;
    pub(super) const EXPORTERS: u64 = 13;
}

/// Of CacheOptions: its entries have the fields of an exporter.
const CACHE_EXPORTS: u64 = 4;

mod exporter {
    pub(super) const TYPE: u64 = 1;
    pub(super) const ATTRS: u64 = 2;
}

const SOLVE_RESPONSE_EXPORTER: u64 = 1;
const STATUS_REQUEST_REF: u64 = 1;
const STATUS_VERTEXES: u64 = 1;

mod vertex {
    pub(super) const DIGEST: u64 = 1;
    pub(super) const NAME: u64 = 3;
}

/// One `--output`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Export {
    pub(crate) kind: String,
    pub(crate) attrs: BTreeMap<String, String>,
}

impl Export {
    /// Whether it makes an image, and so reports a digest.
    pub(crate) fn is_image(&self) -> bool {
        matches!(self.kind.as_str(), "image" | "oci" | "docker")
    }

    /// Whether it is an image into the session's content store.
    pub(crate) fn is_store(&self) -> bool {
        let is_false =
            |value: &String| matches!(value.as_str(), "0" | "f" | "F" | "false" | "FALSE" | "False");
        matches!(self.kind.as_str(), "oci" | "docker") && self.attrs.get("tar").is_some_and(is_false)
    }
}

/// What a Solve request says of interest.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct SolveRequest {
    pub(crate) reference: String,
    pub(crate) session: String,
    /// The outputs in order: a response's exporter index counts these.
    pub(crate) exports: Vec<Export>,
    /// The `--export-cache`s.
    pub(crate) caches: Vec<Export>,
}

impl SolveRequest {
    /// Reads a request.
    pub(crate) fn parse(message: &[u8]) -> Result<Self, WireError> {
        let (mut exports, mut caches) = (Vec::new(), Vec::new());
        for field in Fields::of(message) {
            let field = field?;
            match (field.number, field.bytes()) {
                (solve_request::EXPORTERS, Some(bytes)) => exports.push(Export::parse(bytes)?),
                (solve_request::CACHE, Some(bytes)) => caches.extend(cache_exports(bytes)?),
                _ => {}
            }
        }
        if exports.is_empty() {
            let kind = field::string(message, solve_request::EXPORTER_TYPE)?;
            if !kind.is_empty() {
                exports.push(Export { kind, attrs: map::entries(message, solve_request::EXPORTER_ATTRS)? });
            }
        }
        Ok(Self {
            reference: field::string(message, solve_request::REF)?,
            session: field::string(message, solve_request::SESSION)?,
            exports,
            caches,
        })
    }
}

impl Export {
    fn parse(message: &[u8]) -> Result<Self, WireError> {
        let (kind, attrs) =
            (field::string(message, exporter::TYPE)?, map::entries(message, exporter::ATTRS)?);
        Ok(Self { kind, attrs })
    }
}

fn cache_exports(message: &[u8]) -> Result<Vec<Export>, WireError> {
    let mut found = Vec::new();
    for field in Fields::of(message) {
        let field = field?;
        if let (CACHE_EXPORTS, Some(bytes)) = (field.number, field.bytes()) {
            found.push(Export::parse(bytes)?);
        }
    }
    Ok(found)
}

/// The request with the exports at the given indices replaced, all else byte for byte as it was.
pub(crate) fn replace_exports(
    message: &[u8],
    replacements: &BTreeMap<usize, Export>,
) -> Result<Vec<u8>, WireError> {
    let mut out = Vec::with_capacity(message.len() + 256);
    let mut index = 0;
    for field in Fields::of(message) {
        let field = field?;
        match (field.number, field.bytes()) {
            (solve_request::EXPORTERS, Some(bytes)) => {
                match replacements.get(&index) {
                    Some(export) => {
                        let replaced = replace_export(bytes, export, exporter::TYPE, exporter::ATTRS)?;
                        put_bytes(solve_request::EXPORTERS, &replaced, &mut out);
                    }
                    None => out.extend_from_slice(field.raw),
                }
                index += 1;
            }
            _ => out.extend_from_slice(field.raw),
        }
    }
    match replacements.get(&0) {
        Some(first) => {
            replace_export(&out, first, solve_request::EXPORTER_TYPE, solve_request::EXPORTER_ATTRS)
        }
        None => Ok(out),
    }
}

/// The request as of another session.
pub(crate) fn set_session(message: &[u8], session: &str) -> Result<Vec<u8>, WireError> {
    with_text(message, solve_request::SESSION, session)
}

/// A message with its fields `kind` and `attrs` replaced by those of `export`.
fn replace_export(message: &[u8], export: &Export, kind: u64, attrs: u64) -> Result<Vec<u8>, WireError> {
    let mut out = Vec::with_capacity(message.len() + 64);
    for field in Fields::of(message) {
        let field = field?;
        if field.number != kind && field.number != attrs {
            out.extend_from_slice(field.raw);
        }
    }
    put_bytes(kind, export.kind.as_bytes(), &mut out);
    for (key, value) in &export.attrs {
        map::put_entry(attrs, key, value, &mut out);
    }
    Ok(out)
}

/// The entries of a Solve response.
pub(crate) fn exporter_response(message: &[u8]) -> Result<BTreeMap<String, String>, WireError> {
    map::entries(message, SOLVE_RESPONSE_EXPORTER)
}

/// A Solve response with one entry set.
pub(crate) fn set_exporter_response(message: &[u8], key: &str, value: &str) -> Result<Vec<u8>, WireError> {
    map::set_entry(message, SOLVE_RESPONSE_EXPORTER, key, value)
}

/// The build that a Status request asks about.
pub(crate) fn status_ref(message: &[u8]) -> Result<String, WireError> {
    field::string(message, STATUS_REQUEST_REF)
}

/// A Status response with new names for vertexes where `rename` gives one for a digest; `None` if it gave none.
pub(crate) fn rename_vertexes(
    message: &[u8],
    mut rename: impl FnMut(&str) -> Option<String>,
) -> Result<Option<Vec<u8>>, WireError> {
    let mut out = Vec::new();
    let mut renamed = false;
    for field in Fields::of(message) {
        let field = field?;
        match new_name(&field, &mut rename)? {
            Some((bytes, name)) => {
                put_bytes(STATUS_VERTEXES, &with_text(bytes, vertex::NAME, &name)?, &mut out);
                renamed = true;
            }
            None => out.extend_from_slice(field.raw),
        }
    }
    Ok(renamed.then_some(out))
}

fn new_name<'a>(
    field: &Field<'a>,
    rename: &mut impl FnMut(&str) -> Option<String>,
) -> Result<Option<(&'a [u8], String)>, WireError> {
    let (STATUS_VERTEXES, Some(bytes)) = (field.number, field.bytes()) else { return Ok(None) };
    Ok(rename(&field::string(bytes, vertex::DIGEST)?).map(|name| (bytes, name)))
}

/// The message with `text` as its field `number`.
fn with_text(message: &[u8], number: u64, text: &str) -> Result<Vec<u8>, WireError> {
    let mut out = Vec::with_capacity(message.len() + text.len());
    for field in Fields::of(message) {
        let field = field?;
        if field.number != number {
            out.extend_from_slice(field.raw);
        }
    }
    put_bytes(number, text.as_bytes(), &mut out);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export(kind: &str, attrs: &[(&str, &str)]) -> Export {
        let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Export { kind: kind.to_owned(), attrs }
    }

    /// A request of v0.13 or later, with a field in it and in an exporter that nobody knows.
    fn request(exports: &[Export]) -> Vec<u8> {
        let mut message = Vec::new();
        put_bytes(solve_request::REF, b"ref", &mut message);
        put_bytes(solve_request::SESSION, b"session", &mut message);
        if let Some(first) = exports.first() {
            let mirror =
                replace_export(b"", first, solve_request::EXPORTER_TYPE, solve_request::EXPORTER_ATTRS);
            message.extend(mirror.unwrap());
        }
        for export in exports {
            let mut inner = replace_export(b"", export, exporter::TYPE, exporter::ATTRS).unwrap();
            put_bytes(77, b"unknown inside", &mut inner);
            put_bytes(solve_request::EXPORTERS, &inner, &mut message);
        }
        put_bytes(99, b"unknown", &mut message);
        message
    }

    fn holds(message: &[u8], part: &[u8]) -> bool {
        message.windows(part.len()).any(|window| window == part)
    }

    #[test]
    fn a_replaced_export_keeps_its_neighbours_and_unknown_fields() {
        let exports = [export("local", &[("a", "b")]), export("nydus-cluster", &[("name", "x")])];
        let message = request(&exports);
        let oci = export("oci", &[("tar", "false")]);
        let changed = replace_exports(&message, &BTreeMap::from([(1, oci.clone())])).unwrap();
        let parsed = SolveRequest::parse(&changed).unwrap();
        assert_eq!(parsed.exports, [exports[0].clone(), oci]);
        assert_eq!((parsed.reference.as_str(), parsed.session.as_str()), ("ref", "session"));
        assert!(holds(&changed, b"unknown inside") && changed.ends_with(b"unknown"));
        assert_eq!(field::string(&changed, solve_request::EXPORTER_TYPE).unwrap(), "local");
    }

    #[test]
    fn the_deprecated_fields_mirror_the_first_export() {
        let message = request(&[export("nydus-cluster", &[("name", "x")])]);
        let oci = export("oci", &[("tar", "false")]);
        let changed = replace_exports(&message, &BTreeMap::from([(0, oci.clone())])).unwrap();
        assert_eq!(field::string(&changed, solve_request::EXPORTER_TYPE).unwrap(), "oci");
        assert_eq!(map::entries(&changed, solve_request::EXPORTER_ATTRS).unwrap(), oci.attrs);
        assert_eq!(SolveRequest::parse(&changed).unwrap().exports, [oci]);
    }

    #[test]
    fn a_request_from_before_v0_13_has_one_export() {
        let ours = export("nydus-cluster", &[("name", "x")]);
        let message =
            replace_export(b"", &ours, solve_request::EXPORTER_TYPE, solve_request::EXPORTER_ATTRS).unwrap();
        assert_eq!(SolveRequest::parse(&message).unwrap().exports, [ours]);
    }

    #[test]
    fn another_session_changes_nothing_else() {
        let changed = set_session(&request(&[export("local", &[("a", "b")])]), "other").unwrap();
        let parsed = SolveRequest::parse(&changed).unwrap();
        assert_eq!((parsed.reference.as_str(), parsed.session.as_str()), ("ref", "other"));
        assert_eq!(parsed.exports, [export("local", &[("a", "b")])]);
        assert!(holds(&changed, b"unknown inside") && holds(&changed, b"unknown"));
    }

    #[test]
    fn nothing_replaced_is_nothing_changed() {
        let message = request(&[export("local", &[])]);
        assert_eq!(replace_exports(&message, &BTreeMap::new()).unwrap(), message);
    }

    #[test]
    fn only_the_vertex_asked_for_gets_a_name() {
        let vertex = |digest: &str, name: &str| {
            let mut message = Vec::new();
            put_bytes(vertex::DIGEST, digest.as_bytes(), &mut message);
            put_bytes(vertex::NAME, name.as_bytes(), &mut message);
            put_bytes(8, b"group", &mut message);
            message
        };
        let mut message = Vec::new();
        put_bytes(STATUS_VERTEXES, &vertex("d1", "one"), &mut message);
        put_bytes(STATUS_VERTEXES, &vertex("d2", "two"), &mut message);
        assert_eq!(rename_vertexes(&message, |_| None).unwrap(), None);
        let changed =
            rename_vertexes(&message, |digest| (digest == "d2").then(|| "new".to_owned())).unwrap().unwrap();
        assert!(holds(&changed, b"one") && holds(&changed, b"new") && !holds(&changed, b"two"));
    }
}
