//! A server that fetches blobs from another registry when it is asked for them.

use std::fs;
use std::time::Duration;

use registry::layout::Layout;
use registry::server::{BlobsElsewhere, ServerConfig, StandIn, serve_stand_in};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::support::{Kind, Registry, SOON, client, folder, noise};

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_wrong_elsewhere_does_not_come_whole() {
    for size in [1_000, 3_000_000] {
        let (dir, empty) = (folder(), folder());
        let other = Registry::start(Kind::Embedded, dir.path()).await;
        let (repository, data) = (other.repository("saved"), noise(31, size));
        let digest = client().push_blob(&repository, data.clone()).await.unwrap();
        let blobs = [("app".to_owned(), [(digest.clone(), size as u64)].into())].into();
        let elsewhere = Some(BlobsElsewhere { client: client(), repository, blobs, patience: SOON });
        let (stand_in, stop) = (StandIn { elsewhere, ..StandIn::default() }, CancellationToken::new());
        let config = ServerConfig { listen: ([127, 0, 0, 1], 0).into(), ..ServerConfig::new(empty.path()) };
        let server =
            serve_stand_in(config, Layout::directory(empty.path()), stand_in, stop.clone()).await.unwrap();
        let get = async || {
            let mut stream = TcpStream::connect(server.address()).await.unwrap();
            let head =
                format!("GET /v2/app/blobs/{digest} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            // The server ends the connection, whether all went well or not.
            let read = tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await.unwrap();
            let body =
                answer.windows(4).position(|end| end == b"\r\n\r\n").map(|at| answer.split_off(at + 4));
            (read.is_ok(), body.unwrap_or_default())
        };
        assert_eq!(get().await, (true, data.to_vec()));

        let hex = digest.digest();
        let file = dir.path().join(format!("root/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]));
        fs::write(file, noise(32, size)).unwrap();
        let (_, body) = get().await;
        assert!(body.len() < size, "{} bytes of {size}", body.len());
        stop.cancel();
        tokio::time::timeout(SOON, server.stopped()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_for_a_blob_of_a_registry_that_stands_still_is_soon_told_which() {
    // It takes connections, and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let repository = format!("{}/saved", silent.local_addr().unwrap());
    let (here, data) = (folder(), noise(33, 1_000));
    let digest = registry::digest::sha256(&data);
    let blobs = [("app".to_owned(), [(digest.clone(), data.len() as u64)].into())].into();
    let elsewhere = BlobsElsewhere {
        client: client(),
        repository: registry::Repository::parse(&repository).unwrap(),
        blobs,
        patience: Duration::from_millis(200),
    };
    let stand_in = StandIn { elsewhere: Some(elsewhere), ..StandIn::default() };
    let config = ServerConfig { listen: ([127, 0, 0, 1], 0).into(), ..ServerConfig::new(here.path()) };
    let stop = CancellationToken::new();
    let server =
        serve_stand_in(config, Layout::directory(here.path()), stand_in, stop.clone()).await.unwrap();
    for (method, lines) in [("GET", ""), ("GET", "range: bytes=0-9\r\n"), ("HEAD", "")] {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        let head = format!(
            "{method} /v2/app/blobs/{digest} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n{lines}\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 502 "), "{method}: {answer}");
        let said = format!("\"message\":\"{repository} did not answer within 200ms\"");
        assert!(method == "HEAD" || answer.contains(&said), "{answer}");
    }
    stop.cancel();
    tokio::time::timeout(SOON, server.stopped()).await.unwrap();
}
