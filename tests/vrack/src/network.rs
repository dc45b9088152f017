//! The virtual rack's cabling: network namespaces.
//!
//! ```text
//!  this machine ──veth── CONTROLLER ──veth── NODE ──veth── LAN (bridge) ──tap── machines
//!   10.78.N.1/30          10.78.N.2           │ 10.77.0.1/24
//!                         10.78.N.5/30 ── 10.78.N.6
//!                                             │ 10.79.0.1/24 ──veth── MANAGEMENT: BMCs, 10.79.0.10 and on
//! ```
//!
//! A client of the stories is plugged into the bridge by a cable of its own, from a fourth
//! namespace.

use std::process::Command;

use anyhow::{Context, ensure};
use rackhand_common::machine::Mac;

use crate::run::{quiet, run};

/// The namespaces of one virtual rack; several racks can exist at once.
#[derive(Clone, Debug)]
pub(crate) struct Cabling {
    /// Names the rack: `demo`, `test`.
    name: String,
    /// Tells apart the racks' links to this machine.
    number: u8,
}

/// Which namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Where the controller runs.
    Controller,
    /// The rack node: agent and boot.
    Node,
    /// The provisioning network, where machines are plugged in.
    Lan,
    /// The management network, where their BMCs are.
    Management,
    /// A client with one card on the provisioning network.
    Client,
    /// A computer of the matrix, likewise.
    Computer(u8),
}

impl Cabling {
    pub(crate) fn new(name: &str, number: u8) -> Self {
        Self { name: name.to_owned(), number }
    }

    /// The controller's address as this machine and its operator reach it.
    pub(crate) fn controller(&self) -> String {
        format!("10.78.{}.2", self.number)
    }

    /// The controller's address as the node reaches it.
    pub(crate) fn controller_from_node(&self) -> String {
        format!("10.78.{}.5", self.number)
    }

    /// The address of the BMC of the machine in this slot.
    pub(crate) fn bmc(&self, slot: usize) -> String {
        format!("10.79.0.{}", 10 + slot)
    }

    /// The addresses of all of them, and a few more.
    pub(crate) fn bmcs(&self) -> &'static str {
        "10.79.0.8/29"
    }

    pub(crate) fn namespace(&self, place: Place) -> String {
        let place = match place {
            Place::Controller => "controller".to_owned(),
            Place::Node => "node".to_owned(),
            Place::Lan => "lan".to_owned(),
            Place::Management => "management".to_owned(),
            Place::Client => "client".to_owned(),
            Place::Computer(slot) => format!("computer{slot}"),
        };
        format!("rackhand-{}-{place}", self.name)
    }

    /// A command that runs in a namespace.
    pub(crate) fn command(&self, place: Place, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace(place))).arg("--").arg(program);
        command
    }

    fn link(&self) -> String {
        format!("rh-{}", self.name)
    }

    /// Lays the cables, after removing what an earlier rack of this name left behind.
    pub(crate) fn lay(&self, machines: usize) -> anyhow::Result<()> {
        ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root: run it with sudo");
        self.cut();
        let places = [Place::Controller, Place::Node, Place::Lan, Place::Management];
        let [controller, node, lan, management] = places.map(|place| self.namespace(place));
        for namespace in [&controller, &node, &lan, &management] {
            run("ip", &["netns", "add", namespace]).context("making a network namespace")?;
            run("ip", &["-n", namespace, "link", "set", "lo", "up"])?;
        }
        let n = self.number;
        run("ip", &["link", "add", &self.link(), "type", "veth", "peer", "name", "ops0", "netns", &controller])?;
        run("ip", &["addr", "add", &format!("10.78.{n}.1/30"), "dev", &self.link()])?;
        run("ip", &["link", "set", &self.link(), "up"])?;
        run("ip", &["-n", &controller, "addr", "add", &format!("10.78.{n}.2/30"), "dev", "ops0"])?;
        run("ip", &["-n", &controller, "link", "set", "ops0", "up"])?;

        run("ip", &["-n", &controller, "link", "add", "rack0", "type", "veth", "peer", "name", "up0", "netns", &node])?;
        run("ip", &["-n", &controller, "addr", "add", &format!("10.78.{n}.5/30"), "dev", "rack0"])?;
        run("ip", &["-n", &controller, "link", "set", "rack0", "up"])?;
        run("ip", &["-n", &node, "addr", "add", &format!("10.78.{n}.6/30"), "dev", "up0"])?;
        run("ip", &["-n", &node, "link", "set", "up0", "up"])?;

        run("ip", &["-n", &lan, "link", "add", "br0", "type", "bridge", "forward_delay", "0"])?;
        run("ip", &["-n", &lan, "link", "set", "br0", "up"])?;
        run("ip", &["-n", &lan, "link", "add", "node0", "type", "veth", "peer", "name", "prov0", "netns", &node])?;
        run("ip", &["-n", &lan, "link", "set", "node0", "master", "br0", "up"])?;
        run("ip", &["-n", &node, "addr", "add", "10.77.0.1/24", "dev", "prov0"])?;
        run("ip", &["-n", &node, "link", "set", "prov0", "up"])?;
        run(
            "ip",
            &["-n", &node, "link", "add", "mgmt0", "type", "veth", "peer", "name", "bmc0", "netns", &management],
        )?;
        run("ip", &["-n", &node, "addr", "add", "10.79.0.1/24", "dev", "mgmt0"])?;
        run("ip", &["-n", &node, "link", "set", "mgmt0", "up"])?;
        run("ip", &["-n", &management, "link", "set", "bmc0", "up"])?;
        for machine in 0..machines {
            run("ip", &["-n", &management, "addr", "add", &format!("{}/24", self.bmc(machine)), "dev", "bmc0"])?;
            let tap = tap(machine);
            run("ip", &["-n", &lan, "tuntap", "add", &tap, "mode", "tap"])?;
            run("ip", &["-n", &lan, "link", "set", &tap, "master", "br0", "up"])?;
        }
        Ok(())
    }

    /// Plugs a client or computer with this card into the provisioning network, in place of the
    /// one before.
    pub(crate) fn plug(&self, place: Place, mac: Mac) -> anyhow::Result<()> {
        self.unplug(place);
        let (namespace, lan, cable) = (self.namespace(place), self.namespace(Place::Lan), cable(place));
        run("ip", &["netns", "add", &namespace])?;
        run("ip", &["-n", &namespace, "link", "set", "lo", "up"])?;
        run("ip", &["-n", &lan, "link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", &namespace])?;
        run("ip", &["-n", &lan, "link", "set", &cable, "master", "br0", "up"])?;
        run("ip", &["-n", &namespace, "link", "set", "eth0", "address", &mac.to_string(), "up"])?;
        Ok(())
    }

    /// Ends its processes and removes it.
    pub(crate) fn unplug(&self, place: Place) {
        self.remove(place);
        quiet("ip", &["-n", &self.namespace(Place::Lan), "link", "del", &cable(place)]);
    }

    /// Ends every process in the namespaces and removes them, whatever state they are in. The
    /// machines go last: until agent and BMCs are gone they may switch one on.
    pub(crate) fn cut(&self) {
        let clients = [Place::Client, Place::Computer(0), Place::Computer(1)];
        for place in clients.into_iter().chain([Place::Controller, Place::Node, Place::Management, Place::Lan]) {
            self.remove(place);
        }
        quiet("ip", &["link", "del", &self.link()]);
    }

    fn remove(&self, place: Place) {
        let namespace = self.namespace(place);
        // More than once: what was just ending another's start may have started something.
        for _ in 0..5 {
            let pids = quiet("ip", &["netns", "pids", &namespace]);
            if pids.trim().is_empty() {
                break;
            }
            for pid in pids.split_whitespace() {
                quiet("kill", &["-9", pid]);
            }
        }
        quiet("ip", &["netns", "del", &namespace]);
    }

    /// Breaks or mends the link between node and controller.
    pub(crate) fn set_uplink(&self, up: bool) -> anyhow::Result<()> {
        let state = if up { "up" } else { "down" };
        run("ip", &["-n", &self.namespace(Place::Node), "link", "set", "up0", state]).map(drop)
    }
}

/// The cable that leads from the bridge to a client or computer.
fn cable(place: Place) -> String {
    match place {
        Place::Computer(slot) => format!("computer{slot}"),
        _ => "client0".to_owned(),
    }
}

/// The tap a machine is plugged into.
pub(crate) fn tap(machine: usize) -> String {
    format!("tap{machine}")
}
