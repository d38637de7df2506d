//! TLS towards registries: the system's roots, a registry's own authority, or none at all.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::certs_dir::Connection;
use super::config::HostConfig;
use super::error::Error;

/// What makes one host's TLS differ from another's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Settings {
    /// Authorities trusted beside the system's.
    ca_files: Vec<PathBuf>,
    /// The certificate to show, and its key unless that is in the same file.
    client: Option<(PathBuf, Option<PathBuf>)>,
    /// Accept any certificate.
    accept_any: bool,
}

impl Settings {
    /// No certificate is looked at.
    pub(super) fn accepting_any() -> Self {
        Self { accept_any: true, ..Self::default() }
    }

    /// Our own settings of a host with those of containerd.
    pub(super) fn new(host: &HostConfig, connection: Option<&Connection>) -> Self {
        let theirs = connection.cloned().unwrap_or_default();
        Self {
            ca_files: host.ca_file.iter().cloned().chain(theirs.ca_files).collect(),
            // A registry has one authority: of several certificates containerd too shows the first that fits.
            client: theirs.client.into_iter().next(),
            accept_any: theirs.skip_verify.unwrap_or(host.insecure_skip_verify),
        }
    }
}

/// The TLS settings for hosts with `config`. `ring` is named explicitly so that nothing depends on a
/// process-wide default that another library may or may not have installed.
pub(super) fn config(config: &Settings) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::Config { what: "TLS".to_owned(), reason: e.to_string() })?;
    let builder = if config.accept_any {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AcceptAny(provider)))
    } else {
        builder.with_root_certificates(roots(config)?)
    };
    let mut tls = match &config.client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let failed = |reason: String| Error::Config {
                what: format!("client certificate {}", certificate.display()),
                reason,
            };
            let chain = CertificateDer::pem_file_iter(certificate).map_err(|e| failed(e.to_string()))?;
            let chain = chain.collect::<Result<Vec<_>, _>>().map_err(|e| failed(e.to_string()))?;
            let key = PrivateKeyDer::from_pem_file(key.as_ref().unwrap_or(certificate))
                .map_err(|e| failed(format!("its key: {e}")))?;
            builder.with_client_auth_cert(chain, key).map_err(|e| failed(e.to_string()))?
        }
    };
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(tls)
}

fn roots(config: &Settings) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in native.errors {
        tracing::debug!(%error, "a system certificate cannot be read");
    }
    roots.add_parsable_certificates(native.certs);
    for path in &config.ca_files {
        let failed = |reason: String| Error::Config { what: format!("ca_file {}", path.display()), reason };
        let mut any = false;
        for certificate in CertificateDer::pem_file_iter(path).map_err(|e| failed(e.to_string()))? {
            roots.add(certificate.map_err(|e| failed(e.to_string()))?).map_err(|e| failed(e.to_string()))?;
            any = true;
        }
        if !any {
            return Err(failed("holds no PEM certificate".to_owned()));
        }
    }
    Ok(roots)
}

/// Accepts every certificate, as `insecure_skip_verify` asks; signatures are still checked.
#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
