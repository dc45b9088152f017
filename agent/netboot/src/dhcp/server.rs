//! The decision: who gets which address, and what it is told to load.
//!
//! Addresses go by MAC alone: ROM, iPXE, installer and OS send different client identifiers
//! from one card and must not burn a lease each.
//!
//! Invariants:
//! - An address has at most one holder, and a card at most one address.
//! - The plan in the intent wins: a machine listed there gets its address, always the same,
//!   and no message on the network takes it away.
//! - A card nobody knows gets an address of the delegated range and keeps it until a plan
//!   says otherwise, or a newcomer finds the range full: then the lease goes that could have
//!   gone longest. None goes before the time its client was told is over, and none within
//!   [`HEARD_LASTS`] of its holder being heard at its address: an installer that waits for
//!   days does not renew. RELEASE frees nothing. When no lease may go, newcomers meet silence
//!   and are counted.
//! - Anyone can say DECLINE in a card's name (RFC 2131 §4.3.3 has no proof): it costs the card
//!   its address, never its machine's id, and only outside the plan. The address rests for a
//!   while, as long as anybody was heard there in [`HEARD_LASTS`], and at most a quarter of
//!   the range at once; further ones are not believed.
//! - An ACK carries its lease as long as that is not known to be on disk.
//! - A client we have no record of gets silence in INIT-REBOOT and when renewing, unless its
//!   address cannot be of this network: another server may know it (RFC 2131 §4.3.2).
//!
//! Deliberately not here: leases that end while nobody needs their address, probes before an
//! offer, proxy mode, relays on other networks.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use ipnet::Ipv4Net;
use rackhand_common::{
    event::Stage,
    id::MachineId,
    intent::{Intent, MachineIntent, Network},
    machine::{Firmware, Mac},
    time::{Mono, Now},
};

use super::message::{
    ACK, Answer, CLASS, CLIENT_ID, Client, IPXE, Kind, LEASE_TIME, MACHINE_UUID, NAK, NAME_SERVERS, OFFER, REBINDING,
    RENEWAL, ROUTER, Request, SUBNET_MASK, VENDOR,
};
use crate::ipxe::script_url;

/// What this node tells of itself.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Its address on the provisioning network: server identifier, and where TFTP answers.
    pub node: Ipv4Addr,
    /// Where it serves boot scripts; `None` on a network where nobody boots: nobody is told there what
    /// to load.
    pub http: Option<SocketAddrV4>,
    /// For how long a client is told that an address is its own.
    pub lease: Duration,
}

/// A card, the machine it is in, and the address it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The machine.
    pub machine: MachineId,
    /// The card.
    pub mac: Mac,
    /// Its address.
    pub address: Ipv4Addr,
}

/// An answer, and what has to happen around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// A lease that must be on disk before this leaves; then [`Server::committed`].
    pub commit: Option<Holder>,
    /// Whether anything leaves, and where to.
    pub to: Destination,
    /// The payload.
    pub message: Vec<u8>,
    /// What this says about the machine's way, once per hop.
    pub stage: Option<(MachineId, Stage)>,
    /// Who may use its address from now on: this is an ACK.
    pub bound: Option<Holder>,
}

/// How an answer travels (RFC 2131 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To the relay agent that forwarded the request, port 67.
    Relay(Ipv4Addr),
    /// To an address the client already answers ARP for, port 68.
    Unicast(Ipv4Addr),
    /// To everyone, port 68.
    Broadcast,
    /// To a card that does not answer ARP yet, by its Ethernet address.
    Raw(Mac, Ipv4Addr),
}

/// Answers the clients of one provisioning network.
#[derive(Debug)]
pub struct Server {
    settings: Settings,
    plan: Option<Plan>,
    /// Cards outside the plan, by their lease.
    leases: HashMap<Mac, Lease>,
    offers: HashMap<Mac, Offer>,
    /// The lease each card declined last. Its address rests: someone uses it who does not ask.
    /// The machine keeps its name.
    declined: HashMap<Mac, Declined>,
    /// Every address above, by who keeps it from others.
    taken: BTreeMap<Ipv4Addr, Mac>,
    hops: HashMap<Mac, Hop>,
    starved: u64,
    /// A search found nothing, no address has come back since, and no lease may go before.
    full: Option<Mono>,
    /// When old offers and hops were last looked for.
    expired: Option<Mono>,
}

/// The part of an intent that matters here, by card.
#[derive(Debug)]
struct Plan {
    network: Ipv4Net,
    gateway: Option<Ipv4Addr>,
    dns: Vec<Ipv4Addr>,
    delegated: (Ipv4Addr, Ipv4Addr),
    cards: HashMap<Mac, Planned>,
    /// Further cards of known machines; they get addresses of the delegated range.
    others: HashMap<Mac, MachineId>,
    addresses: HashSet<Ipv4Addr>,
}

#[derive(Clone, Copy, Debug)]
struct Planned {
    machine: MachineId,
    address: Ipv4Addr,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    machine: MachineId,
    address: Ipv4Addr,
    on_disk: bool,
    /// Until then nobody else gets the address.
    kept: Mono,
}

#[derive(Clone, Copy, Debug)]
struct Declined {
    machine: MachineId,
    address: Ipv4Addr,
    until: Mono,
}

#[derive(Clone, Copy, Debug)]
struct Offer {
    machine: MachineId,
    address: Ipv4Addr,
    until: Mono,
}

/// The last step of a card that was put on the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hop {
    client: Client,
    at: Mono,
}

impl Server {
    /// A server with the leases found on disk, and without a plan: silent until it has one.
    /// When their clients were told of them last is not known: each may have been just now.
    pub fn new(now: Now, settings: Settings, leases: impl IntoIterator<Item = Holder>) -> Self {
        let mut server = Self {
            settings,
            plan: None,
            leases: HashMap::new(),
            offers: HashMap::new(),
            declined: HashMap::new(),
            taken: BTreeMap::new(),
            hops: HashMap::new(),
            starved: 0,
            full: None,
            expired: None,
        };
        for Holder { machine, mac, address } in leases {
            let kept = now.mono.plus(settings.lease);
            server.leases.insert(mac, Lease { machine, address, on_disk: true, kept });
            server.taken.insert(address, mac);
        }
        server
    }

    /// Takes a newer intent. Leases it contradicts end here: those of cards that now have a
    /// planned address, and those of addresses that were planned for others. The shell
    /// deletes what is returned.
    pub fn follow(&mut self, intent: &Intent) -> Vec<Mac> {
        self.serve(&intent.network, &intent.machines)
    }

    /// The same of a network and the machines that have addresses of their own in it.
    pub fn serve(&mut self, network: &Network, machines: &[MachineIntent]) -> Vec<Mac> {
        let mut plan = Plan {
            network: network.node,
            gateway: network.gateway,
            dns: network.dns.clone(),
            delegated: network.delegated,
            cards: HashMap::new(),
            others: HashMap::new(),
            addresses: HashSet::new(),
        };
        for machine in machines {
            plan.addresses.insert(machine.address);
            let planned = Planned { machine: machine.id, address: machine.address };
            let mut macs = machine.macs.iter();
            if let Some(first) = macs.next() {
                plan.cards.insert(*first, planned);
            }
            plan.others.extend(macs.map(|mac| (*mac, machine.id)));
        }
        let stale = |mac: &Mac, address| plan.cards.contains_key(mac) || plan.addresses.contains(&address);
        let ended: Vec<Mac> =
            self.leases.iter().filter(|(mac, l)| stale(mac, l.address)).map(|(mac, _)| *mac).collect();
        self.offers.retain(|mac, offer| !stale(mac, offer.address));
        self.leases.retain(|mac, lease| !stale(mac, lease.address));
        let (leases, offers, declined) = (&self.leases, &self.offers, &self.declined);
        self.taken.retain(|address, mac| {
            leases.get(mac).is_some_and(|lease| lease.address == *address)
                || offers.get(mac).is_some_and(|offer| offer.address == *address)
                || declined.get(mac).is_some_and(|lease| lease.address == *address)
        });
        self.plan = Some(plan);
        self.full = None;
        ended
    }

    /// The lease of this card is on disk.
    pub fn committed(&mut self, mac: Mac) {
        if let Some(lease) = self.leases.get_mut(&mac) {
            lease.on_disk = true;
        }
    }

    /// The holder of this card was heard at its address: it uses it.
    pub fn heard(&mut self, now: Now, mac: Mac) {
        let kept = now.mono.plus(HEARD_LASTS);
        if let Some(lease) = self.leases.get_mut(&mac) {
            lease.kept = lease.kept.max(kept);
        }
        // Until it asks for another one, it is still at the address it is said to have declined.
        if let Some(declined) = self.declined.get_mut(&mac) {
            declined.until = declined.until.max(kept);
        }
    }

    /// Whether this card has an address, or was offered one.
    pub fn knows(&self, mac: Mac) -> bool {
        self.known(mac).is_some() || self.offers.contains_key(&mac)
    }

    /// How many cards found the delegated range full.
    pub fn starved(&self) -> u64 {
        self.starved
    }

    /// How many addresses rest because someone uses them who does not ask.
    pub fn resting(&self) -> usize {
        self.declined.len()
    }

    /// Answers one request, or stays silent. `fresh` names the machine if this is the first
    /// that is ever heard of it.
    pub fn reply(&mut self, now: Now, request: &Request, fresh: MachineId) -> Option<Reply> {
        let plan = self.plan.as_ref()?;
        if !request.echo.relay.is_unspecified() && !plan.network.contains(&request.echo.relay) {
            return None;
        }
        self.expire(now.mono);
        match request.kind {
            Kind::Discover => self.offer(now.mono, request, fresh),
            Kind::Selecting { server, .. } if server != self.settings.node => {
                self.forget_offer(request.mac);
                None
            }
            Kind::Selecting { address, .. } => self.select(now.mono, request, address, fresh),
            Kind::InitReboot { address } | Kind::Renewing { address } => self.resume(now.mono, request, address),
            Kind::Decline { server, address } => {
                if server == self.settings.node {
                    self.decline(now.mono, request.mac, address);
                }
                None
            }
            Kind::Release { .. } => {
                self.forget_offer(request.mac);
                None
            }
            Kind::Inform { address } => self.inform(request, address),
        }
    }

    fn offer(&mut self, now: Mono, request: &Request, fresh: MachineId) -> Option<Reply> {
        let mac = request.mac;
        let holder = match self.known(mac) {
            Some(holder) => holder,
            None => {
                let kept = self.offers.get(&mac).map(|offer| (offer.machine, offer.address));
                let found = kept.or_else(|| Some((self.name(mac, fresh), self.free(now)?)));
                let Some((machine, address)) = found else {
                    self.starved += 1;
                    return None;
                };
                self.offers.insert(mac, Offer { machine, address, until: now.plus(OFFER_LASTS) });
                self.taken.insert(address, mac);
                Holder { machine, mac, address }
            }
        };
        Some(Reply { stage: None, ..self.answer(request, OFFER, holder) })
    }

    fn select(&mut self, now: Mono, request: &Request, address: Ipv4Addr, fresh: MachineId) -> Option<Reply> {
        let mac = request.mac;
        if let Some(holder) = self.known(mac) {
            return Some(if holder.address == address {
                self.acknowledge(now, request, holder)
            } else {
                self.refuse(request)
            });
        }
        let machine = match self.offers.get(&mac) {
            Some(offer) if offer.address == address => offer.machine,
            // The offer was made before a restart, or ran out: still good while nobody has it.
            _ if self.is_free(address) => self.name(mac, fresh),
            _ => return Some(self.refuse(request)),
        };
        self.forget_offer(mac);
        self.leases.insert(mac, Lease { machine, address, on_disk: false, kept: now });
        self.taken.insert(address, mac);
        Some(self.acknowledge(now, request, Holder { machine, mac, address }))
    }

    fn resume(&mut self, now: Mono, request: &Request, address: Ipv4Addr) -> Option<Reply> {
        match self.known(request.mac) {
            Some(holder) if holder.address == address => Some(self.acknowledge(now, request, holder)),
            Some(_) => Some(self.refuse(request)),
            None if !self.plan.as_ref()?.network.contains(&address) => Some(self.refuse(request)),
            None => None,
        }
    }

    /// Only a lease outside the plan ends by its holder's word.
    fn decline(&mut self, now: Mono, mac: Mac, address: Ipv4Addr) {
        let Some(lease) = self.leases.get(&mac).copied().filter(|lease| lease.address == address) else { return };
        if self.declined.len() >= self.most_resting() && !self.declined.contains_key(&mac) {
            return;
        }
        self.leases.remove(&mac);
        // Not before the time is over that its client was told, if it uses the address after all.
        let until = lease.kept.max(now.plus(DECLINED_RESTS));
        if let Some(former) = self.declined.insert(mac, Declined { machine: lease.machine, address, until }) {
            self.return_address(former.address);
        }
    }

    /// A quarter of the range, and one at least: whoever declines in many names takes no more.
    fn most_resting(&self) -> usize {
        let Some(plan) = &self.plan else { return 1 };
        let (first, last) = plan.delegated;
        let range = u32::from(last).saturating_sub(first.into()) as usize + 1;
        (range.min(LARGEST_RANGE) / 4).max(1)
    }

    fn return_address(&mut self, address: Ipv4Addr) {
        self.taken.remove(&address);
        self.full = None;
    }

    fn inform(&mut self, request: &Request, address: Ipv4Addr) -> Option<Reply> {
        let plan = self.plan.as_ref()?;
        if !plan.network.contains(&address) {
            return None;
        }
        let mut answer = Answer::new(request, ACK, self.settings.node);
        answer.own(address);
        self.parameters(plan, request, &mut answer);
        let to = if request.echo.relay.is_unspecified() {
            Destination::Unicast(address)
        } else {
            Destination::Relay(request.echo.relay)
        };
        Some(Reply { commit: None, to, message: answer.finish(), stage: None, bound: None })
    }

    fn acknowledge(&mut self, now: Mono, request: &Request, holder: Holder) -> Reply {
        let mut fresh_lease = false;
        if let Some(lease) = self.leases.get_mut(&holder.mac) {
            fresh_lease = !lease.on_disk;
            lease.kept = lease.kept.max(now.plus(self.settings.lease));
        }
        let stage = self.stage(now, request);
        let reply = self.answer(request, ACK, holder);
        let stage = stage.map(|stage| (holder.machine, stage));
        Reply { commit: fresh_lease.then_some(holder), stage, bound: Some(holder), ..reply }
    }

    fn answer(&self, request: &Request, message_type: u8, holder: Holder) -> Reply {
        let plan = self.plan.as_ref().expect("`reply` stays silent without a plan");
        let mut answer = Answer::new(request, message_type, self.settings.node);
        answer.yours(holder.address);
        answer.option(LEASE_TIME, &seconds(self.settings.lease));
        let mut to = self.way(request, holder.address);
        if let Kind::Renewing { address } = request.kind {
            answer.own(address);
            if request.echo.relay.is_unspecified() {
                to = Destination::Unicast(address);
            }
        }
        self.parameters(plan, request, &mut answer);
        answer.option(RENEWAL, &seconds(self.settings.lease / 2));
        answer.option(REBINDING, &seconds(self.settings.lease / 8 * 7));
        Reply { commit: None, to, message: answer.finish(), stage: None, bound: None }
    }

    /// Everything that is not about the lease, in order of importance.
    fn parameters(&self, plan: &Plan, request: &Request, answer: &mut Answer) {
        answer.option(SUBNET_MASK, &plan.network.netmask().octets());
        let boots = self.settings.http.map(|http| (request.client, http));
        match boots {
            Some((Client::Rom(Some(firmware)), _)) => {
                answer.boot(self.settings.node, loader(firmware));
                answer.option(CLASS, b"PXEClient");
                answer.option(VENDOR, &DISCOVERY_CONTROL);
            }
            Some((Client::Ipxe(_), http)) => {
                answer.boot(self.settings.node, &script_url(http, Some(request.mac)));
                answer.option(IPXE, &NO_PROXY_DHCP);
            }
            // It takes an offer for one to boot from only with its own class in it (UEFI 2.10 §24.7.2).
            Some((Client::Http(Some(firmware)), http)) => {
                answer.boot(self.settings.node, &loader_url(http, firmware));
                answer.option(CLASS, b"HTTPClient");
            }
            Some((Client::Rom(None) | Client::Http(None) | Client::System, _)) | None => {}
        }
        if let Some(id) = &request.echo.client_id {
            answer.option(CLIENT_ID, id);
        }
        if let Some(uuid) = &request.echo.uuid {
            answer.option(MACHINE_UUID, uuid);
        }
        if let Some(gateway) = plan.gateway {
            answer.option(ROUTER, &gateway.octets());
        }
        answer.option(NAME_SERVERS, &plan.dns.iter().take(3).flat_map(Ipv4Addr::octets).collect::<Vec<_>>());
    }

    fn refuse(&self, request: &Request) -> Reply {
        let mut answer = Answer::new(request, NAK, self.settings.node);
        let relay = request.echo.relay;
        let to = if relay.is_unspecified() {
            Destination::Broadcast
        } else {
            answer.broadcast();
            Destination::Relay(relay)
        };
        if let Some(id) = &request.echo.client_id {
            answer.option(CLIENT_ID, id);
        }
        Reply { commit: None, to, message: answer.finish(), stage: None, bound: None }
    }

    fn way(&self, request: &Request, address: Ipv4Addr) -> Destination {
        if !request.echo.relay.is_unspecified() {
            Destination::Relay(request.echo.relay)
        } else if request.echo.broadcast() {
            Destination::Broadcast
        } else {
            Destination::Raw(request.mac, address)
        }
    }

    /// The hop an acknowledged request stands for. Repeats of one hop and renewals are none.
    fn stage(&mut self, now: Mono, request: &Request) -> Option<Stage> {
        if self.settings.http.is_none() || matches!(request.kind, Kind::Renewing { .. }) {
            return None;
        }
        let is_planned = self.plan.as_ref()?.cards.contains_key(&request.mac);
        let last = self.hops.get(&request.mac).copied();
        let recently = |hop: &Hop, span| hop.at.until(now) < span;
        let stage = match request.client {
            Client::Rom(firmware) | Client::Http(firmware) => Stage::RomDhcp(firmware?),
            // iPXE right after another ROM was loaded by it; otherwise it is the card's ROM.
            Client::Ipxe(_)
                if last.is_some_and(|hop| {
                    matches!(hop.client, Client::Rom(_) | Client::Http(_)) && recently(&hop, LOADED)
                }) =>
            {
                Stage::IpxeDhcp
            }
            Client::Ipxe(firmware) => Stage::RomDhcp(firmware.unwrap_or(Firmware::Bios)),
            // Also of a machine that was to start the installer: it has started something else.
            Client::System if is_planned => Stage::OsDhcp,
            Client::System => return None,
        };
        let repeated = last.is_some_and(|hop| hop.client == request.client && recently(&hop, REPEATS));
        self.hops.insert(request.mac, Hop { client: request.client, at: now });
        (!repeated).then_some(stage)
    }

    /// The card's address, if the plan or a lease gives it one.
    fn known(&self, mac: Mac) -> Option<Holder> {
        let plan = self.plan.as_ref()?;
        if let Some(Planned { machine, address, .. }) = plan.cards.get(&mac).copied() {
            return Some(Holder { machine, mac, address });
        }
        let lease = self.leases.get(&mac)?;
        Some(Holder { machine: self.name(mac, lease.machine), mac, address: lease.address })
    }

    /// The machine a card outside the plan's first cards belongs to.
    fn name(&self, mac: Mac, otherwise: MachineId) -> MachineId {
        let planned = self.plan.as_ref().and_then(|plan| plan.others.get(&mac).copied());
        planned.or_else(|| self.declined.get(&mac).map(|lease| lease.machine)).unwrap_or(otherwise)
    }

    /// Walks the range, but not a full one for each message of a flood.
    fn free(&mut self, now: Mono) -> Option<Ipv4Addr> {
        if self.full.is_some_and(|until| until > now) {
            return None;
        }
        let (first, last) = self.plan.as_ref()?.delegated;
        let mut range = (u32::from(first)..=u32::from(last)).take(LARGEST_RANGE).map(Ipv4Addr::from);
        let found = range.find(|address| self.is_free(*address));
        self.full = None;
        found.or_else(|| self.reclaim(now))
    }

    /// The address of the lease that may go, and could have gone longest; its card is a
    /// newcomer from then on. Further cards of known machines keep theirs.
    fn reclaim(&mut self, now: Mono) -> Option<Ipv4Addr> {
        let others = &self.plan.as_ref()?.others;
        let unknown =
            self.leases.iter().filter(|(mac, lease)| !others.contains_key(*mac) && self.is_ours(lease.address));
        // Of two by its card: the same history gives the same addresses.
        let next = unknown.map(|(mac, lease)| (lease.kept, *mac, lease.address)).min();
        if let Some((_, mac, address)) = next.filter(|(kept, ..)| *kept <= now) {
            self.leases.remove(&mac);
            self.taken.remove(&address);
            return Some(address);
        }
        // What is given from now on is kept for that long as well.
        let lease = now.plus(self.settings.lease);
        self.full = Some(next.map_or(lease, |(kept, ..)| kept.min(lease)));
        None
    }

    fn is_free(&self, address: Ipv4Addr) -> bool {
        self.is_ours(address) && !self.taken.contains_key(&address)
    }

    /// Whether cards outside the plan may have this address.
    fn is_ours(&self, address: Ipv4Addr) -> bool {
        let Some(plan) = &self.plan else { return false };
        let (first, last) = plan.delegated;
        let network = plan.network;
        (first..=last).contains(&address)
            && network.contains(&address)
            && ![network.network(), network.broadcast(), network.addr(), self.settings.node].contains(&address)
            && plan.gateway != Some(address)
            && !plan.addresses.contains(&address)
    }

    fn forget_offer(&mut self, mac: Mac) {
        if let Some(offer) = self.offers.remove(&mac) {
            self.return_address(offer.address);
        }
    }

    /// What has run out goes. Looks once a second: under a flood, each message would walk all of it.
    fn expire(&mut self, now: Mono) {
        if self.expired.is_some_and(|last| last.until(now) < EXPIRY) {
            return;
        }
        self.expired = Some(now);
        let mut returned = Vec::new();
        let mut keeps = |keeps: bool, address| {
            if !keeps {
                returned.push(address);
            }
            keeps
        };
        self.offers.retain(|_, offer| keeps(offer.until > now, offer.address));
        self.declined.retain(|_, declined| keeps(declined.until > now, declined.address));
        for address in returned {
            self.return_address(address);
        }
        // A card that is silent for longer than any hop takes begins a new boot.
        self.hops.retain(|_, hop| hop.at.until(now) < LOADED);
    }
}

fn loader(firmware: Firmware) -> &'static str {
    match firmware {
        Firmware::Bios => "undionly.kpxe",
        Firmware::Uefi => "snponly.efi",
    }
}

/// Where UEFI HTTP boot loads its loader from.
fn loader_url(http: SocketAddrV4, firmware: Firmware) -> String {
    format!("http://{http}/loader/{}", loader(firmware))
}

fn seconds(time: Duration) -> [u8; 4] {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX).to_be_bytes()
}

/// For how long a client is told that an address is its own: long enough that an installed
/// system's renewals are rare, short enough that a changed plan reaches it within half an hour.
pub const LEASE_LASTS: Duration = Duration::from_secs(3600);

/// How long a card that nobody adopted keeps an address at which it was heard: it may use it
/// without ever renewing, and be adopted tomorrow.
pub const HEARD_LASTS: Duration = Duration::from_secs(24 * 3600);

/// How long a declined address is given to nobody, at least.
const DECLINED_RESTS: Duration = Duration::from_secs(600);

/// How long an offer keeps its address. Slow firmware takes 4 s to choose among offers.
const OFFER_LASTS: Duration = Duration::from_secs(60);

/// Between two looks for offers that ran out.
const EXPIRY: Duration = Duration::from_secs(1);

/// The longest time between a ROM's DHCP and that of the iPXE it loaded.
const LOADED: Duration = Duration::from_secs(180);

/// Within this time the same program asking again is the same hop.
const REPEATS: Duration = Duration::from_secs(20);

/// How many delegated addresses are ever used: a search walks them.
const LARGEST_RANGE: usize = 4096;

/// PXE discovery control (PXE 2.1 §2.1.3, tag 6): load the file named in this offer, ask no
/// boot server. Without it EDK2 goes to port 4011 because option 60 says `PXEClient`.
const DISCOVERY_CONTROL: [u8; 4] = [6, 1, 0x08, 255];

/// iPXE's `no-pxedhcp` (175.176): do not wait for proxyDHCP offers.
const NO_PROXY_DHCP: [u8; 3] = [176, 1, 1];
