//! Logs go to standard error: text for people, JSON for collectors.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// One readable line an event.
    #[default]
    Text,
    /// One JSON object an event.
    Json,
}

/// The `[log]` section of the configuration.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// What to log: a level, or a `tracing` filter such as `info,registry=debug`.
    pub(crate) level: String,
    /// How a line looks.
    pub(crate) format: Format,
}

impl Default for Config {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: Format::Text }
    }
}

/// The flags that override [`Config`].
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Flags {
    /// What to log: error, warn, info, debug, trace, or a filter such as `info,registry=debug` [default: info]
    #[arg(long = "log-level", global = true, env = "NYDUS_CLUSTER_LOG", value_name = "FILTER")]
    level: Option<String>,
    /// How a log line looks [default: text]
    #[arg(long = "log-format", global = true, value_enum)]
    format: Option<Format>,
}

/// Starts logging for the rest of the process.
pub(crate) fn start(flags: &Flags, config: &Config) -> anyhow::Result<()> {
    let level = flags.level.as_ref().unwrap_or(&config.level);
    let filter = EnvFilter::try_new(level).with_context(|| {
        format!("log level {level:?}: expected a level or a filter such as info,registry=debug")
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match flags.format.unwrap_or(config.format) {
        Format::Text => builder.init(),
        Format::Json => builder.json().init(),
    }
    Ok(())
}
