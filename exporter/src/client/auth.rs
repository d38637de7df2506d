//! The BuildKit client's credentials, by the service `moby.filesync.v1.Auth` that it serves in its session: what is pushed
//! is pushed as whoever builds, as in BuildKit's own push.

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use h2::client::SendRequest;
use prost::Message;
use registry::client::{Credentials, CredentialsError, Keyring, Token, TokenRequest};
use tokio::sync::OnceCell;

use super::CLIENT;
use crate::grpc::{Code, Status};
use crate::http2::call::unary;

const CREDENTIALS: &str = "/moby.filesync.v1.Auth/Credentials";
const FETCH_TOKEN: &str = "/moby.filesync.v1.Auth/FetchToken";
const TOKEN_AUTHORITY: &str = "/moby.filesync.v1.Auth/GetTokenAuthority";

/// What we call ourselves to token services.
const CLIENT_ID: &str = "buildkit-client";

/// The host by which BuildKit asks for Docker Hub.
const DOCKER_HUB: &str = "registry-1.docker.io";

/// What the token specification says a token without a life lasts.
const DEFAULT_TOKEN_LIFE: Duration = Duration::from_secs(60);

/// Only whether an authority is given matters here: BuildKit tells sessions apart by it.
const SALT_BYTES: usize = 32;

#[derive(Clone, PartialEq, Message)]
struct CredentialsRequest {
    #[prost(string, tag = "1")]
    host: String,
}

#[derive(Clone, PartialEq, Message)]
struct CredentialsResponse {
    #[prost(string, tag = "1")]
    username: String,
    #[prost(string, tag = "2")]
    secret: String,
}

#[derive(Clone, PartialEq, Message)]
struct FetchTokenRequest {
    #[prost(string, tag = "1")]
    client_id: String,
    #[prost(string, tag = "2")]
    host: String,
    #[prost(string, tag = "3")]
    realm: String,
    #[prost(string, tag = "4")]
    service: String,
    #[prost(string, repeated, tag = "5")]
    scopes: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct FetchTokenResponse {
    #[prost(string, tag = "1")]
    token: String,
    /// Seconds.
    #[prost(int64, tag = "2")]
    expires_in: i64,
}

#[derive(Clone, PartialEq, Message)]
struct TokenAuthorityRequest {
    #[prost(string, tag = "1")]
    host: String,
    #[prost(bytes = "vec", tag = "2")]
    salt: Vec<u8>,
}

/// The credentials of the client of one session.
pub(crate) struct SessionKeyring {
    client: SendRequest<Bytes>,
    /// Whether the client fetches tokens itself.
    fetches: OnceCell<bool>,
}

impl SessionKeyring {
    /// Those of the client that `client` opens streams to.
    pub(crate) fn new(client: SendRequest<Bytes>) -> Self {
        Self { client, fetches: OnceCell::new() }
    }

    async fn call(&self, path: &'static str, request: &impl Message) -> Result<Bytes, Status> {
        unary(self.client.clone(), CLIENT, path, &[], &request.encode_to_vec()).await
    }

    /// Asks for the client's user and password. A client without the service has none.
    async fn ask(&self, host: &str) -> Result<Credentials, Status> {
        let request = CredentialsRequest { host: host.to_owned() };
        let answer = match self.call(CREDENTIALS, &request).await {
            Err(status) if status.code == Code::Unimplemented => return Ok(Credentials::Anonymous),
            answer => CredentialsResponse::decode(answer?).map_err(malformed)?,
        };
        Ok(match (answer.username, answer.secret) {
            (_, secret) if secret.is_empty() => Credentials::Anonymous,
            (user, secret) if user.is_empty() => Credentials::IdentityToken(secret),
            (user, password) => Credentials::Basic { user, password },
        })
    }

    /// Whether the client fetches tokens: old ones do not, and `BUILDKIT_NO_CLIENT_TOKEN` turns it off.
    async fn fetches(&self, host: &str) -> Result<bool, Status> {
        let ask = || async {
            let request = TokenAuthorityRequest { host: host.to_owned(), salt: vec![0; SALT_BYTES] };
            match self.call(TOKEN_AUTHORITY, &request).await {
                Ok(_) => Ok(true),
                Err(status) if matches!(status.code, Code::Unimplemented | Code::Unavailable) => Ok(false),
                Err(status) => Err(status),
            }
        };
        self.fetches.get_or_try_init(ask).await.copied()
    }

    async fn fetch(&self, request: TokenRequest) -> Result<Option<Token>, Status> {
        let TokenRequest { host, realm, service, scopes } = request;
        let host = name_of(&host).to_owned();
        if !self.fetches(&host).await? {
            return Ok(None);
        }
        let request = FetchTokenRequest { client_id: CLIENT_ID.to_owned(), host, realm, service, scopes };
        let answer =
            FetchTokenResponse::decode(self.call(FETCH_TOKEN, &request).await?).map_err(malformed)?;
        let seconds = u64::try_from(answer.expires_in).unwrap_or(0);
        let life = if seconds == 0 { DEFAULT_TOKEN_LIFE } else { Duration::from_secs(seconds) };
        Ok(Some(Token { token: answer.token, life }))
    }

    fn error(&self, host: &str, status: Status) -> CredentialsError {
        CredentialsError::Keyring { holder: self.name(), host: host.to_owned(), reason: status.message }
    }
}

impl Keyring for SessionKeyring {
    fn credentials<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Credentials, CredentialsError>> {
        async move { self.ask(name_of(host)).await.map_err(|status| self.error(host, status)) }.boxed()
    }

    fn token(&self, request: TokenRequest) -> BoxFuture<'_, Result<Option<Token>, CredentialsError>> {
        async move {
            let host = request.host.clone();
            self.fetch(request).await.map_err(|status| self.error(&host, status))
        }
        .boxed()
    }

    fn name(&self) -> String {
        "credentials of the BuildKit client".to_owned()
    }
}

/// The name by which BuildKit's clients know a registry.
fn name_of(host: &str) -> &str {
    if host == "docker.io" { DOCKER_HUB } else { host }
}

fn malformed(error: prost::DecodeError) -> Status {
    Status::new(Code::Internal, format!("its answer: {error}"))
}
