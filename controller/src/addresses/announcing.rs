//! Which machines announce a claim's addresses by BGP: one address in several places (anycast), or in one.
//!
//! An announcement is what filters are made of, and who is asked about an address: nothing here speaks
//! BGP.

use jiff::Timestamp;
use rackhand_common::id::{ClaimId, MachineId, RackId, SiteId};
use rackhand_controller_core::ipam::Kind;

use super::Refused;
use crate::store::{Announcement, Claim, Happened, Machine, Pool, StoreError, Tx};

/// The most machines that announce one claim's addresses.
const ANNOUNCEMENTS: usize = 256;

impl Tx {
    /// Has a machine announce the addresses of a claim. One that does so already goes on.
    pub async fn announce(
        &mut self,
        now: Timestamp,
        claim: ClaimId,
        machine: MachineId,
        by: &str,
    ) -> Result<Announcement, Refused> {
        let claim = self.claim(claim).await?;
        if let Some(until) = claim.until {
            return Err(Refused::Over(claim.id, until));
        }
        let others = self.announcements_of(claim.id).await?;
        if let Some(known) = others.iter().find(|other| other.machine == machine) {
            return Ok(known.clone());
        }
        let machine = self.machine(&machine.to_string()).await?;
        let pool = self.pool_numbered(claim.pool_number).await?;
        self.check_announcer(&claim, &pool, &machine).await?;
        if others.len() >= ANNOUNCEMENTS {
            return Err(Refused::NoMoreAnnouncements(others.len(), claim.prefix));
        }
        if pool.kind == Kind::Public
            && let Some(other) = self.elsewhere(machine.rack, &others).await?
        {
            return Err(Refused::InOnePlace { pool: pool.name, prefix: claim.prefix, other });
        }
        let made = self.insert_announcement(now, &claim, &machine, by).await?;
        let happened = Happened::AddressesAnnounced { prefix: made.prefix.to_string() };
        self.insert_event(now, machine.rack, Some(machine.id), None, &happened).await?;
        Ok(made)
    }

    /// Has a machine announce the addresses of a claim no longer.
    pub async fn withdraw(
        &mut self,
        now: Timestamp,
        claim: ClaimId,
        machine: &Machine,
        by: &str,
    ) -> Result<(), Refused> {
        let found = self.announcements_of(claim).await?.into_iter().find(|found| found.machine == machine.id);
        match found {
            Some(found) => {
                self.end_announcements(now, std::slice::from_ref(&found), by).await?;
                Ok(self.tell_of_end(now, &[found]).await?)
            }
            None => Err(Refused::NotAnnounced(machine.name.clone(), self.claim(claim).await?.prefix)),
        }
    }

    /// Ends what others than a claim's holder announce of it, when a machine holds it.
    pub(super) async fn withdraw_from_others(
        &mut self,
        now: Timestamp,
        claim: &Claim,
        by: &str,
    ) -> Result<(), StoreError> {
        let Some(holder) = claim.holder.machine else { return Ok(()) };
        let mut others = self.announcements_of(claim.id).await?;
        others.retain(|other| other.machine != holder);
        self.end_announcements(now, &others, by).await?;
        self.tell_of_end(now, &others).await
    }

    /// Has it among what happened to machines that they announce something no longer.
    pub(super) async fn tell_of_end(&mut self, now: Timestamp, ended: &[Announcement]) -> Result<(), StoreError> {
        for Announcement { machine, rack, prefix, .. } in ended {
            let happened = Happened::AddressesWithdrawn { prefix: prefix.to_string() };
            self.insert_event(now, *rack, Some(*machine), None, &happened).await?;
        }
        Ok(())
    }

    async fn check_announcer(&mut self, claim: &Claim, pool: &Pool, machine: &Machine) -> Result<(), Refused> {
        if claim.reserved {
            return Err(Refused::Reserved(claim.prefix));
        }
        if claim.holder.machine.is_some_and(|holder| holder != machine.id) {
            return Err(Refused::AnothersToAnnounce { prefix: claim.prefix, holder: claim.holder.name.clone() });
        }
        if machine.project.is_some() && machine.project != claim.project {
            return Err(Refused::Others(machine.name.clone()));
        }
        self.check_within(pool, machine).await
    }

    /// The name of one of these whose machine stands in another site than this rack.
    async fn elsewhere(&mut self, rack: RackId, others: &[Announcement]) -> Result<Option<String>, StoreError> {
        let here = self.site_of(rack).await?;
        for other in others.iter().filter(|other| other.rack != rack) {
            if self.site_of(other.rack).await? != here {
                return Ok(Some(other.name.clone()));
            }
        }
        Ok(None)
    }

    async fn site_of(&mut self, rack: RackId) -> Result<SiteId, StoreError> {
        Ok(self.rack(&rack.to_string()).await?.site)
    }
}
