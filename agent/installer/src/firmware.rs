//! Carrying out an order to update firmware by a script in the toolbox.
//!
//! Invariants:
//! - The script is begun once it is on the node's disk that it begins. One that an earlier installer may have
//!   begun is not run: what the parts tell is read instead.
//! - A script that was begun is waited for, until its end or its limit, also when the order is withdrawn.
//! - How it ended is decided by the versions that the parts tell afterwards ([`Order::judge`]).

use std::{
    collections::BTreeMap,
    error::Error,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rackhand_common::{
    channel::{FirmwareTask, News},
    commission::{self, Ran, Script},
    firmware::{Order, Outcome, Updated, script},
};
use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};

use crate::{
    channel::NoFile,
    commission::is_there,
    image::Source,
    task::{Reporter, TaskError, Work, check_machine},
    toolbox::{Given, ToolboxError, Tools},
};

/// How long the file may take to come.
const FETCH: Duration = Duration::from_secs(30 * 60);

/// Between looks at the versions.
const LOOK: Duration = Duration::from_secs(2);

/// How often is told that it goes on.
const TELL: Duration = Duration::from_secs(20);

impl<R: Reporter, S: Source> Work<'_, R, S> {
    /// Updates firmware. `fetch` brings the file to where it is told.
    pub async fn update(
        &self,
        task: &FirmwareTask,
        tools: impl Future<Output = Result<Arc<dyn Tools>, ToolboxError>>,
        fetch: impl AsyncFnOnce(PathBuf) -> Result<(), NoFile>,
    ) -> Result<Updated, TaskError> {
        let FirmwareTask { warrant, order, begun } = task;
        check_machine(warrant, self.admission, &self.inventory().await)?;
        self.reporter.tell(News::Started).await;
        let is_over = *begun || order.confirm;
        let was = if is_over { self.settled(order, Instant::now()).await } else { self.versions(order).await };
        let ended = |outcome, tested| {
            // Of what an earlier installer did this one does not know what there was before.
            let was = if is_over { BTreeMap::new() } else { was.clone() };
            Updated { name: order.name.clone(), outcome, was, tested }.sound()
        };
        let parts = match order.next(*begun, &was) {
            script::Next::End(outcome) => return Ok(ended(outcome, None)),
            script::Next::Run(parts) => parts,
        };
        let (script, tools, given) = match self.ready(order, &parts, tools, fetch).await {
            Ok(ready) => ready,
            Err(_) if self.withdrawn.is_cancelled() => return Err(TaskError::Withdrawn),
            Err(reason) => return Ok(ended(Outcome::Refused(reason), None)),
        };
        if !self.reporter.keep(News::UpdateBegun).await {
            return Err(TaskError::Withdrawn);
        }
        tracing::info!(update = order.name, script = script.name, ?parts, "begins");
        let (started, began) = (Timestamp::now(), Instant::now());
        let ran = self.run(order, script.clone(), tools, given).await;
        let tested = script.judge(&ran, started);
        tracing::info!("{tested}");
        let found = match tested.outcome {
            commission::Outcome::Passed if !order.restart => self.settled(order, began).await,
            _ => self.versions(order).await,
        };
        let outcome = order.judge(&tested, &was, &found);
        Ok(ended(outcome, Some(tested)))
    }

    /// Everything that the script needs, with its file; or why there is not.
    async fn ready(
        &self,
        order: &Order,
        parts: &[String],
        tools: impl Future<Output = Result<Arc<dyn Tools>, ToolboxError>>,
        fetch: impl AsyncFnOnce(PathBuf) -> Result<(), NoFile>,
    ) -> Result<(Script, Arc<dyn Tools>, Given), String> {
        let name = &order.by.script;
        let known = script::script(name).ok_or_else(|| {
            format!("this rack's installer does not know the script {name}: upgrade the node's packages")
        })?;
        let inventory = self.inventory().await;
        if known.devices.iter().any(|device| !is_there(*device, &inventory)) {
            return Err(format!("the machine has nothing that the script {name} is for"));
        }
        let withdrawn = || "the order was withdrawn".to_owned();
        let tools = self.withdrawn.run_until_cancelled(tools).await.ok_or_else(withdrawn)?;
        let tools = tools.map_err(|error| chain(&error))?;
        if let Some(missing) = known.programs.iter().find(|program| !tools.has(program)) {
            return Err(format!("the toolbox has no {missing}"));
        }
        let (outside, inside) =
            tools.room_for_firmware(&order.file).map_err(|error| format!("no room for the file: {error}"))?;
        let fetched = self.withdrawn.run_until_cancelled(timeout(FETCH, fetch(outside))).await.ok_or_else(withdrawn)?;
        let within = format!("the file did not come within {} minutes", FETCH.as_secs() / 60);
        fetched.map_err(|_| within)?.map_err(|error| chain(&error))?;
        let limit = Duration::from_secs(order.timeout.into());
        let environment = vec![
            ("RACKHAND_FILE", inside),
            ("RACKHAND_PARTS", parts.join(" ")),
            ("RACKHAND_VERSION", order.version.clone()),
        ];
        let given = Given { arguments: order.by.arguments.clone(), environment };
        Ok((Script { limit, ..known.clone() }, tools, given))
    }

    /// Runs the script to its end, and tells now and then that it goes on.
    async fn run(&self, order: &Order, script: Script, tools: Arc<dyn Tools>, given: Given) -> Ran {
        let began = Instant::now();
        let mut running = spawn_blocking(move || tools.update(&script, &given));
        loop {
            match timeout(TELL, &mut running).await {
                Ok(ran) => return ran.expect("running a script does not panic"),
                Err(_) => self.goes_on(order, began).await,
            }
        }
    }

    async fn goes_on(&self, order: &Order, began: Instant) {
        let total = u64::from(order.timeout) + u64::from(order.settle);
        self.reporter.tell(News::Progress { done: began.elapsed().as_secs().min(total), total }).await;
    }

    /// What the parts tell: as soon as it is the wanted version, or once that may take no longer to show.
    async fn settled(&self, order: &Order, began: Instant) -> BTreeMap<String, String> {
        let settle = Duration::from_secs(order.settle.into());
        let (since, mut told) = (Instant::now(), Instant::now());
        loop {
            let found = self.versions(order).await;
            if order.is_installed(&found) || since.elapsed() >= settle {
                return found;
            }
            if told.elapsed() >= TELL {
                told = Instant::now();
                self.goes_on(order, began).await;
            }
            sleep(LOOK.min(settle / 4)).await;
        }
    }

    async fn versions(&self, order: &Order) -> BTreeMap<String, String> {
        let (machine, parts) = (self.machine.clone(), order.by.parts.clone());
        let look = move || {
            let inventory = machine.inventory();
            let hardware = machine.details(&inventory);
            parts.found(&inventory, &hardware)
        };
        spawn_blocking(look).await.expect("looking at the machine does not panic")
    }
}

/// An error with all its causes, in one line.
fn chain(error: &dyn Error) -> String {
    let (mut text, mut source) = (error.to_string(), error.source());
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
