//! Credentials that somebody else holds, such as the user on whose behalf a service pushes.

use std::time::Duration;

use futures::future::BoxFuture;

use super::credentials::{Credentials, CredentialsError};

/// What a token service is asked for.
#[derive(Clone, Debug)]
pub struct TokenRequest {
    /// The registry, as in references.
    pub host: String,
    /// The token service's URL, as the registry named it.
    pub realm: String,
    /// The service that the registry calls itself.
    pub service: String,
    /// What the token is to allow: `repository:NAME:ACTIONS`.
    pub scopes: Vec<String>,
}

/// A token for a registry.
#[derive(Clone)]
pub struct Token {
    /// The token.
    pub token: String,
    /// How long it lasts from now on.
    pub life: Duration,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("life", &self.life).finish_non_exhaustive()
    }
}

/// Somebody with credentials of their own, who is asked before any file is read.
pub trait Keyring: Send + Sync {
    /// What to show `host`; [`Credentials::Anonymous`] where there is nothing.
    fn credentials<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Credentials, CredentialsError>>;

    /// A token that its holder fetches, so that its credentials stay with it; `None` where it does not fetch tokens.
    fn token(&self, request: TokenRequest) -> BoxFuture<'_, Result<Option<Token>, CredentialsError>>;

    /// Who this is, for messages.
    fn name(&self) -> String;
}
