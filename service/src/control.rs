//! Control sockets: how the processes of a node are told what to do.
//!
//! One connection carries one request and its answer, each a line of JSON over a Unix socket, with a descriptor where one
//! belongs to it. So a client holds no state that a restart of the server could break, and slow requests do not delay others. A
//! request says which versions of the messages its sender speaks; the answer is of the newest that both ends do.
//!
//! What is asked and answered is the [`Protocol`] of the process.

mod client;
mod server;
#[cfg(test)]
mod tests;

use std::fmt::{Debug, Display};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use client::{Client, ClientError};
pub use server::{Received, Server, receive, reply};

/// What both ends of a control socket agree on.
pub trait Protocol: 'static {
    /// Who answers, for messages: `daemon`.
    const SERVER: &'static str;
    /// The newest version of the messages that this end speaks.
    const VERSION: u32;
    /// The oldest version that this end speaks.
    const OLDEST_VERSION: u32;
    /// Bytes that a line may have. What is larger is no message.
    const LINE_LIMIT: usize;
    /// What a client asks for.
    type Request: Debug + DeserializeOwned + Serialize + Send;
    /// What the server answers.
    type Answer: Debug + DeserializeOwned + Serialize + Send;
    /// What kind of failure a request met, for programs.
    type Kind: Copy + Debug + DeserializeOwned + Serialize + Send + Sync;
    /// The failure of a request that is not a message of this version.
    const INVALID: Self::Kind;
    /// The failure of a request whose sender speaks no version that this end does.
    const NO_COMMON_VERSION: Self::Kind;
}

/// What a request to a server of the protocol came to.
pub type Answered<P> = Result<<P as Protocol>::Answer, Failure<<P as Protocol>::Kind>>;

/// A request that failed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Failure<K> {
    /// What kind of failure it is, for programs.
    pub kind: K,
    /// What happened, for people.
    pub message: String,
}

/// What a client sends: one line.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Call<R> {
    /// The newest version that the sender speaks; the request is written in it.
    pub version: u32,
    /// The oldest version in which the sender understands an answer. Without: `version`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest: Option<u32>,
    /// What is asked for.
    pub request: R,
}

/// What a server answers: one line.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Reply<A, K> {
    /// The version of the answer: the newest that both ends speak.
    pub version: u32,
    answer: Outcome<A, K>,
}

/// The result as it is written: a failure stands in the place of an answer named `error`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome<A, K> {
    Error(Failure<K>),
    #[serde(untagged)]
    Answer(A),
}

impl<A, K> Reply<A, K> {
    /// The reply with this result.
    pub fn new(version: u32, result: Result<A, Failure<K>>) -> Self {
        Self { version, answer: result.map_or_else(Outcome::Error, Outcome::Answer) }
    }

    /// The result.
    ///
    /// # Errors
    ///
    /// The server's.
    pub fn into_result(self) -> Result<A, Failure<K>> {
        match self.answer {
            Outcome::Answer(answer) => Ok(answer),
            Outcome::Error(failure) => Err(failure),
        }
    }
}

/// A message as a line.
fn line(message: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// The versions that an end speaks, for messages.
fn versions(oldest: u32, newest: u32) -> impl Display {
    format!("{oldest} to {newest}")
}
