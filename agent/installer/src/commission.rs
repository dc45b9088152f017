//! Running the tests of an order, and telling what each shows.
//!
//! Invariants:
//! - A test is begun once it is on the node's disk that it begins: one during which the machine restarts is
//!   known to the next installer, which tells that and does not run it again.
//! - Every test of an order is told of once it is over, whatever became of it: passed, failed, not for this
//!   machine, or not carried out.
//! - Nothing destructive begins before the machine, its mainboard and its disks are those of the warrant.
//! - A script that outlives its limit, and all it started, is ended.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, Read},
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rackhand_common::{
    channel::{News, TestTask},
    commission::{Device, Exit, MAX_OUTPUT, MAX_RESULT, Outcome, Ran, Script, Tested, batches, script},
    machine::Inventory,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    image::Source,
    pid1,
    task::{Reporter, TaskError, Work, check, check_machine},
    toolbox::{Given, Toolbox, Tools},
};

impl<R: Reporter, S: Source> Work<'_, R, S> {
    /// Runs the tests that no earlier installer of the same order told of.
    pub async fn test(&self, task: &TestTask, tools: Arc<dyn Tools>) -> Result<(), TaskError> {
        let inventory = self.inventory().await;
        check_machine(&task.warrant, self.admission, &inventory)?;
        let wanted: Vec<&'static Script> =
            task.scripts.iter().filter(|name| !task.done.contains(name)).filter_map(|name| script(name)).collect();
        if wanted.iter().any(|script| script.destructive) {
            check(&task.warrant, self.admission, &inventory)?;
        }
        tracing::info!(tests = wanted.len(), "testing");
        self.reporter.tell(News::Started).await;
        // Asked for by a controller of a later version than this installer.
        for name in task.scripts.iter().filter(|name| script(name).is_none() && !task.done.contains(name)) {
            self.tell(unknown(name)).await;
        }
        for batch in batches(&wanted) {
            let mut running = JoinSet::new();
            for script in batch {
                let interrupted = task.begun.contains(&script.name);
                if let Some((outcome, reason)) = why_not(script, interrupted, &inventory, &*tools) {
                    self.tell(script.not_run(outcome, &reason, Timestamp::now())).await;
                    continue;
                }
                self.reporter.tell(News::TestBegun(script.name.clone())).await;
                if self.withdrawn.is_cancelled() {
                    return Err(TaskError::Withdrawn);
                }
                tracing::info!(test = script.name, "begins");
                let (tools, withdrawn) = (tools.clone(), self.withdrawn.clone());
                running.spawn_blocking(move || {
                    let started = Timestamp::now();
                    script.judge(&tools.run(script, &withdrawn), started)
                });
            }
            while let Some(tested) = running.join_next().await {
                if self.withdrawn.is_cancelled() {
                    return Err(TaskError::Withdrawn);
                }
                self.tell(tested.expect("running a script does not panic")).await;
            }
        }
        Ok(())
    }

    async fn tell(&self, tested: Tested) {
        tracing::info!("{tested}");
        self.reporter.tell(News::Tested(Box::new(tested))).await;
    }
}

fn unknown(name: &str) -> Tested {
    Tested {
        script: name.to_owned(),
        outcome: Outcome::Broken,
        reason: "this rack's installer does not know this test: upgrade the node's packages".to_owned(),
        part: String::new(),
        output: String::new(),
        result: String::new(),
        started: Timestamp::now(),
        milliseconds: 0,
    }
}

/// Why a test is not run, if it is not.
fn why_not(script: &Script, interrupted: bool, inventory: &Inventory, tools: &dyn Tools) -> Option<(Outcome, String)> {
    if interrupted {
        let reason = "the machine restarted while this test ran: by itself, or somebody switched its power".to_owned();
        return Some((Outcome::Failed, reason));
    }
    if let Some(missing) = script.devices.iter().find(|device| !is_there(**device, inventory)) {
        let what = match missing {
            Device::Disk => "disk",
            Device::Nvme => "NVMe drive",
            Device::Nic => "network card",
        };
        return Some((Outcome::Skipped, format!("the machine has no {what}")));
    }
    let missing = script.programs.iter().find(|program| !tools.has(program))?;
    Some((Outcome::Broken, format!("the toolbox has no {missing}")))
}

pub(crate) fn is_there(device: Device, inventory: &Inventory) -> bool {
    match device {
        Device::Disk => !inventory.disks.is_empty(),
        Device::Nvme => inventory.disks.iter().any(|disk| disk.name.starts_with("nvme")),
        Device::Nic => !inventory.nics.is_empty(),
    }
}

/// Between looks at a script that runs.
const LOOK: Duration = Duration::from_millis(100);

/// Runs a script in the toolbox.
pub(crate) fn run(toolbox: &Toolbox, script: &Script, given: &Given, withdrawn: &CancellationToken) -> Ran {
    let began = Instant::now();
    match start(toolbox, script, given, began, withdrawn) {
        Ok(ran) => ran,
        Err(error) => Ran {
            exit: Exit::NotStarted(error.to_string()),
            output: Vec::new(),
            result: Vec::new(),
            took: began.elapsed(),
        },
    }
}

/// Where scripts and their results are, in the toolbox.
const PLACE: &str = "run/commission";

fn start(
    toolbox: &Toolbox,
    script: &Script,
    given: &Given,
    began: Instant,
    withdrawn: &CancellationToken,
) -> io::Result<Ran> {
    let place = toolbox.root().join(PLACE);
    fs::create_dir_all(&place)?;
    let (file, result): (PathBuf, PathBuf) = (place.join(&script.name), place.join(format!("{}.result", script.name)));
    fs::write(&file, &script.text)?;
    File::create(&result)?;

    let (said, says) = io::pipe()?;
    let mut command = toolbox.command("bash");
    command
        .arg(format!("/{PLACE}/{}", script.name))
        .args(&given.arguments)
        .envs(given.environment.iter().map(|(name, value)| (name, value)))
        .env("RACKHAND_RESULT", format!("/{PLACE}/{}.result", script.name))
        .stdout(says.try_clone()?)
        .stderr(says);
    let mut started = pid1::spawn(&mut command)?;
    // The command holds the pipe's other end: what was said ends with the script.
    drop(command);
    let listener = std::thread::spawn(move || last_of(said));

    let exit = loop {
        if let Some(status) = started.try_wait()? {
            break match (status.code(), status.signal()) {
                (Some(code), _) => Exit::Code(code),
                (None, signal) => Exit::Signal(signal.unwrap_or_default()),
            };
        }
        if began.elapsed() > script.limit || withdrawn.is_cancelled() {
            break Exit::Limit;
        }
        std::thread::sleep(LOOK);
    };
    // With all it left behind, which would hold the pipe.
    drop(started);
    let took = began.elapsed();
    let output = listener.join().unwrap_or_default();
    // One byte more shows that it is too long.
    let mut written = Vec::new();
    File::open(&result)?.take(MAX_RESULT as u64 + 1).read_to_end(&mut written)?;
    Ok(Ran { exit, output, result: written, took })
}

/// The end of what comes, as much of it as is kept.
fn last_of(mut said: impl Read) -> Vec<u8> {
    let mut last = VecDeque::new();
    let mut piece = [0; 4096];
    while let Ok(len @ 1..) = said.read(&mut piece) {
        last.extend(&piece[..len]);
        last.drain(..last.len().saturating_sub(MAX_OUTPUT));
    }
    last.into()
}

#[cfg(test)]
mod tests;
