//! Paths of the distribution API.

use http::Method;

use super::error::{Code, Failure};
use crate::digest::Digest;
use crate::layout;
use crate::reference::{is_name, is_tag};

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Base,
    Catalog,
    Tags { name: String },
    Manifest { name: String, reference: ManifestName },
    Blob { name: String, digest: Digest },
    Uploads { name: String },
    Upload { name: String, id: String },
    Referrers { name: String, digest: Digest },
}

/// A manifest's name in a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ManifestName {
    Tag(String),
    Digest(Digest),
}

impl Route {
    /// What `path` names, every part of it checked so that it is safe in a file name.
    pub(super) fn parse(path: &str) -> Result<Self, Failure> {
        let unknown = || Failure::new(Code::UnknownPath, path);
        // Decoded before it is split and checked: `%2e%2e%2f` would pass every check and mean `../` later.
        let decoded = percent_decoded(path).ok_or_else(unknown)?;
        let rest = match decoded.strip_prefix("/v2/") {
            Some(rest) => rest,
            None if decoded == "/v2" => "",
            None => return Err(unknown()),
        };
        let parts: Vec<&str> = rest.split('/').collect();
        // A repository may be called `blobs` or have `tags/list` in its name, so it is the end of a path that says what is
        // meant.
        match parts.as_slice() {
            [""] => Ok(Self::Base),
            ["_catalog"] => Ok(Self::Catalog),
            [name @ .., "tags", "list"] => Ok(Self::Tags { name: checked_name(name)? }),
            [name @ .., "blobs", "uploads"] | [name @ .., "blobs", "uploads", ""] => {
                Ok(Self::Uploads { name: checked_name(name)? })
            }
            [name @ .., "blobs", "uploads", id] => {
                Ok(Self::Upload { name: checked_name(name)?, id: checked_id(id)? })
            }
            [name @ .., "blobs", digest] => {
                Ok(Self::Blob { name: checked_name(name)?, digest: checked_digest(digest)? })
            }
            [name @ .., "referrers", digest] => {
                Ok(Self::Referrers { name: checked_name(name)?, digest: checked_digest(digest)? })
            }
            [name @ .., "manifests", reference] => {
                let reference = if reference.contains(':') {
                    ManifestName::Digest(checked_digest(reference)?)
                } else if is_tag(reference) {
                    ManifestName::Tag((*reference).to_owned())
                } else {
                    return Err(Failure::new(Code::TagInvalid, *reference));
                };
                Ok(Self::Manifest { name: checked_name(name)?, reference })
            }
            _ => Err(unknown()),
        }
    }

    /// The repository that the path names.
    pub(super) fn name(&mut self) -> Option<&mut String> {
        match self {
            Self::Base | Self::Catalog => None,
            Self::Tags { name }
            | Self::Manifest { name, .. }
            | Self::Blob { name, .. }
            | Self::Uploads { name }
            | Self::Upload { name, .. }
            | Self::Referrers { name, .. } => Some(name),
        }
    }

    /// The methods that the path takes, for `Allow`.
    pub(super) fn methods(&self) -> &'static [Method] {
        match self {
            Self::Base | Self::Catalog | Self::Tags { .. } | Self::Referrers { .. } => {
                &[Method::GET, Method::HEAD]
            }
            Self::Manifest { .. } => &[Method::GET, Method::HEAD, Method::PUT, Method::DELETE],
            Self::Blob { .. } => &[Method::GET, Method::HEAD, Method::DELETE],
            Self::Uploads { .. } => &[Method::POST],
            Self::Upload { .. } => &[Method::GET, Method::HEAD, Method::PATCH, Method::PUT, Method::DELETE],
        }
    }
}

fn checked_name(parts: &[&str]) -> Result<String, Failure> {
    let name = parts.join("/");
    if is_name(&name) { Ok(name) } else { Err(Failure::new(Code::NameInvalid, name)) }
}

/// A digest that can be computed.
pub(super) fn checked_digest(text: &str) -> Result<Digest, Failure> {
    layout::checked_digest(text).map_err(|reason| Failure::new(Code::DigestInvalid, reason))
}

fn checked_id(id: &str) -> Result<String, Failure> {
    // As in a UUID: hexadecimal digits and dashes, so no path.
    let valid = id.len() == 36 && id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    if valid { Ok(id.to_owned()) } else { Err(Failure::new(Code::BlobUploadUnknown, id)) }
}

fn percent_decoded(path: &str) -> Option<String> {
    if !path.contains('%') {
        return Some(path.to_owned());
    }
    let mut bytes = path.bytes();
    let mut decoded = Vec::with_capacity(path.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let high = char::from(bytes.next()?).to_digit(16)?;
        let low = char::from(bytes.next()?).to_digit(16)?;
        decoded.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_look_like_parts_of_the_api() {
        let name = "team/manifests/blobs/uploads/app".to_owned();
        let tag = ManifestName::Tag("v1".to_owned());
        assert_eq!(
            Route::parse(&format!("/v2/{name}/manifests/v1")).unwrap(),
            Route::Manifest { name: name.clone(), reference: tag }
        );
        assert_eq!(Route::parse(&format!("/v2/{name}/blobs/uploads/")).unwrap(), Route::Uploads { name });
    }

    #[test]
    fn a_digest_may_be_percent_encoded() {
        let hex = "0".repeat(64);
        let digest = format!("sha256:{hex}").parse().unwrap();
        let route = Route::parse(&format!("/v2/a/blobs/sha256%3A{hex}")).unwrap();
        assert_eq!(route, Route::Blob { name: "a".to_owned(), digest });
    }

    #[test]
    fn what_could_leave_the_root_is_refused() {
        for (path, code) in [
            ("/v2/../manifests/x", Code::NameInvalid),
            ("/v2/a/%2e%2e/manifests/x", Code::NameInvalid),
            ("/v2/a%2f..%2fb/tags/list", Code::NameInvalid),
            ("/v2/a/manifests/..", Code::TagInvalid),
            ("/v2/a/blobs/sha256:../../x", Code::UnknownPath),
            ("/v2/a/blobs/sha256:abc", Code::DigestInvalid),
            ("/v2/a/blobs/md5:d41d8cd98f00b204e9800998ecf8427e", Code::DigestInvalid),
            ("/v2/a/blobs/uploads/../../../../etc/passwd", Code::UnknownPath),
            ("/v2/a/blobs/uploads/...................................x", Code::BlobUploadUnknown),
            ("/v2/a/manifests/%zz", Code::UnknownPath),
            ("/", Code::UnknownPath),
            ("/v1/", Code::UnknownPath),
        ] {
            let failure = Route::parse(path).unwrap_err();
            assert_eq!(failure.code(), code, "{path}: {failure}");
        }
    }
}
