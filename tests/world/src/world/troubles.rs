//! Faults begin and end; what stands meanwhile in a rack.

use std::time::Duration;

use rackhand_common::machine::Power;

use super::{Happens, World, seconds, uplink::IDLE};
use crate::{
    database,
    fault::{Fault, Kind, Part, Process},
    version::Version,
};

/// Spells of trouble that stand in a rack.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Troubles {
    pub(crate) lossy: u32,
    pub(crate) socket: u32,
    pub(crate) stalled: u32,
    pub(crate) boot_disk: u32,
    pub(crate) agent_disk: u32,
    pub(crate) no_image: u32,
}

impl World {
    pub(super) async fn fault_begins(&mut self, index: usize) {
        let Fault { lasts, kind, .. } = self.faults[index].clone();
        self.say("FAULT", self.faults[index].to_string());
        let mut ends = true;
        match kind {
            Kind::KillController => self.controller_dies(lasts).await,
            Kind::KillControllerAtPoint(point) => self.controller.gate.arm(point),
            Kind::ControllerPowerCut(commit) => self.controller.disk.cut_at_commit(Some(commit)),
            Kind::ControllerDiskFull => self.controller.disk.trouble(|troubles| troubles.full += 1),
            Kind::ControllerDiskFails => self.controller.disk.trouble(|troubles| troubles.failing += 1),
            Kind::ControllerDiskReadOnly => self.controller.disk.trouble(|troubles| troubles.read_only += 1),
            Kind::AgentStalls(rack) => self.troubles[rack].stalled += 1,
            Kind::KillAgent(rack) => {
                self.agent_dies(rack, lasts);
                self.nodes[rack].each_disk(Part::Agent, crate::disk::Disk::killed);
            }
            Kind::KillBoot(rack) => {
                self.boot_dies(rack, lasts);
                self.nodes[rack].each_disk(Part::Boot, crate::disk::Disk::killed);
            }
            Kind::NodePowerCut(rack) => {
                self.agent_dies(rack, lasts);
                self.boot_dies(rack, lasts);
                for part in [Part::Agent, Part::Boot] {
                    self.nodes[rack].each_disk(part, crate::disk::Disk::power_cut);
                }
            }
            Kind::PowerCutAtSync { rack, part, sync } => match part {
                Part::Agent => self.nodes[rack].agent_disk.cut_at_sync(sync),
                Part::Boot if sync % 2 == 0 => self.nodes[rack].boot_disk.cut_at_sync(sync / 2),
                Part::Boot => self.nodes[rack].events_disk.cut_at_sync(sync / 2),
            },
            Kind::Partition(rack) => {
                let (controller, agent) = {
                    let mut hub = self.hub.lock();
                    hub.uplinks[rack].cut += 1;
                    (hub.uplinks[rack].controller, hub.uplinks[rack].agent)
                };
                // Each end notices by itself, unless the network comes back before.
                if lasts > IDLE {
                    for connection in controller.into_iter().chain(agent) {
                        self.after(IDLE, Happens::Silent(rack, connection));
                    }
                }
            }
            Kind::LossyUplink(rack) => self.hub.lock().uplinks[rack].lossy += 1,
            Kind::SocketGone(rack) => self.troubles[rack].socket += 1,
            Kind::LossyRack(rack) => self.troubles[rack].lossy += 1,
            Kind::DiskFull { rack, part } => {
                *self.disk_troubles(rack, part) += 1;
                self.nodes[rack].each_disk(part, |disk| disk.set_full(true));
                let _ = self.nodes[rack].set_files_full(part, true);
            }
            Kind::DiskFails { rack, part } => {
                *self.disk_troubles(rack, part) += 1;
                self.nodes[rack].each_disk(part, |disk| disk.set_failing(true));
            }
            Kind::ClockJump { rack, seconds } => {
                let skew = rack.map_or(&self.controller.skew, |rack| &self.nodes[rack].skew);
                skew.fetch_add(seconds * 1000, std::sync::atomic::Ordering::Relaxed);
                ends = false;
            }
            Kind::MachineReset { rack, machine } => {
                let mac = self.machines[rack][machine].mac;
                let on = self.nodes[rack].bmcs.lock().machines.get(&mac).is_some_and(|bmc| bmc.power == Power::On);
                if on {
                    self.machine_starts((rack, machine));
                }
                ends = false;
            }
            Kind::Bmc { rack, machine, trouble } => {
                let mac = self.machines[rack][machine].mac;
                if let Some(bmc) = self.nodes[rack].bmcs.lock().machines.get_mut(&mac) {
                    bmc.trouble = Some(trouble);
                }
            }
            Kind::InstallerHangs { rack, machine } => self.machines[rack][machine].hangs += 1,
            Kind::MachineDiskFails { rack, machine } => self.machines[rack][machine].disk_fails += 1,
            Kind::NoImage(rack) => self.troubles[rack].no_image += 1,
            Kind::DiskSwapped { rack, machine } => {
                self.machines[rack][machine].swaps = true;
                ends = false;
            }
            Kind::Replaced { process, version } => {
                self.replaced(process, version, lasts).await;
                ends = false;
            }
        }
        if ends {
            self.after(lasts, Happens::Ends(index));
        }
    }

    /// A process ends, and one of another version takes its place.
    async fn replaced(&mut self, process: Process, version: Version, lasts: Duration) {
        self.tally.replaced += 1;
        let Process::Node { rack, part } = process else {
            self.controller.version = version;
            return self.controller_dies(lasts).await;
        };
        match part {
            Part::Agent => self.agent_dies(rack, lasts),
            Part::Boot => {
                let was_up = self.nodes[rack].boot.is_some();
                self.boot_dies(rack, lasts);
                self.nodes[rack].boot_replaced = was_up;
            }
        }
        self.nodes[rack].each_disk(part, crate::disk::Disk::killed);
        if let Err(error) = self.nodes[rack].replaced(part, version) {
            // Its disk takes nothing now: its stores stay as they were.
            self.say(&format!("r{}/{part}", rack + 1), format!("leaves nothing that came later: {error:#}"));
        }
        self.nodes[rack].each_disk(part, crate::disk::Disk::killed);
    }

    pub(super) fn disk_troubles(&mut self, rack: usize, part: Part) -> &mut u32 {
        match part {
            Part::Agent => &mut self.troubles[rack].agent_disk,
            Part::Boot => &mut self.troubles[rack].boot_disk,
        }
    }

    /// The controller's disk is in one trouble less.
    fn disk_mends(&mut self, change: impl FnOnce(&mut database::Troubles)) {
        let now = self.time.passed();
        self.controller.disk.trouble(change);
        if !self.controller.disk.troubles().any() {
            self.say("FAULT", "the controller's disk is as it was");
            self.controller.sound_since = now;
            // Runs whose state could not be stored go by their rows again.
            self.oracles.runner_restarted(now);
        }
    }

    pub(super) fn fault_ends(&mut self, index: usize) {
        match self.faults[index].kind.clone() {
            Kind::KillControllerAtPoint(_) => self.controller.gate.disarm(),
            Kind::ControllerPowerCut(_) => self.controller.disk.cut_at_commit(None),
            Kind::ControllerDiskFull => self.disk_mends(|troubles| troubles.full -= 1),
            Kind::ControllerDiskFails => self.disk_mends(|troubles| troubles.failing -= 1),
            Kind::ControllerDiskReadOnly => self.disk_mends(|troubles| troubles.read_only -= 1),
            Kind::AgentStalls(rack) => self.troubles[rack].stalled -= 1,
            Kind::Partition(rack) => {
                self.hub.lock().uplinks[rack].cut -= 1;
                self.say("FAULT", format!("r{} is reached again", rack + 1));
            }
            Kind::LossyUplink(rack) => self.hub.lock().uplinks[rack].lossy -= 1,
            Kind::SocketGone(rack) => {
                self.troubles[rack].socket -= 1;
                self.local_soon(rack);
            }
            Kind::LossyRack(rack) => self.troubles[rack].lossy -= 1,
            Kind::DiskFull { rack, part } | Kind::DiskFails { rack, part } => {
                let left = self.disk_troubles(rack, part);
                *left -= 1;
                if *left == 0 {
                    self.nodes[rack].each_disk(part, |disk| {
                        disk.set_full(false);
                        disk.set_failing(false);
                    });
                    let _ = self.nodes[rack].set_files_full(part, false);
                    if part == Part::Boot {
                        self.nodes[rack].boot_since = self.time.passed();
                    }
                }
                self.say("FAULT", format!("the disk of r{}'s {part} is as it was", rack + 1));
                self.local_soon(rack);
                self.after(seconds(1), Happens::Push(rack));
            }
            Kind::Bmc { rack, machine, .. } => {
                let mac = self.machines[rack][machine].mac;
                if let Some(bmc) = self.nodes[rack].bmcs.lock().machines.get_mut(&mac) {
                    bmc.trouble = None;
                }
            }
            Kind::InstallerHangs { rack, machine } => self.machines[rack][machine].hangs -= 1,
            Kind::MachineDiskFails { rack, machine } => self.machines[rack][machine].disk_fails -= 1,
            Kind::NoImage(rack) => self.troubles[rack].no_image -= 1,
            Kind::KillController
            | Kind::KillAgent(_)
            | Kind::KillBoot(_)
            | Kind::NodePowerCut(_)
            | Kind::PowerCutAtSync { .. }
            | Kind::ClockJump { .. }
            | Kind::DiskSwapped { .. }
            | Kind::Replaced { .. }
            | Kind::MachineReset { .. } => {}
        }
    }
}
