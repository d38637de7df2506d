//! Manifests and tags.

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, LINK};
use http::{HeaderMap, Method, StatusCode};
use oci_spec::image::{Descriptor, MediaType};
use serde::Deserialize;

use super::challenge::Scopes;
use super::endpoint::Endpoint;
use super::reader::ReadFrom;
use super::transport::{Exchange, header_value};
use super::{Client, Error, Target};
use crate::digest::{self, Digest};
use crate::media_types::{
    DOCKER_INDEX, DOCKER_MANIFEST, DOCKER_SCHEMA_1, DOCKER_SCHEMA_1_PLAIN, OCI_INDEX, OCI_MANIFEST,
};
use crate::reference::{Reference, Repository};

/// Every kind of manifest there is.
const ACCEPTED: [&str; 5] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX, "*/*"];

/// Docker's manifests before 2016: signed inside, without a config, layers named in reverse.
const SCHEMA_1: [&str; 2] = [DOCKER_SCHEMA_1, DOCKER_SCHEMA_1_PLAIN];

/// Registries take manifests up to 4 MiB (the specification's advice); four times that is read.
pub const MANIFEST_LIMIT_BYTES: usize = 16 << 20;

/// Bytes of all pages of a list together, each counted as `PAGE_LEAST_BYTES` at least: far more than a million names have. A
/// registry that always has one more page would be asked for ever.
const LIST_LIMIT_BYTES: usize = 64 << 20;
const PAGE_LEAST_BYTES: usize = 4096;

/// The header by which a registry names the digest of what it sends or has stored.
pub(super) const CONTENT_DIGEST: &str = "docker-content-digest";

impl Client {
    /// The manifest and its descriptor. The bytes have the digest of the reference or, for a tag, the digest
    /// that the registry announces.
    pub async fn manifest(&self, reference: &Reference) -> Result<(Descriptor, Bytes), Error> {
        self.manifest_from(reference, ReadFrom::Mirrors).await
    }

    /// The same as the registry itself has it, whatever mirrors have: for what is to be put in its place.
    pub async fn manifest_at_registry(&self, reference: &Reference) -> Result<(Descriptor, Bytes), Error> {
        self.manifest_from(reference, ReadFrom::Registry).await
    }

    async fn manifest_from(
        &self,
        reference: &Reference,
        from: ReadFrom,
    ) -> Result<(Descriptor, Bytes), Error> {
        let repository = reference.repository();
        let target = Target::new(Method::GET, repository, format!("manifest {}", reference.identifier()));
        let scopes = Scopes::pull(repository.name());
        let exchange = |endpoint: &Endpoint| {
            let path = format!("manifests/{}", reference.identifier());
            let mut exchange = Exchange::new(Method::GET, endpoint.url(&target, repository, &path)?);
            exchange.headers.insert(ACCEPT, header_value(&target, &ACCEPTED.join(", "))?);
            Ok(exchange)
        };
        let accept = |target: &Target, headers: HeaderMap, body: Bytes| {
            let announced = announced_digest(target, &headers)?;
            // Before anything in it is believed. What was asked for counts; what the registry announces does only for a tag.
            let digest = verified(target, reference.digest().cloned().or(announced), &body)?;
            let media_type = media_type(&headers, &body).ok_or_else(|| {
                Error::protocol(
                    target,
                    "neither Content-Type nor mediaType says what kind of manifest this is",
                )
            })?;
            if SCHEMA_1.contains(&media_type.to_string().as_str()) {
                let reason = "a manifest of Docker's schema 1, which is not supported: push the image again with a \
                              client of today";
                return Err(Error::protocol(target, reason));
            }
            Ok((Descriptor::new(media_type, body.len() as u64, digest), body))
        };
        self.small_read(&target, &scopes, from, MANIFEST_LIMIT_BYTES, exchange, accept).await
    }

    /// The manifest's descriptor without its bytes, `None` if there is none.
    pub async fn head_manifest(&self, reference: &Reference) -> Result<Option<Descriptor>, Error> {
        let repository = reference.repository();
        let target = Target::new(Method::HEAD, repository, format!("manifest {}", reference.identifier()));
        let scopes = Scopes::pull(repository.name());
        let call = self.small(&target, &scopes, &[StatusCode::OK], |endpoint| {
            let path = format!("manifests/{}", reference.identifier());
            let mut exchange = Exchange::new(Method::HEAD, endpoint.url(&target, repository, &path)?);
            exchange.headers.insert(ACCEPT, header_value(&target, &ACCEPTED.join(", "))?);
            Ok(exchange)
        });
        let response = match call.await {
            Ok(response) => response,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        let digest = reference.digest().cloned().or(announced_digest(&target, response.headers())?);
        match (digest, response.content_length(), media_type(response.headers(), &[])) {
            (Some(digest), Some(size), Some(media_type)) => {
                Ok(Some(Descriptor::new(media_type, size, digest)))
            }
            // An optional header is missing: only the manifest itself tells.
            _ => Ok(Some(self.manifest(reference).await?.0)),
        }
    }

    /// Stores `manifest` under the reference's tag, or by digest if it has none, and returns its digest. A
    /// digest in the reference must be the manifest's.
    pub async fn put_manifest(
        &self,
        reference: &Reference,
        media_type: &str,
        manifest: Bytes,
    ) -> Result<Digest, Error> {
        let repository = reference.repository();
        let name = reference.tag().unwrap_or_else(|| reference.identifier());
        let target = Target::new(Method::PUT, repository, format!("manifest {name}"));
        let digest = match reference.digest() {
            Some(digest) => verified(&target, Some(digest.clone()), &manifest)?,
            None => digest::sha256(&manifest),
        };
        let good = [StatusCode::CREATED, StatusCode::OK, StatusCode::ACCEPTED];
        let response = self
            .small(&target, &Scopes::push(repository.name()), &good, |endpoint| {
                let url = endpoint.url(&target, repository, &format!("manifests/{name}"))?;
                let mut exchange = Exchange::new(Method::PUT, url);
                exchange.headers.insert(CONTENT_TYPE, header_value(&target, media_type)?);
                exchange.body = Some(manifest.clone());
                Ok(exchange)
            })
            .await?;
        if let Some(stored) = announced_digest(&target, response.headers())?
            // Registries may announce SHA-256 for what was put under a digest of another algorithm.
            && stored.algorithm() == digest.algorithm()
            && stored != digest
        {
            return Err(Error::Digest { target: Box::new(target), expected: digest, actual: stored });
        }
        let noted = response.headers().contains_key(super::referrers::SUBJECT_HEADER);
        let descriptor = Descriptor::new(MediaType::from(media_type), manifest.len() as u64, digest.clone());
        // Only now: the list may name only what is there.
        self.note_referrer(repository, descriptor, &manifest, noted).await?;
        Ok(digest)
    }

    /// Deletes the manifest that the reference names: by digest the manifest, by tag the tag where the registry
    /// can do that.
    pub async fn delete_manifest(&self, reference: &Reference) -> Result<(), Error> {
        let repository = reference.repository();
        let target = Target::new(Method::DELETE, repository, format!("manifest {}", reference.identifier()));
        let good = [StatusCode::ACCEPTED, StatusCode::OK, StatusCode::NO_CONTENT];
        let scopes = Scopes::delete(repository.name());
        let call = self.small(&target, &scopes, &good, |endpoint| {
            let path = format!("manifests/{}", reference.identifier());
            Ok(Exchange::new(Method::DELETE, endpoint.url(&target, repository, &path)?))
        });
        call.await.map(drop)
    }

    /// All tags of the repository, in the registry's order.
    pub async fn tags(&self, repository: &Repository) -> Result<Vec<String>, Error> {
        #[derive(Deserialize)]
        struct Page {
            tags: Option<Vec<String>>,
        }
        let target = Target::new(Method::GET, repository, "tags");
        let scopes = Scopes::pull(repository.name());
        let (mut tags, mut left) = (Vec::new(), LIST_LIMIT_BYTES);
        let mut query: Option<String> = None;
        loop {
            let exchange = |endpoint: &Endpoint| {
                let url = match &query {
                    Some(query) => endpoint.page(&target, repository, "tags/list", query)?,
                    None => endpoint.url(&target, repository, "tags/list")?,
                };
                Ok(Exchange::new(Method::GET, url))
            };
            let accept = |target: &Target, headers: HeaderMap, body: Bytes| {
                let page: Page = serde_json::from_slice(&body)
                    .map_err(|e| Error::protocol(target, format!("the list of tags: {e}")))?;
                Ok((page.tags.unwrap_or_default(), next_query(&headers), body.len()))
            };
            let call =
                self.small_read(&target, &scopes, ReadFrom::Mirrors, MANIFEST_LIMIT_BYTES, exchange, accept);
            let (page, next, size) = call.await?;
            left = left_of_list(&target, left, size)?;
            // A registry that sends nothing more, or the same page again, would be asked without end.
            if page.is_empty() || next.is_none() || next == query {
                tags.extend(page);
                return Ok(tags);
            }
            tags.extend(page);
            query = next;
        }
    }
}

impl Client {
    /// All repositories of the registry `host`, which many registries show only to some or to nobody.
    pub async fn repositories(&self, host: &str) -> Result<Vec<Repository>, Error> {
        #[derive(Deserialize)]
        struct Page {
            repositories: Option<Vec<String>>,
        }
        let target = Target {
            method: Method::GET,
            host: host.to_owned(),
            repository: String::new(),
            item: "list of repositories".to_owned(),
            redirected_to: None,
        };
        let scopes = Scopes::parse("registry:catalog:*");
        let (mut all, mut left) = (Vec::new(), LIST_LIMIT_BYTES);
        let mut query: Option<String> = None;
        loop {
            let call = self.small(&target, &scopes, &[StatusCode::OK], |endpoint| {
                Ok(Exchange::new(Method::GET, endpoint.catalog(&target, query.as_deref())?))
            });
            let response = call.await?;
            let next = next_query(response.headers());
            let body = response.body(MANIFEST_LIMIT_BYTES).await?;
            left = left_of_list(&target, left, body.len())?;
            let page: Page = serde_json::from_slice(&body)
                .map_err(|e| Error::protocol(&target, format!("the list of repositories: {e}")))?;
            let names = page.repositories.unwrap_or_default();
            let last = names.is_empty() || next.is_none() || next == query;
            for name in names {
                let repository = Repository::parse(&format!("{host}/{name}"));
                all.push(repository.map_err(|e| Error::protocol(&target, e.to_string()))?);
            }
            if last {
                return Ok(all);
            }
            query = next;
        }
    }
}

/// What pages may still have behind one of `size` bytes.
fn left_of_list(target: &Target, left: usize, size: usize) -> Result<usize, Error> {
    let too_long = || Error::protocol(target, format!("the list goes on behind {LIST_LIMIT_BYTES} bytes"));
    left.checked_sub(size.max(PAGE_LEAST_BYTES)).ok_or_else(too_long)
}

/// The query of `Link: <…?QUERY>; rel="next"`: pages stay on the endpoint that gave the first.
pub(super) fn next_query(headers: &HeaderMap) -> Option<String> {
    let link = headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok()).find(|link| {
        let parameters = link.rsplit_once('>').map_or("", |(_, parameters)| parameters);
        parameters.replace(['"', ' '], "").contains("rel=next")
    })?;
    let url = link.trim_start().strip_prefix('<')?.split_once('>')?.0;
    Some(url.split_once('?')?.1.to_owned())
}

fn announced_digest(target: &Target, headers: &HeaderMap) -> Result<Option<Digest>, Error> {
    let Some(value) = headers.get(CONTENT_DIGEST) else { return Ok(None) };
    let text = String::from_utf8_lossy(value.as_bytes());
    let digest =
        text.parse().map_err(|e| Error::protocol(target, format!("Docker-Content-Digest {text:?}: {e}")))?;
    Ok(Some(digest))
}

/// The digest of `content`, which must be `expected` if that is known.
fn verified(target: &Target, expected: Option<Digest>, content: &[u8]) -> Result<Digest, Error> {
    let Some(expected) = expected else { return Ok(digest::sha256(content)) };
    let mut hasher = digest::Hasher::like(&expected)?;
    hasher.update(content);
    let actual = hasher.finish();
    if actual == expected {
        return Ok(expected);
    }
    Err(Error::Digest { target: Box::new(target.clone()), expected, actual })
}

fn media_type(headers: &HeaderMap, body: &[u8]) -> Option<MediaType> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Kind {
        media_type: Option<String>,
        schema_version: Option<u64>,
    }
    let header = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let header = header.map(|text| text.split(';').next().unwrap_or(text).trim());
    match header {
        // What static file servers and careless mirrors send for any JSON.
        Some("application/json" | "application/octet-stream" | "text/plain" | "") | None => {
            let kind: Kind = serde_json::from_slice(body).ok()?;
            let old = (kind.schema_version == Some(1)).then_some(SCHEMA_1[0]);
            kind.media_type.as_deref().or(old).map(MediaType::from)
        }
        Some(header) => Some(MediaType::from(header)),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_next_page_is_taken_from_the_link_header() {
        let mut headers = HeaderMap::new();
        assert_eq!(next_query(&headers), None);
        headers.insert(LINK, HeaderValue::from_static("</v2/a/tags/list?last=b&n=2>; rel=\"prev\""));
        assert_eq!(next_query(&headers), None);
        headers.append(LINK, HeaderValue::from_static("</v2/a/tags/list?last=c&n=2>; rel=\"next\""));
        assert_eq!(next_query(&headers).as_deref(), Some("last=c&n=2"));
    }

    #[test]
    fn a_generic_content_type_yields_to_the_manifests_own() {
        let body = br#"{"mediaType":"application/vnd.oci.image.index.v1+json"}"#;
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
        assert_eq!(media_type(&headers, body), Some(MediaType::ImageIndex));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/vnd.oci.image.manifest.v1+json"));
        assert_eq!(media_type(&headers, body), Some(MediaType::ImageManifest));
    }
}
