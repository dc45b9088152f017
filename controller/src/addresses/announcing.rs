//! Which machines announce a claim's addresses by BGP: one address in several places (anycast), or in one.
//!
//! An announcement is what filters are made of, and who is asked about an address: nothing here speaks
//! BGP.

use jiff::Timestamp;
use rackhand_controller_core::ipam::Kind;

use super::Refused;
use crate::store::{Announcement, Claim, Happened, Holder, Machine, Pool, StoreError, Tx};

/// The most machines that announce one claim's addresses.
const ANNOUNCEMENTS: usize = 64;

impl Tx {
    /// Has a machine announce the addresses of a claim. One that does so already goes on.
    pub async fn announce(
        &mut self,
        now: Timestamp,
        claim: &Claim,
        pool: &Pool,
        machine: &Machine,
        by: &str,
    ) -> Result<Announcement, Refused> {
        if let Some(until) = claim.until {
            return Err(Refused::Over(claim.id, until));
        }
        let others = self.announcements_of(claim.id).await?;
        if let Some(known) = others.iter().find(|other| other.machine == machine.id) {
            return Ok(known.clone());
        }
        self.check_announcer(claim, pool, machine).await?;
        if others.len() >= ANNOUNCEMENTS {
            return Err(Refused::NoMoreAnnouncements(others.len(), claim.prefix));
        }
        if pool.kind == Kind::Public && !others.is_empty() {
            let site = self.rack(&machine.rack.to_string()).await?.site;
            if let Some(other) = self.announced_outside(claim.id, site).await? {
                return Err(Refused::InOnePlace { pool: pool.name.clone(), prefix: claim.prefix, other });
            }
        }
        let made = self.insert_announcement(now, claim, machine, by).await?;
        let happened = Happened::AddressesAnnounced { prefix: made.prefix.to_string() };
        self.insert_event(now, machine.rack, Some(machine.id), None, &happened).await?;
        Ok(made)
    }

    /// Has a machine announce what it does no longer.
    pub async fn withdraw(&mut self, now: Timestamp, announcement: Announcement, by: &str) -> Result<(), StoreError> {
        let ending = [announcement];
        self.end_announcements(now, &ending, by).await?;
        self.tell_of_end(now, &ending).await
    }

    /// Has a machine that its project gives back neither hold nor announce the project's addresses any more:
    /// what it held is the project's still, by the machine's name.
    pub async fn leave_addresses(&mut self, now: Timestamp, machine: &Machine, by: &str) -> Result<(), StoreError> {
        let now = self.address_time(now).await?;
        let announced = self.announcements_by(machine.id).await?;
        self.end_announcements(now, &announced, by).await?;
        self.tell_of_end(now, &announced).await?;
        for held in self.project_claims_of(machine.id).await? {
            let pool = self.pool_numbered(held.pool_number).await?;
            let name = Holder { machine: None, mac: None, name: machine.name.clone() };
            let moved = self.move_claim(now, held.id, Some((&name, pool.within)), &held.purpose, by).await?;
            self.tell_of_move(now, &held.holder, &moved).await?;
        }
        Ok(())
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
}
