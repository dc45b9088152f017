//! Boot tickets, and the sessions of the installers that proved one.
//!
//! A boot script carries a ticket: 128 random bits that say "whoever presents this first is
//! the installer of machine M". It binds at first use to the public key that presented it.
//! The rules are a core, [`Book`]; [`Tickets`] keeps it on disk.
//!
//! Invariants:
//! - A ticket binds once. The same key again is a retry and is answered; any other key, card,
//!   or an expired ticket is refused, and the refusal changes nothing.
//! - A machine has at most one session: that of the key which bound last. Minting a ticket
//!   ends no session, so that asking for a script does not cut off a working installer.
//! - A ticket is on disk before the script that carries it is sent, a binding before it is
//!   answered: a restart of boot is not noticed by an installer.
//! - A machine has at most [`PER_MACHINE`] tickets; the oldest that nobody used goes first, and
//!   not more than one in [`BETWEEN`] once there are that many: each costs a write to disk.
//! - Who asks for a session never waits for the disk.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rackhand_common::{
    id::MachineId,
    machine::Mac,
    pki::KeyPin,
    time::{Mono, Now, Remaining},
};
use rackhand_fail_points::fail_point;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use super::turn::Turn;

/// How long a ticket may be bound after its script was sent: a slow machine loads kernel and
/// RAM disk in a minute or two.
pub const LIFETIME: Duration = Duration::from_secs(15 * 60);

/// Tickets a machine may have at once: its own restarts within [`LIFETIME`], and what a
/// neighbour that forges its address asks for.
pub const PER_MACHINE: usize = 8;

/// Between two tickets of a machine that has [`PER_MACHINE`]. Nothing that boots comes near it.
const BETWEEN: Duration = Duration::from_secs(1);

/// By machine: its tickets and its session, as JSON.
const TICKETS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("tickets");

/// Why a ticket was not accepted. `Display` is for the alert an operator reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Never minted, or superseded long ago.
    #[error("the ticket is not known")]
    Unknown,
    /// Bound to a key, and another presented it.
    #[error("the ticket was already used by another installer")]
    OtherKey,
    /// Minted for another card.
    #[error("the ticket was made for network card {0}")]
    OtherCard(Mac),
    /// Not used in time.
    #[error("the ticket has expired")]
    Expired,
}

/// The installer of a machine, as its key proves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The machine it runs on.
    pub machine: MachineId,
    /// The card it booted from.
    pub mac: Mac,
    /// Its key.
    pub key: KeyPin,
}

/// A ticket; `T` is its deadline: a moment of this process, or its stored form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Minted<T> {
    ticket: String,
    mac: Mac,
    until: T,
    key: Option<KeyPin>,
}

/// A machine's tickets, oldest first, and its session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Page<T> {
    tickets: Vec<Minted<T>>,
    session: Option<Session>,
}

impl<T> Page<T> {
    fn map<U>(self, until: impl Fn(T) -> U) -> Page<U> {
        let tickets = self.tickets.into_iter();
        let tickets =
            tickets.map(|Minted { ticket, mac, until: old, key }| Minted { ticket, mac, until: until(old), key });
        Page { tickets: tickets.collect(), session: self.session }
    }
}

impl<T> Default for Page<T> {
    fn default() -> Self {
        Self { tickets: Vec::new(), session: None }
    }
}

/// Tickets and sessions of all machines, without a disk.
#[derive(Clone, Debug, Default)]
struct Book {
    pages: BTreeMap<MachineId, Page<Mono>>,
}

impl Page<Mono> {
    /// Notes a new ticket, which the shell made, unless they are asked for too often.
    fn mint(&mut self, now: Now, mac: Mac, ticket: String) -> bool {
        let until = now.mono.plus(LIFETIME);
        if self.tickets.len() >= PER_MACHINE {
            if self.tickets.last().is_some_and(|last| last.until.plus(BETWEEN) > until) {
                return false;
            }
            // The installer that works now may still have to present its ticket again.
            let unbound = self.tickets.iter().position(|minted| minted.key.is_none());
            self.tickets.remove(unbound.unwrap_or(0));
        }
        self.tickets.push(Minted { ticket, mac, until, key: None });
        true
    }

    /// The session of whoever presents `ticket` with `key`, if the ticket is theirs.
    fn present(
        &mut self,
        now: Now,
        machine: MachineId,
        ticket: &str,
        mac: Mac,
        key: KeyPin,
    ) -> Result<Session, Refused> {
        let at = self.tickets.iter().position(|minted| minted.ticket == ticket).ok_or(Refused::Unknown)?;
        let minted = &mut self.tickets[at];
        match minted.key {
            _ if minted.mac != mac => return Err(Refused::OtherCard(minted.mac)),
            Some(bound) if bound != key => return Err(Refused::OtherKey),
            None if minted.until <= now.mono => return Err(Refused::Expired),
            Some(_) | None => {}
        }
        let session = Session { machine, mac, key };
        if minted.key.is_none() {
            minted.key = Some(key);
            // Older tickets belong to boots that are over.
            self.tickets.drain(..at);
            self.session = Some(session);
        }
        // A retry of a ticket whose machine has since started another installer is too late.
        self.session.filter(|current| *current == session).ok_or(Refused::OtherKey)
    }
}

impl Book {
    /// The machine's page, empty when there is none.
    fn page(&self, machine: MachineId) -> Page<Mono> {
        self.pages.get(&machine).cloned().unwrap_or_default()
    }

    /// The machine for which this ticket was made.
    fn machine(&self, ticket: &str) -> Option<MachineId> {
        let mut pages = self.pages.iter();
        let (machine, _) = pages.find(|(_, page)| page.tickets.iter().any(|minted| minted.ticket == ticket))?;
        Some(*machine)
    }

    fn session(&self, key: KeyPin) -> Option<Session> {
        self.pages.values().find_map(|page| page.session.filter(|session| session.key == key))
    }
}

/// The book on disk; clones share it.
#[derive(Clone, Debug)]
pub struct Tickets {
    db: Arc<Database>,
    book: Arc<Mutex<Book>>,
    /// Held while a page goes to disk and then into the book; the book's own lock is not.
    writing: Arc<Mutex<()>>,
    turn: Turn,
}

/// The table cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("ticket table not usable")]
pub struct Unusable(#[source] Box<redb::Error>);

impl<E: Into<redb::Error>> From<E> for Unusable {
    fn from(error: E) -> Self {
        Self(Box::new(error.into()))
    }
}

/// Why a presented ticket led to no session.
#[derive(Debug, thiserror::Error)]
pub enum NotAdmitted {
    /// The ticket is not theirs.
    #[error("ticket refused")]
    Refused {
        /// Whose ticket it is, when it is anyone's.
        machine: Option<MachineId>,
        /// Why.
        #[source]
        reason: Refused,
    },
    /// It could not be recorded; to be tried again.
    #[error(transparent)]
    Unusable(#[from] Unusable),
}

impl From<std::io::Error> for NotAdmitted {
    fn from(error: std::io::Error) -> Self {
        Self::Unusable(error.into())
    }
}

impl Tickets {
    /// Reads the table, which is made if it is not there. A page that cannot be read is left
    /// out: its machine's installer is let in again at its next boot.
    pub fn open(now: Now, db: Arc<Database>) -> Result<Self, Unusable> {
        let transaction = db.begin_write()?;
        transaction.open_table(TICKETS)?;
        transaction.commit()?;
        let mut book = Book::default();
        for row in db.begin_read()?.open_table(TICKETS)?.iter()? {
            let (machine, page) = row?;
            match serde_json::from_slice::<Page<Remaining>>(page.value()) {
                Ok(page) => {
                    let machine = MachineId(uuid::Uuid::from_u128(machine.value()));
                    book.pages.insert(machine, page.map(|until| until.anchor(now)));
                }
                Err(error) => tracing::error!(%error, "a machine's tickets cannot be read and are forgotten"),
            }
        }
        Ok(Self { db, book: Arc::new(Mutex::new(book)), writing: Arc::default(), turn: Turn::default() })
    }

    /// A fresh ticket for the card `mac` of `machine`: on disk on return. None when its
    /// tickets are asked for too often.
    pub async fn mint(&self, now: Now, machine: MachineId, mac: Mac) -> Result<Option<[u8; 16]>, Unusable> {
        let this = self.clone();
        self.turn.take(move || this.mint_now(now, machine, mac)).await
    }

    /// The session of whoever presents `ticket` with `key`; on disk on return.
    pub async fn present(&self, now: Now, ticket: String, mac: Mac, key: KeyPin) -> Result<Session, NotAdmitted> {
        let this = self.clone();
        self.turn.take(move || this.present_now(now, &ticket, mac, key)).await
    }

    fn mint_now(&self, now: Now, machine: MachineId, mac: Mac) -> Result<Option<[u8; 16]>, Unusable> {
        let ticket: [u8; 16] = rand::random();
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut page = self.lock().page(machine);
        if !page.mint(now, mac, hex::encode(ticket)) {
            return Ok(None);
        }
        self.write(now, machine, page)?;
        Ok(Some(ticket))
    }

    fn present_now(&self, now: Now, ticket: &str, mac: Mac, key: KeyPin) -> Result<Session, NotAdmitted> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let (machine, before) = {
            let book = self.lock();
            let machine = book.machine(ticket);
            let machine = machine.ok_or(NotAdmitted::Refused { machine: None, reason: Refused::Unknown })?;
            (machine, book.page(machine))
        };
        let mut page = before.clone();
        let session = page
            .present(now, machine, ticket, mac, key)
            .map_err(|reason| NotAdmitted::Refused { machine: Some(machine), reason })?;
        if page != before {
            self.write(now, machine, page)?;
        }
        Ok(session)
    }

    /// The machines that ever asked for a script with a ticket.
    pub fn machines(&self) -> HashSet<MachineId> {
        self.lock().pages.keys().copied().collect()
    }

    /// The session of this key, if it has one that no later one replaced.
    pub fn session(&self, key: KeyPin) -> Option<Session> {
        self.lock().session(key)
    }

    /// Puts a page on disk, and then into the book.
    fn write(&self, now: Now, machine: MachineId, page: Page<Mono>) -> Result<(), Unusable> {
        let stored = page.clone().map(|until| Remaining::of(now, until));
        let json = serde_json::to_vec(&stored).expect("pages always serialize");
        let transaction = self.db.begin_write()?;
        transaction.open_table(TICKETS)?.insert(machine.0.as_u128(), json.as_slice())?;
        fail_point!(once "ticket.write", transaction.commit())?;
        self.lock().pages.insert(machine, page);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use jiff::Timestamp;

    use super::*;

    fn at(seconds: u64) -> Now {
        Now {
            mono: Mono(Duration::from_secs(seconds)),
            wall: Timestamp::from_second(1_700_000_000 + seconds as i64).unwrap(),
        }
    }

    fn mac(card: &str) -> Mac {
        Mac([2, 0, 0, 0, 0, card.as_bytes()[0]])
    }

    fn key(name: &str) -> KeyPin {
        KeyPin::of(name.as_bytes())
    }

    /// One step a line: `SECONDS mint TICKET CARD`, or `SECONDS TICKET by KEY from CARD`. A
    /// card belongs to the machine of its first letter.
    fn check(script: &str, expect: Expect) {
        let mut book = Book::default();
        let mut told = String::new();
        for line in script.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let now = at(words[0].trim_end_matches('s').parse().unwrap());
            match words[1..] {
                ["mint", ticket, card] => {
                    let machine = MachineId(uuid::Uuid::from_u128(card.as_bytes()[0].into()));
                    book.pages.entry(machine).or_default().mint(now, mac(card), ticket.to_owned());
                }
                [ticket, "by", name, "from", card] => {
                    let presented = book.machine(ticket).ok_or(Refused::Unknown).and_then(|machine| {
                        let page = book.pages.entry(machine).or_default();
                        page.present(now, machine, ticket, mac(card), key(name))
                    });
                    let answer = match presented {
                        Ok(_) => "admitted".to_owned(),
                        Err(refused) => refused.to_string(),
                    };
                    told += &format!("{line}: {answer}\n");
                }
                ["session", name] => {
                    let answer = if book.session(key(name)).is_some() { "yes" } else { "no" };
                    told += &format!("{line}: {answer}\n");
                }
                _ => panic!("{line}"),
            }
        }
        expect.assert_eq(&told);
    }

    #[test]
    fn a_ticket_binds_to_the_first_key_and_answers_its_retries() {
        check(
            "0s mint t1 a\n5s t1 by k1 from a\n6s t1 by k1 from a\n7s t1 by k2 from a\n2000s t1 by k1 from a",
            expect![[r#"
                5s t1 by k1 from a: admitted
                6s t1 by k1 from a: admitted
                7s t1 by k2 from a: the ticket was already used by another installer
                2000s t1 by k1 from a: admitted
            "#]],
        );
    }

    #[test]
    fn a_ticket_is_good_for_its_own_card_in_its_own_time() {
        check(
            "0s mint t1 a\n5s t1 by k1 from b\n6s t9 by k1 from a\n899s t1 by k1 from a\n900s mint t2 a\n1800s t2 by k2 from a",
            expect![[r#"
                5s t1 by k1 from b: the ticket was made for network card 02:00:00:00:00:61
                6s t9 by k1 from a: the ticket is not known
                899s t1 by k1 from a: admitted
                1800s t2 by k2 from a: the ticket has expired
            "#]],
        );
    }

    #[test]
    fn asking_for_scripts_ends_no_session_but_a_new_installer_does() {
        check(
            "0s mint t1 a\n5s t1 by k1 from a\n6s mint t2 a\n7s session k1\n8s t2 by k2 from a\n9s session k1\n9s session k2\n10s t1 by k1 from a",
            expect![[r#"
                5s t1 by k1 from a: admitted
                7s session k1: yes
                8s t2 by k2 from a: admitted
                9s session k1: no
                9s session k2: yes
                10s t1 by k1 from a: the ticket is not known
            "#]],
        );
    }

    #[test]
    fn a_neighbour_that_asks_for_many_tickets_of_a_machine_fills_no_disk() {
        let mut page = Page::default();
        let minted = (0..1000).filter(|n| page.mint(at(n / 100), mac("a"), n.to_string())).count();
        assert_eq!(page.tickets.len(), PER_MACHINE);
        assert_eq!(minted, PER_MACHINE + 9, "one a second once there are as many");
    }

    #[test]
    fn tickets_and_sessions_survive_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let open =
            || Tickets::open(at(0), crate::spool::open_database(&directory.path().join("boot.redb")).unwrap()).unwrap();
        let machine = MachineId::fresh();
        let ticket = hex::encode(open().mint_now(at(0), machine, mac("a")).unwrap().unwrap());
        let session = open().present_now(at(1), &ticket, mac("a"), key("k1")).unwrap();
        assert_eq!(open().session(key("k1")), Some(session));
        assert!(open().present_now(at(2), &ticket, mac("a"), key("k2")).is_err());
    }
}
