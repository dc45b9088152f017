//! Handing out addresses: which claims, moves and releases are done, and the one task that does them.
//!
//! A disk's flush takes longer than a claim. So those that wait are done together, in one
//! transaction: what is refused leaves nothing, and nobody is answered before all of it is on disk.
//! They are done as if none was refused; when one is, all is taken back and done again, each within
//! a savepoint of its own.
//!
//! Invariants:
//! - A claim is one transaction: its prefix, what is left of the space around it, its row, and the
//!   audit record and mark of the request it is from.
//! - A project's blocks of a pool are carved from it by the claim that needs them, and hold that
//!   project's claims alone.
//! - A claim that moves is one holder's or the other's at every instant, and never nobody's.
//! - Only who holds an address announces it; what nobody but a name holds, as many machines as do.
//! - An address that was released rests for its pool's quarantine before anybody gets it again.
//!
//! Times are those of the wall clock, never earlier than what is stored already: a clock that
//! jumps ahead ends quarantines early.

mod announcing;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use rackhand_common::{
    id::{ClaimId, ProjectId},
    machine::Mac,
    time::Clock,
};
use rackhand_controller_core::{
    access::Grant,
    ipam::{Family, Kind, Prefix, State, share},
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::store::{
    Aggregate, Blocks, Claim, ClaimRow, Happened, Holder, Leaf, Machine, NewPool, Pool, Present, Source, Store,
    StoreError, Tx, Vrf, Within,
};

/// How many requests may wait: as many as a thousand clients at once have. Whoever comes when it
/// is full is told to come again.
const WAITING: usize = 1024;

/// How many are done in one transaction: enough that the flush is not what they wait for, few
/// enough that others who write do not wait long.
const TOGETHER: usize = 64;

/// How long others may begin to write, when one batch follows another.
const GAP: Duration = Duration::from_millis(1);

/// How many that have rested are made free in one transaction at most, when a claim needs them: some
/// tenths of a second, during which nobody else can write.
const ALL_RESTED: u32 = 512;

/// How many are when nobody needs them yet.
const SOME_RESTED: u32 = 64;

/// How often those are looked for that nobody needed since.
const TIDY: Duration = Duration::from_secs(60);

/// Why addresses were not handed out, taken back or set up.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The store failed, or there is no such thing.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What was done together could not be stored.
    #[error("claims and releases cannot be stored")]
    NotStored(#[source] Arc<StoreError>),
    /// Too many wait.
    #[error("too many claims and releases are waiting; try again in a second")]
    Busy,
    /// The controller is about to end.
    #[error("the controller is stopping; try again in a minute")]
    Stopping,
    /// No block of this length is left.
    #[error("pool {pool} has no free /{length}, and {}", room(*largest))]
    Exhausted {
        /// The pool's name.
        pool: String,
        /// What was wanted.
        length: u8,
        /// The largest there is.
        largest: Option<Prefix>,
    },
    /// The length is not one of its family.
    #[error("a block of {0} addresses has a length between 0 and {width}", width = .0.width())]
    Length(Family),
    /// The pool has none of these addresses.
    #[error("{0} is not in pool {1}; `rackhand pool show {1}` lists its prefixes")]
    NotInPool(Prefix, String),
    /// Somebody has some of them.
    #[error("{wanted} is not free: {held} is {}", who(claim.as_deref()))]
    Held {
        /// What was wanted.
        wanted: Prefix,
        /// What is taken of it.
        held: Prefix,
        /// By whom.
        claim: Option<Box<Claim>>,
    },
    /// They rest.
    #[error("{0} is in quarantine until {1}; claim another, or wait")]
    Resting(Prefix, Timestamp),
    /// They have rested, and are more than one transaction makes free.
    #[error("what has rested in pool {0} is being put together to larger blocks; try again in a minute")]
    Tidying(String),
    /// The pool is for another rack's or site's machines.
    #[error(
        "pool {pool} is for the machines of one {what}, and {machine} is in another; claim from a pool of its {what}"
    )]
    Elsewhere {
        /// The pool's name.
        pool: String,
        /// A rack or a site.
        what: &'static str,
        /// The machine's.
        machine: String,
    },
    /// The machine is another project's.
    #[error("machine {0} is another project's: what it holds is that project's too")]
    Others(String),
    /// The pool is one project's alone.
    #[error("pool {0} is another project's alone; claim from the pool that it is carved from")]
    OfProject(String),
    /// A project's blocks are smaller.
    #[error("each project gets blocks of a /{block} of pool {pool}, and a /{length} is larger; claim less")]
    LargerThanBlock {
        /// The pool's name.
        pool: String,
        /// The length of its blocks.
        block: u8,
        /// What was wanted.
        length: u8,
    },
    /// The project has as many blocks as it may.
    #[error(
        "the project's {most} blocks of pool {pool} have no free /{length}: release something, or have an \
         administrator make a pool for it"
    )]
    NoMoreBlocks {
        /// The pool's name.
        pool: String,
        /// How many it may have.
        most: u32,
        /// What was wanted.
        length: u8,
    },
    /// The machine has no such card.
    #[error("machine {machine} has no network card {mac}; `rackhand machine show {machine}` lists them")]
    NotItsCard {
        /// The machine's name.
        machine: String,
        /// The card.
        mac: Mac,
    },
    /// What is reserved is nobody's.
    #[error("{0} is reserved: nobody announces it")]
    Reserved(Prefix),
    /// A machine holds it, and another was to announce it.
    #[error(
        "{prefix} is {holder}'s, which alone can announce it; `rackhand ip move` it to a name when several \
         machines shall"
    )]
    AnothersToAnnounce {
        /// The claim's addresses.
        prefix: Prefix,
        /// Who holds it.
        holder: String,
    },
    /// A public address is in one place.
    #[error(
        "pool {pool} is public: its addresses are in one place, and {other}, which announces {prefix}, stands in \
         another site; claim from a global pool what several sites shall announce (anycast)"
    )]
    InOnePlace {
        /// The pool's name.
        pool: String,
        /// The claim's addresses.
        prefix: Prefix,
        /// A machine that announces them.
        other: String,
    },
    /// As many machines announce it as may.
    #[error("{0} machines announce {1} already, which is as many as can; withdraw one first")]
    NoMoreAnnouncements(usize, Prefix),
    /// It was released already.
    #[error("claim {0} was released at {1}")]
    Over(ClaimId, Timestamp),
    /// It has another version than its reader knew.
    #[error("it was changed since you read it and is \"{0}\" now: read it again")]
    Changed(u64),
    /// Another aggregate of the VRF has some of the addresses.
    #[error("{0} overlaps with aggregate {1} of the same VRF")]
    Overlap(Prefix, Prefix),
    /// No aggregate has these addresses.
    #[error("no aggregate of VRF {vrf} contains {prefix}; `rackhand aggregate create` adds one")]
    NoAggregate {
        /// What was wanted.
        prefix: Prefix,
        /// The VRF's name.
        vrf: String,
    },
    /// A customer's space needs a proof that somebody looked at.
    #[error(
        "{0} is a customer's, and nobody has verified that we may use it; look at the proof, then \
         `rackhand aggregate prove` it"
    )]
    NotProven(Prefix),
    /// A customer's proof is wanted of what no customer brought.
    #[error("{0} is not a customer's: it has no proof")]
    NoProof(Prefix),
    /// Another pool has some of it.
    #[error("{0} is not all free: a pool has some of it; `rackhand pool list` shows which")]
    Pooled(Prefix),
    /// A pool has addresses of one family.
    #[error("{0} is not {1}, as the rest of the pool is; make a pool for each family")]
    Family(Prefix, Family),
    /// The world does not route them.
    #[error("{0} is not routed by the world: a {1} pool cannot have it; make the pool private")]
    NotRouted(Prefix, Kind),
    /// Pools are made of it.
    #[error("{0} is not all free: pools have some of it; delete them first")]
    AggregateInUse(Prefix),
    /// Something in it is claimed, reserved or rests.
    #[error("pool {0} is not all free: release what is claimed from it, and wait for what is in quarantine")]
    PoolInUse(String),
}

fn room(largest: Option<Prefix>) -> String {
    match largest {
        Some(largest) => {
            format!("its largest free block is a /{}; claim that, or give it another prefix", largest.length())
        }
        None => "nothing in it is free; release something, or give it another prefix".into(),
    }
}

fn who(claim: Option<&Claim>) -> String {
    match claim {
        Some(Claim { id, holder, reserved: false, .. }) => format!("claimed by {} (claim {id})", holder.name),
        Some(Claim { id, holder, .. }) => format!("reserved as {} (claim {id})", holder.name),
        None => "taken".into(),
    }
}

/// What is to be claimed.
#[derive(Clone, Debug)]
pub struct NewClaim {
    /// Id or name of the pool.
    pub pool: String,
    /// Which addresses.
    pub wanted: Wanted,
    /// Who shall hold them.
    pub holder: NewHolder,
    /// Whether they shall be nobody's, and not be handed out.
    pub reserved: bool,
    /// The project it shall be given to; that of the machine, when it has one.
    pub project: Option<ProjectId>,
    /// What for, in words.
    pub purpose: String,
}

/// Which addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A single one, whichever.
    Any,
    /// A block of this length, whichever.
    Length(u8),
    /// These.
    Prefix(Prefix),
}

impl Wanted {
    /// How long what is wanted of a pool is when it may be any, or which it is.
    fn length(self, pool: &Pool) -> Result<u8, Prefix> {
        match self {
            Self::Any => Ok(pool.family.width()),
            Self::Length(length) => Ok(length),
            Self::Prefix(prefix) => Err(prefix),
        }
    }
}

/// What of a claim is to be otherwise. What is `None` stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Who shall hold it.
    pub to: Option<NewHolder>,
    /// What for, in words.
    pub purpose: Option<String>,
    /// The grants of its own that the claim had when its mover was let: with others it stays where it is.
    pub grants: Option<Vec<Grant>>,
}

/// The versions of a claim that may be changed: `None` any.
pub type Versions = Option<Vec<u64>>;

/// Who shall hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewHolder {
    /// A machine, by id or name, or one of its cards.
    Machine(String, Option<Mac>),
    /// Something that is no machine.
    Name(String),
}

/// A claim that nothing speaks against but that its addresses may not be free.
#[derive(Debug)]
struct Permitted<'a> {
    new: &'a NewClaim,
    holder: Holder,
    project: Option<ProjectId>,
    within: Within,
    by: &'a str,
}

impl Permitted<'_> {
    fn row(&self) -> ClaimRow<'_> {
        let Self { new, holder, project, within, by } = self;
        ClaimRow { reserved: new.reserved, holder, project: *project, within: *within, purpose: &new.purpose, by }
    }
}

/// Claims of any free space of one length of one pool.
#[derive(Debug)]
struct Alike<'a> {
    pool: Pool,
    length: u8,
    /// Each with its place among those it is done together with, and the request it is from.
    wishes: Vec<(usize, Permitted<'a>, &'a Present)>,
}

impl Tx {
    /// Claims addresses.
    pub async fn hand_out(&mut self, now: Timestamp, new: &NewClaim, by: &str) -> Result<Claim, Refused> {
        let pool = self.pool(&new.pool).await?;
        let wish = self.looked_at(&pool, new, by).await?;
        let pool = match (pool.blocks, wish.project) {
            (Some(_), Some(project)) if !new.reserved => self.project_pool(now, &pool, project).await?,
            _ => pool,
        };
        let (free, prefix) = match new.wanted.length(&pool) {
            Ok(length) => self.room(now, &pool, length).await?,
            Err(prefix) => (self.free_at(now, &pool, prefix).await?, prefix),
        };
        self.take(free, prefix, if new.reserved { State::Reserved } else { State::Claimed }).await?;
        Ok(self.insert_claim(now, &pool, free.aggregate, prefix, wish.row()).await?)
    }

    /// The claim, when nothing speaks against it.
    async fn looked_at<'a>(&mut self, pool: &Pool, new: &'a NewClaim, by: &'a str) -> Result<Permitted<'a>, Refused> {
        let project = new.project.or(pool.project);
        if pool.project.is_some() && pool.project != project {
            return Err(Refused::OfProject(pool.name.clone()));
        }
        let (holder, within) = self.holder_of(pool, &new.holder, project).await?;
        Ok(Permitted { new, holder, project, within, by })
    }

    /// Claims that want any free space of one length of one pool, as many statements for all of them
    /// as for one; `None`, and nothing is done, when the pool has to be tidied or to grow for that.
    async fn hand_out_alike(&mut self, now: Timestamp, alike: &Alike<'_>) -> Result<Option<Vec<Claim>>, Refused> {
        let Alike { pool, length, wishes } = alike;
        let depth = length + (128 - pool.family.width());
        let free = self.next_free_some(pool.number, depth, wishes.len()).await?;
        let Some(shares) = share(free.iter().map(|leaf| leaf.prefix), *length, wishes.len()) else { return Ok(None) };
        let taken = self.take_shares(pool.number, &free, &shares).await?;
        let rows: Vec<_> = taken.into_iter().zip(wishes.iter().map(|(_, wish, _)| wish.row())).collect();
        let requests: Vec<_> = wishes.iter().map(|(.., request)| *request).collect();
        Ok(Some(self.insert_claims(now, pool, &rows, &requests).await?))
    }

    /// Moves a claim to another holder, who has it from the instant on at which the one before has it no
    /// longer. Its project, its pool and the names of its addresses stay.
    pub async fn hand_on(&mut self, now: Timestamp, claim: ClaimId, new: &Move, by: &str) -> Result<Claim, Refused> {
        let claim = self.claim(claim).await?;
        if let Some(until) = claim.until {
            return Err(Refused::Over(claim.id, until));
        }
        if new.to.is_some() && claim.grants != new.grants {
            return Err(Refused::Changed(claim.version));
        }
        let to = match &new.to {
            Some(to) => {
                let pool = self.pool_numbered(claim.pool_number).await?;
                Some(self.holder_of(&pool, to, claim.project).await?)
            }
            None => None,
        };
        // A machine may have another name than it had then, and is the same holder.
        let same = |holder: &Holder| match holder.machine {
            Some(machine) => claim.holder.machine == Some(machine) && claim.holder.mac == holder.mac,
            None => claim.holder == *holder,
        };
        let to = to.as_ref().filter(|(holder, _)| !same(holder)).map(|(holder, within)| (holder, *within));
        let purpose = new.purpose.as_ref().unwrap_or(&claim.purpose);
        if to.is_none() && *purpose == claim.purpose {
            return Ok(claim);
        }
        let moved = self.move_claim(now, claim.id, to, purpose, by).await?;
        if to.is_some() {
            self.tell_of_move(now, &claim.holder, &moved).await?;
            self.withdraw_from_others(now, &moved, by).await?;
        }
        Ok(moved)
    }

    /// Has it among what happened to the machines that it moved from and to.
    async fn tell_of_move(&mut self, now: Timestamp, from: &Holder, moved: &Claim) -> Result<(), StoreError> {
        let (prefix, to) = (moved.prefix.to_string(), &moved.holder);
        let body = Happened::AddressesMoved { prefix, from: from.to_string(), to: to.to_string() };
        let other = from.machine.filter(|machine| to.machine != Some(*machine));
        for machine in other.into_iter().chain(to.machine) {
            let rack = self.machine(&machine.to_string()).await?.rack;
            self.insert_event(now, rack, Some(machine), None, &body).await?;
        }
        Ok(())
    }

    /// Fails unless a claim has one of these versions.
    async fn is_as_read(&mut self, claim: ClaimId, versions: Option<&[u64]>) -> Result<(), Refused> {
        let Some(versions) = versions else { return Ok(()) };
        let version = self.claim(claim).await?.version;
        if versions.contains(&version) { Ok(()) } else { Err(Refused::Changed(version)) }
    }

    /// Ends a claim. What was claimed rests, what was reserved is free at once.
    pub async fn take_back(&mut self, now: Timestamp, claim: ClaimId, by: &str) -> Result<Claim, Refused> {
        let (claim, ended) = self.end_claim(now, claim, by).await?;
        if let Some(until) = claim.until {
            return Err(Refused::Over(claim.id, until));
        }
        self.tell_of_end(now, &ended).await?;
        let pool = self.pool_numbered(claim.pool_number).await?;
        let leaf = self.leaf(claim.aggregate, claim.prefix).await?;
        if claim.reserved || pool.quarantine == 0 {
            self.wake(leaf).await?;
        } else {
            let until = now + SignedDuration::from_secs(pool.quarantine.into());
            self.rest(claim.aggregate, claim.prefix, until).await?;
        }
        Ok(Claim { until: Some(now), released_by: Some(by.into()), version: claim.version + 1, ..claim })
    }

    /// Makes a leaf of a pool free.
    async fn wake(&mut self, leaf: Leaf) -> Result<(), StoreError> {
        let pool = leaf.pool.ok_or(StoreError::NotFound("pool"))?;
        let (_, root) = self.pool_prefix(pool, leaf.prefix).await?.ok_or(StoreError::NotFound("prefix of a pool"))?;
        self.set_free(leaf, root).await
    }

    /// The pool of a project's blocks of this one: made when there is none.
    async fn project_pool(&mut self, now: Timestamp, pool: &Pool, project: ProjectId) -> Result<Pool, Refused> {
        if let Some(found) = self.blocks_of(pool, project).await? {
            return Ok(found);
        }
        let of = self.projects_named(&project.to_string()).await?.pop().ok_or(StoreError::NotFound("project"))?;
        let (vrf, name) = (self.vrf(&pool.vrf).await?, self.free_pool_name(pool, &of.name).await?);
        let new = NewPool {
            name: &name,
            vrf: &vrf,
            family: pool.family,
            kind: pool.kind,
            within: pool.within,
            quarantine: pool.quarantine,
            purpose: "",
            blocks: None,
            carved: Some((pool, project)),
            grants: &[Grant::to_everyone()],
        };
        Ok(self.insert_pool(now, &new).await?)
    }

    /// POOL.PROJECT, or the first of POOL.PROJECT-2, -3, … that is not taken.
    async fn free_pool_name(&mut self, pool: &Pool, project: &str) -> Result<String, StoreError> {
        // Names have 63 letters at most.
        let name = |number: u32| {
            let tail = if number > 1 { format!("-{number}") } else { String::new() };
            let whole = format!("{}.{project}", pool.name);
            let cut = whole.len().min(63 - tail.len());
            format!("{}{tail}", &whole[..cut])
        };
        let mut number = 1;
        while self.is_pool(&name(number)).await? {
            number += 1;
        }
        Ok(name(number))
    }

    /// Free space of this length; a project's blocks grow by another when there is none.
    async fn room(&mut self, now: Timestamp, pool: &Pool, length: u8) -> Result<(Leaf, Prefix), Refused> {
        let found = self.free_of_length(now, pool, length).await;
        let Some(parent) = pool.parent.filter(|_| matches!(found, Err(Refused::Exhausted { .. }))) else {
            return found;
        };
        let parent = self.pool_numbered(parent).await?;
        let Some(Blocks { depth, most }) = parent.blocks else { return found };
        let block = depth - (128 - pool.family.width());
        if length < block {
            return Err(Refused::LargerThanBlock { pool: parent.name, block, length });
        }
        if self.count_prefixes(pool).await? >= most {
            return Err(Refused::NoMoreBlocks { pool: parent.name, most, length });
        }
        let (free, prefix) = self.free_of_length(now, &parent, block).await?;
        self.add_to_pool(now, pool, free, prefix).await?;
        self.free_of_length(now, pool, length).await
    }

    async fn free_of_length(&mut self, now: Timestamp, pool: &Pool, length: u8) -> Result<(Leaf, Prefix), Refused> {
        if length > pool.family.width() {
            return Err(Refused::Length(pool.family));
        }
        let depth = length + (128 - pool.family.width());
        if let Some(free) = self.next_free(pool.number, depth).await? {
            return Ok((free, free.prefix.of_length(length)));
        }
        let rested = self.rested(pool.number, now, ALL_RESTED).await?;
        let more = rested.len() == ALL_RESTED as usize;
        for leaf in rested {
            self.wake(leaf).await?;
        }
        match self.next_free(pool.number, depth).await? {
            Some(free) => Ok((free, free.prefix.of_length(length))),
            None if more => Err(Refused::Tidying(pool.name.clone())),
            None => {
                let largest = self.largest_free(pool.number).await?;
                Err(Refused::Exhausted { pool: pool.name.clone(), length, largest })
            }
        }
    }

    async fn free_at(&mut self, now: Timestamp, pool: &Pool, wanted: Prefix) -> Result<Leaf, Refused> {
        let elsewhere = || Refused::NotInPool(wanted, pool.name.clone());
        let (aggregate, _) = self.pool_prefix(pool.number, wanted).await?.ok_or_else(elsewhere)?;
        let leaf = self.leaf(aggregate, wanted).await?;
        let taken = match leaf.prefix.contains(wanted) {
            true if leaf.state == State::Free => return Ok(leaf),
            true => Some(leaf).filter(|leaf| leaf.state != State::Quarantined),
            false => self.taken_within(aggregate, wanted).await?,
        };
        if let Some(Leaf { prefix: held, .. }) = taken {
            let claim = self.claim_of(pool, held).await?.map(Box::new);
            return Err(Refused::Held { wanted, held, claim });
        }
        // Nobody has any of it: what is not free of it rests.
        let resting = match leaf.prefix.contains(wanted) {
            true => vec![leaf],
            false => self.resting_within(aggregate, wanted, ALL_RESTED).await?,
        };
        if let Some(Leaf { prefix, until: Some(until), .. }) = resting.first()
            && *until > now
        {
            return Err(Refused::Resting(*prefix, *until));
        }
        if resting.len() == ALL_RESTED as usize {
            return Err(Refused::Tidying(pool.name.clone()));
        }
        for leaf in resting {
            self.wake(leaf).await?;
        }
        Ok(self.leaf(aggregate, wanted).await?)
    }

    /// Who is to hold it, and where that stands.
    async fn holder_of(
        &mut self,
        pool: &Pool,
        holder: &NewHolder,
        project: Option<ProjectId>,
    ) -> Result<(Holder, Within), Refused> {
        let (machine, mac) = match holder {
            NewHolder::Name(name) => return Ok((Holder { machine: None, mac: None, name: name.clone() }, pool.within)),
            NewHolder::Machine(machine, mac) => (self.machine(machine).await?, *mac),
        };
        // It may have been given to another since it was looked at.
        if machine.project.is_some() && machine.project != project {
            return Err(Refused::Others(machine.name));
        }
        self.check_within(pool, &machine).await?;
        if let Some(mac) = mac.filter(|mac| !machine.macs.contains(mac)) {
            return Err(Refused::NotItsCard { machine: machine.name, mac });
        }
        let within = Within::Rack(machine.rack);
        Ok((Holder { machine: Some(machine.id), mac, name: machine.name }, within))
    }

    /// That a machine stands where a pool's addresses are for.
    async fn check_within(&mut self, pool: &Pool, machine: &Machine) -> Result<(), Refused> {
        let (is_there, what) = match pool.within {
            Within::Everywhere => (true, ""),
            Within::Rack(rack) => (rack == machine.rack, "rack"),
            Within::Site(site) => (self.rack(&machine.rack.to_string()).await?.site == site, "site"),
        };
        if is_there {
            return Ok(());
        }
        Err(Refused::Elsewhere { pool: pool.name.clone(), what, machine: machine.name.clone() })
    }

    /// Creates an aggregate.
    pub async fn add_aggregate(
        &mut self,
        now: Timestamp,
        vrf: &Vrf,
        prefix: Prefix,
        source: &Source,
    ) -> Result<Aggregate, Refused> {
        if let Some(other) = self.aggregate_at(&vrf.name, prefix).await? {
            return Err(Refused::Overlap(prefix, other.prefix));
        }
        let id = self.insert_aggregate(now, vrf, prefix, source).await?;
        Ok(self.aggregate(id).await?)
    }

    /// Gives a pool more addresses, out of what is free of an aggregate.
    pub async fn extend_pool(&mut self, now: Timestamp, pool: &Pool, prefix: Prefix) -> Result<(), Refused> {
        if prefix.family() != pool.family {
            return Err(Refused::Family(prefix, pool.family));
        }
        if !pool.kind.takes(prefix) {
            return Err(Refused::NotRouted(prefix, pool.kind));
        }
        let aggregate = self.aggregate_at(&pool.vrf, prefix).await?.filter(|found| found.prefix.contains(prefix));
        let aggregate = aggregate.ok_or_else(|| Refused::NoAggregate { prefix, vrf: pool.vrf.clone() })?;
        if !aggregate.source.may_be_used() {
            return Err(Refused::NotProven(aggregate.prefix));
        }
        let leaf = self.leaf(aggregate.number, prefix).await?;
        if leaf.state != State::Free || leaf.pool.is_some() || !leaf.prefix.contains(prefix) {
            return Err(Refused::Pooled(prefix));
        }
        Ok(self.add_to_pool(now, pool, leaf, prefix).await?)
    }

    /// Removes an aggregate that no pool has anything of.
    pub async fn remove_aggregate(&mut self, aggregate: &Aggregate) -> Result<(), Refused> {
        self.delete_aggregate(aggregate).await.map_err(|error| match error {
            StoreError::Changed(_) => Refused::AggregateInUse(aggregate.prefix),
            error => error.into(),
        })
    }

    /// Removes a pool, all of which is free.
    pub async fn remove_pool(&mut self, now: Timestamp, pool: &Pool) -> Result<(), Refused> {
        for leaf in self.rested(pool.number, now, ALL_RESTED).await? {
            self.wake(leaf).await?;
        }
        self.delete_pool(now, pool).await.map_err(|error| match error {
            StoreError::Changed(_) => Refused::PoolInUse(pool.name.clone()),
            error => error.into(),
        })
    }
}

/// A handle on the task that hands addresses out.
#[derive(Clone, Debug)]
pub struct Addresses {
    jobs: mpsc::Sender<Job>,
}

#[derive(Debug)]
struct Job {
    what: What,
    by: String,
    request: Present,
    answer: oneshot::Sender<Result<Claim, Refused>>,
}

#[derive(Debug)]
enum What {
    Claim(Box<NewClaim>),
    Move(ClaimId, Versions, Box<Move>),
    Release(ClaimId, Versions),
}

impl Addresses {
    /// A handle, and the task to run.
    pub fn new(
        store: Store,
        clock: Arc<dyn Clock>,
        shutdown: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (jobs, waiting) = mpsc::channel(WAITING);
        (Self { jobs }, run(store, clock, waiting, shutdown))
    }

    /// Claims addresses; answered when that is on disk.
    pub async fn claim(&self, new: NewClaim, by: String) -> Result<Claim, Refused> {
        self.ask(What::Claim(Box::new(new)), by).await
    }

    /// Moves a claim that has one of these versions; answered when that is on disk.
    pub async fn hand_on(&self, claim: ClaimId, as_read: Versions, new: Move, by: String) -> Result<Claim, Refused> {
        self.ask(What::Move(claim, as_read, Box::new(new)), by).await
    }

    /// Releases a claim that has one of these versions; answered when that is on disk.
    pub async fn release(&self, claim: ClaimId, as_read: Versions, by: String) -> Result<Claim, Refused> {
        self.ask(What::Release(claim, as_read), by).await
    }

    async fn ask(&self, what: What, by: String) -> Result<Claim, Refused> {
        let (answer, answered) = oneshot::channel();
        let request = Present::of_this_task();
        self.jobs.try_send(Job { what, by, request, answer }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Refused::Busy,
            mpsc::error::TrySendError::Closed(_) => Refused::Stopping,
        })?;
        answered.await.unwrap_or(Err(Refused::Stopping))
    }
}

async fn run(store: Store, clock: Arc<dyn Clock>, mut waiting: mpsc::Receiver<Job>, shutdown: CancellationToken) {
    let mut jobs = Vec::with_capacity(TOGETHER);
    let mut tidy = tokio::time::interval(TIDY);
    tidy.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let some = tokio::select! {
            some = waiting.recv_many(&mut jobs, TOGETHER) => some,
            _ = tidy.tick() => {
                match wake_rested(&store, clock.now().wall).await {
                    // There are more.
                    Ok(woken) if woken == SOME_RESTED as usize => tidy.reset_after(GAP),
                    Ok(_) => (),
                    Err(error) => {
                        tracing::warn!(error = &error as &dyn std::error::Error, "rested addresses were not freed");
                    }
                }
                continue;
            }
            () = shutdown.cancelled() => {
                // What waits is done; nothing more comes in.
                waiting.close();
                waiting.recv_many(&mut jobs, TOGETHER).await
            }
        };
        if some == 0 {
            return;
        }
        let mut done = Vec::with_capacity(jobs.len());
        match together(&store, clock.now().wall, &jobs, &mut done).await {
            Ok(()) => {
                for (job, result) in jobs.drain(..).zip(done) {
                    // Who asked may have gone; the claim is in the list.
                    let _ = job.answer.send(result);
                }
                if !waiting.is_empty() {
                    // SQLite lets a writer in that asks at the right moment: there has to be one.
                    tokio::time::sleep(GAP).await;
                }
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "claims and releases were not stored");
                let error = Arc::new(error);
                for job in jobs.drain(..) {
                    let _ = job.answer.send(Err(Refused::NotStored(error.clone())));
                }
                // The disk is at fault, or another writer holds on: not to be asked again at once.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Makes free what has rested, in any pool; how many.
async fn wake_rested(store: &Store, now: Timestamp) -> Result<usize, StoreError> {
    if !store.any_rested(now).await? {
        return Ok(0);
    }
    let mut tx = store.begin().await?;
    let now = tx.address_time(now).await?;
    let rested = tx.rested_anywhere(now, SOME_RESTED).await?;
    let woken = rested.len();
    for leaf in rested {
        tx.wake(leaf).await?;
    }
    tx.commit().await?;
    Ok(woken)
}

/// Does all of them in one transaction; an error means that none was done.
async fn together(
    store: &Store,
    now: Timestamp,
    jobs: &[Job],
    done: &mut Vec<Result<Claim, Refused>>,
) -> Result<(), StoreError> {
    if !jobs.iter().any(|job| job.request.is_dry()) && all_or_none(store, now, jobs, done).await? {
        return Ok(());
    }
    let mut tx = store.begin().await?;
    let now = tx.address_time(now).await?;
    for Job { what, by, request, .. } in jobs {
        tx.mark().await?;
        let result = request.clone().scope(one(&mut tx, now, what, by)).await;
        match result {
            // SQLite has ended the transaction by itself.
            Err(Refused::Store(error)) if error.is_passing() => return Err(error),
            Err(refused) => {
                tx.go_back().await?;
                done.push(Err(refused));
            }
            Ok(claim) => {
                // What is only tried is taken back before the next begins.
                match request.is_dry() {
                    true => tx.go_back().await?,
                    false => tx.go_on().await?,
                }
                done.push(Ok(claim));
            }
        }
    }
    match jobs.iter().all(|job| job.request.is_dry()) {
        true => tx.undo().await,
        false => tx.commit().await,
    }
}

/// Does all of them, or when one of several is refused none; whether it is done.
async fn all_or_none(
    store: &Store,
    now: Timestamp,
    jobs: &[Job],
    done: &mut Vec<Result<Claim, Refused>>,
) -> Result<bool, StoreError> {
    let mut tx = store.begin().await?;
    let now = tx.address_time(now).await?;
    match all(&mut tx, now, jobs).await {
        Ok(claims) => {
            tx.commit().await?;
            done.extend(claims.into_iter().map(Ok));
            Ok(true)
        }
        Err(Refused::Store(error)) if error.is_passing() => Err(error),
        Err(refused) => {
            tx.undo().await?;
            let is_only = jobs.len() == 1;
            done.extend(is_only.then_some(Err(refused)));
            Ok(is_only)
        }
    }
}

/// Does all of them, in an order of its own: they were asked for at once.
async fn all(tx: &mut Tx, now: Timestamp, jobs: &[Job]) -> Result<Vec<Claim>, Refused> {
    let mut claims = BTreeMap::new();
    let (mut single, mut alike) = (Vec::new(), BTreeMap::new());
    let mut pools = HashMap::new();
    for (at, Job { what, by, request, .. }) in jobs.iter().enumerate() {
        let What::Claim(new) = what else {
            single.push(at);
            continue;
        };
        let named = match pools.entry(new.pool.as_str()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(tx.pool(&new.pool).await?),
        };
        let (Ok(length), false) = (new.wanted.length(named), new.reserved) else {
            single.push(at);
            continue;
        };
        let wish = tx.looked_at(named, new, by).await?;
        let pool = match (named.blocks, wish.project) {
            (Some(_), Some(project)) => tx.blocks_of(named, project).await?,
            _ => Some(named.clone()),
        };
        match pool.filter(|pool| length <= pool.family.width()) {
            Some(pool) => {
                let of = alike.entry((pool.number, length)).or_insert(Alike { pool, length, wishes: Vec::new() });
                of.wishes.push((at, wish, request));
            }
            None => single.push(at),
        }
    }
    for alike in alike.into_values() {
        match tx.hand_out_alike(now, &alike).await? {
            Some(done) => claims.extend(alike.wishes.iter().map(|(at, ..)| *at).zip(done)),
            None => single.extend(alike.wishes.iter().map(|(at, ..)| *at)),
        }
    }
    for at in single {
        let Job { what, by, request, .. } = &jobs[at];
        claims.insert(at, request.clone().scope(one(tx, now, what, by)).await?);
    }
    Ok(claims.into_values().collect())
}

async fn one(tx: &mut Tx, now: Timestamp, what: &What, by: &str) -> Result<Claim, Refused> {
    let claim = match what {
        What::Claim(new) => tx.hand_out(now, new, by).await?,
        What::Move(claim, as_read, new) => {
            tx.is_as_read(*claim, as_read.as_deref()).await?;
            tx.hand_on(now, *claim, new, by).await?
        }
        What::Release(claim, as_read) => {
            tx.is_as_read(*claim, as_read.as_deref()).await?;
            tx.take_back(now, *claim, by).await?
        }
    };
    tx.settle().await?;
    Ok(claim)
}
