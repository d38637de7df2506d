//! `nydus-cluster image …` as its users meet it: verdicts, statuses, messages, and who reads them.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests: what they cannot do fails the test")]

mod again;
mod forms;
mod lab;
mod pipes;
mod progress;
mod statuses;
mod transfers;
mod vocabulary;
