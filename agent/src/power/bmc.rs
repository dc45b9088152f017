//! Switches machines by their BMCs; those whose BMC nobody told, by the command that is configured.
//!
//! Invariant: what a BMC is told to boot from is [on disk](super::ways) before it is told.

use std::{net::SocketAddrV4, sync::Arc};

use rackhand_bmc::{Bmc, BmcError};
use rackhand_common::{
    bmc::{BootOverride, BootSource},
    id::MachineId,
    machine::Power as State,
};

use super::{
    Answer, Power, PowerError, Target, Way,
    ways::{Changed, Turn, Ways},
};
use crate::{
    bmcs::{Bmcs, Reached},
    intent,
};

/// The loader that UEFI HTTP boot fetches from the node; the name that TFTP has it under too.
const LOADER: &str = "loader/snponly.efi";

/// The image that BMCs fetch from the node.
const MEDIA: &str = "media/boot.iso";

/// Where boot answers HTTP unless `bmc.files` says otherwise.
const HTTP: u16 = 8080;

/// The drivers of a rack's machines.
#[derive(Clone)]
pub struct Drivers {
    /// BMCs, which come first.
    pub bmcs: Bmcs,
    /// What else there is, for machines without a BMC: the operator's command.
    pub other: Arc<dyn Power>,
    /// What was changed of machines' boot order and not put back.
    pub ways: Ways,
    /// Where firmware and BMCs fetch this node's files; absent, at the node's address in the intent.
    pub files: Option<String>,
    /// The rack as it is to be.
    pub intent: intent::Store,
}

impl Drivers {
    fn url(&self, file: &str) -> Result<String, PowerError> {
        let base = match &self.files {
            Some(files) => files.trim_end_matches('/').to_owned(),
            None => {
                let intent = self.intent.current();
                let intent = intent.ok_or_else(|| PowerError::Unreachable("this node has no intent yet".to_owned()))?;
                format!("http://{}", SocketAddrV4::new(intent.network.node.addr(), HTTP))
            }
        };
        Ok(format!("{base}/{file}"))
    }

    async fn go(&self, reached: &Reached, machine: MachineId, way: Option<Way>) -> Result<(), PowerError> {
        let bmc = reached.of_this_machine().await?;
        let mut turn = self.ways.turn(machine).await;
        // A way that was gone before is left first: its medium would stay. An override is replaced anyway.
        let has_media = turn.changed().is_some_and(|changed| changed.way == Some(Way::Media));
        match self.put_back(reached, &mut turn).await {
            Err(PowerError::Refused(reason)) if !has_media => {
                tracing::warn!(%machine, reason, "a boot override is not taken back; another one follows");
            }
            done => done?,
        }
        let url = match way {
            Some(Way::Http) => Some(self.url(LOADER)?),
            Some(Way::Media) => Some(self.url(MEDIA)?),
            Some(Way::LastingNetwork) | None => None,
        };
        turn.set(Some(Changed { way, url: url.clone(), since: self.ways.now() })).await?;
        let told = Self::tell(&*bmc, way, url).await;
        if matches!(told, Err(PowerError::Refused(_) | PowerError::Unsupported(_))) {
            // Half of it may be done: a medium that no override follows, an override that is not shown.
            self.undo(reached, &mut turn, true).await?;
        }
        told
    }

    async fn tell(bmc: &dyn Bmc, way: Option<Way>, url: Option<String>) -> Result<(), PowerError> {
        let source = match way {
            None | Some(Way::LastingNetwork) => BootSource::Network,
            Some(Way::Http) => {
                let now = bmc.boot().await?;
                if now.set.uefi == Some(false) {
                    return Err(PowerError::Unsupported("its firmware boots as a BIOS does".to_owned()));
                }
                BootSource::Http(url)
            }
            Some(Way::Media) => {
                bmc.insert_media(url.as_deref().expect("media has an address")).await?;
                BootSource::Cd
            }
        };
        let is_lasting = way == Some(Way::LastingNetwork);
        // Whether it starts in UEFI mode is the machine's own affair, but for what only UEFI can.
        let uefi = (way == Some(Way::Http)).then_some(true);
        Ok(bmc.set_boot(BootOverride { source: Some(source), is_lasting, uefi }).await?)
    }

    /// Undoes what stands of a machine, if anything does.
    pub(super) async fn put_back(&self, reached: &Reached, turn: &mut Turn) -> Result<(), PowerError> {
        self.undo(reached, turn, false).await
    }

    /// The same; of one that its BMC `is_refused` to have set, it is not believed what it shows.
    async fn undo(&self, reached: &Reached, turn: &mut Turn, is_refused: bool) -> Result<(), PowerError> {
        let Some(changed) = turn.changed() else { return Ok(()) };
        let bmc = reached.of_this_machine().await?;
        let shown = bmc.boot().await?;
        let shows_none = shown.set.source.is_none() && shown.doubt.is_none();
        // One for a single start is spent by it; another may stand although the BMC does not show it.
        if !shows_none || changed.way.is_some() || is_refused {
            match bmc.set_boot(BootOverride { source: None, is_lasting: false, uefi: None }).await {
                Err(BmcError::Refused(_) | BmcError::Unsupported(_)) if shows_none => {}
                told => told?,
            }
        }
        if let (Some(Way::Media), Some(url)) = (changed.way, &changed.url) {
            bmc.eject_media(url).await?;
        }
        Ok(turn.set(None).await?)
    }
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
        Box::pin(async move { self.go(&reached, machine.id, None).await })
    }

    fn boot_by<'a>(&'a self, machine: &'a Target, way: Way) -> Answer<'a, ()> {
        let Some(reached) = self.bmcs.of(machine.id) else { return self.other.boot_by(machine, way) };
        Box::pin(async move { self.go(&reached, machine.id, Some(way)).await })
    }

    fn end_boot<'a>(&'a self, machine: &'a Target) -> Answer<'a, ()> {
        let Some(reached) = self.bmcs.of(machine.id) else { return self.other.end_boot(machine) };
        Box::pin(async move {
            let mut turn = self.ways.turn(machine.id).await;
            self.put_back(&reached, &mut turn).await
        })
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
