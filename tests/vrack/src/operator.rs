//! The operator of a virtual rack: everything goes through the `rackhand` command, as it
//! would by hand.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use rackhand_common::machine::Mac;
use serde_json::Value;

use crate::run::{is_ending, output};

/// How often a state is looked at while waiting for it.
const LOOK: Duration = Duration::from_millis(250);

/// An operator with a token.
#[derive(Clone, Debug)]
pub(crate) struct Operator {
    pub(crate) program: PathBuf,
    pub(crate) controller: String,
    pub(crate) ca: PathBuf,
    pub(crate) token: String,
}

impl Operator {
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(words)
            .env("RACKHAND_CONTROLLER", &self.controller)
            .env("RACKHAND_CA", &self.ca)
            .env("RACKHAND_TOKEN", &self.token);
        command
    }

    /// What the command answers, as JSON.
    pub(crate) fn ask(&self, words: &[&str]) -> anyhow::Result<Value> {
        let text = output(self.command(words).args(["--output", "json"]))?;
        serde_json::from_str(&text).with_context(|| format!("rackhand {words:?} did not answer JSON: {text}"))
    }

    /// Runs the command in sight of whoever watches.
    pub(crate) fn show(&self, words: &[&str]) -> anyhow::Result<()> {
        ensure!(!is_ending(), "the virtual rack is being taken apart");
        let status = self.command(words).stdin(Stdio::null()).status()?;
        ensure!(status.success(), "rackhand {words:?} failed ({status})");
        Ok(())
    }

    /// Shows the command and what it answers, as on an operator's terminal.
    pub(crate) fn type_in(&self, words: &[&str]) -> anyhow::Result<()> {
        println!("{}", prompt(&[&["rackhand"], words].concat()));
        self.show(words)
    }

    /// A run as it stands.
    pub(crate) fn run(&self, id: &str) -> anyhow::Result<Value> {
        self.ask(&["run", "show", id])
    }

    /// The machine with this card, once the controller knows it.
    pub(crate) fn machine(&self, mac: Mac) -> anyhow::Result<Option<Value>> {
        let machines = self.ask(&["machine", "list"])?;
        let mac = mac.to_string();
        Ok(items(&machines)?
            .iter()
            .find(|machine| machine["macs"].as_array().is_some_and(|macs| macs.iter().any(|m| *m == mac.as_str())))
            .cloned())
    }

    /// Waits until the machine with this card is as wanted.
    pub(crate) fn wait_for(
        &self,
        mac: Mac,
        wanted: &str,
        patience: Duration,
        is: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let end = Instant::now() + patience;
        let mut seen = Value::Null;
        loop {
            // The controller may be away in some stories: that is not the end of patience.
            match self.machine(mac) {
                Ok(Some(machine)) if is(&machine) => return Ok(machine),
                Ok(Some(machine)) => seen = machine,
                Ok(None) => {}
                Err(error) if Instant::now() > end || is_ending() => return Err(error),
                Err(_) => {}
            }
            if Instant::now() > end {
                bail!("machine {mac} did not become {wanted} in {patience:?}; last seen: {seen:#}");
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Waits for a lifecycle.
    pub(crate) fn wait_for_lifecycle(&self, mac: Mac, lifecycle: &str, patience: Duration) -> anyhow::Result<Value> {
        self.wait_for(mac, lifecycle, patience, |machine| machine["lifecycle"] == lifecycle)
    }
}

/// A command as it is typed, on as many lines as [`COLUMNS`] want.
pub(crate) fn prompt(words: &[&str]) -> String {
    let mut lines = vec![String::from("$")];
    for word in words {
        let word = match word.contains([' ', ';', '\'', '|', '$']) {
            true => format!("'{word}'"),
            false => (*word).to_owned(),
        };
        let line = lines.last_mut().expect("there is one from the beginning");
        if line.len() > 2 && line.chars().count() + word.chars().count() + 3 > COLUMNS {
            line.push_str(" \\");
            lines.push(format!("    {word}"));
        } else {
            line.push(' ');
            line.push_str(&word);
        }
    }
    lines.join("\n")
}

/// How wide the terminals are that people watch on.
pub(crate) const COLUMNS: usize = 100;

/// The rows of a list answer.
pub(crate) fn items(answer: &Value) -> anyhow::Result<&Vec<Value>> {
    answer.as_array().or_else(|| answer["items"].as_array()).with_context(|| format!("not a list: {answer}"))
}
