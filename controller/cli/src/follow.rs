//! Watching something until it is over: a run's timeline, an import's progress.

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};

use crate::{
    client::{Client, Events, Problem},
    show,
    views::{Image, Machine, Progress, Run},
};

/// How often an import is looked at.
const POLL: Duration = Duration::from_millis(500);

/// How long to wait before the controller is asked again after the connection broke.
pub(crate) const RECONNECT: Duration = Duration::from_secs(1);

/// Time ran out before it was over. It goes on without us.
#[derive(Debug, thiserror::Error)]
#[error("still going on after {0}; look again with: {1}")]
pub(crate) struct TimedOut(String, String);

/// Lines on standard error, with a bar below them on a terminal.
struct Screen {
    bar: ProgressBar,
    quiet: bool,
    /// What was last said without a terminal, in tenths of the whole.
    said: u64,
}

impl Screen {
    fn new(quiet: bool) -> Self {
        let terminal = !quiet && std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(
            Some(0),
            if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() },
        );
        let style =
            ProgressStyle::with_template("  {prefix:.dim} {bar:32} {percent:>3} %  {binary_bytes_per_sec}  {msg}");
        bar.set_style(style.expect("the template is well formed"));
        Self { bar, quiet, said: 0 }
    }

    fn line(&self, text: &str) {
        match self.quiet {
            true => (),
            false if self.bar.is_hidden() => {
                // Standard error may be closed: then nobody wants to know.
                let _ = writeln!(std::io::stderr(), "{text}");
            }
            false => self.bar.suspend(|| {
                let _ = writeln!(std::io::stderr(), "{text}");
            }),
        }
    }

    fn progress(&mut self, doing: &str, done: u64, total: u64) {
        if total == 0 {
            return;
        }
        self.bar.set_length(total);
        self.bar.set_prefix(doing.to_owned());
        self.bar.set_position(done);
        if self.bar.is_hidden() {
            let tenth = done.saturating_mul(10) / total;
            if tenth != self.said {
                self.said = tenth;
                self.line(&format!("           {doing} {} %", tenth * 10));
            }
        }
    }

    fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

/// Watches a run to its end and prints its timeline: every stage with the time since the run
/// began. Survives a restart of the controller.
pub(crate) async fn ended(client: &Client, run: &str, timeout: Option<Duration>, quiet: bool) -> anyhow::Result<Run> {
    let mut screen = Screen::new(quiet);
    let seen: Run = client.get(&format!("/v1/runs/{run}")).await?;
    let machine: Machine = client.get(&format!("/v1/machines/{}", seen.machine)).await?;
    screen.line(&format!("{} {}  run {}", seen.kind, machine.name, seen.id));
    let watch = watch(client, &seen, &machine, &mut screen);
    let ended = match timeout {
        Some(timeout) => tokio::time::timeout(timeout, watch)
            .await
            .map_err(|_| TimedOut(format!("{} s", timeout.as_secs()), format!("rackhand run watch {run}")))?,
        None => watch.await,
    };
    screen.clear();
    let ended = ended?;
    if ended.status == "done" {
        screen.line(&format!("  {:>8}  {}", took(&ended), ended.status));
    }
    Ok(ended)
}

fn took(run: &Run) -> String {
    show::relative(run.ended.unwrap_or(run.created), run.created)
}

/// The same for a run that is to be done: one that failed, or was cancelled, is an error.
pub(crate) async fn run(client: &Client, run: &str, timeout: Option<Duration>, quiet: bool) -> anyhow::Result<Run> {
    let ended = ended(client, run, timeout, quiet).await?;
    if ended.status == "done" {
        return Ok(ended);
    }
    let mut why = format!("{} of {} {} after {}", ended.kind, ended.machine_name, ended.status, took(&ended));
    if let Some(cause) = &ended.cause {
        why = format!("{why}: {cause}");
    }
    for line in ended.detail.iter().flat_map(|detail| detail.lines()) {
        why = format!("{why}\n  {line}");
    }
    anyhow::bail!("{why}\nSee the machine: rackhand machine show {}", ended.machine_name)
}

async fn watch(client: &Client, run: &Run, machine: &Machine, screen: &mut Screen) -> anyhow::Result<Run> {
    let mut after = 0;
    let mut waiting = None;
    loop {
        // Events first, then the run: an event that came between is printed next time round.
        let mut events = match client.events(&format!("machine={}", machine.id), Some(after)).await {
            Ok(events) => events,
            Err(error) if error.is::<Problem>() => return Err(error),
            Err(_) => {
                sleep(RECONNECT).await;
                continue;
            }
        };
        loop {
            let now: Run = match client.get(&format!("/v1/runs/{}", run.id)).await {
                Ok(now) => now,
                Err(error) if error.is::<Problem>() => return Err(error),
                Err(_) => break,
            };
            if now.waiting_for != waiting {
                waiting.clone_from(&now.waiting_for);
                screen.bar.set_message(waiting.clone().map(|what| format!("waiting for {what}")).unwrap_or_default());
            }
            let quiet = drain(&mut events, run, screen, &mut after).await;
            if now.over() {
                return Ok(now);
            }
            if !quiet? {
                break;
            }
        }
        sleep(RECONNECT).await;
    }
}

/// Prints events until none has come for a moment; false when the stream ended.
async fn drain(events: &mut Events, run: &Run, screen: &mut Screen, after: &mut u64) -> anyhow::Result<bool> {
    let until = Instant::now() + POLL;
    loop {
        let event = match tokio::time::timeout_at(until, events.next()).await {
            Err(_) => return Ok(true),
            Ok(event) => event?,
        };
        let Some(event) = event else { return Ok(false) };
        *after = event.id;
        // What happened to the machine before this run is another story.
        if event.at < run.created && event.run.as_deref() != Some(&run.id) {
            continue;
        }
        match event.progress {
            Some(Progress { done, total, .. }) => screen.progress("disk", done, total),
            None if event.kind == "power" => (),
            None => screen.line(&format!("  {:>8}  {}", show::relative(event.at, run.created), event.text)),
        }
    }
}

/// Watches an import to its end. A failed one is an error.
pub(crate) async fn import(
    client: &Client,
    image: &str,
    timeout: Option<Duration>,
    quiet: bool,
) -> anyhow::Result<Image> {
    let mut screen = Screen::new(quiet);
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let mut doing = String::new();
    loop {
        let image: Image = client.get(&format!("/v1/images/{image}")).await?;
        if let Some(failure) = &image.failure {
            screen.clear();
            anyhow::bail!("the import of {} failed ({})\n  {}", image.name, failure.cause, failure.detail);
        }
        let Some(progress) = &image.progress else {
            screen.clear();
            return Ok(image);
        };
        if progress.doing != doing {
            doing.clone_from(&progress.doing);
            screen.line(&format!("  {doing}"));
            screen.bar.reset();
        }
        screen.progress(&doing, progress.done, progress.total);
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            let waited = format!("{} s", timeout.unwrap_or_default().as_secs());
            return Err(TimedOut(waited, format!("rackhand image show {}", image.name)).into());
        }
        sleep(POLL).await;
    }
}

/// Sends a file; the answer comes when all of it is there.
pub(crate) async fn upload<T: DeserializeOwned>(
    client: &Client,
    path: &str,
    file: &std::path::Path,
    quiet: bool,
) -> anyhow::Result<T> {
    let open = tokio::fs::File::open(file).await.with_context(|| format!("cannot open {}", file.display()))?;
    let len = open.metadata().await?.len();
    let mut screen = Screen::new(quiet);
    screen.line(&format!("  sending {} ({})", file.display(), show::bytes(len)));
    screen.progress("sending", 0, len.max(1));
    let bar = screen.bar.clone();
    let stream = tokio_util::io::ReaderStream::with_capacity(open, 1 << 20);
    let counted = futures_util::StreamExt::inspect(stream, move |bytes| {
        bar.inc(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64));
    });
    let answer = client.upload(path, len, reqwest::Body::wrap_stream(counted)).await;
    screen.clear();
    crate::client::view(answer?)
}

/// A machine's latest events, each with the time since the first.
pub(crate) fn timeline(events: &[crate::views::Event]) -> String {
    let start = events.first().map_or(Timestamp::UNIX_EPOCH, |event| event.at);
    let lines = events.iter().filter(|event| event.progress.is_none()).map(|event| line(event, start));
    lines.collect::<Vec<_>>().join("\n")
}

/// One of them.
pub(crate) fn line(event: &crate::views::Event, start: Timestamp) -> String {
    format!("{}  {:>8}  {}", show::second(event.at), show::relative(event.at, start), event.text)
}
