//! `rackhand run`: work in progress on machines, and work that has ended.

use std::{io::Write as _, path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    client::{Client, Problem, given_only, view},
    follow, machine,
    output::{Output, print, read},
    show::{Table, or_dash, relative, second, table},
    views::{Event, Run, RunLogs, RunStep},
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
    /// Show a run's steps and what happened in it, oldest first, and what was reported at its end
    #[command(after_help = "  rackhand run logs 01931b1e-0000-7000-8000-000000000000 --follow

What its machine told meanwhile is in it. Without --follow it is what there is so far.")]
    Logs {
        /// Id
        run: String,
        /// Stay until it is over; with --output json each event is a line
        #[arg(long, short)]
        follow: bool,
    },
    /// Try a run that failed or was cancelled again: another one with the same wishes
    #[command(after_help = "  rackhand run retry 01931b1e-0000-7000-8000-000000000000 --wait

User data of a deploy is forgotten when its run is over: give it again with --user-data. A machine
that was given out or taken back since is not touched.")]
    Retry {
        /// Id
        run: String,
        /// File with the user data of the deploy
        #[arg(long, value_name = "FILE")]
        user_data: Option<PathBuf>,
        #[command(flatten)]
        wait: Wait,
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
        RunCommand::Logs { run, follow: true } => {
            follow_logs(client, &run, output).await?;
            Ok(String::new())
        }
        RunCommand::Logs { run, follow: false } => {
            let shown = |RunLogs { run, steps, events }| logs(&run, &steps, &events);
            print(output, known(client, &run).await?, shown)
        }
        RunCommand::Retry { run, user_data, wait } => {
            let body = json!({"user_data": user_data.as_deref().map(read).transpose()?});
            started(client, client.post(&format!("/v1/runs/{run}/retry"), body).await?, &wait, output).await
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

/// All that is known of a run.
async fn known(client: &Client, run: &str) -> anyhow::Result<Value> {
    let path = format!("/v1/runs/{run}/logs");
    let mut query = vec![("limit", "200".to_owned())];
    let mut whole: Value = client.get_with(&path, &query).await?;
    while let Some(next) = whole["next"].as_str().map(str::to_owned) {
        query.truncate(1);
        query.push(("after", next));
        let mut more: Value = client.get_with(&path, &query).await?;
        let events = more["events"].take();
        whole["next"] = more["next"].take();
        if let (Some(all), Value::Array(events)) = (whole["events"].as_array_mut(), events) {
            all.extend(events);
        }
    }
    if let Some(fields) = whole.as_object_mut() {
        fields.remove("next");
    }
    Ok(whole)
}

/// Prints what is known of a run, and what happens in it until it is over.
async fn follow_logs(client: &Client, run: &str, output: Output) -> anyhow::Result<()> {
    let whole = known(client, run).await?;
    let RunLogs { run, steps, events } = view(whole.clone())?;
    let mut after = events.last().map_or(0, |event| event.id);
    let start = events.first().map_or(run.created, |event| event.at);
    if output.is_for_people() {
        say(&logs(&run, &steps, &events));
    } else {
        for event in whole["events"].as_array().into_iter().flatten() {
            say(&event.to_string());
        }
    }
    while !run.over() {
        let mut stream = match client.events(&format!("machine={}", run.machine), Some(after)).await {
            Ok(stream) => stream,
            Err(error) if error.is::<Problem>() => return Err(error),
            Err(_) => {
                tokio::time::sleep(follow::RECONNECT).await;
                continue;
            }
        };
        while let Some(value) = stream.next_value().await? {
            let event: Event = view(value.clone())?;
            after = event.id;
            if event.run.as_ref().is_some_and(|of| *of != run.id) {
                continue;
            }
            match output.is_for_people() {
                true if event.progress.is_some() => {}
                true => say(&follow::line(&event, start)),
                false => say(&value.to_string()),
            }
            if event.run.is_some() && event.kind == "run_ended" {
                return Ok(());
            }
        }
        tokio::time::sleep(follow::RECONNECT).await;
    }
    Ok(())
}

fn say(text: &str) {
    // Whoever reads us may stop reading.
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn logs(run: &Run, steps: &[RunStep], events: &[Event]) -> String {
    let rows = steps.iter().map(|step| {
        let undoing = if step.undoing { "undo " } else { "" };
        vec![
            format!("{undoing}{}", step.step),
            step.attempt.to_string(),
            second(step.began),
            or_dash(step.ended.map(|ended| relative(ended, step.began)).as_deref()),
            step.outcome.clone(),
            or_dash(step.cause.as_deref().or(step.detail.as_deref().and_then(|detail| detail.lines().next()))),
        ]
    });
    let steps = (!steps.is_empty())
        .then(|| table(&["STEP", "ATTEMPT", "BEGAN", "TOOK", "OUTCOME", "BECAUSE"], rows).to_string() + "\n");
    let reported = run.detail.iter().flat_map(|detail| detail.lines()).map(|line| format!("| {line}"));
    let told = Some(follow::timeline(events)).filter(|told| !told.is_empty());
    let lines: Vec<_> = steps.into_iter().chain(told).chain(reported).collect();
    match lines.is_empty() {
        true => "nothing is known of it yet".into(),
        false => lines.join("\n"),
    }
}

/// What a run waits for, since when and until when.
pub(crate) fn waits(run: &Run) -> Option<String> {
    let waiting = run.waiting_for.as_ref()?;
    let since = run.waiting_since.map(|since| format!(", since {}", second(since))).unwrap_or_default();
    let until = run.waiting_until.map(|until| format!(", until {}", second(until))).unwrap_or_default();
    Some(format!("for {waiting}{since}{until}"))
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
    if let Some(way) = &run.way {
        lines.push(format!("  way      {way}"));
    }
    lines.extend(waits(run).map(|waits| format!("  waiting  {waits}")));
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
    fn logs_are_steps_with_their_times_what_happened_and_what_was_reported() {
        let whole = json!({
            "run": {
                "id": "2", "machine": "1", "machine_name": "vm0", "kind": "deploy", "status": "failed", "step": null,
                "attempt": 1, "waiting_for": null, "waiting_until": null, "cause": "image",
                "detail": "chunk 7\nlast line", "created": "2026-01-01T00:00:00Z", "ended": "2026-01-01T00:01:01Z",
            },
            "steps": [
                {
                    "step": "boot installer", "attempt": 1, "undoing": false, "began": "2026-01-01T00:00:00Z",
                    "ended": "2026-01-01T00:00:05Z", "outcome": "done", "cause": null, "detail": null,
                },
                {
                    "step": "write image", "attempt": 1, "undoing": false, "began": "2026-01-01T00:00:05Z",
                    "ended": "2026-01-01T00:01:01Z", "outcome": "failed", "cause": "image", "detail": "chunk 7",
                },
            ],
            "events": [
                {
                    "id": 1, "at": "2026-01-01T00:00:00Z", "run": "2", "kind": "run_started", "text": "deploy begins",
                },
                {"id": 2, "at": "2026-01-01T00:00:05Z", "run": null, "kind": "stage", "text": "installer started"},
                {
                    "id": 5, "at": "2026-01-01T00:01:01Z", "run": "2", "kind": "run_ended", "text": "run failed: image",
                },
            ],
        });
        let RunLogs { run, steps, events } = view(whole).unwrap();
        expect![[r#"
            STEP            ATTEMPT  BEGAN                 TOOK    OUTCOME  BECAUSE
            boot installer  1        2026-01-01T00:00:00Z  0:05.0  done     -
            write image     1        2026-01-01T00:00:05Z  0:56.0  failed   image

            2026-01-01T00:00:00Z    0:00.0  deploy begins
            2026-01-01T00:00:05Z    0:05.0  installer started
            2026-01-01T00:01:01Z    1:01.0  run failed: image
            | chunk 7
            | last line"#]]
        .assert_eq(&logs(&run, &steps, &events));
    }
}
