//! The server's certificate.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use tokio_rustls::TlsAcceptor;

use super::error::ServerError;

/// By what the server proves who it is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// PEM file of the certificate and those that lead from it to the authority.
    pub certificate: PathBuf,
    /// PEM file of the certificate's private key.
    pub key: PathBuf,
}

/// What makes HTTPS of connections.
pub(super) fn acceptor(config: &TlsConfig) -> Result<TlsAcceptor, ServerError> {
    let failed = |path: &PathBuf, reason: String| ServerError::Tls { path: path.clone(), reason };
    let of_certificate = |reason: String| failed(&config.certificate, reason);
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&config.certificate)
        .and_then(Iterator::collect)
        .map_err(|e| of_certificate(e.to_string()))?;
    if chain.is_empty() {
        return Err(of_certificate("holds no PEM certificate".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_file(&config.key).map_err(|e| failed(&config.key, e.to_string()))?;
    // Named, so that nothing depends on a default that another library may have installed.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| of_certificate(e.to_string()))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|e| of_certificate(format!("with the key {}: {e}", config.key.display())))?;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(tls)))
}
