//! Tells what happens in a rack while it happens, from what the node's own tool and the
//! controller say: if it says "DHCP", a boot ROM sent it.

use std::{
    collections::{BTreeMap, HashSet},
    time::{Duration, Instant},
};

use anyhow::bail;
use jiff::Timestamp;
use rackhand_common::event::{Event, What};

use crate::{machine::Machine, network::Place, operator::Operator, rack::Rack, run::output};

const LOOK: Duration = Duration::from_millis(300);

/// Tells each thing once.
#[derive(Debug, Default)]
pub(crate) struct Narrator {
    machines: BTreeMap<String, Told>,
}

#[derive(Debug, Default)]
struct Told {
    /// When its present chapter began: what times are counted from.
    since: Option<Timestamp>,
    /// What was told, by its debug form: two things may have happened in one microsecond.
    events: HashSet<String>,
    lifecycle: String,
    percent: u64,
}

impl Narrator {
    /// A new chapter of a machine's story; times count from here.
    pub(crate) fn chapter(&mut self, machine: &Machine, title: &str) {
        let told = self.machines.entry(machine.label.serial.clone()).or_default();
        told.since = Some(Timestamp::now());
        told.percent = 0;
        println!("\n── {} ({}): {title}", machine.label.serial, machine.label.firmware);
    }

    /// Tells the machines' stories until `done`.
    pub(crate) fn until(
        &mut self,
        rack: &mut Rack,
        machines: &[Machine],
        patience: Duration,
        done: impl Fn(&Operator) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let end = Instant::now() + patience;
        loop {
            // Asked before the telling, so that what led to it is told too.
            let finished = done(&rack.operator).unwrap_or(false);
            for machine in machines {
                // The node may be between two starts: the next look sees what was missed.
                let _ = self.tell(rack, machine);
            }
            if finished {
                return Ok(());
            }
            rack.check()?;
            if Instant::now() > end {
                bail!("not done after {patience:?}; logs are in {}", rack.files.directory.join("logs").display());
            }
            std::thread::sleep(LOOK);
        }
    }

    fn tell(&mut self, rack: &Rack, machine: &Machine) -> anyhow::Result<()> {
        let told = self.machines.entry(machine.label.serial.clone()).or_default();
        for event in node_timeline(rack, machine).unwrap_or_default() {
            if !told.events.insert(format!("{event:?}")) {
                continue;
            }
            match &event.what {
                What::Progress { done, total, .. } => {
                    let percent = done * 100 / (*total).max(1);
                    if percent >= told.percent + 20 {
                        told.percent = percent;
                        told.line(machine, event.at, &format!("disk {percent} %"));
                    }
                }
                What::Stage(stage) => told.line(machine, event.at, &stage.to_string()),
                What::Failed { cause, detail, .. } => {
                    told.line(machine, event.at, &format!("failed: {cause:?}: {detail}"))
                }
                What::PhonedHome { .. } => told.line(machine, event.at, "cloud-init is done: the system phoned home"),
                What::Lost => told.line(machine, event.at, "installer is gone"),
                _ => {}
            }
        }
        if let Some(seen) = rack.operator.machine(machine.label.mac)? {
            let lifecycle = seen["lifecycle"].as_str().unwrap_or_default();
            if lifecycle != told.lifecycle {
                told.lifecycle = lifecycle.to_owned();
                told.line(machine, Timestamp::now(), &format!("── controller: {lifecycle}"));
            }
        }
        Ok(())
    }
}

impl Told {
    fn line(&self, machine: &Machine, at: Timestamp, what: &str) {
        let since = self.since.map_or(0.0, |since| at.duration_since(since).as_secs_f64());
        println!("{:>7.1} s  {} {:4}  {what}", since, machine.label.serial, machine.label.firmware);
    }
}

/// What the node knows of a machine: the technician's view, without the controller.
pub(crate) fn node_timeline(rack: &Rack, machine: &Machine) -> anyhow::Result<Vec<Event>> {
    let diag = rack.files.binary("rackhand-diag");
    let text = output(
        rack.cabling
            .command(Place::Node, &diag.to_string_lossy())
            .args(["timeline", &machine.label.mac.to_string(), "--output", "json", "--socket"])
            .arg(rack.files.socket()),
    )?;
    Ok(serde_json::from_str(&text)?)
}
