//! The machine behind a BMC.

use std::{
    process::Command,
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

/// What a machine boots from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The network, by PXE.
    Network,
    /// The network, by UEFI HTTP boot.
    Http,
    /// Its disk.
    Disk,
    /// A CD drive, also a virtual one.
    Cd,
    /// The firmware's setup.
    Setup,
}

/// An override of the boot order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// What to boot from; `None` is the machine's own order.
    pub source: Option<Source>,
    /// Start in UEFI mode rather than as a legacy BIOS; `None` leaves it as it is.
    pub uefi: Option<bool>,
    /// For every start from now on, not only for the next.
    pub is_lasting: bool,
    /// Where UEFI HTTP boot loads from; for the machine, of a CD drive, what is in it.
    pub address: Option<String>,
}

/// The machine behind a BMC. Calls may block; they come from threads made for that.
pub trait Chassis: Send + Sync + 'static {
    /// Whether it is on.
    fn power(&self) -> bool;

    /// Has it be on or off, off without asking its system. Setting what it is changes nothing.
    fn set_power(&self, on: bool) -> Result<(), String>;

    /// Asks its system to shut down.
    fn shut_down(&self) -> Result<(), String> {
        self.set_power(false)
    }

    /// Starts it again without its power going away.
    fn reset(&self) -> Result<(), String> {
        self.set_power(false)?;
        self.set_power(true)
    }

    /// What its next start boots from, and those after it when that is lasting.
    fn set_boot(&self, boot: &Boot) -> Result<(), String>;
}

/// What was done to a machine, or what it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// It was off and started, from this.
    Started(Boot),
    /// It was on and is off.
    Stopped,
    /// It was reset, and started from this.
    Reset(Boot),
    /// An override was set.
    BootSet(Boot),
}

/// A machine in memory, which remembers what was done to it.
#[derive(Debug, Default)]
pub struct Bench {
    machine: Mutex<Machine>,
}

#[derive(Debug, Default)]
struct Machine {
    is_on: bool,
    boot: Boot,
    acts: Vec<Act>,
}

impl Bench {
    /// What was done, oldest first.
    pub fn acts(&self) -> Vec<Act> {
        self.machine().acts.clone()
    }

    fn machine(&self) -> std::sync::MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Machine {
    /// What this start boots from; an override that is not lasting is spent.
    fn start(&mut self) -> Boot {
        let boot = self.boot.clone();
        if !boot.is_lasting {
            self.boot = Boot::default();
        }
        boot
    }
}

impl Chassis for Bench {
    fn power(&self) -> bool {
        self.machine().is_on
    }

    fn set_power(&self, on: bool) -> Result<(), String> {
        let mut machine = self.machine();
        if on != machine.is_on {
            machine.is_on = on;
            let act = if on { Act::Started(machine.start()) } else { Act::Stopped };
            machine.acts.push(act);
        }
        Ok(())
    }

    fn reset(&self) -> Result<(), String> {
        let mut machine = self.machine();
        if machine.is_on {
            let boot = machine.start();
            machine.acts.push(Act::Reset(boot));
        }
        Ok(())
    }

    fn set_boot(&self, boot: &Boot) -> Result<(), String> {
        let mut machine = self.machine();
        machine.boot = boot.clone();
        machine.acts.push(Act::BootSet(boot.clone()));
        Ok(())
    }
}

/// A machine driven by a command, as those of a virtual rack are: it is run with one of the verbs
/// `status` (prints `on` or `off`), `on`, `off`, `network-boot-once` and `disk-boot`. It finds the
/// machine by this process's environment (`RACKHAND_MAC`).
#[derive(Debug)]
pub struct Script {
    command: Vec<String>,
    /// What every start boots from; the verbs know of one start only.
    lasting: Mutex<Option<Boot>>,
}

impl Script {
    /// A machine driven by this command with these first arguments; the verb comes after them.
    pub fn new(command: Vec<String>) -> Self {
        Self { command, lasting: Mutex::default() }
    }

    fn prepare(&self, boot: &Boot) -> Result<(), String> {
        match boot.source {
            Some(Source::Network | Source::Http) => self.call("network-boot-once").map(drop),
            Some(Source::Disk) | None => self.call("disk-boot").map(drop),
            Some(source @ (Source::Cd | Source::Setup)) => Err(format!("this machine does not boot from {source:?}")),
        }
    }

    fn call(&self, verb: &str) -> Result<String, String> {
        let (program, arguments) = self.command.split_first().ok_or("no command was given")?;
        let output = Command::new(program).args(arguments).arg(verb).output();
        let output = output.map_err(|error| format!("{program} does not run: {error}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{program} {verb}: {}: {}", output.status, said.trim()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

impl Chassis for Script {
    fn power(&self) -> bool {
        match self.call("status") {
            Ok(status) => status == "on",
            Err(error) => {
                tracing::warn!(%error, "the machine does not tell whether it is on");
                false
            }
        }
    }

    fn set_power(&self, on: bool) -> Result<(), String> {
        let lasting = self.lasting.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(boot) = lasting.filter(|_| on && !self.power()) {
            self.prepare(&boot)?;
        }
        self.call(if on { "on" } else { "off" }).map(drop)
    }

    fn set_boot(&self, boot: &Boot) -> Result<(), String> {
        self.prepare(boot)?;
        *self.lasting.lock().unwrap_or_else(PoisonError::into_inner) = boot.is_lasting.then(|| boot.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_override_is_spent_by_one_start_unless_it_lasts() {
        let bench = Bench::default();
        let network = Boot { source: Some(Source::Network), ..Boot::default() };
        bench.set_boot(&network).unwrap();
        bench.set_power(true).unwrap();
        bench.set_power(true).unwrap();
        bench.reset().unwrap();
        let lasting = Boot { is_lasting: true, ..network.clone() };
        bench.set_boot(&lasting).unwrap();
        bench.reset().unwrap();
        bench.reset().unwrap();
        assert_eq!(
            bench.acts(),
            [
                Act::BootSet(network.clone()),
                Act::Started(network),
                Act::Reset(Boot::default()),
                Act::BootSet(lasting.clone()),
                Act::Reset(lasting.clone()),
                Act::Reset(lasting),
            ]
        );
    }

    #[test]
    fn a_script_is_asked_by_verbs() {
        let directory = tempfile::tempdir().unwrap();
        let notes = directory.path().join("notes");
        let body = format!("echo \"$0\" >> {}; if [ \"$0\" = status ]; then echo on; fi", notes.display());
        let script = Script::new(vec!["sh".into(), "-c".into(), body]);
        assert!(script.power());
        script.set_boot(&Boot { source: Some(Source::Network), ..Boot::default() }).unwrap();
        script.set_boot(&Boot::default()).unwrap();
        script.reset().unwrap();
        assert_eq!(std::fs::read_to_string(notes).unwrap(), "status\nnetwork-boot-once\ndisk-boot\noff\non\n");
    }
}
