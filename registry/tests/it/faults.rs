//! Registries that are not there at all.

use std::time::{Duration, Instant};

use registry::Reference;
use registry::client::{Client, ClientConfig, Error, Timeouts};

use crate::support::config;

#[tokio::test]
async fn a_refused_connection_is_retried_and_named() {
    // Bound, so that it is nobody else's, and not listened on.
    let bound = tokio::net::TcpSocket::new_v4().unwrap();
    bound.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let reference = Reference::parse(&format!("{}/app:v1", bound.local_addr().unwrap())).unwrap();
    let error = Client::new(config()).unwrap().manifest(&reference).await.unwrap_err();
    assert!(matches!(error, Error::Connection { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("refused") && text.contains(reference.host()) && text.contains("manifest v1"),
        "{text}"
    );
}

#[tokio::test]
async fn a_host_that_takes_no_connection_is_an_error_within_the_deadline() {
    // A full backlog that is never accepted from: further connections get no answer.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let reference = Reference::parse(&format!("{}/app:v1", listener.local_addr().unwrap())).unwrap();
    let timeouts = Timeouts {
        connect: Duration::from_millis(200),
        idle: Duration::from_millis(200),
        operation: Duration::from_secs(1),
        ..config().timeouts
    };
    let started = Instant::now();
    let error =
        Client::new(ClientConfig { timeouts, ..config() }).unwrap().manifest(&reference).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}
