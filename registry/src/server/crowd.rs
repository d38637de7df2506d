//! Many clients that send more than the disk takes, and then nothing.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::connections::{READ_BUFFER_BYTES, accept};
use super::*;
use crate::client::{Client, ClientConfig};
use crate::digest::sha256;
use crate::reference::Repository;

const SOON: Duration = Duration::from_secs(60);

const CLIENTS: usize = 60;

/// What each announces, and what it sends of that.
const ANNOUNCED_BYTES: usize = 4 << 20;
const SENT_BYTES: usize = 2 << 20;

/// Less than they send, by far.
const BUDGET_BYTES: usize = 4 << 20;

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !done().await {
        assert!(started.elapsed() < SOON, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A server that holds no more than [`BUDGET_BYTES`].
async fn started(config: &ServerConfig, stop: &CancellationToken) -> (Arc<ServerState>, SocketAddr) {
    let storage = Storage::new(Layout::directory(&config.root));
    let mut state = ServerState::new(config, storage, None).unwrap();
    let idle = state.idle;
    Arc::get_mut(&mut state).unwrap().room = Room::new(u32::try_from(BUDGET_BYTES).unwrap(), idle);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(accept(listener, None, state.clone(), stop.clone(), Duration::ZERO));
    (state, address)
}

async fn asked(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /v2/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Sends a half of a blob, and keeps the connection until `leave`.
async fn half_a_blob(address: SocketAddr, leave: CancellationToken) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let digest = sha256(b"not that of zeroes");
    let head = format!(
        "POST /v2/slow/blobs/uploads/?digest={digest} HTTP/1.1\r\nhost: x\r\ncontent-length: {ANNOUNCED_BYTES}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![0; SENT_BYTES]).await.unwrap();
    leave.cancelled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_hold_memory_only_for_what_waits_for_the_disk_and_all_of_them_no_more_than_one_budget() {
    let dir = tempfile::tempdir().unwrap();
    let (stop, leave) = (CancellationToken::new(), CancellationToken::new());
    let (state, address) = started(&ServerConfig::new(dir.path()), &stop).await;
    // The disk stands still.
    let writers = u32::try_from(uploads::WRITERS).unwrap();
    let disk = state.disk.clone().acquire_many_owned(writers).await.unwrap();
    let clients: Vec<_> = (0..CLIENTS).map(|_| tokio::spawn(half_a_blob(address, leave.clone()))).collect();
    until("the budget is used up", async || state.room.taken() + READ_BUFFER_BYTES > BUDGET_BYTES).await;
    // Who reads, or asks, is served meanwhile.
    let answer = asked(address).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // The disk goes on: all that was sent is written, and silent clients hold nothing.
    drop(disk);
    let uploads = dir.path().join("docker/registry/v2/repositories/slow/_uploads");
    let arrived = || {
        // The folder of an upload is there before its file, and removed after it.
        let all = std::fs::read_dir(&uploads).into_iter().flatten().flatten();
        let all = all.map(|upload| upload.path().join("data"));
        all.map(|data| std::fs::metadata(data).map_or(0, |data| data.len())).sum::<u64>()
    };
    until("all of it arrives", async || arrived() == (CLIENTS * SENT_BYTES) as u64).await;
    until("the budget comes back", async || state.room.taken() == 0).await;
    let client = Client::new(ClientConfig::default()).unwrap();
    let repository = Repository::parse(&format!("{address}/app")).unwrap();
    let pushed = client.push_blob(&repository, vec![7; 20_000_000].into());
    tokio::time::timeout(SOON, pushed).await.expect("others get through").unwrap();
    assert!(clients.iter().all(|client| !client.is_finished()), "they are still there");
    leave.cancel();
    until("nothing is left of them", async || std::fs::read_dir(&uploads).unwrap().next().is_none()).await;
    assert_eq!((state.room.taken(), state.disk.available_permits()), (0, uploads::WRITERS));
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_finds_no_room_in_time_is_told_to_come_again_and_may_go_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let log = dir.path().join("access.jsonl");
    let config =
        ServerConfig { idle_seconds: 1, access_log: Some(log.clone()), ..ServerConfig::new(dir.path()) };
    let (state, address) = started(&config, &stop).await;
    let all = state.room.place(vec![0; BUDGET_BYTES].into()).await.unwrap();
    let repository = Repository::parse(&format!("{address}/app")).unwrap();
    let client = Client::new(ClientConfig::default()).unwrap();
    let mut upload = client.begin_upload(&repository).await.unwrap();
    let content = vec![7; 20_000_000];
    let digest = sha256(&content);
    let pushed = async {
        upload.write(content.into()).await.unwrap();
        upload.finish(&digest).await.unwrap();
    };
    let freed = async {
        let is_refused =
            async || std::fs::read_to_string(&log).is_ok_and(|log| log.contains("\"status\":429"));
        until("it is refused", is_refused).await;
        drop(all);
    };
    tokio::join!(pushed, freed);
    assert_eq!(client.blob_size(&repository, &digest).await.unwrap(), Some(20_000_000));
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_that_do_not_come_hold_what_they_announced_for_a_while_alone() {
    let dir = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let config = ServerConfig { idle_seconds: 1, ..ServerConfig::new(dir.path()) };
    let (state, address) = started(&config, &stop).await;
    let mut silent = Vec::new();
    for _ in 0..10 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = "PUT /v2/slow/manifests/v1 HTTP/1.1\r\nhost: x\r\ncontent-length: 4194304\r\n\r\n{";
        stream.write_all(head.as_bytes()).await.unwrap();
        silent.push(stream);
    }
    let budget = usize::try_from(manifests::ROOM_BYTES).unwrap();
    until("the budget is used up", async || state.manifests.taken() == budget).await;
    let client = Client::new(ClientConfig::default()).unwrap();
    let name = Repository::parse(&format!("{address}/app")).unwrap().with_tag("v1").unwrap();
    let kind = crate::media_types::OCI_INDEX;
    let put = client.put_manifest(&name, kind, r#"{"schemaVersion":2,"manifests":[]}"#.into());
    tokio::time::timeout(SOON, put).await.expect("others get through").unwrap();
    assert_eq!(client.manifest(&name).await.unwrap().0.media_type().to_string(), kind);
    until("the budget comes back", async || state.manifests.taken() == 0).await;
    drop(silent);
    stop.cancel();
}
