//! Takes in the BMCs that racks' agents found and that are no machine's: has each logged in to with
//! what a manifest says, or with what it comes with from the factory where that is wanted, and joins it
//! to its machine by what it says then.
//!
//! Invariants:
//! - A password is tried once; again only when an operator says so, or the agent did not get to it.
//! - Whose a BMC is, is decided by [`rackhand_controller_core::intake`]; who does not agree is shown.
//! - None is joined while another one of its rack is being logged in to: two that say they are of one
//!   machine are both shown. Nor to a machine that is new and has not told yet which BMC answers it.
//! - One that took its factory password is given another as soon as it is its machine's.
//! - A machine's BMC whose card was given another address is followed there when it is the same one
//!   ([`intake::moved`]); until that is known nobody is tried there with a factory password.
//! - A row is all there is to an intake: it is gone on with by whoever starts next.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use rackhand_common::{
    bmc::{
        Access, At, Met, Stranger,
        lease::{BmcLease, Management},
    },
    event::What,
    id::{MachineId, RackId},
    time::Clock,
};
use rackhand_controller_core::{
    access::Sight,
    intake::{
        self, Known, Owner, Told, factory,
        moved::{self, Way},
    },
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    fleet::Fleet,
    rotations::{self, Rotations},
    store::{
        ExpectedBmc, FoundBmc, Happened, Intake, MachineFilter, MachineOrder, MetBmc, Moved, Store, StoreError,
        StoredBmc, StoredLease,
    },
};

/// How often it is looked.
const RECHECK: Duration = Duration::from_secs(2);

/// After how long a BMC that could not be logged in to is tried again.
const AGAIN: Duration = Duration::from_secs(300);

/// How long a new machine is waited for that has not told yet what is in it.
const TELLING: Duration = Duration::from_secs(30);

/// So many BMCs are logged in to at once; a rack's own bound is the fleet's.
const AT_ONCE: usize = 16;

/// Takes BMCs in until shutdown.
pub async fn run(store: Store, fleet: Fleet, rotations: Rotations, clock: Arc<dyn Clock>, shutdown: CancellationToken) {
    let runner = Runner { store, fleet, rotations, clock };
    loop {
        let looked = tokio::select! {
            looked = runner.look() => looked,
            // What is not noted is asked for again at the next start.
            () = shutdown.cancelled() => return,
        };
        if let Err(error) = looked {
            runner.store.note(&error);
            tracing::error!(error = &error as &dyn std::error::Error, "BMCs that were found are not taken in");
        }
        tokio::select! {
            () = sleep(RECHECK) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

struct Runner {
    store: Store,
    fleet: Fleet,
    rotations: Rotations,
    clock: Arc<dyn Clock>,
}

/// What is known in a rack.
struct There {
    rack: RackId,
    tries_factory: bool,
    expected: Vec<ExpectedBmc>,
    machines: Vec<Known>,
    /// Those that are new and have not told yet what is in them.
    telling: BTreeSet<MachineId>,
    told: Vec<Told>,
    /// Whether a BMC is being logged in to: it may say that it is of the same machine as another.
    is_meeting: bool,
}

impl Runner {
    async fn look(&self) -> Result<(), StoreError> {
        for (rack, tries_factory) in self.store.racks_with_found_bmcs().await? {
            let found = self.store.found_bmcs(rack, None, u32::MAX).await?;
            let bmcs = self.store.bmcs(rack, None, u32::MAX).await?;
            let mut there = self.there(rack, tries_factory, &found, &bmcs).await?;
            let moved: Vec<_> =
                self.store.bmc_leases(rack).await?.into_iter().filter(|lease| lease.moved.is_some()).collect();
            let is_moving = |found: &FoundBmc| moved.iter().any(|lease| found.found.address == lease.lease.address);
            let at = |lease: &StoredLease| found.iter().find(|at| at.found.address == lease.lease.address).cloned();
            let follows: Vec<_> = moved.iter().filter_map(|lease| Some((lease.clone(), at(lease)?))).collect();
            let known = &there;
            let followed =
                stream::iter(follows).map(|(lease, at)| async move { self.follow(known, &lease, &at).await });
            let followed: Vec<_> = followed.buffer_unordered(AT_ONCE).collect().await;
            followed.into_iter().collect::<Result<(), _>>()?;
            let is_open = |found: &FoundBmc| !is_anyones(&bmcs, found.found.address) && !is_moving(found);
            let open: Vec<_> = found.iter().filter(|found| is_open(found)).cloned().collect();
            let now = self.clock.now().wall;
            there.is_meeting = open.iter().any(|found| is_due(found, now) && there.way(found).is_ok());
            let there = &there;
            let moved = stream::iter(open).map(|found| async move { self.move_on(there, &found).await });
            let moved: Vec<_> = moved.buffer_unordered(AT_ONCE).collect().await;
            moved.into_iter().collect::<Result<(), _>>()?;
        }
        Ok(())
    }

    async fn there(
        &self,
        rack: RackId,
        tries_factory: bool,
        found: &[FoundBmc],
        bmcs: &[StoredBmc],
    ) -> Result<There, StoreError> {
        let filter = MachineFilter { sight: Sight::ALL, rack: Some(rack), ..MachineFilter::default() };
        let machines = self.store.machines(&filter, MachineOrder::Discovered(None), u32::MAX).await?;
        let mut in_band = self.store.bmcs_in_band(rack).await?;
        let now = self.clock.now().wall;
        let is_telling = |machine: &&crate::store::Machine| {
            let is_new = machine.created.saturating_add(TELLING).is_ok_and(|end| now < end);
            is_new && machine.connected && !in_band.contains_key(&machine.id)
        };
        let telling = machines.iter().filter(is_telling).map(|machine| machine.id).collect();
        let known = |machine: crate::store::Machine| Known {
            id: machine.id,
            mainboard: machine.mainboard(),
            in_band: in_band.remove(&machine.id).flatten(),
            bmc: bmcs.iter().find(|bmc| bmc.access.machine == machine.id).map(|bmc| bmc.access.at.address),
            name: machine.name,
        };
        let told = |found: &FoundBmc| {
            let identity = found.met.as_ref()?.identity.clone();
            Some(Told { address: found.found.address, identity })
        };
        Ok(There {
            rack,
            tries_factory,
            expected: self.store.expected_bmcs(rack, None, u32::MAX).await?,
            machines: machines.into_iter().map(known).collect(),
            telling,
            told: found.iter().filter_map(told).collect(),
            is_meeting: false,
        })
    }

    async fn move_on(&self, there: &There, found: &FoundBmc) -> Result<(), StoreError> {
        let address = found.found.address;
        if !found.found.is_any() {
            let words = "it has an address of the rack's node, and does not answer yet".to_owned();
            return self.note(found, Intake::Found, Some(words), found.again).await;
        }
        let Some(met) = &found.met else {
            let is_due = is_due(found, self.clock.now().wall);
            return if is_due { self.log_in(there, found).await } else { Ok(()) };
        };
        let told = Told { address, identity: met.identity.clone() };
        let row = |row: &ExpectedBmc| intake::Expected { serial: row.serial.clone(), address: row.at.address };
        let expected: Vec<_> = there.expected.iter().map(row).collect();
        match intake::owner(&told, &there.told, &expected, &there.machines) {
            Owner::Machine(_) if there.is_meeting => Ok(()),
            Owner::Machine(machine) if there.telling.contains(&machine) => {
                let words = "its machine is new, and has not told yet which BMC answers it".to_owned();
                self.note(found, Intake::Met, Some(words), found.again).await
            }
            Owner::Machine(machine) => self.join(there, found, met, machine).await,
            Owner::Unknown(words) => self.note(found, Intake::Met, Some(words), found.again).await,
            Owner::Disputed(words) => {
                if found.detail.as_ref() != Some(&words) {
                    tracing::warn!(rack = %there.rack, %address, words, "whose a BMC is, is disputed");
                }
                self.note(found, Intake::Disputed, Some(words), found.again).await
            }
        }
    }

    /// Goes after a machine's BMC whose card was given another address.
    async fn follow(&self, there: &There, lease: &StoredLease, found: &FoundBmc) -> Result<(), StoreError> {
        let Some(moved) = &lease.moved else { return Ok(()) };
        let bmc = match self.store.bmc(moved.machine).await {
            Err(StoreError::NotFound(_)) => None,
            known => Some(known?),
        };
        // An operator said where it is, or that there is none.
        let Some(bmc) = bmc.filter(|bmc| bmc.access.at.address == IpAddr::from(moved.from)) else {
            return self.forget_move(lease).await;
        };
        if found.intake != Intake::Found || found.again > self.clock.now().wall {
            return Ok(());
        }
        let waits = |words: &str| self.note(found, Intake::Found, Some(words.to_owned()), found.again);
        let (at, protocol, fingerprint) = match moved::way(&bmc.access, moved.fingerprint.as_deref(), &found.found) {
            Way::Ask(at, protocol, fingerprint) => (at, protocol, fingerprint),
            Way::Wait(words) => return waits(words).await,
            Way::Not(words) => return self.not_followed(there, found, &bmc, words).await,
        };
        let next = bmc.next.as_ref().filter(|next| next.is_begun && moved.is_next_first);
        let password = next.map_or_else(|| bmc.access.password.clone(), |next| next.password.clone());
        let user = bmc.access.user.clone();
        let is_known = fingerprint.is_some();
        let now = self.clock.now().wall;
        match self.fleet.meet(there.rack, Stranger { at, protocol, user, password, fingerprint }).await {
            Ok(Met::UnderWay) => waits("it is being logged in to").await,
            Ok(Met::In { identity, fingerprint }) => {
                let told = Told { address: found.found.address, identity };
                let row = |row: &ExpectedBmc| intake::Expected { serial: row.serial.clone(), address: row.at.address };
                let expected: Vec<_> = there.expected.iter().map(row).collect();
                let known = (&there.told[..], &expected[..], &there.machines[..]);
                let whose = (moved.machine, lease.lease.card.mac);
                match moved::is_its(&told, known, whose, is_known) {
                    Ok(()) => self.moves(lease, moved, &bmc, fingerprint).await,
                    Err(words) => self.not_followed(there, found, &bmc, words).await,
                }
            }
            // It may have the password that it was to be given when its rack was asked last.
            Ok(Met::Denied(_)) if bmc.next.as_ref().is_some_and(|next| next.is_begun) && !moved.is_next_first => {
                let mut tx = self.store.begin().await?;
                tx.note_moved_bmc(lease, Some(&Moved { is_next_first: true, ..moved.clone() })).await?;
                tx.commit().await
            }
            Ok(Met::Denied(reason)) => {
                let words = format!("it has the card of a machine's BMC, and does not take its password: {reason}");
                self.not_followed(there, found, &bmc, words).await
            }
            Ok(Met::Rests { until, reason }) => self.note(found, Intake::Found, Some(reason), until).await,
            Ok(Met::Failed(reason)) => {
                let later = now.saturating_add(AGAIN).unwrap_or(now);
                self.note(found, Intake::Found, Some(reason), later).await
            }
            Err(unreachable) => waits(&unreachable.to_string()).await,
        }
    }

    async fn forget_move(&self, lease: &StoredLease) -> Result<(), StoreError> {
        let mut tx = self.store.begin().await?;
        tx.note_moved_bmc(lease, None).await?;
        tx.commit().await
    }

    /// Says that a machine's BMC is reached at another address.
    async fn moves(
        &self,
        lease: &StoredLease,
        moved: &Moved,
        bmc: &StoredBmc,
        fingerprint: Option<String>,
    ) -> Result<(), StoreError> {
        let BmcLease { card, address, .. } = &lease.lease;
        let now = self.clock.now().wall;
        let mut tx = self.store.begin().await?;
        let machine = match tx.machine(&moved.machine.to_string()).await {
            Err(StoreError::NotFound(_)) => return Ok(()),
            known => known?,
        };
        let present = tx.bmc(machine.id).await?;
        if present.is_none_or(|present| present.version != bmc.version) {
            return Ok(());
        }
        // What a rotation may have given it is found out where it is now, as before.
        let at = At { address: (*address).into(), port: bmc.access.at.port };
        let access = Access { at, fingerprint, ..bmc.access.clone() };
        match tx.set_bmc(now, &machine, &access).await {
            Err(StoreError::Taken(_)) => {
                tracing::warn!(machine = %machine.id, %address, "another machine's BMC is said to be there");
                return Ok(());
            }
            set => set?,
        }
        tx.note_moved_bmc(lease, None).await?;
        let what = Management::Moved { from: moved.from, to: *address, mac: card.mac };
        tracing::info!(machine = %machine.id, "{what}");
        let happened = Happened::Told(What::Management(Box::new(what)));
        tx.insert_event(now, machine.rack, Some(machine.id), None, &happened).await?;
        tx.commit().await?;
        self.fleet.wake(machine.rack);
        Ok(())
    }

    /// Notes why what has the card of a machine's BMC is not that; says it once.
    async fn not_followed(
        &self,
        there: &There,
        found: &FoundBmc,
        bmc: &StoredBmc,
        words: String,
    ) -> Result<(), StoreError> {
        let machine = bmc.access.machine;
        let address = found.found.address;
        tracing::warn!(rack = %there.rack, %machine, %address, words, "a BMC is not followed");
        let reason = format!("its BMC at {} is not followed to {address}: {words}", bmc.access.at);
        let now = self.clock.now().wall;
        let mut tx = self.store.begin().await?;
        tx.insert_event(now, there.rack, Some(machine), None, &Happened::Alert { reason }).await?;
        let (intake, detail) = (Intake::Disputed, Some(words));
        tx.note_found_bmc(&FoundBmc { intake, detail, ..found.clone() }).await?;
        tx.commit().await
    }

    async fn log_in(&self, there: &There, found: &FoundBmc) -> Result<(), StoreError> {
        let now = self.clock.now().wall;
        let (stranger, by_factory) = match there.way(found) {
            Ok(way) => way,
            Err(why) => return self.note(found, Intake::Found, Some(why.to_owned()), found.again).await,
        };
        let later = |wait: Duration| now.saturating_add(wait).unwrap_or(now);
        match self.fleet.meet(there.rack, stranger).await {
            Ok(Met::UnderWay) => {
                self.note(found, Intake::Found, Some("it is being logged in to".into()), found.again).await
            }
            Ok(Met::In { identity, fingerprint }) => {
                let met = Some(MetBmc { identity, fingerprint, by_factory });
                tracing::info!(rack = %there.rack, address = %found.found.address, by_factory, "a BMC is met");
                self.keep(found, FoundBmc { intake: Intake::Met, detail: None, met, ..found.clone() }).await
            }
            Ok(Met::Denied(reason)) => {
                let whose = if by_factory { "its vendor's factory password" } else { "the manifest's password" };
                let words = format!("{whose}: {reason}; it is not tried again before it is imported again");
                self.note(found, Intake::Denied, Some(words), found.again).await
            }
            Ok(Met::Rests { until, reason }) => self.note(found, Intake::Found, Some(reason), until).await,
            Ok(Met::Failed(reason)) => self.note(found, Intake::Found, Some(reason), later(AGAIN)).await,
            Err(unreachable) => self.note(found, Intake::Found, Some(unreachable.to_string()), found.again).await,
        }
    }

    /// Says that a machine is reached by its BMC from now on.
    async fn join(&self, there: &There, found: &FoundBmc, met: &MetBmc, machine: MachineId) -> Result<(), StoreError> {
        let Ok((stranger, by_factory)) = there.way(found) else {
            let why = "it was let in by what nobody says any more: `rackhand bmc set`, or import it again";
            return self.note(found, Intake::Met, Some(why.to_owned()), found.again).await;
        };
        let now = self.clock.now().wall;
        let mut tx = self.store.begin().await?;
        let machine = tx.machine(&machine.to_string()).await?;
        if tx.bmc(machine.id).await?.is_some() || machine.rack != there.rack {
            return Ok(());
        }
        let row = there.row_at(found.found.address);
        let Stranger { at, protocol, user, password, fingerprint } = stranger;
        // The one that was met, and no other at its place.
        let fingerprint = fingerprint.or_else(|| met.fingerprint.clone());
        let mainboard = machine.mainboard();
        let access = Access { machine: machine.id, at, protocol, user, password, fingerprint, mainboard };
        tx.reach_bmc(now, &machine, &access).await?;
        if by_factory || row.is_some_and(|row| row.rotate) {
            tx.begin_rotation(now, &machine, &rotations::fresh()).await?;
        }
        if let Some(row) = row {
            tx.forget_expected_bmcs(there.rack, Some(&row.serial)).await?;
        }
        // Should it be forgotten whose it is, it is asked anew.
        let (intake, detail, again) = (Intake::Found, None, Timestamp::UNIX_EPOCH);
        tx.note_found_bmc(&FoundBmc { intake, detail, again, met: None, ..found.clone() }).await?;
        tx.commit().await?;
        tracing::info!(rack = %there.rack, machine = %machine.id, address = %at, "a BMC that was found is its machine's");
        self.rotations.wake();
        self.fleet.wake(there.rack);
        Ok(())
    }

    async fn note(
        &self,
        found: &FoundBmc,
        intake: Intake,
        detail: Option<String>,
        again: Timestamp,
    ) -> Result<(), StoreError> {
        self.keep(found, FoundBmc { intake, detail, again, ..found.clone() }).await
    }

    /// Keeps what is new of a BMC, unless an operator or its rack said something else meanwhile.
    async fn keep(&self, before: &FoundBmc, now: FoundBmc) -> Result<(), StoreError> {
        if now == *before {
            return Ok(());
        }
        let mut tx = self.store.begin().await?;
        let known = tx.found_bmc(before.rack, before.found.address).await?;
        let is_same = known.is_some_and(|known| {
            (known.intake, known.again, &known.met, &known.found.fingerprint)
                == (before.intake, before.again, &before.met, &before.found.fingerprint)
        });
        if is_same {
            tx.note_found_bmc(&now).await?;
            tx.commit().await?;
        }
        Ok(())
    }
}

impl There {
    fn row_at(&self, address: IpAddr) -> Option<&ExpectedBmc> {
        self.expected.iter().find(|row| row.at.address == address)
    }

    /// How a BMC is logged in to, and whether that is with what it comes with from the factory; why
    /// not at all.
    fn way(&self, found: &FoundBmc) -> Result<(Stranger, bool), &'static str> {
        if let Some(row) = self.row_at(found.found.address) {
            let ExpectedBmc { at, protocol, user, password, fingerprint, .. } = row.clone();
            return Ok((Stranger { at, protocol, user, password, fingerprint }, false));
        }
        if !self.tries_factory {
            return Err("no manifest tells of it, and factory passwords are not tried here: `rackhand bmc import`");
        }
        let Some(known) = factory::factory(found.found.vendor.as_deref(), found.found.model.as_deref()) else {
            return Err(
                "no manifest tells of it, and no factory password of its vendor is known: `rackhand bmc import`",
            );
        };
        let (at, protocol) = found.found.way();
        let (user, password) = (known.user.clone(), known.password.clone());
        let fingerprint = found.found.fingerprint.clone();
        Ok((Stranger { at, protocol, user, password, fingerprint }, true))
    }
}

/// Whether a BMC is to be logged in to now.
fn is_due(found: &FoundBmc, now: Timestamp) -> bool {
    found.met.is_none() && found.intake == Intake::Found && found.again <= now
}

/// Whether this is the address of a machine's BMC.
fn is_anyones(bmcs: &[StoredBmc], address: IpAddr) -> bool {
    bmcs.iter().any(|bmc| bmc.access.at.address == address)
}
