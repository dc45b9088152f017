//! A session with boot, from ticket to restart: present the ticket, send the inventory, then
//! do what each new assignment says and stay connected through it. What is in the machine in detail is
//! looked at beside that, and told when it is known.
//!
//! Invariants:
//! - One order at a time; a new one starts when the old has let go of its disks.
//! - A ticket that boot refuses ends it: the machine restarts and is given another.
//! - Nothing is done to a disk while disks are being asked how they fare; the BMC, which may hang, is not
//!   waited for.
//! - An order (run and attempt) that was carried out or failed in this session is not carried
//!   out again; its outcome is told again.

use std::{
    collections::BTreeMap,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use futures_util::future::{Fuse, FusedFuture, FutureExt};
use rackhand_common::{
    channel::{Assignment, Drive, Found, News, Report, Task},
    event::{Cause, MAX_TEXT},
    hardware::Hardware,
    id::{Epoch, RunId},
    image::Settings,
    machine::Inventory,
    pki,
};
use tokio::{
    sync::{Mutex, OnceCell},
    task::spawn_blocking,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    channel::{Backoff, Channel, Lane},
    cmdline::Parameters,
    image::HttpSource,
    log::Log,
    machine::Machine,
    task::{Admission, Reporter, TaskError, Work},
    toolbox::{self, ToolboxError, Tools},
};

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum NoSession {
    /// No key could be made.
    #[error("cannot make a key")]
    Key(#[source] rcgen::Error),
    /// TLS refuses the key.
    #[error("cannot use the key")]
    Tls(#[source] pki::Unusable),
    /// Boot refuses the ticket, and would for ever.
    #[error("boot refuses the ticket")]
    Ticket,
}

/// Works for boot until it says to restart, however long that takes.
pub async fn run(parameters: Parameters, machine: Arc<dyn Machine>, log: Log) -> Result<(), NoSession> {
    let key = rcgen::KeyPair::generate().map_err(NoSession::Key)?;
    let inventory = on_thread(&machine, |machine| machine.inventory()).await;
    let channel = Channel::new(parameters, key.into(), inventory.system.uuid).map_err(NoSession::Tls)?;
    tokio::select! {
        () = serve(&channel, inventory, machine, log) => Ok(()),
        () = channel.given_up() => Err(NoSession::Ticket),
    }
}

async fn serve(channel: &Channel, inventory: Inventory, machine: Arc<dyn Machine>, log: Log) {
    let mut lane = channel.lane();
    tracing::info!(boot = %channel.place(), "connecting");
    let admitted = channel.present(&mut lane).await;
    machine.set_clock(admitted.time);
    tracing::info!(machine = %admitted.machine, disks = inventory.disks.len(), "admitted");
    // Only boot can refuse it, and then the machine is of no use until boot changes its mind.
    let mut backoff = Backoff::new();
    let found = Found { inventory, hardware: None };
    while let Err(failure) = channel.send_inventory(&mut lane, &found).await {
        tracing::error!("inventory: boot {failure}");
        backoff.wait().await;
    }
    let machine_id = admitted.machine;
    let (reports, tools, looked) = (Mutex::default(), OnceCell::new(), CancellationToken::new());
    let session = Session { channel, machine, log, reports, machine_id, tools, looked };
    let told = async {
        session.tell(found.inventory).await;
        std::future::pending().await
    };
    tokio::select! {
        () = session.serve(lane) => {}
        () = told => {}
    }
}

/// What a look at the machine gives, which blocks.
async fn on_thread<T: Send + 'static>(
    machine: &Arc<dyn Machine>,
    look: impl FnOnce(&dyn Machine) -> T + Send + 'static,
) -> T {
    let machine = machine.clone();
    spawn_blocking(move || look(&*machine)).await.expect("looking at the machine does not panic")
}

/// How long what is told waits for the BMC: its driver is loaded first, and may wait itself.
const BMC: Duration = Duration::from_secs(10);

type Order = (RunId, u32);

struct Session<'a> {
    channel: &'a Channel,
    machine: Arc<dyn Machine>,
    log: Log,
    /// Beside the lane that waits for assignments.
    reports: Mutex<Option<Lane>>,
    machine_id: rackhand_common::id::MachineId,
    tools: OnceCell<Arc<dyn Tools>>,
    /// Whether disks have been asked how they fare.
    looked: CancellationToken,
}

impl Session<'_> {
    /// Looks at what is in the machine, and tells boot.
    async fn tell(&self, inventory: Inventory) {
        let looked = self.looked.clone();
        let details = on_thread(&self.machine, move |machine| {
            let _guard = looked.drop_guard();
            machine.details(&inventory)
        });
        let bmc = timeout(BMC, on_thread(&self.machine, |machine| machine.bmc()));
        let (details, bmc) = tokio::join!(details, bmc);
        if bmc.is_err() {
            tracing::warn!("the BMC hangs: nothing is told of it");
        }
        let hardware = Hardware { bmc: bmc.ok().flatten(), ..details }.sound();
        let mut lane = self.channel.lane();
        match self.channel.send_hardware(&mut lane, &hardware).await {
            Ok(()) => tracing::info!(bmc = hardware.bmc.is_some(), "hardware told"),
            Err(failure) => tracing::warn!("hardware: boot {failure}"),
        }
    }

    /// Returns when told to restart.
    async fn serve(&self, mut lane: Lane) {
        let mut told: BTreeMap<Order, News> = BTreeMap::new();
        let mut epoch = Epoch(0);
        let mut running: Option<(Order, CancellationToken)> = None;
        let mut work: Pin<Box<Fuse<_>>> = Box::pin(Fuse::terminated());
        let mut next: Option<Assignment> = None;
        let mut serial = None;
        loop {
            // A new assignment begins when the old order has let go.
            if let Some(assignment) = next.take_if(|_| work.is_terminated()) {
                running = None;
                match assignment.task {
                    Task::Wait => tracing::info!("waiting for work"),
                    Task::Reboot => {
                        tracing::info!("restarting, as told");
                        return;
                    }
                    Task::Deploy(_)
                    | Task::Erase(_)
                    | Task::Test(_)
                    | Task::Rescue(_)
                    | Task::Firmware(_)
                    | Task::RegainBmc(_) => {
                        let warrant = assignment.task.warrant().expect("all kinds of orders have one");
                        let order = (warrant.run, warrant.attempt);
                        let admission = Admission { machine: self.machine_id, epoch };
                        epoch = epoch.max(warrant.epoch);
                        let withdrawn = CancellationToken::new();
                        running = Some((order, withdrawn.clone()));
                        let before = told.get(&order).cloned();
                        work.set(self.perform(order, assignment.task, admission, withdrawn, before).fuse());
                    }
                }
            }
            // Whoever is told to restart asks no more: boot would take it for a machine that came back.
            if next.as_ref().is_some_and(|assignment| matches!(assignment.task, Task::Reboot)) {
                work.as_mut().await;
                continue;
            }
            let poll = self.poll(&mut lane, serial);
            let mut poll = pin!(poll);
            loop {
                tokio::select! {
                    assignment = &mut poll => {
                        serial = Some(assignment.serial);
                        let same = |(order, _): &(Order, CancellationToken)| {
                            assignment.task.warrant().is_some_and(|warrant| (warrant.run, warrant.attempt) == *order)
                        };
                        match &running {
                            // The same order under another serial goes on.
                            Some(running) if same(running) && !work.is_terminated() => next = None,
                            Some((_, withdrawn)) => {
                                withdrawn.cancel();
                                next = Some(assignment);
                            }
                            None => next = Some(assignment),
                        }
                        break;
                    }
                    (order, news) = &mut work, if !work.is_terminated() => {
                        if let Some(news) = news {
                            told.insert(order, news);
                        }
                        // The question to boot stays asked, unless an assignment waits already.
                        if next.is_some() {
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Boot's next assignment; an answer that makes no sense is asked for again.
    async fn poll(&self, lane: &mut Lane, after: Option<u64>) -> Assignment {
        let mut backoff = Backoff::new();
        loop {
            match self.channel.assignment(lane, after).await {
                // The hold is over and nothing is new.
                Ok(assignment) if Some(assignment.serial) == after => backoff = Backoff::new(),
                Ok(assignment) => return assignment,
                Err(failure) => {
                    tracing::error!("assignment: boot {failure}");
                    backoff.wait().await;
                }
            }
        }
    }

    /// Carries out an order, or tells again how it ended. The news that ended it.
    async fn perform(
        &self,
        order: Order,
        task: Task,
        admission: Admission,
        withdrawn: CancellationToken,
        before: Option<News>,
    ) -> (Order, Option<News>) {
        let reporter = Reports { session: self, order, withdrawn: &withdrawn };
        let news = match before {
            Some(news) => news,
            // On the heap: this is what all orders have in it, and threads have little stack.
            None => match Box::pin(self.carry_out(&task, admission, &reporter)).await {
                Ok(news) => news,
                Err(TaskError::Withdrawn) => {
                    tracing::warn!(run = %order.0, "order withdrawn");
                    return (order, None);
                }
                Err(error) => self.failed(&error),
            },
        };
        // Withdrawn in this moment means that boot has it, or does not want it any more.
        let told = reporter.send(news.clone());
        tokio::select! {
            _ = told => {}
            () = async { withdrawn.cancelled().await; tokio::time::sleep(Duration::from_secs(5)).await } => {}
        }
        (order, Some(news))
    }

    async fn carry_out(&self, task: &Task, admission: Admission, reporter: &Reports<'_>) -> Result<News, TaskError> {
        let looked = reporter.withdrawn.run_until_cancelled(self.looked.cancelled()).await;
        looked.ok_or(TaskError::Withdrawn)?;
        let source = HttpSource::new(self.channel.chunks());
        let machine = self.machine.clone();
        let work = Work { machine, admission, reporter, source: &source, withdrawn: reporter.withdrawn };
        let disks = match task {
            Task::Deploy(deploy) => {
                let asked = async {
                    let mut lane = self.channel.lane();
                    let manifest =
                        self.channel.manifest(&mut lane, deploy.manifest).await.map_err(TaskError::Manifest)?;
                    let drive = match manifest.settings {
                        Settings::None => Drive::new(),
                        Settings::Cidata => deploy.files.clone(),
                        settings => self.channel.drive(&mut lane, settings).await.map_err(TaskError::Drive)?,
                    };
                    Ok((manifest, drive))
                };
                let (manifest, drive) =
                    reporter.withdrawn.run_until_cancelled(asked).await.ok_or(TaskError::Withdrawn)??;
                work.deploy(deploy, manifest, drive).await?
            }
            Task::Erase(erase) => work.erase(erase).await?,
            Task::Test(test) => {
                let toolbox = reporter.withdrawn.run_until_cancelled(self.toolbox());
                let tools = toolbox.await.ok_or(TaskError::Withdrawn)?.map_err(TaskError::Toolbox)?;
                work.test(test, tools).await.map(|()| Vec::new())?
            }
            Task::Firmware(update) => {
                let order = &update.order;
                let fetch = async |path| self.channel.firmware(&order.sha256, order.size, path).await;
                let updated = work.update(update, self.toolbox(), fetch).await?;
                if updated.tested.is_some() {
                    // Before the order is over: whoever sees that it is sees the versions as they are now.
                    let inventory = on_thread(&self.machine, |machine| machine.inventory()).await;
                    self.tell(inventory).await;
                }
                return Ok(News::Updated(Box::new(updated)));
            }
            Task::Rescue(rescue) => return Err(work.rescue(rescue, self.toolbox()).await),
            Task::RegainBmc(regain) => {
                let asked = async {
                    let mut lane = self.channel.lane();
                    self.channel.bmc_user(&mut lane).await
                };
                work.regain_bmc(regain, asked).await?;
                Vec::new()
            }
            Task::Wait | Task::Reboot => Vec::new(),
        };
        Ok(News::Done { disks })
    }

    /// The toolbox, fetched when it is needed for the first time.
    async fn toolbox(&self) -> Result<Arc<dyn Tools>, ToolboxError> {
        let tools = self.tools.get_or_try_init(|| toolbox::fetch(self.channel, self.machine.clone())).await?;
        Ok(tools.clone())
    }

    fn failed(&self, error: &TaskError) -> News {
        let mut detail = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            detail.push_str(": ");
            detail.push_str(&cause.to_string());
            source = cause.source();
        }
        let cause: Cause = error.cause();
        tracing::error!(?cause, "{detail}");
        detail.push_str("\n\n");
        let room = MAX_TEXT.saturating_sub(detail.len());
        detail.push_str(&self.log.tail(room));
        News::Failed { cause, detail }
    }
}

struct Reports<'a> {
    session: &'a Session<'a>,
    order: Order,
    withdrawn: &'a CancellationToken,
}

impl Reports<'_> {
    /// Whether boot has it.
    async fn send(&self, news: News) -> bool {
        let (run, attempt) = self.order;
        let mut lane = self.session.reports.lock().await;
        let lane = lane.get_or_insert_with(|| self.session.channel.lane());
        let told = self.session.channel.report(lane, &Report { run, attempt, news }).await;
        told.inspect_err(|failure| tracing::error!("report: boot {failure}")).is_ok()
    }
}

impl Reporter for Reports<'_> {
    async fn tell(&self, news: News) {
        self.keep(news).await;
    }

    async fn keep(&self, news: News) -> bool {
        self.withdrawn.run_until_cancelled(self.send(news)).await.unwrap_or(false)
    }
}
