//! `rackhand apply`: makes a controller have what files say.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    client::Client,
    declared::{Action, Change, Declared, Form, Live, Object, Request, Verb, parse, plan, shown},
    live,
    output::{Output, confirm, print, read},
    show::Surface,
};

#[derive(Args)]
pub(crate) struct Apply {
    /// A file (.yaml, .yml, .toml or .json), a directory with such files, or `-` for YAML or JSON on
    /// standard input; may be repeated
    #[arg(short, long = "file", required = true, value_name = "FILE|DIR")]
    files: Vec<PathBuf>,
    /// Remove what no file has, of the kinds that the files have
    #[arg(long)]
    prune: bool,
    /// Do not ask before something is removed
    #[arg(long)]
    yes: bool,
}

/// What became of a change.
enum Outcome {
    Done,
    Failed(anyhow::Error),
    Held(Box<Object>),
}

pub(crate) async fn run(client: &Client, apply: Apply, output: Output) -> anyhow::Result<String> {
    let declared = declared(&apply.files)?;
    ensure!(!declared.is_empty(), "no object is declared there");
    let mut kinds: Vec<_> = declared.iter().map(|one| one.object.kind()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let mut there = live::read(client, &kinds).await?;
    let changes = plan(&declared, &there, apply.prune)?;
    versions(client, &changes, &mut there).await?;
    let changes = plan(&declared, &there, apply.prune)?;
    let refused = changes.iter().filter(|change| matches!(change.action, Action::Refuse(_))).count();
    let is_nothing = !changes.iter().any(Change::is_one);
    if client.is_dry() || is_nothing {
        let told = told(&changes, &[]);
        let text = print(output, told, |_: Value| shown(&changes, &Surface::present()))?;
        return ended(text, refused, "cannot be changed so");
    }
    if output.is_for_people() {
        say(&shown(&changes, &Surface::present()));
    }
    let removed = changes.iter().filter(|change| change.action == Action::Remove).count();
    if removed > 0 && !apply.yes {
        confirm(&format!("{removed} of them will be removed."))?;
    }
    let outcomes = perform(client, &changes, output.is_for_people()).await;
    let failed = outcomes.iter().filter(|outcome| matches!(outcome, Some(Outcome::Failed(_) | Outcome::Held(_))));
    let failed = failed.count();
    let done = outcomes.iter().filter(|outcome| matches!(outcome, Some(Outcome::Done))).count();
    let text = print(output, told(&changes, &outcomes), |_: Value| format!("{done} done"))?;
    ended(text, failed, "failed or were not tried; put that right and run it again")
}

/// What is printed in the end; an error when something is not as it should be.
fn ended(text: String, wrong: usize, what: &str) -> anyhow::Result<String> {
    if wrong == 0 {
        return Ok(text);
    }
    say(&text);
    bail!("not all is as declared: {wrong} {what}")
}

fn say(text: &str) {
    // Whoever reads us may stop reading; what was asked for is done all the same.
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// What these files have.
fn declared(paths: &[PathBuf]) -> anyhow::Result<Vec<Declared>> {
    let mut all = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            let text = std::io::read_to_string(std::io::stdin()).context("cannot read standard input")?;
            all.extend(parse("standard input", Form::Yaml, &text)?);
        } else if path.is_dir() {
            let entries = std::fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            let entries = entries.with_context(|| format!("cannot read {}", path.display()))?;
            let mut files: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
            files.retain(|file| form(file).is_some() && file.is_file());
            files.sort();
            ensure!(!files.is_empty(), "{} has no file ending in .yaml, .yml, .toml or .json", path.display());
            for file in files {
                all.extend(of_file(&file)?);
            }
        } else {
            all.extend(of_file(path)?);
        }
    }
    Ok(all)
}

fn form(path: &Path) -> Option<Form> {
    let name = path.file_name()?.to_str()?;
    Form::of_name(name).filter(|_| !name.starts_with('.'))
}

fn of_file(path: &Path) -> anyhow::Result<Vec<Declared>> {
    let what = || format!("{} does not end in .yaml, .yml, .toml or .json", path.display());
    let form = form(path).with_context(what)?;
    Ok(parse(&path.display().to_string(), form, &read(path)?)?)
}

/// Reads what is to be changed or removed by itself, so that just what was looked at is.
async fn versions(client: &Client, changes: &[Change], there: &mut [Live]) -> anyhow::Result<()> {
    let paths: Vec<_> =
        changes.iter().filter(|change| change.is_one()).filter_map(|change| change.path.clone()).collect();
    for live in there.iter_mut().filter(|live| live.object.kind().has_versions() && paths.contains(&live.path)) {
        live::again(client, live).await?;
    }
    Ok(())
}

/// Does one after the other. What needs something that failed is not tried, the others are.
async fn perform(client: &Client, changes: &[Change], aloud: bool) -> Vec<Option<Outcome>> {
    let (mut failed, mut outcomes) = (Vec::new(), Vec::new());
    for change in changes {
        if let Action::Refuse(why) = &change.action {
            failed.push(change.object().clone());
            outcomes.push(Some(Outcome::Failed(anyhow::anyhow!(why.clone()))));
            continue;
        }
        if !change.is_one() {
            outcomes.push(None);
            continue;
        }
        let outcome = match change.held_by(&failed) {
            Some(held_by) => Outcome::Held(Box::new(held_by.clone())),
            None => match one(client, change).await {
                Ok(()) => Outcome::Done,
                Err(error) => Outcome::Failed(error),
            },
        };
        let place = change.at.as_ref().map(|at| format!(" ({at})")).unwrap_or_default();
        let object = change.object();
        match &outcome {
            Outcome::Done if aloud => say(&format!("{} {object}", past(&change.action))),
            Outcome::Done => {}
            Outcome::Failed(error) => eprintln!("failed: {object}{place}: {error:#}"),
            Outcome::Held(by) => eprintln!("not tried: {object}{place}: it needs {by}"),
        }
        if !matches!(outcome, Outcome::Done) {
            failed.push(object.clone());
        }
        outcomes.push(Some(outcome));
    }
    outcomes
}

async fn one(client: &Client, change: &Change) -> anyhow::Result<()> {
    let mut tag = change.tag.clone();
    for Request { verb, path, body } in &change.requests {
        let method = match verb {
            // What is made has no version yet.
            Verb::Post if tag.is_none() => {
                client.post(path, body.clone()).await?;
                continue;
            }
            Verb::Post => Method::POST,
            Verb::Patch => Method::PATCH,
            Verb::Delete => Method::DELETE,
        };
        let body = Some(body.clone()).filter(|body| !body.is_null());
        let (_, now) = client.change_if(method, path, body, tag.as_deref()).await?;
        tag = now;
    }
    Ok(())
}

fn past(action: &Action) -> &'static str {
    match action {
        Action::Create => "created",
        Action::Change => "changed",
        Action::Remove => "removed",
        Action::Keep | Action::Leave(_) | Action::Refuse(_) => "left",
    }
}

/// The same for programs.
fn told(changes: &[Change], outcomes: &[Option<Outcome>]) -> Value {
    let one = |(number, change): (usize, &Change)| {
        let (action, why) = match &change.action {
            Action::Create => ("create", None),
            Action::Change => ("change", None),
            Action::Keep => ("unchanged", None),
            Action::Remove => ("remove", None),
            Action::Leave(why) => ("left", Some((*why).to_owned())),
            Action::Refuse(why) => ("refused", Some(why.clone())),
        };
        let (result, problem) = match outcomes.get(number).and_then(Option::as_ref) {
            None => (None, why),
            Some(Outcome::Done) => (Some("done"), None),
            Some(Outcome::Failed(error)) => (Some("failed"), Some(format!("{error:#}"))),
            Some(Outcome::Held(by)) => (Some("not tried"), Some(format!("it needs {by}"))),
        };
        json!({
            "kind": change.object().kind().word(),
            "name": change.object().name(),
            "action": action,
            "result": result,
            "problem": problem,
            "file": change.at.as_ref().map(|at| &at.file),
            "document": change.at.as_ref().map(|at| at.document),
            "before": change.before.as_ref().map(Object::body),
            "after": change.after.as_ref().map(Object::body),
        })
    };
    changes.iter().enumerate().map(one).collect()
}
