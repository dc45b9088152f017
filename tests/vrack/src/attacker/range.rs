//! The place of the attacks: a rack node whose boot runs alone, two machines on its bridge, a
//! controller beside it, and what boot may use and must do meanwhile.

use std::{
    fs,
    net::Ipv4Addr,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use nix::sched::{CloneFlags, setns};
use rackhand_common::{
    id::{Epoch, MachineId, RackId},
    intent::{Boot, Intent, MachineIntent, Network},
    machine::Mac,
};

use super::{
    client::{ask, boots},
    controller,
    intruder::BORROWED,
};
use crate::{
    network::{Cabling, Place},
    operator::Operator,
    rack::{directory, init_controller},
    run::{quiet, run},
    services::{Files, Service, Services},
};

pub(super) const NODE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub(super) const HTTP: u16 = 8080;
pub(super) const CHANNEL: u16 = 8444;

/// Machines in the intent. The neighbour is the first of them.
pub(super) const KNOWN: u8 = 20;

/// The most that boot's memory may grow under any attack. Full tables are: 2048 connections
/// each of HTTP and TLS at some ten kilobytes, 256 loaders of a quarter of a megabyte, an event
/// queue of 4096.
pub(super) const GROWTH: u64 = 160 << 20;

/// How long a machine's way from DHCP to an admitted installer may take while its neighbour
/// floods: firmware gives each of its steps longer than this.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// How long after an attack a process may still be busy with it.
const REST: Duration = Duration::from_secs(15);

/// For how long an address is given here, so that the end of it can be waited for.
pub(super) const LEASE: Duration = Duration::from_secs(30);

/// How long a flood lasts.
pub(super) const FLOOD: Duration = Duration::from_secs(4);

/// How long most attacks are under way before a machine is switched on.
pub(super) const LEAD: Duration = Duration::from_secs(1);

/// The least a flood must come to, frames a second, to count as one: the gate's machine may
/// have two cores for both sides.
pub(super) const FEEBLE: u64 = 2_000;

/// A rack node under attack.
pub(super) struct Range {
    pub(super) cabling: Cabling,
    pub(super) files: Files,
    pub(super) services: Services,
    pub(super) operator: Operator,
}

/// What a process has used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    process: i32,
    pub(super) memory: u64,
    pub(super) processor: Duration,
}

/// The two machines on the bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Machine {
    /// A known one that only wants to boot.
    Neighbour,
    /// The hostile one.
    Intruder,
}

impl Machine {
    pub(super) fn namespace(self) -> &'static str {
        match self {
            Self::Neighbour => "rackhand-attack-neighbour",
            Self::Intruder => "rackhand-attack-intruder",
        }
    }

    pub(super) fn mac(self) -> Mac {
        match self {
            Self::Neighbour => known(1),
            Self::Intruder => Mac([0x52, 0x54, 0, 0, 0, 0x66]),
        }
    }

    pub(super) fn address(self) -> Ipv4Addr {
        match self {
            Self::Neighbour => planned(1),
            Self::Intruder => Ipv4Addr::new(10, 77, 0, 200),
        }
    }

    /// Acts as this machine: in its network namespace.
    pub(super) fn acts<T: Send>(self, act: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        let there = || {
            let namespace = fs::File::open(Path::new("/run/netns").join(self.namespace()))?;
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            act()
        };
        thread::scope(|scope| scope.spawn(there).join().unwrap_or_else(|_| bail!("panicked")))
    }
}

pub(super) fn known(number: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, number])
}

pub(super) fn planned(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 10 + number)
}

impl Range {
    pub(super) fn build(binaries: &Path) -> anyhow::Result<Self> {
        let cabling = Cabling::new("attack", 9);
        for machine in [Machine::Neighbour, Machine::Intruder] {
            quiet("ip", &["netns", "del", machine.namespace()]);
        }
        cabling.lay(0)?;
        let lan = cabling.namespace(Place::Lan);
        for (port, machine) in [("n0", Machine::Neighbour), ("i0", Machine::Intruder)] {
            let namespace = machine.namespace();
            run("ip", &["netns", "add", namespace])?;
            run("ip", &["-n", &lan, "link", "add", port, "type", "veth", "peer", "name", "net0", "netns", namespace])?;
            run("ip", &["-n", &lan, "link", "set", port, "master", "br0", "up"])?;
            run("ip", &["-n", namespace, "link", "set", "net0", "address", &machine.mac().to_string(), "up"])?;
            run("ip", &["-n", namespace, "addr", "add", &format!("{}/24", machine.address()), "dev", "net0"])?;
        }
        controller::plug(&cabling)?;
        for last in BORROWED..=250 {
            for (network, card) in [("10.77.0", "net0"), ("10.79.0", "net1")] {
                let address = format!("{network}.{last}/24");
                run("ip", &["-n", Machine::Intruder.namespace(), "addr", "add", &address, "dev", card])?;
            }
        }

        let directory = directory("attack");
        let _ = fs::remove_dir_all(&directory);
        let files = Files {
            binaries: binaries.canonicalize().context("no binaries")?,
            installer: directory.join("installer"),
            directory,
        };
        files.configure(&cabling)?;
        let config = files.config(Service::Boot);
        fs::write(&config, format!("lease = {}\n{}", LEASE.as_secs(), fs::read_to_string(&config)?))?;
        fs::create_dir_all(&files.installer)?;
        fs::write(files.installer.join("kernel"), vec![7; 8 << 20])?;
        fs::write(files.installer.join("initramfs"), vec![8; 8 << 20])?;
        let state = files.state(Service::Boot);
        fs::create_dir_all(&state)?;
        fs::write(state.join("intent.json"), serde_json::to_vec(&intent())?)?;
        let operator = init_controller(&files, &cabling)?;
        let services = Services::new(files.clone(), cabling.clone());
        services.start(Service::Controller)?;
        services.start(Service::Boot)?;
        let range = Self { cabling, files, services, operator };
        range.wait_until_up()?;
        controller::furnish(&range)?;
        Ok(range)
    }

    pub(super) fn wait_until_up(&self) -> anyhow::Result<()> {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let asked = Machine::Neighbour.acts(|| ask("GET", "/healthz"));
            match asked {
                Ok((200, _)) => return Ok(()),
                Ok(other) => bail!("boot says {other:?} of its health"),
                Err(error) if Instant::now() > end => return Err(error.context("boot is not up")),
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// SIGKILL and a new start.
    pub(super) fn restart(&mut self) -> anyhow::Result<()> {
        self.services.kill(Service::Boot)?;
        self.services.start(Service::Boot)?;
        self.wait_until_up()
    }

    pub(super) fn usage(&self, service: Service) -> anyhow::Result<Usage> {
        let process = self.services.pid(service)?;
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        let memory = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .with_context(|| format!("{} has ended", service.name()))?;
        let memory: u64 = memory.trim().trim_end_matches(" kB").parse()?;
        let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
        // After the command's name in parentheses: user time is the 12th field, system's the 13th.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(Usage { process, memory: memory << 10, processor: Duration::from_millis(ticks * 10) })
    }

    /// Fails when boot has ended, has grown beyond its bound, does not come to rest, or does not
    /// boot the neighbour.
    pub(super) fn unharmed(&mut self, before: Usage) -> anyhow::Result<()> {
        self.services.check()?;
        boots().context("the neighbour does not boot afterwards")?;
        let after = self.usage(Service::Boot)?;
        if after.process == before.process {
            let grown = after.memory.saturating_sub(before.memory);
            ensure!(grown <= GROWTH, "boot has grown by {} MiB", grown >> 20);
        }
        self.comes_to_rest(Service::Boot).map(drop)
    }

    /// Fails when this process has still much to do after a while; how long it took.
    pub(super) fn comes_to_rest(&self, service: Service) -> anyhow::Result<Duration> {
        // At rest it does next to nothing; what is queued is done first.
        let since = Instant::now();
        loop {
            let (from, start) = (self.usage(service)?.processor, Instant::now());
            thread::sleep(Duration::from_millis(500));
            let busy = (self.usage(service)?.processor - from).as_secs_f64() / start.elapsed().as_secs_f64();
            if busy < 0.25 {
                return Ok(since.elapsed());
            }
            ensure!(since.elapsed() < REST, "{} is still busy at {:.0} % of a processor", service.name(), busy * 100.0);
        }
    }

    /// Boots the neighbour while the intruder does `attack`, which has been under way for
    /// `lead` then and is told when to end.
    pub(super) fn boots_during(
        &self,
        lead: Duration,
        attack: impl FnOnce(&AtomicBool) -> anyhow::Result<String> + Send,
    ) -> anyhow::Result<String> {
        let (before, start, over) = (self.usage(Service::Boot)?, Instant::now(), AtomicBool::new(false));
        let (boot, said) = thread::scope(|scope| {
            let attacking = scope.spawn(|| Machine::Intruder.acts(|| attack(&over)));
            thread::sleep(lead);
            let boot = boots();
            over.store(true, Ordering::Relaxed);
            (boot, attacking.join().unwrap_or_else(|_| bail!("the attack panicked")))
        });
        let (lasted, after) = (start.elapsed(), self.usage(Service::Boot)?);
        let grown = after.memory.saturating_sub(before.memory);
        let busy = (after.processor - before.processor).as_secs_f64() / lasted.as_secs_f64();
        let measured = format!(
            "{}; boot: {} MiB before, {} after, {:.0} % of a processor",
            said?,
            before.memory >> 20,
            after.memory >> 20,
            busy * 100.0
        );
        let took = boot.with_context(|| format!("the neighbour does not boot meanwhile ({measured})"))?;
        ensure!(grown <= GROWTH, "boot has grown by {} MiB", grown >> 20);
        Ok(format!("the neighbour in {:.1} s beside {measured}", took.as_secs_f64()))
    }

    pub(super) fn log(&self) -> anyhow::Result<String> {
        Ok(fs::read_to_string(self.files.log(Service::Boot))?)
    }

    pub(super) fn cut(&self) {
        self.cabling.cut();
        for machine in [Machine::Neighbour, Machine::Intruder] {
            quiet("ip", &["netns", "del", machine.namespace()]);
        }
    }
}

pub(super) fn intent() -> Intent {
    let machine = |number| MachineIntent {
        id: MachineId::fresh(),
        name: format!("m-{number}"),
        macs: vec![known(number)],
        address: planned(number),
        epoch: Epoch(1),
        boot: Boot::Installer,
        order: None,
    };
    Intent {
        revision: 1,
        rack: RackId::fresh(),
        name: "r1".into(),
        network: Network {
            node: "10.77.0.1/24".parse().expect("a network"),
            gateway: None,
            dns: vec![],
            delegated: (Ipv4Addr::new(10, 77, 0, 100), Ipv4Addr::new(10, 77, 0, 199)),
        },
        machines: (1..=KNOWN).map(machine).collect(),
    }
}
