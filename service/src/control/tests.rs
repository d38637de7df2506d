//! A server and clients of a protocol of three requests.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::AsFd as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use super::{Client, ClientError, Failure, Protocol, Server, receive, reply};
use crate::Access;

#[derive(Debug)]
struct Speak;

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Request {
    Say { text: String },
    Fail,
    Read,
}

#[derive(Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Said { text: String },
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Invalid,
    Version,
    Failed,
}

impl Protocol for Speak {
    const SERVER: &'static str = "speaker";
    const VERSION: u32 = 3;
    const OLDEST_VERSION: u32 = 2;
    const LINE_LIMIT: usize = 1000;
    type Request = Request;
    type Answer = Answer;
    type Kind = Kind;
    const INVALID: Kind = Kind::Invalid;
    const NO_COMMON_VERSION: Kind = Kind::Version;
}

async fn serve(stream: UnixStream) {
    let Some(received) = receive::<Speak>(&stream).await else { return };
    let answered = match received.request {
        Request::Say { text } => Ok(Answer::Said { text }),
        Request::Fail => Err(Failure { kind: Kind::Failed, message: "it failed".to_owned() }),
        Request::Read => {
            let mut file = File::from(received.descriptor.unwrap());
            let mut text = String::new();
            file.rewind().unwrap();
            file.read_to_string(&mut text).unwrap();
            Ok(Answer::Said { text })
        }
    };
    reply::<Speak>(&stream, received.version, answered, None).await;
}

struct Running {
    dir: TempDir,
    client: Client<Speak>,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

impl Running {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("control.sock");
        let server = Server::bind(&socket, &Access::default()).unwrap();
        let stop = CancellationToken::new();
        let until = stop.clone();
        let server = tokio::spawn(async move {
            let mut clients = server.run(2, &until, serve).await;
            while clients.join_next().await.is_some() {}
        });
        Self { dir, client: Client::new(socket, Duration::from_secs(30)), stop, server }
    }

    async fn end(self) {
        self.stop.cancel();
        self.server.await.unwrap();
    }

    /// What is answered to these bytes.
    async fn answer_to(&self, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.client.socket()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

#[tokio::test]
async fn requests_are_answered_and_failures_are_the_servers_words() {
    let running = Running::start();
    let said = running.client.call(Request::Say { text: "hello".to_owned() }).await.unwrap();
    assert_eq!(said, Answer::Said { text: "hello".to_owned() });
    let failed = running.client.call(Request::Fail).await.unwrap_err();
    assert_eq!(failed.to_string(), "the speaker reports: it failed");
    assert!(matches!(failed, ClientError::Reported { kind: Kind::Failed, .. }));
    running.end().await;
}

#[tokio::test]
async fn a_descriptor_goes_with_a_request() {
    let running = Running::start();
    let mut file = tempfile::tempfile_in(running.dir.path()).unwrap();
    file.write_all(b"content").unwrap();
    let (answer, _) = running.client.call_with(Request::Read, Some(file.as_fd())).await.unwrap();
    assert_eq!(answer, Answer::Said { text: "content".to_owned() });
    running.end().await;
}

#[tokio::test]
async fn the_answer_is_of_the_newest_version_that_both_ends_speak() {
    let running = Running::start();
    let cases = [
        (r#"{"version": 2, "request": {"say": {"text": "x"}}}"#, r#""version":2,"answer":{"said""#),
        (
            r#"{"version": 9, "oldest": 1, "request": {"say": {"text": "x"}}}"#,
            r#""version":3,"answer":{"said""#,
        ),
        (r#"{"version": 1, "request": "fail"}"#, "version 1 to 1; this speaker speaks 2 to 3"),
        (r#"{"version": 9, "oldest": 4, "request": "fail"}"#, r#""kind":"version""#),
        (r#"{"version": 3, "request": "sing"}"#, "the request is not known"),
        (r#"{"version": 3, "request": "fail", "more": 1}"#, r#""kind":"invalid""#),
        ("no JSON", "the request is no call"),
    ];
    for (request, expected) in cases {
        let answer = running.answer_to(format!("{request}\n").as_bytes()).await;
        assert!(answer.contains(expected), "{request}: {answer}");
    }
    running.end().await;
}

#[tokio::test]
async fn what_is_no_line_is_refused_by_both_ends() {
    let running = Running::start();
    let text = "x".repeat(2000);
    let refused = running.client.call(Request::Say { text: text.clone() }).await.unwrap_err();
    assert!(matches!(refused, ClientError::TooLarge { bytes: 2000.., limit: 1000, .. }), "{refused}");
    for bytes in [text.as_bytes(), br#"{"version": 3, "request": "fail"}"#] {
        let answer = running.answer_to(bytes).await;
        assert!(answer.contains("no line of at most 1000 bytes"), "{answer}");
    }
    assert_eq!(running.answer_to(b"").await, "", "who asks for nothing is answered nothing");
    running.end().await;
}

#[tokio::test]
async fn a_client_tells_what_it_met() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    let client = Client::<Speak>::new(&socket, Duration::from_secs(30));
    let nobody = client.call(Request::Fail).await.unwrap_err();
    assert!(
        nobody.is_not_running() && nobody.to_string().contains("the speaker's control socket"),
        "{nobody}"
    );

    let listener = UnixListener::bind(&socket).unwrap();
    let answers: [&[u8]; 4] =
        [b"", b"{\n", b"{\"version\":1,\"answer\":{\"said\":{\"text\":\"\"}}}\n", &[b'x'; 1000]];
    let server = tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1000];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            stream.write_all(answer).await.unwrap();
        }
        // The last client is heard, and not answered.
        listener.accept().await.unwrap()
    });
    let met = |error: ClientError<Kind>| match error {
        ClientError::Broken { .. } => "broken".to_owned(),
        ClientError::Protocol { detail, .. } => detail,
        other => panic!("{other}"),
    };
    assert_eq!(met(client.call(Request::Fail).await.unwrap_err()), "broken");
    assert!(met(client.call(Request::Fail).await.unwrap_err()).contains("EOF"));
    assert_eq!(met(client.call(Request::Fail).await.unwrap_err()), "version 1, expected 2 to 3");
    assert_eq!(met(client.call(Request::Fail).await.unwrap_err()), "1000 bytes without an end of line");
    let hasty = client.with_deadline(Duration::from_millis(50));
    let late = hasty.call(Request::Fail).await.unwrap_err();
    assert!(late.to_string().ends_with("did not answer within 0.05 s"), "{late}");
    server.await.unwrap();
    drop(dir);
}
