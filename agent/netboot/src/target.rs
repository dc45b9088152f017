//! What a machine boots, decided from the intent and from who holds its address. Nobody is
//! asked: a rack boots its machines while the controller is away.
//!
//! Invariants:
//! - A machine whose intent says disk is never given the installer.
//! - A machine nobody knows gets the installer, which changes nothing on it.

use rackhand_common::intent::{Boot, Intent};

use crate::dhcp::Holder;

/// What a machine that asks for its boot script is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Our installer, in RAM.
    Installer,
    /// The system on its own disk.
    Disk,
    /// Nothing yet: ask again.
    Wait(Waiting),
}

/// Why a machine has to ask again. `Display` is for whoever stands before its screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Waiting {
    /// No intent has reached this node.
    #[error("this rack node has not been told about its rack yet")]
    NoIntent,
    /// The card that asks has no address of ours.
    #[error("this card has no address from this rack node")]
    NoAddress,
}

/// Decides for the card `holder`, as the lease table knows it.
pub fn decide(intent: Option<&Intent>, holder: Option<&Holder>) -> Target {
    let Some(intent) = intent else { return Target::Wait(Waiting::NoIntent) };
    let Some(holder) = holder else { return Target::Wait(Waiting::NoAddress) };
    match intent.machines.iter().find(|machine| machine.id == holder.machine) {
        Some(machine) if machine.boot == Boot::Disk => Target::Disk,
        Some(_) | None => Target::Installer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dhcp::tests::{intent, known};

    fn holder(machine: rackhand_common::id::MachineId) -> Holder {
        Holder { machine, mac: "52:54:00:00:00:6d".parse().unwrap(), address: "10.0.0.9".parse().unwrap() }
    }

    #[test]
    fn a_machine_boots_what_its_intent_says_and_a_stranger_the_installer() {
        let mut intent = intent();
        let machine = intent.machines[0].id;
        assert_eq!(decide(Some(&intent), Some(&holder(machine))), Target::Installer);
        assert_eq!(decide(Some(&intent), Some(&holder(known(99)))), Target::Installer);
        intent.machines[0].boot = Boot::Disk;
        assert_eq!(decide(Some(&intent), Some(&holder(machine))), Target::Disk);
    }

    #[test]
    fn without_an_intent_or_an_address_a_machine_waits() {
        assert_eq!(decide(None, Some(&holder(known(1)))), Target::Wait(Waiting::NoIntent));
        assert_eq!(decide(Some(&intent()), None), Target::Wait(Waiting::NoAddress));
    }
}
