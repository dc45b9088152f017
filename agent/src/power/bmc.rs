//! Switches machines by their BMCs; those whose BMC nobody told, by the command that is configured.

use std::sync::Arc;

use rackhand_bmc::BmcError;
use rackhand_common::{
    bmc::{BootOverride, BootSource},
    machine::Power as State,
};

use super::{Answer, Power, PowerError, Target};
use crate::bmcs::Bmcs;

/// The drivers of a rack's machines.
#[derive(Clone)]
pub struct Drivers {
    /// BMCs, which come first.
    pub bmcs: Bmcs,
    /// What else there is, for machines without a BMC: the operator's command.
    pub other: Arc<dyn Power>,
}

impl Power for Drivers {
    fn status<'a>(&'a self, machine: &'a Target) -> Answer<'a, State> {
        let Some(reached) = self.bmcs.of(machine.id) else { return self.other.status(machine) };
        Box::pin(async move { Ok(reached.bmc().await?.power().await?) })
    }

    fn set<'a>(&'a self, machine: &'a Target, wanted: State) -> Answer<'a, ()> {
        let Some(reached) = self.bmcs.of(machine.id) else { return self.other.set(machine, wanted) };
        Box::pin(async move { Ok(reached.of_this_machine().await?.set_power(wanted).await?) })
    }

    fn network_boot_once<'a>(&'a self, machine: &'a Target) -> Answer<'a, ()> {
        let Some(reached) = self.bmcs.of(machine.id) else { return self.other.network_boot_once(machine) };
        // Whether it starts in UEFI mode is the machine's own affair.
        let network = BootOverride { source: Some(BootSource::Network), is_lasting: false, uefi: None };
        Box::pin(async move { Ok(reached.of_this_machine().await?.set_boot(network).await?) })
    }
}

impl From<BmcError> for PowerError {
    fn from(error: BmcError) -> Self {
        match error {
            BmcError::Unreachable(reason) => Self::Unreachable(reason),
            BmcError::Malformed(reason) => Self::Malformed(reason),
            BmcError::Denied(_) | BmcError::Refused(_) | BmcError::Unsupported(_) | BmcError::Changed(_) => {
                Self::Refused(format!("by its BMC: {error}"))
            }
        }
    }
}
