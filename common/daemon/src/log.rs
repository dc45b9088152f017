//! Logs, to standard error: for people, for the journal, for collectors.

use std::io::IsTerminal as _;

use clap::ValueEnum;
use serde::Deserialize;
use tracing_subscriber::{
    EnvFilter, Layer as _, Registry,
    filter::{LevelFilter, ParseError},
    fmt,
    layer::SubscriberExt as _,
    reload::Handle,
    util::SubscriberInitExt as _,
};

/// The environment variable that stands over the configuration.
const VARIABLE: &str = "RUST_LOG";

/// How to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people, and the journal.
    Text,
    /// For collectors.
    Json,
}

/// What is logged: a level, or levels by module, as in `info,rackhand_agent::power=debug`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Filter(String);

impl Default for Filter {
    fn default() -> Self {
        Self("info".into())
    }
}

/// The text is no filter.
#[derive(Debug, thiserror::Error)]
#[error("`{text}` is neither a level (error, warn, info, debug, trace) nor levels by module: {source}")]
pub struct NotAFilter {
    text: String,
    source: ParseError,
}

impl TryFrom<String> for Filter {
    type Error = NotAFilter;

    fn try_from(text: String) -> Result<Self, NotAFilter> {
        match parse(&text) {
            Ok(_) => Ok(Self(text)),
            Err(source) => Err(NotAFilter { text, source }),
        }
    }
}

fn parse(text: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).parse(text)
}

/// The log of this process, which has begun.
#[derive(Clone, Debug)]
pub struct Log {
    filter: Handle<EnvFilter, Registry>,
}

impl Log {
    /// Begins to log, as [`Filter::default`] says or `RUST_LOG`; once in a process.
    pub fn begin(format: Format) -> Self {
        let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env_lossy();
        let (filter, handle) = tracing_subscriber::reload::Layer::new(filter);
        let lines = fmt::layer().with_writer(std::io::stderr);
        let lines = match format {
            Format::Json => lines.json().boxed(),
            Format::Text if std::io::stderr().is_terminal() => lines.boxed(),
            // The journal keeps the time, and takes the level as its own from the line's beginning.
            Format::Text if std::env::var_os("JOURNAL_STREAM").is_some() => {
                let line = fmt::format().with_ansi(false).with_target(false).with_level(false).without_time();
                lines.with_ansi(false).event_format(Journal(line)).boxed()
            }
            Format::Text => lines.with_ansi(false).with_target(false).boxed(),
        };
        tracing_subscriber::registry().with(filter).with(lines).init();
        Self { filter: handle }
    }

    /// Logs by this filter from now on, unless `RUST_LOG` says what to log.
    pub fn take(&self, filter: &Filter) {
        if std::env::var_os(VARIABLE).is_some() {
            tracing::debug!("{VARIABLE} is set and stands over `log` in the configuration");
            return;
        }
        let parsed = parse(&filter.0).expect("it was parsed when it was read");
        self.filter.reload(parsed).expect("what it belongs to is there until the process ends");
    }
}

/// A line with its level before it, as sd-daemon(3) says: `journalctl --priority` chooses by it.
struct Journal<F>(F);

impl<S, N, F> fmt::FormatEvent<S, N> for Journal<F>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    N: for<'a> fmt::FormatFields<'a> + 'static,
    F: fmt::FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &fmt::FmtContext<'_, S, N>,
        mut writer: fmt::format::Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> std::fmt::Result {
        let priority = match *event.metadata().level() {
            tracing::Level::ERROR => 3,
            tracing::Level::WARN => 4,
            tracing::Level::INFO => 6,
            _ => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(context, writer, event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct File {
        log: Filter,
    }

    #[test]
    fn a_filter_that_is_none_is_named_with_its_line() {
        let read = |text: &str| toml::from_str::<File>(text).map(|file| file.log);
        assert_eq!(read("log = \"warn,rackhand_agent=debug\"").unwrap().0, "warn,rackhand_agent=debug");
        let error = read("\nlog = \"loud=very\"").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("`loud=very` is neither a level"), "{error}");
    }
}
