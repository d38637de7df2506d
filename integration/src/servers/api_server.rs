//! The part of a Kubernetes API server that a node's pull secrets come from, over HTTPS and for a node's certificate alone.
//!
//! It answers as the real one does with its node authoriser: a node lists the pods that are bound to it, by their field, and
//! gets single secrets that one of these names. All else is forbidden.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::{Value, json};
use test_support::{SignedBy, make_certificate};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

/// What the node is called.
pub const NODE: &str = "node-1";

/// A running API server. Dropping it ends it.
#[derive(Debug)]
pub struct ApiServer {
    address: SocketAddr,
    kubeconfig: PathBuf,
    objects: Arc<Mutex<Objects>>,
    _runtime: Runtime,
}

#[derive(Debug, Default)]
struct Objects {
    pods: Vec<PodRecord>,
    /// By namespace and name.
    secrets: BTreeMap<(String, String), Value>,
    refused: Vec<String>,
}

#[derive(Debug)]
struct PodRecord {
    namespace: String,
    image: String,
    secrets: Vec<String>,
}

impl ApiServer {
    /// Starts it with an authority of its own; keys, certificates and the node's kubeconfig are below `dir`.
    pub fn start(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let here = "subjectAltName=IP:127.0.0.1";
        make_certificate(dir, "ca", "/CN=kubernetes", here, SignedBy::Itself);
        make_certificate(dir, "server", "/CN=kube-apiserver", here, SignedBy::Authority);
        let node = format!("/O=system:nodes/CN=system:node:{NODE}");
        make_certificate(dir, "node", &node, "extendedKeyUsage=clientAuth", SignedBy::Authority);
        // A kubelet has both in one file.
        let both = fs::read_to_string(dir.join("node.crt"))? + &fs::read_to_string(dir.join("node.key"))?;
        fs::write(dir.join("kubelet-client-current.pem"), both)?;
        let acceptor = TlsAcceptor::from(Arc::new(tls(dir)?));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener =
            runtime.block_on(TcpListener::bind("127.0.0.1:0")).context("binding the API server")?;
        let address = listener.local_addr()?;
        let objects: Arc<Mutex<Objects>> = Arc::default();
        runtime.spawn(accept(listener, acceptor, Arc::clone(&objects)));
        let kubeconfig = dir.join("kubelet.conf");
        fs::write(&kubeconfig, kubeconfig_text(address))?;
        Ok(Self { address, kubeconfig, objects, _runtime: runtime })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The node's kubeconfig, as kubeadm writes it.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A pod is bound to the node that runs `image` with these pull secrets, which need not exist.
    pub fn add_pod(&self, namespace: &str, image: &str, secrets: &[&str]) {
        let secrets = secrets.iter().map(ToString::to_string).collect();
        self.objects().pods.push(PodRecord {
            namespace: namespace.to_owned(),
            image: image.to_owned(),
            secrets,
        });
    }

    /// Makes or replaces a pull secret.
    pub fn set_secret(&self, namespace: &str, name: &str, registry: &str, user: &str, password: &str) {
        let entry = json!({"username": user, "password": password});
        let config = json!({"auths": {registry: entry}}).to_string();
        let data = json!({".dockerconfigjson": base64(config.as_bytes())});
        let metadata = json!({"namespace": namespace, "name": name});
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata,
            "type": "kubernetes.io/dockerconfigjson", "data": data});
        self.objects().secrets.insert((namespace.to_owned(), name.to_owned()), secret);
    }

    /// What was asked for that a node may not see.
    pub fn refused(&self) -> Vec<String> {
        self.objects().refused.clone()
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn kubeconfig_text(address: SocketAddr) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: default-context\nclusters:\n- name: default-cluster\n  cluster:\n    \
         certificate-authority: ca.crt\n    server: https://{address}\ncontexts:\n- name: default-context\n  context:\n    \
         cluster: default-cluster\n    namespace: default\n    user: default-auth\nusers:\n- name: default-auth\n  user:\n    \
         client-certificate: kubelet-client-current.pem\n    client-key: kubelet-client-current.pem\n"
    )
}

fn tls(dir: &Path) -> Result<ServerConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(dir.join("ca.crt"))? {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
    let chain = CertificateDer::pem_file_iter(dir.join("server.crt"))?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(dir.join("server.key"))?;
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_client_cert_verifier(verifier).with_single_cert(chain, key)?)
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, objects: Arc<Mutex<Objects>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, objects) = (acceptor.clone(), Arc::clone(&objects));
        tokio::spawn(async move {
            // Who shows no certificate gets no further.
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(move |request: Request<Incoming>| {
                let (status, body) = objects.lock().unwrap_or_else(PoisonError::into_inner).answer(&request);
                let body = Full::new(Bytes::from(body.to_string()));
                let answer = Response::builder().status(status).header("content-type", "application/json");
                async move { answer.body(body) }
            });
            let connection = hyper::server::conn::http1::Builder::new();
            let _ = connection.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

impl Objects {
    fn answer<B>(&mut self, request: &Request<B>) -> (StatusCode, Value) {
        let uri = request.uri();
        let parts: Vec<_> = uri.path().split('/').skip(1).collect();
        let answer = match parts[..] {
            ["api", "v1", "pods"] => self.pods(uri.query().unwrap_or_default()),
            ["api", "v1", "namespaces", namespace, "secrets", name] => self.secret(namespace, name),
            _ => None,
        };
        answer.unwrap_or_else(|| {
            self.refused.push(uri.to_string());
            let message = format!("User \"system:node:{NODE}\" cannot get resource: {uri}");
            (StatusCode::FORBIDDEN, failure(403, "Forbidden", &message))
        })
    }

    fn pods(&self, query: &str) -> Option<(StatusCode, Value)> {
        let own = format!("fieldSelector=spec.nodeName%3D{NODE}");
        if !query.split('&').any(|pair| pair == own) {
            return None;
        }
        let items: Vec<_> = self.pods.iter().enumerate().map(|(number, pod)| pod.to_json(number)).collect();
        let metadata = json!({"resourceVersion": "1"});
        let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": items});
        Some((StatusCode::OK, list))
    }

    fn secret(&self, namespace: &str, name: &str) -> Option<(StatusCode, Value)> {
        let is_named =
            |pod: &PodRecord| pod.namespace == namespace && pod.secrets.iter().any(|secret| secret == name);
        if !self.pods.iter().any(is_named) {
            return None;
        }
        let key = (namespace.to_owned(), name.to_owned());
        let not_found = || failure(404, "NotFound", &format!("secrets \"{name}\" not found"));
        Some(match self.secrets.get(&key) {
            Some(secret) => (StatusCode::OK, secret.clone()),
            None => (StatusCode::NOT_FOUND, not_found()),
        })
    }
}

impl PodRecord {
    fn to_json(&self, number: usize) -> Value {
        let secrets: Vec<_> = self.secrets.iter().map(|name| json!({"name": name})).collect();
        json!({
            "metadata": {"name": format!("pod-{number}"), "namespace": self.namespace},
            "spec": {"nodeName": NODE, "imagePullSecrets": secrets, "containers": [{"name": "main", "image": self.image}]},
            "status": {"phase": "Pending"},
        })
    }
}

fn failure(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": reason, "code": code})
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
