//! `rackhand run`: work in progress on machines, and work that has ended.

use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    client::{Client, given_only, view},
    follow, machine,
    output::{Output, print},
    show::{Table, or_dash, relative, second, table},
    views::{Event, Run},
    watch::{self, Told, Watch},
};

#[derive(Args)]
pub(crate) struct Wait {
    /// Stay until it is over and show the timeline as it happens
    #[arg(long)]
    pub(crate) wait: bool,
    /// With --wait: give up watching after this many seconds (the run goes on)
    #[arg(long, value_name = "SECONDS", requires = "wait")]
    pub(crate) timeout: Option<u64>,
}

impl Wait {
    /// How long at most.
    pub(crate) fn patience(&self) -> Option<Duration> {
        self.timeout.map(Duration::from_secs)
    }
}

#[derive(Subcommand)]
pub(crate) enum RunCommand {
    /// List runs
    List {
        /// Only those of this machine
        #[arg(long)]
        machine: Option<String>,
        #[command(flatten)]
        watch: Watch,
    },
    /// Show one run: which step, waiting for what and until when
    Show {
        /// Id
        run: String,
        #[command(flatten)]
        watch: Watch,
    },
    /// Watch a run's timeline until it is over
    Watch {
        /// Id
        run: String,
        /// Give up watching after this many seconds (the run goes on)
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
    },
    /// Show what happened in a run, oldest first, and what was reported at its end
    #[command(after_help = "  rackhand run logs 01931b1e-0000-7000-8000-000000000000

What its machine told meanwhile is in it. Of a run that goes on it is what there is so far; to stay:
rackhand run watch")]
    Logs {
        /// Id
        run: String,
    },
    /// Stop a run and undo what it did
    Cancel {
        /// Id
        run: String,
        #[command(flatten)]
        wait: Wait,
    },
}

pub(crate) async fn run(client: &Client, command: RunCommand, output: Output) -> anyhow::Result<String> {
    match command {
        RunCommand::List { machine, watch } => {
            let query = given_only([("machine", machine)]);
            let fetch = async || Ok(client.list_with("/v1/runs", query.clone()).await?.into());
            watch::show(client, output, watch, Told::ByEvents, fetch, |runs: Vec<_>| list(&runs)).await
        }
        RunCommand::Show { run, watch } => {
            let fetch = async || client.get(&format!("/v1/runs/{run}")).await;
            watch::show(client, output, watch, Told::ByEvents, fetch, |run| page(&run)).await
        }
        RunCommand::Watch { run, timeout } => {
            follow::run(client, &run, timeout.map(Duration::from_secs), !output.is_for_people()).await?;
            let value = client.ask(Method::GET, &format!("/v1/runs/{run}"), None).await?;
            print(output, value, |run| page(&run))
        }
        RunCommand::Logs { run } => {
            let run: Run = client.get(&format!("/v1/runs/{run}")).await?;
            let events = client.list_with("/v1/events", vec![("machine", run.machine.clone())]).await?;
            let of_run = events.into_iter().filter(|event| is_of(&run, event)).collect::<Vec<_>>();
            print(output, of_run.into(), |events: Vec<Event>| logs(&run, &events))
        }
        RunCommand::Cancel { run, wait } => {
            let mut value = client.post(&format!("/v1/runs/{run}/cancel"), json!({})).await?;
            if wait.wait && !client.is_dry() {
                follow::ended(client, &run, wait.patience(), !output.is_for_people()).await?;
                value = client.get(&format!("/v1/runs/{run}")).await?;
            }
            print(output, value, |run| page(&run))
        }
    }
}

/// What to print of a run that was just started: at once, or when it is over.
pub(crate) async fn started(client: &Client, run: Value, wait: &Wait, output: Output) -> anyhow::Result<String> {
    let id = view::<Run>(run.clone())?.id;
    if !wait.wait || client.is_dry() {
        return print(output, run, |run: Run| {
            format!("{} has begun; follow it: rackhand run watch {}", run.kind, run.id)
        });
    }
    let ended = follow::run(client, &id, wait.patience(), !output.is_for_people()).await?;
    if output.is_for_people() {
        let machine: Value = client.get(&format!("/v1/machines/{}", ended.machine)).await?;
        return print(output, vec![machine].into(), |machines: Vec<_>| machine::list(&machines));
    }
    print(output, client.get(&format!("/v1/runs/{id}")).await?, |run| page(&run))
}

fn list(runs: &[Run]) -> Table {
    let rows = runs.iter().map(|run| {
        let took = run.ended.map(|ended| relative(ended, run.created));
        vec![
            run.id.clone(),
            run.kind.clone(),
            run.machine_name.clone(),
            run.status.clone(),
            or_dash(took.as_deref()),
            or_dash(run.cause.as_deref().or(run.waiting_for.as_deref())),
            second(run.created),
            or_dash(run.step.as_deref()),
        ]
    });
    table(&["RUN", "KIND", "MACHINE", "STATUS", "TOOK", "BECAUSE", "STARTED", "STEP"], rows)
        .shorten(&["BECAUSE", "MACHINE"])
        .only_wide(&["STARTED", "STEP"])
        .or_say("no runs yet: `rackhand machine deploy` starts one")
}

/// Whether an event of its machine is the run's: by name, or because it fell into its time.
fn is_of(run: &Run, event: &Value) -> bool {
    let text = |field: &str| event.get(field).and_then(Value::as_str);
    match (text("run"), text("at").and_then(|at| at.parse::<Timestamp>().ok())) {
        (Some(id), _) => id == run.id,
        (None, Some(at)) => at >= run.created && run.ended.is_none_or(|ended| at <= ended),
        (None, None) => false,
    }
}

fn logs(run: &Run, events: &[Event]) -> String {
    let reported = run.detail.iter().flat_map(|detail| detail.lines()).map(|line| format!("| {line}"));
    let told = Some(follow::timeline(events)).filter(|told| !told.is_empty());
    let lines: Vec<_> = told.into_iter().chain(reported).collect();
    match lines.is_empty() {
        true => "nothing is known of it yet".into(),
        false => lines.join("\n"),
    }
}

fn page(run: &Run) -> String {
    let mut lines = vec![
        format!("{} {}  {}", run.kind, run.machine_name, run.id),
        format!("  status   {}", run.status),
        format!("  started  {}", second(run.created)),
    ];
    if let Some(step) = &run.step {
        lines.push(format!("  step     {step}, attempt {}", run.attempt));
    }
    if let Some(waiting) = &run.waiting_for {
        let until = run.waiting_until.map(|until| format!(", until {}", second(until))).unwrap_or_default();
        lines.push(format!("  waiting  for {waiting}{until}"));
    }
    if let Some(ended) = run.ended {
        lines.push(format!("  ended    {} after {}", second(ended), relative(ended, run.created)));
    }
    if let Some(cause) = &run.cause {
        lines.push(format!("  cause    {cause}"));
    }
    if let Some(detail) = &run.detail {
        lines.extend(detail.lines().map(|line| format!("  | {line}")));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_run_that_failed_says_why() {
        let failed: Run = serde_json::from_value(json!({
            "id": "01931b1e-0000-7000-8000-000000000002", "machine": "01931b1e-0000-7000-8000-000000000001", "machine_name": "vm0", "kind": "deploy", "status": "failed",
            "step": "order", "attempt": 3, "waiting_for": null, "waiting_until": null, "cause": "image",
            "detail": "chunk 7 never had the right digest\nlast lines", "created": "2026-01-01T00:00:00Z",
            "ended": "2026-01-01T00:01:07.35Z"
        }))
        .unwrap();
        expect![[r#"
            RUN                                   KIND    MACHINE  STATUS  TOOK    BECAUSE
            01931b1e-0000-7000-8000-000000000002  deploy  vm0      failed  1:07.3  image"#]]
        .assert_eq(&list(std::slice::from_ref(&failed)).to_string());
        expect![[r#"
            deploy vm0  01931b1e-0000-7000-8000-000000000002
              status   failed
              started  2026-01-01T00:00:00Z
              step     order, attempt 3
              ended    2026-01-01T00:01:07Z after 1:07.3
              cause    image
              | chunk 7 never had the right digest
              | last lines"#]]
        .assert_eq(&page(&failed));
    }

    #[test]
    fn logs_are_the_runs_own_events_and_what_fell_into_its_time() {
        let run: Run = serde_json::from_value(json!({
            "id": "2", "machine": "1", "machine_name": "vm0", "kind": "deploy", "status": "failed", "step": null,
            "attempt": 1, "waiting_for": null, "waiting_until": null, "cause": "image", "detail": "chunk 7\nlast line",
            "created": "2026-01-01T00:00:00Z", "ended": "2026-01-01T00:01:00Z",
        }))
        .unwrap();
        let event = |second: u32, run: Option<&str>, text: &str| {
            json!({
                "id": second, "at": format!("2026-01-01T00:{:02}:{:02}Z", second / 60, second % 60), "run": run,
                "kind": "stage", "text": text, "progress": null,
            })
        };
        let all = [
            event(0, Some("2"), "deploy begins"),
            event(5, None, "installer started"),
            event(6, Some("3"), "another run's"),
            event(70, None, "later"),
            event(61, Some("2"), "run failed: image"),
        ];
        let of_run: Vec<_> = all.into_iter().filter(|event| is_of(&run, event)).collect();
        expect![[r#"
            2026-01-01T00:00:00Z    0:00.0  deploy begins
            2026-01-01T00:00:05Z    0:05.0  installer started
            2026-01-01T00:01:01Z    1:01.0  run failed: image
            | chunk 7
            | last line"#]]
        .assert_eq(&logs(&run, &crate::client::view::<Vec<Event>>(of_run.into()).unwrap()));
    }
}
