//! TLS towards registries: the system's roots, a registry's own authority, or none at all.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::access::{ClientCertificate, Connection, Pem};
use super::error::Error;

/// The system's certificate authorities.
pub(super) fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in native.errors {
        tracing::debug!(%error, "a system certificate cannot be read");
    }
    roots.add_parsable_certificates(native.certs);
    roots
}

/// The TLS settings for hosts with `config`; `system` is asked for where certificates are looked at. `ring` is named explicitly so that nothing depends on a
/// process-wide default that another library may or may not have installed.
pub(super) fn config(
    config: &Connection,
    system: impl FnOnce() -> RootCertStore,
) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::Config { what: "TLS".to_owned(), reason: e.to_string() })?;
    let builder = if config.skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AcceptAny(provider)))
    } else {
        builder.with_root_certificates(roots(
            config,
            if config.without_system { RootCertStore::empty() } else { system() },
        )?)
    };
    let mut tls = match &config.client {
        None => builder.with_no_client_auth(),
        Some(ClientCertificate { chain, key }) => {
            let failed =
                |reason: String| Error::Config { what: format!("client certificate {}", chain.name), reason };
            let key = key.as_ref().unwrap_or(chain);
            let chain = CertificateDer::pem_slice_iter(text(chain).map_err(failed)?);
            let chain = chain.collect::<Result<Vec<_>, _>>().map_err(|e| failed(e.to_string()))?;
            let of_key = |reason: String| failed(format!("its key {}: {reason}", key.name));
            let key = PrivateKeyDer::from_pem_slice(text(key).map_err(of_key)?)
                .map_err(|e| of_key(e.to_string()))?;
            builder.with_client_auth_cert(chain, key).map_err(|e| failed(e.to_string()))?
        }
    };
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(tls)
}

fn text(pem: &Pem) -> Result<&[u8], String> {
    pem.text.as_ref().map(String::as_bytes).map_err(String::clone)
}

fn roots(config: &Connection, mut roots: RootCertStore) -> Result<RootCertStore, Error> {
    for pem in &config.authorities {
        let failed = |reason: String| Error::Config { what: format!("ca_file {}", pem.name), reason };
        let mut any = false;
        for certificate in CertificateDer::pem_slice_iter(text(pem).map_err(failed)?) {
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
