//! Names for what registries hold that are no images, so that a message says what was found.

use registry::nydus;

/// Media types of configs, layers and artifacts, and what they are called.
const KNOWN: [(&str, &str); 10] = [
    ("application/vnd.cncf.helm.config.v1+json", "a Helm chart"),
    (IN_TOTO, "an attestation"),
    ("application/vnd.dev.cosign.simplesigning.v1+json", "a signature of cosign"),
    ("application/vnd.dev.cosign.artifact.sig.v1+json", "a signature of cosign"),
    ("application/vnd.dev.sigstore.bundle.v0.3+json", "a signature of sigstore"),
    ("application/vnd.cncf.notary.signature", "a signature of Notation"),
    ("application/vnd.cncf.flux.config.v1+json", "an artifact of Flux"),
    ("application/vnd.buildkit.cacheconfig.v0", "a build cache of BuildKit"),
    ("application/vnd.wasm.config.v0+json", "a WebAssembly component"),
    (nydus::MEDIA_TYPE_CONFIG, "a nydus image"),
];

/// Media type of an in-toto statement.
pub(super) const IN_TOTO: &str = "application/vnd.in-toto+json";

/// What has this media type.
pub(super) fn named(media_type: &str) -> String {
    match KNOWN.iter().find(|(known, _)| *known == media_type) {
        Some((_, name)) => format!("{name} ({media_type})"),
        None => format!("an artifact of type {media_type}"),
    }
}
