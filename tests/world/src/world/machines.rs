//! What the machines of the world do: each step asks the rack's boot something, over its real
//! routes, and goes on by what it is told.

use std::{net::SocketAddr, time::Duration};

use axum::{
    body::Body,
    http::{Method, Request, StatusCode},
};
use http_body_util::BodyExt as _;
use rackhand_agent::boot::listener::Client;
use rackhand_common::{
    channel::{Admitted, Assignment, DeployTask, News, Present, Report, Task, Warrant},
    event::{Cause, DiskWork},
    id::Epoch,
    intent::Boot as Target,
    machine::Power,
    pki::{KeyPin, Peer},
};
use rackhand_installer::task::{Admission, check};
use tower::ServiceExt as _;

use crate::{
    fault::Part,
    machine::{
        Asker, DISK, Home, Installer, OnDisk, Phase, REFUSALS, STEPS, Trying, Work, WorkStage, answer, dhcp, failed,
    },
    node::Cable,
    oracle::Promise,
    plant::Plant,
    world::{Happens, World},
};

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Tries for an address before a ROM gives up and the firmware starts over.
const TRIES: u32 = 8;

/// How long a known machine may need for its address and its script, when nothing but the
/// controller is missing.
const BOOTS_WITHIN: Duration = seconds(30);

impl World {
    /// A machine got power, or was reset.
    pub(crate) fn machine_starts(&mut self, at: (usize, usize)) {
        let hindered = self.boot_is_hindered(at.0);
        let now = self.time.passed();
        let wait = self.rng.between(seconds(15), seconds(60));
        let machine = self.machine(at);
        machine.start += 1;
        machine.address = None;
        machine.phase = Phase::SelfTest;
        machine.trying = Some(Trying { since: now + wait, hindered });
        self.say_machine(at, "starts");
        self.machine_in(at, wait);
    }

    /// A machine lost power.
    pub(crate) fn machine_stops(&mut self, at: (usize, usize)) {
        let machine = self.machine(at);
        machine.start += 1;
        machine.address = None;
        machine.trying = None;
        machine.phase = Phase::Off;
        self.say_machine(at, "is off");
    }

    pub(crate) fn machine_in(&mut self, at: (usize, usize), wait: Duration) {
        let start = self.machine(at).start;
        self.after(wait, Happens::Machine(at, start));
    }

    /// The next step of a machine.
    pub(crate) async fn machine_steps(&mut self, at: (usize, usize), start: u64) {
        if self.machine(at).start != start {
            return;
        }
        self.judge_boot(at);
        match &self.machine(at).phase {
            Phase::Off | Phase::Running => {}
            Phase::SelfTest => self.self_tested(at),
            Phase::Rom(tries) => {
                let tries = *tries;
                if self.address(at, Asker::Rom).await {
                    self.goes_on(at, Phase::Ipxe(0), seconds(4));
                } else if tries < TRIES {
                    self.goes_on(at, Phase::Rom(tries + 1), seconds(4));
                } else {
                    self.say_machine(at, "gets no address and starts over");
                    self.goes_on(at, Phase::SelfTest, seconds(20));
                }
            }
            Phase::Ipxe(tries) => {
                let tries = *tries;
                if self.address(at, Asker::Ipxe).await {
                    self.goes_on(at, Phase::Script, seconds(1));
                } else if tries < TRIES {
                    self.goes_on(at, Phase::Ipxe(tries + 1), seconds(3));
                } else {
                    self.goes_on(at, Phase::SelfTest, seconds(20));
                }
            }
            Phase::Script => self.script(at).await,
            Phase::Kernel(ticket) => {
                let ticket = ticket.clone();
                let mut key = [0; 32];
                key.chunks_mut(8).for_each(|part| part.copy_from_slice(&self.rng.draw().to_be_bytes()));
                let installer = Installer {
                    key: KeyPin(key),
                    ticket,
                    refusals: 0,
                    admitted: None,
                    inventoried: false,
                    epoch: Epoch(0),
                    told: Default::default(),
                    work: None,
                };
                self.goes_on(at, Phase::Installer(Box::new(installer)), seconds(1));
            }
            Phase::Installer(_) => self.installer_steps(at).await,
            Phase::System(tries) => {
                let tries = *tries;
                if self.address(at, Asker::System).await || tries >= TRIES {
                    self.machine(at).trying = None;
                    self.machine(at).phase = Phase::Running;
                    self.tally.boots += 1;
                    self.say_machine(at, "runs its system");
                    self.after(seconds(20), Happens::CallsHome(at, start));
                } else {
                    self.goes_on(at, Phase::System(tries + 1), seconds(5));
                }
            }
        }
    }

    fn goes_on(&mut self, at: (usize, usize), phase: Phase, wait: Duration) {
        self.machine(at).phase = phase;
        self.machine_in(at, wait);
    }

    /// Its firmware chooses.
    fn self_tested(&mut self, at: (usize, usize)) {
        let mac = self.machine(at).mac;
        let once = {
            let mut bmcs = self.nodes[at.0].bmcs.lock();
            bmcs.machines.get_mut(&mac).is_some_and(|bmc| std::mem::take(&mut bmc.network_once))
        };
        let (now, hindered) = (self.time.passed(), self.boot_is_hindered(at.0));
        self.machine(at).trying = Some(Trying { since: now, hindered });
        let phase = if once || !self.machine(at).boots_disk() { Phase::Rom(0) } else { Phase::System(0) };
        self.goes_on(at, phase, seconds(3));
    }

    /// P4: a machine that boot knows gets what it needs.
    fn judge_boot(&mut self, at: (usize, usize)) {
        let hindered = self.boot_is_hindered(at.0);
        let now = self.time.passed();
        let machine = &mut self.machines[at.0][at.1];
        let Some(trying) = &mut machine.trying else { return };
        trying.hindered |= hindered || machine.hangs > 0;
        let known = self.nodes[at.0].known.contains_key(&machine.mac);
        let waits = match &machine.phase {
            Phase::Rom(_) | Phase::Ipxe(_) | Phase::Script | Phase::System(_) => true,
            Phase::Installer(installer) => !installer.inventoried,
            Phase::Off | Phase::SelfTest | Phase::Kernel(_) | Phase::Running => false,
        };
        let quietly = now - trying.since.max(self.nodes[at.0].boot_since);
        if known && waits && !trying.hindered && quietly > BOOTS_WITHIN {
            let what = format!("{} is known and has waited {} s for its boot", machine.name, quietly.as_secs());
            self.oracles.broken(Promise::P4, now, what);
        }
    }

    fn boot_is_hindered(&self, rack: usize) -> bool {
        let node = &self.nodes[rack];
        (node.boot.is_none() && !node.boot_replaced)
            || self.troubles[rack].lossy > 0
            || self.troubles[rack].boot_disk > 0
    }

    /// One round for an address; whether it has one.
    async fn address(&mut self, at: (usize, usize), asker: Asker) -> bool {
        let (mac, node) = (self.machine(at).mac, self.nodes[at.0].address);
        let Some((2, offered)) = self.asks_dhcp(at, &dhcp(mac, asker, node, None)).await else { return false };
        let request = dhcp(mac, asker, node, Some(offered));
        let mut told = self.asks_dhcp(at, &request).await;
        if self.troubles[at.0].lossy > 0 && self.rng.percent(30) {
            told = self.asks_dhcp(at, &request).await.or(told);
        }
        let Some((5, address)) = told else { return false };
        self.takes_address(at, address);
        true
    }

    fn takes_address(&mut self, at: (usize, usize), address: std::net::Ipv4Addr) {
        let now = self.time.passed();
        let Some(boot) = &self.nodes[at.0].boot else { return };
        let mac = self.machines[at.0][at.1].mac;
        let holder = boot.services.leases.holder(mac);
        let intent = boot.services.intent.current();
        let planned = intent.is_some_and(|intent| intent.machines.iter().any(|known| known.macs.contains(&mac)));
        if let Some(holder) = holder {
            self.history.name(holder.machine, &self.machines[at.0][at.1].name);
        }
        let others = self.machines[at.0].iter().enumerate().filter(|(index, _)| *index != at.1);
        let others: Vec<_> = others.filter_map(|(_, other)| Some((other.name.clone(), other.address?))).collect();
        let name = self.machines[at.0][at.1].name.clone();
        self.oracles.acknowledged(now, (at.0, &name, mac, address), others.into_iter(), planned);
        if let Some((wanted, _)) = self.nodes[at.0].known.get(&mac)
            && *wanted != address
        {
            let what = format!("{name} is known under {wanted} and is given {address}");
            self.oracles.broken(Promise::P4, now, what);
        }
        self.machines[at.0][at.1].address = Some(address);
        self.say_machine(at, format!("has {address}"));
    }

    fn loses(&mut self, rack: usize) -> bool {
        self.troubles[rack].lossy > 0 && self.rng.percent(40)
    }

    fn boot_answers(&self, rack: usize) -> bool {
        let asks = self.plant == Some(Plant::BootAsksController);
        self.nodes[rack].boot.is_some() && !(asks && self.hub.lock().uplinks[rack].agent.is_none())
    }

    async fn asks_dhcp(&mut self, at: (usize, usize), packet: &[u8]) -> Option<(u8, std::net::Ipv4Addr)> {
        if self.loses(at.0) || !self.boot_answers(at.0) {
            return None;
        }
        let cable = Cable::default();
        let boot = self.nodes[at.0].boot.as_mut()?;
        if let Some(intent) = boot.services.intent.current().filter(|intent| intent.revision > boot.followed) {
            boot.desk.follow(&intent).await;
            boot.followed = intent.revision;
        }
        boot.desk.answer(&cable, &[packet.to_vec()]).await;
        if self.boot_worked(at.0) || self.loses(at.0) {
            return None;
        }
        answer(cable.answers().first()?)
    }

    async fn asks(
        &mut self,
        at: (usize, usize),
        key: Option<KeyPin>,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Option<(StatusCode, Vec<u8>)> {
        let address = self.machine(at).address?;
        if self.loses(at.0) || !self.boot_answers(at.0) {
            return None;
        }
        let services = &self.nodes[at.0].boot.as_ref()?.services;
        let routes = if key.is_some() { services.channel.clone() } else { services.site.clone() };
        let client = Client { address: SocketAddr::new(address.into(), 40000), peer: key.map(Peer::Pinned) };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .extension(client)
            .body(Body::from(body.unwrap_or_default()))
            .expect("the path is a path");
        // The client is found among the extensions, as the listener leaves it there.
        let response = routes.oneshot(request).await.unwrap_or_else(|never| match never {});
        let status = response.status();
        let body = response.into_body().collect().await.ok()?.to_bytes().to_vec();
        if self.boot_worked(at.0) || self.loses(at.0) {
            return None;
        }
        Some((status, body))
    }

    /// Boot did something: its events are to go on. Whether it died of it.
    fn boot_worked(&mut self, rack: usize) -> bool {
        if self.nodes[rack].is_cut(Part::Boot) {
            self.power_went(rack, Part::Boot);
            return true;
        }
        self.local_soon(rack);
        false
    }

    async fn script(&mut self, at: (usize, usize)) {
        let mac = self.machine(at).mac.to_string().replace(':', "-");
        let answer = self.asks(at, None, Method::GET, &format!("/boot.ipxe?mac={mac}"), None).await;
        let text = answer.map(|(_, body)| String::from_utf8_lossy(&body).into_owned()).unwrap_or_default();
        let ticket = text.split("rackhand.ticket=").nth(1).and_then(|rest| rest.split_whitespace().next());
        match ticket {
            Some(ticket) => {
                let ticket = ticket.to_owned();
                self.judge_target(at, Target::Installer);
                let since = self.time.passed() + seconds(15);
                self.machine(at).trying = Some(Trying { since, hindered: false });
                self.say_machine(at, "loads the installer");
                self.goes_on(at, Phase::Kernel(ticket), seconds(15));
            }
            None if text.contains("sanboot") => {
                self.judge_target(at, Target::Disk);
                self.machine(at).trying = None;
                if self.machine(at).boots_disk() {
                    self.goes_on(at, Phase::System(0), seconds(5));
                } else {
                    self.say_machine(at, "is told to boot its disk, which holds nothing");
                    self.goes_on(at, Phase::SelfTest, seconds(30));
                }
            }
            None if text.is_empty() => self.goes_on(at, Phase::Ipxe(0), seconds(5)),
            None => self.goes_on(at, Phase::Script, seconds(if text.contains("15 seconds") { 15 } else { 5 })),
        }
    }

    /// P4: a machine that boot knows is given what its intent says.
    fn judge_target(&mut self, at: (usize, usize), target: Target) {
        let machine = &self.machines[at.0][at.1];
        if let Some((_, wanted)) = self.nodes[at.0].known.get(&machine.mac)
            && *wanted != target
        {
            let what = format!("{} is known for {wanted:?} and is told to boot {target:?}", machine.name);
            self.oracles.broken(Promise::P4, self.time.passed(), what);
        }
    }

    async fn installer_steps(&mut self, at: (usize, usize)) {
        if self.machine(at).hangs > 0 {
            return self.machine_in(at, seconds(10));
        }
        let mac = self.machine(at).mac;
        let Some(installer) = self.machine(at).installer() else { return };
        let key = installer.key;
        if installer.admitted.is_none() {
            let present = Present { ticket: installer.ticket.clone(), mac, uuid: None };
            let body = serde_json::to_vec(&present).expect("messages always serialize");
            let told = self.asks(at, Some(key), Method::POST, "/v1/ticket", Some(body)).await;
            let refused = told.as_ref().is_some_and(|(status, _)| *status == StatusCode::FORBIDDEN);
            let admitted = told.filter(|(status, _)| status.is_success());
            let admitted = admitted.and_then(|(_, body)| serde_json::from_slice::<Admitted>(&body).ok());
            let wait = if admitted.is_some() { Duration::from_millis(100) } else { seconds(7) };
            if let Some(installer) = self.machine(at).installer() {
                installer.refusals = if refused { installer.refusals + 1 } else { 0 };
                installer.admitted = admitted.map(|admitted| admitted.machine);
                if installer.refusals >= REFUSALS {
                    self.say_machine(at, "gives its ticket up");
                    return self.machine_starts(at);
                }
            }
            return self.machine_in(at, wait);
        }
        if !installer.inventoried {
            let body = serde_json::to_vec(&self.machine(at).inventory()).expect("messages always serialize");
            let told = self.asks(at, Some(key), Method::PUT, "/v1/inventory", Some(body)).await;
            let taken = self.obeyed(at, told);
            if let Some(installer) = self.machine(at).installer().filter(|_| taken) {
                installer.inventoried = true;
                self.machine(at).trying = None;
                self.tally.boots += 1;
                self.say_machine(at, "runs the installer");
                self.after(Duration::from_millis(50), Happens::Poll(at.0));
                return;
            }
            return self.machine_in(at, seconds(4));
        }
        if installer.work.is_some() {
            self.works(at).await;
        }
    }

    /// Whether boot took what it was sent. A key it does not know has to present its ticket.
    fn obeyed(&mut self, at: (usize, usize), told: Option<(StatusCode, Vec<u8>)>) -> bool {
        let Some((status, _)) = told else { return false };
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
            && let Some(installer) = self.machine(at).installer()
        {
            installer.admitted = None;
            self.machine_in(at, seconds(2));
        }
        status.is_success()
    }

    /// Asks what to do; the wait that boot holds it for is left out.
    pub(crate) async fn polls(&mut self, at: (usize, usize)) {
        if self.machine(at).hangs > 0 {
            return;
        }
        let Some(installer) = self.machine(at).installer() else { return };
        if installer.admitted.is_none() || !installer.inventoried {
            return;
        }
        let key = installer.key;
        let told = self.asks(at, Some(key), Method::GET, "/v1/assignment", None).await;
        let body = told.as_ref().map(|(_, body)| body.clone()).unwrap_or_default();
        if !self.obeyed(at, told) {
            return;
        }
        let Ok(Assignment { task, .. }) = serde_json::from_slice(&body) else { return };
        let Some(installer) = self.machine(at).installer() else { return };
        match task {
            Task::Wait => {
                if installer.work.take().is_some() {
                    self.say_machine(at, "has its order withdrawn");
                }
            }
            // Nobody in the world asks for a rescue, nor for a BMC.
            Task::Rescue(_) | Task::RegainBmc(_) => {}
            Task::Reboot => {
                self.say_machine(at, "restarts, as told");
                self.machine_starts(at);
            }
            // No operator of this world asks for tests, nor for firmware.
            Task::Test(_) | Task::Firmware(_) => {}
            Task::Deploy(DeployTask { ref warrant, .. })
            | Task::Erase(rackhand_common::channel::EraseTask { ref warrant, .. }) => {
                let order = (warrant.run, warrant.attempt);
                if installer.work.as_ref().is_some_and(|work| work.order == order) {
                    return;
                }
                let stage = installer.told.get(&order).cloned().map_or(WorkStage::Begins, WorkStage::Ends);
                let epoch = warrant.epoch;
                let text = format!("takes order {} attempt {} of epoch {epoch}", order.0, order.1);
                installer.work = Some(Work { order, epoch, task, stage });
                self.say_machine(at, text);
                let machine = self.machine(at);
                if std::mem::take(&mut machine.swaps) {
                    machine.serial += "-another";
                    machine.disk = OnDisk::Part;
                    self.tally.swapped += 1;
                    self.say_machine(at, "has another disk, with somebody's data on it");
                }
                self.machine_in(at, Duration::from_millis(500));
            }
        }
    }

    async fn works(&mut self, at: (usize, usize)) {
        let (inventory, plant) = (self.machine(at).inventory(), self.plant);
        let (disk_fails, no_image) = (self.machine(at).disk_fails > 0, self.troubles[at.0].no_image > 0);
        let Some(installer) = self.machine(at).installer() else { return };
        let admission = installer.admitted.map(|machine| Admission { machine, epoch: installer.epoch });
        let (Some(admission), Some(work)) = (admission, &installer.work) else { return };
        let (order, epoch, task) = (work.order, work.epoch, work.task.clone());
        let is_deploy = matches!(task, Task::Deploy(_));
        match &work.stage {
            WorkStage::Begins => {
                let looks = plant != Some(Plant::InstallerForgetsToLook);
                let checked = if looks { check(warrant(&task), admission, &inventory) } else { Ok(()) };
                installer.epoch = installer.epoch.max(epoch);
                let next = match checked {
                    Err(error) => WorkStage::Ends(failed(error.cause(), &error.to_string())),
                    Ok(()) if is_deploy && no_image => WorkStage::Ends(failed(Cause::Image, "no manifest")),
                    Ok(()) => WorkStage::Writes(0),
                };
                let begins = matches!(next, WorkStage::Writes(_));
                self.work_is(at, next);
                if begins {
                    self.report(at, order, News::Started).await;
                }
                self.machine_in(at, seconds(1));
            }
            WorkStage::Writes(done) => {
                let done = done + 1;
                self.judge_write(at, order.0, epoch).await;
                if disk_fails {
                    self.work_is(at, WorkStage::Ends(failed(Cause::DiskError, "the disk fails")));
                } else if is_deploy && no_image {
                    self.work_is(at, WorkStage::Ends(failed(Cause::Image, "a chunk cannot be fetched")));
                } else if done < STEPS {
                    self.machine(at).disk = OnDisk::Part;
                    self.work_is(at, WorkStage::Writes(done));
                    let news = News::Progress { done: DISK / STEPS * done, total: DISK };
                    self.report(at, order, news).await;
                } else {
                    let home = match &task {
                        Task::Deploy(deploy) => home(deploy).map(|path| Home { path, tries: 10 }),
                        _ => None,
                    };
                    self.machine(at).disk =
                        if is_deploy { OnDisk::System { run: order.0, home } } else { OnDisk::Blank };
                    self.say_machine(at, if is_deploy { "has its image" } else { "is erased" });
                    let (method, verified) = if is_deploy { ("image", 0) } else { ("overwrite", DISK) };
                    let disk = inventory.disks[0].identity().unwrap_or_default();
                    let disks = vec![DiskWork { disk, method: method.into(), bytes: DISK, verified }];
                    if is_deploy {
                        self.report(at, order, News::ImageWritten).await;
                    }
                    self.work_is(at, WorkStage::Ends(News::Done { disks }));
                }
                let wait = self.rng.between(seconds(3), seconds(9));
                self.machine_in(at, wait);
            }
            WorkStage::Ends(news) => {
                let news = news.clone();
                if let Some(installer) = self.machine(at).installer() {
                    installer.told.insert(order, news.clone());
                }
                if self.report(at, order, news.clone()).await {
                    if let Some(installer) = self.machine(at).installer() {
                        installer.work = None;
                    }
                    self.say_machine(at, format!("has told how order {} ended", order.0));
                    self.after(Duration::from_millis(50), Happens::Poll(at.0));
                } else {
                    self.machine_in(at, seconds(4));
                }
            }
        }
    }

    fn work_is(&mut self, at: (usize, usize), stage: WorkStage) {
        if let Some(work) = self.machine(at).installer().and_then(|installer| installer.work.as_mut()) {
            work.stage = stage;
        }
    }

    async fn report(
        &mut self,
        at: (usize, usize),
        (run, attempt): (rackhand_common::id::RunId, u32),
        news: News,
    ) -> bool {
        let Some(installer) = self.machine(at).installer() else { return false };
        let key = installer.key;
        let body = serde_json::to_vec(&Report { run, attempt, news }).expect("messages always serialize");
        let told = self.asks(at, Some(key), Method::POST, "/v1/report", Some(body)).await;
        self.obeyed(at, told)
    }

    pub(crate) async fn calls_home(&mut self, at: (usize, usize), start: u64) {
        let machine = self.machine(at);
        if machine.start != start || !matches!(machine.phase, Phase::Running) {
            return;
        }
        let OnDisk::System { home: Some(home), .. } = &mut machine.disk else { return };
        home.tries -= 1;
        let (path, last) = (home.path.clone(), home.tries == 0);
        let told = self.asks(at, None, Method::POST, &path, Some(b"{}".to_vec())).await;
        let heard = told.is_some_and(|(status, _)| status.is_success());
        if let OnDisk::System { home, .. } = &mut self.machine(at).disk
            && (heard || last)
        {
            *home = None;
        }
        if heard {
            self.say_machine(at, "has called home");
        } else if !last {
            self.after(seconds(30), Happens::CallsHome(at, start));
        }
    }

    /// Switches a machine's power as somebody at the rack would.
    pub(crate) fn power_button(&mut self, at: (usize, usize)) {
        let mac = self.machine(at).mac;
        self.nodes[at.0].bmcs.lock().switch(mac, Power::On, None);
    }
}

fn warrant(task: &Task) -> &Warrant {
    task.warrant().expect("only orders are worked on")
}

/// The path in the settings under which the system calls home.
fn home(deploy: &DeployTask) -> Option<String> {
    let text = deploy.files.get("vendor-data")?.strip_prefix("#cloud-config\n")?;
    let vendor: serde_json::Value = serde_json::from_str(text).ok()?;
    let url = vendor["phone_home"]["url"].as_str()?;
    Some(format!("/{}", url.strip_prefix("http://")?.split_once('/')?.1))
}
