//! Logs go to standard error: text for people, JSON for collectors. Nobody waits for who reads them.

use std::io::{IsTerminal as _, Write};

use anyhow::Context as _;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use service::log::{Flush, Log};
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
pub(crate) struct LogConfig {
    /// What to log: a level, or a `tracing` filter such as `info,registry=debug`.
    pub(crate) level: String,
    /// How a line looks.
    pub(crate) format: Format,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: Format::Text }
    }
}

/// The flags that override [`LogConfig`].
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Flags {
    /// What to log: error, warn, info, debug, trace, or a filter such as `info,registry=debug` [default: info]
    #[arg(long = "log-level", global = true, env = "NYDUS_CLUSTER_LOG", value_name = "FILTER")]
    level: Option<String>,
    /// How a log line looks [default: text]
    #[arg(long = "log-format", global = true, value_enum)]
    format: Option<Format>,
}

impl Flags {
    /// The flags with which another process logs as this one does.
    pub(crate) fn resolved(&self, config: &LogConfig) -> Vec<String> {
        let level = self.level.as_ref().unwrap_or(&config.level);
        let format = match self.format.unwrap_or(config.format) {
            Format::Text => "text",
            Format::Json => "json",
        };
        ["--log-level", level, "--log-format", format].map(ToOwned::to_owned).into()
    }
}

/// The log of this process, for what is no event. What was logged is written before it is gone.
pub(crate) struct LogOutput {
    log: Log,
    _flush: Flush,
}

impl Write for LogOutput {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.log.write(line)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.log.flush()
    }
}

/// Starts logging for the rest of the process.
pub(crate) fn start(flags: &Flags, config: &LogConfig) -> anyhow::Result<LogOutput> {
    let level = flags.level.as_ref().unwrap_or(&config.level);
    let filter = EnvFilter::try_new(level).with_context(|| {
        format!("log level {level:?}: expected a level or a filter such as info,registry=debug")
    })?;
    let (log, _flush) = Log::on_standard_error().context("starting the log")?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        // What it would report goes to standard error directly, and panics if nobody reads that.
        .log_internal_errors(false)
        .with_writer({
            let log = log.clone();
            move || log.clone()
        });
    match flags.format.unwrap_or(config.format) {
        Format::Text => builder.init(),
        Format::Json => builder.json().init(),
    }
    service::log::log_panics();
    Ok(LogOutput { log, _flush })
}
