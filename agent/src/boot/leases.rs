//! Which card has which address: leases of the delegated range on disk, the rest from the
//! intent. Cheap to clone; every part of boot asks the same table.
//!
//! Invariants:
//! - A lease is on disk when [`Leases::commit`] returns, and visible only from then on.
//! - For a machine in the intent, its id and address are the intent's, whatever is on disk.
//! - No two leases on disk are of one address: a new one replaces the older.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rackhand_common::{id::MachineId, intent::Intent, machine::Mac};
use rackhand_fail_points::fail_point;
pub use rackhand_netboot::dhcp::Holder;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::watch;
use uuid::Uuid;

use super::turn::Turn;

/// The provisioning network's table.
const PROVISIONING: &str = "leases";

/// The management network's table.
const MANAGEMENT: &str = "management-leases";

/// By Ethernet address: the machine's id and its address.
const fn table(name: &str) -> TableDefinition<'_, &'static [u8; 6], (u128, u32)> {
    TableDefinition::new(name)
}

/// The lease table of one network.
#[derive(Clone, Debug)]
pub struct Leases {
    db: Arc<Database>,
    table: &'static str,
    intent: watch::Receiver<Option<Arc<Intent>>>,
    on_disk: Arc<Mutex<HashMap<Mac, Holder>>>,
    turn: Turn,
    /// Cards with a lease on disk that were heard at its address since this was last asked.
    heard: Arc<Mutex<BTreeSet<Mac>>>,
}

/// The lease table could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("lease table not usable")]
pub struct LeaseError(#[source] Box<redb::Error>);

impl<E: Into<redb::Error>> From<E> for LeaseError {
    fn from(error: E) -> Self {
        Self(Box::new(error.into()))
    }
}

impl Leases {
    /// Reads the provisioning network's table, which is made if it is not there.
    pub fn open(db: Arc<Database>, intent: watch::Receiver<Option<Arc<Intent>>>) -> Result<Self, LeaseError> {
        Self::of(PROVISIONING, db, intent)
    }

    /// The same of the management network, where no machine of an intent is.
    pub fn of_management(db: Arc<Database>) -> Result<Self, LeaseError> {
        Self::of(MANAGEMENT, db, watch::channel(None).1)
    }

    fn of(
        name: &'static str,
        db: Arc<Database>,
        intent: watch::Receiver<Option<Arc<Intent>>>,
    ) -> Result<Self, LeaseError> {
        let transaction = db.begin_write()?;
        transaction.open_table(table(name))?;
        transaction.commit()?;
        let mut on_disk = HashMap::new();
        for row in db.begin_read()?.open_table(table(name))?.iter()? {
            let (mac, lease) = row?;
            let (machine, address) = lease.value();
            let mac = Mac(*mac.value());
            let machine = MachineId(Uuid::from_u128(machine));
            on_disk.insert(mac, Holder { machine, mac, address: Ipv4Addr::from(address) });
        }
        let on_disk = Arc::new(Mutex::new(on_disk));
        Ok(Self { db, table: name, intent, on_disk, turn: Turn::default(), heard: Arc::default() })
    }

    /// Who has the card `mac`, and its address, if it was given one.
    pub fn holder(&self, mac: Mac) -> Option<Holder> {
        let intent = self.intent.borrow();
        let machine = intent.iter().flat_map(|intent| &intent.machines).find(|machine| machine.macs.contains(&mac));
        match machine {
            Some(machine) if machine.macs.first() == Some(&mac) => {
                Some(Holder { machine: machine.id, mac, address: machine.address })
            }
            Some(machine) => Some(Holder { machine: machine.id, ..*self.on_disk().get(&mac)? }),
            None => self.on_disk().get(&mac).copied(),
        }
    }

    /// Who has this address.
    pub fn by_address(&self, address: Ipv4Addr) -> Option<Holder> {
        let intent = self.intent.borrow();
        let planned = intent.iter().flat_map(|intent| &intent.machines).find(|machine| machine.address == address);
        if let Some(machine) = planned {
            return machine.macs.first().map(|mac| Holder { machine: machine.id, mac: *mac, address });
        }
        drop(intent);
        let mac = self.on_disk().values().find(|holder| holder.address == address)?.mac;
        self.holder(mac).filter(|holder| holder.address == address)
    }

    /// Somebody asked from this address in a way that cannot be done in another's name alone:
    /// over a connection. Whoever has its lease uses it.
    pub fn heard(&self, address: IpAddr) {
        let IpAddr::V4(address) = address else { return };
        if let Some(holder) = self.by_address(address)
            && self.on_disk().contains_key(&holder.mac)
        {
            self.heard_now().insert(holder.mac);
        }
    }

    /// The same of the leases of these machines: they were heard before a restart.
    pub fn heard_before(&self, machines: &HashSet<MachineId>) {
        let theirs = self.all().into_iter().filter(|holder| machines.contains(&holder.machine));
        self.heard_now().extend(theirs.map(|holder| holder.mac));
    }

    /// The cards heard at the addresses of their leases since this was last asked.
    pub fn take_heard(&self) -> BTreeSet<Mac> {
        std::mem::take(&mut *self.heard_now())
    }

    /// Every lease on disk.
    pub fn all(&self) -> Vec<Holder> {
        self.on_disk().values().copied().collect()
    }

    /// Puts all of `made` on disk and removes those of `ended`, in one transaction.
    pub async fn commit(&self, made: Vec<Holder>, ended: Vec<Mac>) -> Result<(), LeaseError> {
        let this = self.clone();
        self.turn.take(move || fail_point!("lease.commit", this.write(&made, &ended))).await
    }

    fn write(&self, made: &[Holder], ended: &[Mac]) -> Result<(), LeaseError> {
        let addresses: HashMap<Ipv4Addr, Mac> = made.iter().map(|holder| (holder.address, holder.mac)).collect();
        let replaced = |holder: &Holder| addresses.get(&holder.address).is_some_and(|mac| *mac != holder.mac);
        let mut ended: HashSet<Mac> = ended.iter().copied().collect();
        ended.extend(self.on_disk().values().filter(|holder| replaced(holder)).map(|holder| holder.mac));
        let transaction = self.db.begin_write()?;
        {
            let mut table = transaction.open_table(table(self.table))?;
            for mac in &ended {
                table.remove(&mac.0)?;
            }
            for holder in made {
                table.insert(&holder.mac.0, (holder.machine.0.as_u128(), u32::from(holder.address)))?;
            }
        }
        transaction.commit()?;
        let mut on_disk = self.on_disk();
        on_disk.retain(|mac, _| !ended.contains(mac));
        on_disk.extend(made.iter().map(|holder| (holder.mac, *holder)));
        Ok(())
    }

    fn heard_now(&self) -> MutexGuard<'_, BTreeSet<Mac>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn on_disk(&self) -> MutexGuard<'_, HashMap<Mac, Holder>> {
        // Nothing that holds the lock can panic half-way; the map is whole in any case.
        self.on_disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lease_survives_a_restart_and_an_ended_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("boot.redb");
        let (_keep, intent) = watch::channel(None);
        let holder = |n: u8| Holder {
            machine: MachineId(Uuid::from_u128(n.into())),
            mac: Mac([2, 0, 0, 0, 0, n]),
            address: Ipv4Addr::new(10, 0, 0, n),
        };
        {
            let leases = Leases::open(Arc::new(Database::create(&path).unwrap()), intent.clone()).unwrap();
            leases.commit(vec![holder(1), holder(2)], vec![]).await.unwrap();
            leases.commit(vec![], vec![holder(1).mac]).await.unwrap();
            assert_eq!(leases.holder(holder(2).mac), Some(holder(2)));
        }
        let leases = Leases::open(Arc::new(Database::create(&path).unwrap()), intent).unwrap();
        assert_eq!(leases.all(), [holder(2)]);
        assert_eq!(leases.by_address(holder(2).address), Some(holder(2)));
        assert_eq!(leases.holder(holder(1).mac), None);
    }

    #[tokio::test]
    async fn an_address_that_went_to_another_card_is_the_others_alone_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("boot.redb");
        let (_keep, intent) = watch::channel(None);
        let holder = |card: u8, last: u8| Holder {
            machine: MachineId(Uuid::from_u128(card.into())),
            mac: Mac([2, 0, 0, 0, 0, card]),
            address: Ipv4Addr::new(10, 0, 0, last),
        };
        {
            let leases = Leases::open(Arc::new(Database::create(&path).unwrap()), intent.clone()).unwrap();
            leases.commit(vec![holder(1, 1), holder(2, 2)], vec![]).await.unwrap();
            leases.commit(vec![holder(3, 1)], vec![]).await.unwrap();
            assert_eq!(leases.holder(holder(1, 1).mac), None);
        }
        let leases = Leases::open(Arc::new(Database::create(&path).unwrap()), intent).unwrap();
        assert_eq!(leases.by_address(Ipv4Addr::new(10, 0, 0, 1)), Some(holder(3, 1)));
        assert_eq!(leases.all().len(), 2);

        leases.heard("10.0.0.1".parse().unwrap());
        leases.heard("10.0.0.9".parse().unwrap());
        leases.heard_before(&HashSet::from([holder(2, 2).machine]));
        assert_eq!(leases.take_heard(), BTreeSet::from([holder(2, 2).mac, holder(3, 1).mac]));
        assert_eq!(leases.take_heard(), BTreeSet::new());
    }
}
