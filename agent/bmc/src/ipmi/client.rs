//! The shell of a session: one UDP socket, and the trait [`Bmc`] in terms of requests.
//!
//! Invariants:
//! - One session at a time, opened when it is first needed and again when the BMC lost it.
//! - One request at a time; every call ends by its deadline.
//! - A call that is cancelled loses no session: the next one goes on in it.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    future::Future,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    sync::Mutex,
    time::{Instant, sleep, timeout, timeout_at},
};

use rackhand_common::{machine::Power, time::Mono};

use super::{
    chassis,
    crypto::Suite,
    dcmi, device, fru, lan,
    packet::{Malformed, Request},
    sdr::{self, FruLocator, Record, Sensor},
    sel, sensor,
    session::{Failure, Nonce, Session},
    user::{self, Form},
};
use crate::{
    bmc::{Answer, Bmc, BmcError, Credentials, Logins},
    told::{
        Account, Accounts, Bios, Boot, BootOverride, Identity, Lan, Log, MAX_ITEMS, MAX_PASSWORD, Part, PartKind,
        Parts, Reading, SensorKind, Sensors, Skipped, baseline::Attribute,
    },
};

/// How long a call may take that asks a handful of things.
const SHORT_CALL: Duration = Duration::from_secs(60);
/// How long a call may take that reads a repository, a log or every sensor.
const LONG_CALL: Duration = Duration::from_secs(300);
/// How long erasing the log may take.
const ERASE_TIME: Duration = Duration::from_secs(30);
/// How long a password that was denied is not tried again: BMCs lock an account after a few tries.
const DENIED_TIME: Duration = Duration::from_secs(300);
/// How often a record is asked for anew when the reservation was lost.
const RESERVATIONS: u8 = 5;
/// How many bytes of a record or a FRU are asked for at once: less than any BMC's buffer.
const CHUNK: u8 = 16;
/// The most that is read of a FRU: its areas of text stand in front.
const MAX_FRU: u16 = 2048;
/// The longest datagram that is taken.
const MAX_DATAGRAM: usize = 2048;

/// A BMC spoken to by IPMI 2.0.
pub struct Ipmi {
    address: SocketAddr,
    credentials: Credentials,
    logins: Option<Arc<dyn Logins>>,
    link: Mutex<Link>,
    counts: Counts,
}

/// What was sent so far, for measurements.
#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    datagrams: AtomicU64,
}

/// What changes from call to call.
#[derive(Default)]
struct Link {
    session: Option<Open>,
    repository: Repository,
    channel: Option<u8>,
    has_no_dcmi: bool,
    denied: Option<Denied>,
}

/// A login that was denied.
struct Denied {
    why: String,
    until: Instant,
}

struct Open {
    socket: UdpSocket,
    session: Session,
    began: Instant,
}

/// The SDR repository as far as it was read: a call that is cancelled leaves the rest to the next.
#[derive(Default)]
struct Repository {
    /// What it said of itself when the walk began.
    info: Option<sdr::Info>,
    /// The record to read next.
    next: u16,
    seen: HashSet<u16>,
    reservation: u16,
    /// Whether records come only in parts.
    is_in_parts: bool,
    /// How many sensors' thresholds were asked for.
    asked: usize,
    sensors: Vec<Sensor>,
    frus: Vec<FruLocator>,
    skipped: Vec<Skipped>,
}

/// Shows no password.
impl fmt::Debug for Ipmi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ipmi")
            .field("address", &self.address)
            .field("user", &self.credentials.user)
            .finish_non_exhaustive()
    }
}

impl Ipmi {
    /// The BMC at this address, usually port 623. Nothing is sent yet.
    pub fn new(address: SocketAddr, credentials: Credentials) -> Self {
        Self { address, credentials, logins: None, link: Mutex::default(), counts: Counts::default() }
    }

    /// Asked and told of every login.
    pub fn counted(self, logins: Arc<dyn Logins>) -> Self {
        Self { logins: Some(logins), ..self }
    }

    /// How many requests and how many datagrams were sent so far.
    pub fn sent(&self) -> (u64, u64) {
        (self.counts.requests.load(Ordering::Relaxed), self.counts.datagrams.load(Ordering::Relaxed))
    }

    /// How the session is secured, while there is one.
    pub async fn suite(&self) -> Option<Suite> {
        self.link.lock().await.session.as_ref().map(|open| open.session.suite())
    }

    /// Ends the session, if there is one; the next call opens another.
    pub async fn close(&self) {
        let mut link = self.link.lock().await;
        if let Some(mut open) = link.session.take() {
            open.session.close();
            // The BMC ends it by itself when this is lost.
            let _ = self.flush(&mut open).await;
        }
    }

    async fn within<T>(&self, time: Duration, call: impl Future<Output = Result<T, BmcError>>) -> Result<T, BmcError> {
        timeout(time, call)
            .await
            .unwrap_or_else(|_| Err(BmcError::Unreachable(format!("it was not done after {} s", time.as_secs()))))
    }

    /// Sends a request and gives the data that answers it. When the BMC lost the session, another
    /// one is opened once.
    async fn ask(&self, link: &mut Link, request: Request) -> Result<Vec<u8>, Failure> {
        // The session stays in the link while it is waited for: a call that is cancelled leaves it
        // to the next one, or the BMC would hold its place for a minute.
        if let Some(mut idle) = link.session.take_if(|open| open.session.is_over(open.now())) {
            idle.session.close();
            // The BMC ends it by itself when this is lost.
            let _ = self.flush(&mut idle).await;
        }
        loop {
            let is_used = link.session.is_some();
            if !is_used && let Some(denied) = link.denied.as_ref().and_then(Denied::still) {
                return Err(Failure::Ended(denied));
            }
            if !is_used && let Some(logins) = &self.logins {
                logins.may().map_err(|why| Failure::Ended(BmcError::Denied(why)))?;
            }
            let open = match &mut link.session {
                Some(open) => open,
                none => none.insert(self.open().await.map_err(Failure::Ended)?),
            };
            self.counts.requests.fetch_add(1, Ordering::Relaxed);
            open.session.request(open.now(), request.clone());
            let answer = self.answer(open).await;
            if !is_used && let Some(logins) = &self.logins {
                match &answer {
                    Ok(_) | Err(Failure::Completion(_)) => logins.ended(true).await,
                    Err(Failure::Ended(BmcError::Denied(_))) => logins.ended(false).await,
                    Err(Failure::Ended(_)) => {}
                }
            }
            if let Err(Failure::Ended(why)) = &answer {
                link.session = None;
                if let BmcError::Denied(why) = why {
                    link.denied = Some(Denied { why: why.clone(), until: Instant::now() + DENIED_TIME });
                }
                if is_used && matches!(why, BmcError::Unreachable(_)) {
                    continue;
                }
            }
            return answer;
        }
    }

    async fn open(&self) -> Result<Open, BmcError> {
        let unreachable = |error: std::io::Error| BmcError::Unreachable(error.to_string());
        let ours: SocketAddr = match self.address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(ours).await.map_err(unreachable)?;
        socket.connect(self.address).await.map_err(unreachable)?;
        let nonce = Nonce { session: rand::random(), random: rand::random() };
        let session = Session::new(Mono::default(), &self.credentials, nonce)?;
        Ok(Open { socket, session, began: Instant::now() })
    }

    async fn answer(&self, open: &mut Open) -> Result<Vec<u8>, Failure> {
        let mut buffer = [0; MAX_DATAGRAM];
        loop {
            self.flush(open).await.map_err(|error| Failure::Ended(BmcError::Unreachable(error.to_string())))?;
            if let Some(answer) = open.session.answer() {
                // What the answer gave rise to leaves too: a closing message.
                let _ = self.flush(open).await;
                return answer;
            }
            let until = open.session.timeout().map_or_else(Instant::now, |until| open.began + until.0);
            // An ICMP error is as good as a loss: it ends nothing, and comes once for a datagram.
            match timeout_at(until, open.socket.recv(&mut buffer)).await {
                Ok(Ok(length)) => open.session.handle(open.now(), &buffer[..length]),
                Ok(Err(_)) => {}
                Err(_) => open.session.handle_timeout(open.now()),
            }
        }
    }

    async fn flush(&self, open: &mut Open) -> std::io::Result<()> {
        while let Some(datagram) = open.session.transmit(rand::random()) {
            self.counts.datagrams.fetch_add(1, Ordering::Relaxed);
            match open.socket.send(&datagram).await {
                // An earlier datagram's ICMP error.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
                sent => drop(sent?),
            }
        }
        Ok(())
    }

    /// As [`Self::ask`], for what a BMC may not have.
    async fn ask_optional(&self, link: &mut Link, request: Request) -> Result<Option<Vec<u8>>, BmcError> {
        match self.ask(link, request).await {
            Ok(data) => Ok(Some(data)),
            Err(Failure::Completion(_)) => Ok(None),
            Err(Failure::Ended(why)) => Err(why),
        }
    }

    async fn read_power(&self, link: &mut Link) -> Result<Power, BmcError> {
        Ok(chassis::read_status(&self.ask(link, chassis::status()).await?)?)
    }

    async fn write_power(&self, link: &mut Link, wanted: Power) -> Result<(), BmcError> {
        match self.ask(link, chassis::control(wanted)).await {
            Ok(_) => Ok(()),
            // Some BMCs refuse what is so already.
            Err(Failure::Completion(_)) if self.read_power(link).await? == wanted => Ok(()),
            Err(failure) => Err(failure.into()),
        }
    }

    async fn read_flags(&self, link: &mut Link) -> Result<chassis::Flags, BmcError> {
        Ok(chassis::read_flags(&self.ask(link, chassis::flags()).await?)?)
    }

    async fn write_boot(&self, link: &mut Link, wanted: BootOverride) -> Result<(), BmcError> {
        let found = self.read_flags(link).await?;
        let flags = chassis::Flags::of(&wanted, found)
            .ok_or_else(|| BmcError::Unsupported("IPMI cannot name HTTP boot: use the network".to_owned()))?;
        // Whoever began to write and did not end would lock everybody out: it is taken over.
        if self.ask_optional(link, chassis::set_in_progress(true)).await?.is_none() {
            self.ask_optional(link, chassis::set_in_progress(false)).await?;
            self.ask_optional(link, chassis::set_in_progress(true)).await?;
        }
        self.ask_optional(link, chassis::keep_valid()).await?;
        let written = self.ask(link, chassis::set_flags(flags)).await;
        self.ask_optional(link, chassis::unacknowledged()).await?;
        self.ask_optional(link, chassis::set_in_progress(false)).await?;
        written?;
        let kept = self.read_flags(link).await?;
        if flags.is_kept(kept) {
            Ok(())
        } else {
            Err(BmcError::Refused(format!("it took the override and reads back another: {:?}", kept.boot().set)))
        }
    }

    async fn light(&self, link: &mut Link, lit: Duration) -> Result<(), BmcError> {
        let request = chassis::identify(lit);
        let is_long = request.data.len() > 1;
        match self.ask(link, request).await {
            Err(Failure::Completion(_)) if is_long => self.ask(link, chassis::identify_long()).await?,
            answer => answer?,
        };
        Ok(())
    }

    async fn read_repository<'a>(&self, link: &'a mut Link) -> Result<&'a Repository, BmcError> {
        let info = sdr::read_info(&self.ask(link, sdr::info()).await?)?;
        if link.repository.info != Some(info) {
            link.repository = Repository { info: Some(info), ..Repository::default() };
        }
        match self.walk_repository(link).await {
            Ok(()) => Ok(&link.repository),
            Err(why) => {
                // What is only late is gone on with, and what is wrong is read anew.
                if !matches!(why, BmcError::Unreachable(_)) {
                    link.repository = Repository::default();
                }
                Err(why)
            }
        }
    }

    async fn walk_repository(&self, link: &mut Link) -> Result<(), BmcError> {
        while link.repository.next != sdr::END {
            let id = link.repository.next;
            if link.repository.seen.contains(&id) || link.repository.seen.len() >= MAX_ITEMS {
                link.repository.skipped.push(skipped(format!("SDR {id:#06x}"), "the records have no end"));
                link.repository.next = sdr::END;
                break;
            }
            let (next, bytes) = match self.read_record(link, id).await {
                Ok(read) => read,
                // An empty repository has no first record.
                Err(BmcError::Unsupported(_)) if id == sdr::FIRST => (sdr::END, Vec::new()),
                Err(why) => return Err(why),
            };
            let repository = &mut link.repository;
            match sdr::record(&bytes) {
                _ if bytes.is_empty() => {}
                Ok(Record::Sensors(sensors)) => repository.add(id, sensors),
                Ok(Record::Fru(locator)) => repository.frus.push(locator),
                Ok(Record::Controller { .. } | Record::Other(_)) => {}
                Err(malformed) => repository.skipped.push(skipped(format!("SDR {id:#06x}"), malformed)),
            }
            repository.seen.insert(id);
            repository.next = next;
        }
        while let Some(sensor) = link.repository.sensors.get(link.repository.asked) {
            if sensor.thresholds != sdr::Raw::default() {
                let request = sensor::thresholds(sensor);
                // The record has what they were at first; the BMC knows what they are now.
                if let Some(data) = self.ask_optional(link, request).await?
                    && let Ok(thresholds) = sensor::read_thresholds(&data)
                {
                    let asked = link.repository.asked;
                    link.repository.sensors[asked].thresholds = thresholds;
                }
            }
            link.repository.asked += 1;
        }
        Ok(())
    }

    async fn read_record(&self, link: &mut Link, id: u16) -> Result<(u16, Vec<u8>), BmcError> {
        if !link.repository.is_in_parts {
            match self.ask(link, sdr::get(0, id, 0, 0xff)).await {
                Ok(data) => {
                    let (next, bytes) = sdr::read_get(&data)?;
                    if sdr::length(bytes).is_ok_and(|length| bytes.len() >= length) {
                        return Ok((next, bytes.to_vec()));
                    }
                }
                // It says so, or in whatever other words it has, that its buffer is too short.
                Err(Failure::Completion(completion)) if completion != 0xcb => {}
                Err(failure) => return Err(failure.into()),
            }
            link.repository.is_in_parts = true;
        }
        for _ in 0..RESERVATIONS {
            match self.read_parts(link, link.repository.reservation, id).await {
                Err(Failure::Completion(0xc5)) => {
                    let data = self.ask(link, sdr::reserve()).await?;
                    link.repository.reservation = sdr::read_reservation(&data)?;
                }
                read => return Ok(read?),
            }
        }
        Err(BmcError::Unreachable("others read the SDR repository all the time".to_owned()))
    }

    async fn read_parts(&self, link: &mut Link, reservation: u16, id: u16) -> Result<(u16, Vec<u8>), Failure> {
        let data = self.ask(link, sdr::get(reservation, id, 0, sdr::HEADER)).await?;
        let (next, header) = sdr::read_get(&data)?;
        let length = sdr::length(header)?;
        let mut bytes = header[..usize::from(sdr::HEADER)].to_vec();
        while bytes.len() < length {
            let offset = u8::try_from(bytes.len()).map_err(|_| Malformed("a record that is too long"))?;
            let count = u8::try_from(length - bytes.len()).unwrap_or(CHUNK).min(CHUNK);
            let data = self.ask(link, sdr::get(reservation, id, offset, count)).await?;
            let (_, part) = sdr::read_get(&data)?;
            if part.is_empty() {
                return Err(Malformed("a record that is cut short").into());
            }
            bytes.extend(&part[..part.len().min(count.into())]);
        }
        Ok((next, bytes))
    }

    async fn read_sensors(&self, link: &mut Link) -> Result<Sensors, BmcError> {
        let repository = self.read_repository(link).await?;
        let (sensors, not_understood) = (repository.sensors.clone(), repository.skipped.clone());
        let mut told = Sensors { readings: Vec::with_capacity(sensors.len()), skipped: not_understood };
        for known in &sensors {
            match self.ask(link, sensor::reading(known)).await {
                Ok(data) => match sensor::read_reading(known, &data) {
                    Ok(reading) => told.readings.push(reading),
                    Err(malformed) => told.skipped.push(skipped_sensor(known, malformed)),
                },
                // Not there just now: the record tells of what may be plugged in, too.
                Err(Failure::Completion(0xcb | 0xcc | 0xcd | 0xd5)) => told.readings.push(sensor::absent(known)),
                Err(Failure::Completion(completion)) => {
                    let why = BmcError::from(Failure::Completion(completion));
                    told.skipped.push(skipped_sensor(known, why));
                }
                Err(Failure::Ended(why)) => return Err(why),
            }
        }
        if !link.has_no_dcmi && !told.readings.iter().any(|reading| reading.kind == SensorKind::Power) {
            match self.ask_optional(link, dcmi::power_reading()).await? {
                None => link.has_no_dcmi = true,
                Some(data) => match dcmi::read_power_reading(&data) {
                    Ok(watts) => told.readings.push(power_draw(watts)),
                    Err(malformed) => told.skipped.push(skipped("DCMI power reading".to_owned(), malformed)),
                },
            }
        }
        Ok(told)
    }

    async fn read_log(&self, link: &mut Link) -> Result<Log, BmcError> {
        // The log is worth reading without the sensors' names, too.
        let sensors = match self.read_repository(link).await {
            Ok(repository) => repository.sensors.clone(),
            Err(BmcError::Unreachable(why)) => return Err(BmcError::Unreachable(why)),
            Err(BmcError::Denied(why)) => return Err(BmcError::Denied(why)),
            Err(_) => Vec::new(),
        };
        let info = sel::read_info(&self.ask(link, sel::info()).await?)?;
        let mut log = Log { has_overflowed: info.has_overflowed, ..Log::default() };
        let (mut id, mut seen) = (sel::FIRST, HashSet::new());
        while info.entries > 0 && id != sel::LAST {
            if !seen.insert(id) || seen.len() > MAX_ITEMS {
                log.skipped.push(skipped(format!("SEL {id:04x}"), "the entries have no end"));
                break;
            }
            let data = match self.ask(link, sel::get(id)).await {
                // Cleared while it is read.
                Err(Failure::Completion(0xcb)) => break,
                data => data?,
            };
            let (next, record) = sel::read_get(&data)?;
            match sel::record(record) {
                Ok(record) => log.entries.push(record.entry(record.sensor(&sensors))),
                Err(malformed) => log.skipped.push(skipped(format!("SEL {id:04x}"), malformed)),
            }
            id = next;
        }
        Ok(log)
    }

    async fn erase_log(&self, link: &mut Link, last: Option<&str>) -> Result<(), BmcError> {
        let info = sel::read_info(&self.ask(link, sel::info()).await?)?;
        if info.entries == 0 {
            return Ok(());
        }
        let reservation = match self.ask_optional(link, sel::reserve()).await? {
            Some(data) => sel::read_reservation(&data)?,
            // Without reservations it is to be zero (§31.9).
            None if !info.has_reservations => 0,
            None => return Err(BmcError::Refused("it does not reserve its log".to_owned())),
        };
        if let Some(last) = last {
            let data = self.ask(link, sel::get(sel::LAST)).await?;
            let found = sel::record(sel::read_get(&data)?.1)?;
            if format!("{:04x}", found.id) != last {
                return Err(BmcError::Refused("an entry came after the last that was read: read again".to_owned()));
            }
        }
        let mut request = sel::clear(reservation);
        let deadline = Instant::now() + ERASE_TIME;
        loop {
            match self.ask(link, request).await {
                Ok(data) if sel::read_is_cleared(&data)? => return Ok(()),
                Ok(_) => {}
                // The repetition of a request whose answer was lost: the log is erased, and the
                // reservation with it.
                Err(Failure::Completion(0xc5)) if self.is_log_empty(link).await? => return Ok(()),
                Err(failure) => return Err(failure.into()),
            }
            if Instant::now() > deadline {
                return Err(BmcError::Unreachable("it is still erasing its log".to_owned()));
            }
            sleep(Duration::from_millis(100)).await;
            request = sel::clear_progress(reservation);
        }
    }

    async fn is_log_empty(&self, link: &mut Link) -> Result<bool, BmcError> {
        Ok(sel::read_info(&self.ask(link, sel::info()).await?)?.entries == 0)
    }

    /// A FRU device's inventory; an error of its own when there is none to be had.
    async fn read_fru(&self, link: &mut Link, number: u8) -> Result<Result<fru::Fru, String>, BmcError> {
        let bytes = match self.read_fru_bytes(link, number).await {
            Err(Failure::Ended(why @ (BmcError::Unreachable(_) | BmcError::Denied(_)))) => return Err(why),
            Err(failure) => return Ok(Err(BmcError::from(failure).to_string())),
            Ok(bytes) => bytes,
        };
        Ok(fru::parse(&bytes).map_err(|malformed| malformed.to_string()))
    }

    async fn read_fru_bytes(&self, link: &mut Link, number: u8) -> Result<Vec<u8>, Failure> {
        let info = fru::read_info(&self.ask(link, fru::info(number)).await?)?;
        let size = info.size.min(MAX_FRU);
        let unit = if info.is_by_words { 2 } else { 1 };
        let mut bytes = Vec::with_capacity(size.into());
        while bytes.len() < usize::from(size) {
            let at = u16::try_from(bytes.len()).expect("less than the size");
            let count = u8::try_from((size - at).min(CHUNK.into())).expect("at most a chunk");
            let data =
                self.ask(link, fru::read(number, at / unit, count.div_ceil(u8::try_from(unit).unwrap_or(1)))).await?;
            let part = fru::read_data(&data)?;
            let part = &part[..part.len().min(count.into())];
            // Nothing more, or half a word.
            if part.is_empty() || part.len() % usize::from(unit) != 0 {
                break;
            }
            bytes.extend(part);
        }
        Ok(bytes)
    }

    async fn read_identity(&self, link: &mut Link) -> Result<Identity, BmcError> {
        let device = device::read_device_id(&self.ask(link, device::device_id()).await?)?;
        let uuid = match self.ask_optional(link, device::system_guid()).await? {
            Some(data) => device::read_system_guid(&data)?,
            None => None,
        };
        let fru = self.read_fru(link, 0).await?.unwrap_or_default();
        let (product, board) = (fru.product.unwrap_or_default(), fru.board.unwrap_or_default());
        Ok(Identity {
            vendor: product.vendor.or(board.vendor),
            model: product.name.or(board.name),
            serial: product.serial.or(fru.chassis.unwrap_or_default().serial),
            uuid,
            firmware: Some(device.firmware),
            manager: device::manufacturer(device.manufacturer).map(str::to_owned),
        })
    }

    async fn read_parts_list(&self, link: &mut Link) -> Result<Parts, BmcError> {
        let mut parts = Parts::default();
        let frus = match self.read_repository(link).await {
            Ok(repository) => repository.frus.clone(),
            Err(BmcError::Unsupported(_) | BmcError::Refused(_) | BmcError::Malformed(_)) => Vec::new(),
            Err(why) => return Err(why),
        };
        let machine = FruLocator { device: Some(0), entity: SYSTEM_BOARD, name: None };
        let others = frus.into_iter().filter(|locator| locator.device != Some(0));
        let mut seen = HashSet::new();
        for locator in [machine].into_iter().chain(others) {
            let Some(number) = locator.device.filter(|number| seen.insert(*number)) else { continue };
            let place = locator.name.clone().unwrap_or_else(|| format!("FRU {number}"));
            match self.read_fru(link, number).await? {
                Err(why) => parts.skipped.push(Skipped { place, why }),
                Ok(fru) => {
                    for (area, malformed) in &fru.faults {
                        parts.skipped.push(skipped(format!("{place}, {area}"), malformed));
                    }
                    parts.parts.extend(as_parts(fru, &locator, number == 0, &place));
                }
            }
        }
        Ok(parts)
    }

    async fn find_channel(&self, link: &mut Link) -> Result<u8, BmcError> {
        if let Some(channel) = link.channel {
            return Ok(channel);
        }
        // A BMC that does not say takes 14 for the channel the question came in on.
        let channel = match self.ask_optional(link, lan::this_channel()).await? {
            Some(data) => lan::read_channel(&data)?,
            None => 0x0e,
        };
        Ok(*link.channel.insert(channel))
    }

    async fn read_accounts(&self, link: &mut Link) -> Result<Accounts, BmcError> {
        let channel = self.find_channel(link).await?;
        let first = user::read_access(&self.ask(link, user::access(channel, 1)).await?)?;
        let mut told = Accounts::default();
        for number in 1..=first.places {
            let (access, name) = match self.read_account(link, channel, number).await {
                Ok((access, Some(name))) => (access, name),
                // Who gives no name is let in all the same where such a user is enabled.
                Ok((access, None)) if access.may_log_in() => (access, String::new()),
                Ok((_, None)) => continue,
                Err(Failure::Ended(why @ (BmcError::Unreachable(_) | BmcError::Denied(_)))) => return Err(why),
                Err(failure) => {
                    told.skipped.push(skipped(format!("user {number}"), BmcError::from(failure)));
                    continue;
                }
            };
            told.accounts.push(Account {
                id: number.to_string(),
                user: name,
                // A BMC that does not say whether it is enabled lets it in.
                is_enabled: access.is_enabled.unwrap_or(true) && access.is_messaging,
                is_administrator: access.privilege == 4,
                role: Some(user::privilege(access.privilege).to_owned()),
            });
        }
        Ok(told)
    }

    async fn read_account(
        &self,
        link: &mut Link,
        channel: u8,
        number: u8,
    ) -> Result<(user::Access, Option<String>), Failure> {
        let access = user::read_access(&self.ask(link, user::access(channel, number)).await?)?;
        // An empty place has no name, and some BMCs say so by a completion code.
        let name = match self.ask(link, user::name(number)).await {
            Err(Failure::Completion(_)) => None,
            data => user::read_name(&data?)?,
        };
        Ok((access, name))
    }

    /// The number of an account that is as it was read.
    async fn same_account(&self, link: &mut Link, known: &Account) -> Result<(u8, u8), BmcError> {
        let channel = self.find_channel(link).await?;
        let gone = || BmcError::Refused(format!("it has no user {:?} in place {} any more", known.user, known.id));
        let number: u8 = known.id.parse().map_err(|_| gone())?;
        let (_, name) = self.read_account(link, channel, number).await?;
        if name.unwrap_or_default() != known.user {
            return Err(gone());
        }
        Ok((channel, number))
    }

    async fn take_account(&self, link: &mut Link, known: &Account) -> Result<(), BmcError> {
        let (channel, number) = self.same_account(link, known).await?;
        self.ask(link, user::set_enabled(number, false)).await?;
        self.ask(link, user::set_access(channel, number, 0x0f)).await?;
        if !known.user.is_empty() {
            self.ask(link, user::set_name(number, "")).await?;
        }
        Ok(())
    }

    async fn write_account(&self, link: &mut Link, known: &Account, wanted: &Account) -> Result<(), BmcError> {
        let (channel, number) = self.same_account(link, known).await?;
        let role = wanted.role.as_deref().or(known.role.as_deref()).unwrap_or_default();
        self.ask(link, user::set_access(channel, number, user::privilege_code(role))).await?;
        self.ask(link, user::set_enabled(number, wanted.is_enabled)).await?;
        Ok(())
    }

    async fn write_lan(&self, link: &mut Link, wanted: &Lan) -> Result<(), BmcError> {
        use lan::Parameter;
        let now = self.read_lan(link).await?;
        let channel = self.find_channel(link).await?;
        let mut write = Vec::new();
        if let Some(is_dhcp) = wanted.is_dhcp.filter(|_| wanted.is_dhcp != now.is_dhcp) {
            write.push((Parameter::Source, lan::source(is_dhcp).to_vec()));
        }
        if wanted.is_dhcp == Some(false) {
            if let Some((IpAddr::V4(address), length)) = wanted.addresses.first()
                && wanted.addresses != now.addresses
            {
                write.push((Parameter::Address, address.octets().to_vec()));
                write.push((Parameter::Mask, lan::mask(*length).to_vec()));
            }
            if let Some(IpAddr::V4(gateway)) = wanted.gateway.filter(|_| wanted.gateway != now.gateway) {
                write.push((Parameter::Gateway, gateway.octets().to_vec()));
            }
        }
        if wanted.vlan != now.vlan {
            write.push((Parameter::Vlan, lan::vlan(wanted.vlan).to_vec()));
        }
        for (parameter, value) in write {
            self.ask(link, lan::set_parameter(channel, parameter, &value)).await?;
        }
        Ok(())
    }

    async fn write_password(&self, link: &mut Link, user: &str, password: &str) -> Result<(), BmcError> {
        if password.len() > MAX_PASSWORD {
            return Err(BmcError::Refused(format!("IPMI takes passwords of at most {MAX_PASSWORD} bytes")));
        }
        if password.is_empty() || password.contains('\0') {
            return Err(BmcError::Refused("IPMI takes no empty password and no NUL in one".to_owned()));
        }
        let accounts = self.read_accounts(link).await?;
        let number = accounts.accounts.iter().find(|account| account.user == user);
        let number: u8 = number
            .and_then(|account| account.id.parse().ok())
            .ok_or_else(|| BmcError::Refused(format!("it has no user {user:?}")))?;
        let mut form = Form::Long;
        match self.ask(link, user::set_password(number, form, password)).await {
            // An old BMC keeps 16 bytes, and says so by the number of the user or the length.
            Err(Failure::Completion(_)) if password.len() <= Form::Short.length() => {
                form = Form::Short;
                self.ask(link, user::set_password(number, form, password)).await?;
            }
            written => drop(written?),
        }
        match self.ask(link, user::test_password(number, form, password)).await {
            Err(Failure::Completion(0x80 | 0x81)) => {
                Err(BmcError::Refused("it took the password and does not know it now".to_owned()))
            }
            // A BMC need not be able to test.
            Ok(_) | Err(Failure::Completion(_)) => Ok(()),
            Err(Failure::Ended(why)) => Err(why),
        }
    }

    async fn read_lan(&self, link: &mut Link) -> Result<Lan, BmcError> {
        use lan::Parameter;
        let channel = self.find_channel(link).await?;
        let mut values = [const { None }; 6];
        let parameters = [
            Parameter::Address,
            Parameter::Mask,
            Parameter::Mac,
            Parameter::Gateway,
            Parameter::Source,
            Parameter::Vlan,
        ];
        for (value, parameter) in values.iter_mut().zip(parameters) {
            *value = self.ask_optional(link, lan::parameter(channel, parameter)).await?;
        }
        let [address, mask, mac, gateway, source, vlan] = &values;
        let mask = mask.as_deref().map(lan::read_mask).transpose()?;
        let address = address.as_deref().map(lan::read_address).transpose()?.flatten();
        Ok(Lan {
            mac: mac.as_deref().map(lan::read_mac).transpose()?.flatten(),
            addresses: address.zip(mask).into_iter().collect(),
            gateway: gateway.as_deref().map(lan::read_address).transpose()?.flatten(),
            is_dhcp: source.as_deref().map(lan::read_is_dhcp).transpose()?.flatten(),
            vlan: vlan.as_deref().map(lan::read_vlan).transpose()?.flatten(),
        })
    }
}

impl Denied {
    /// What is answered without asking the BMC, until it may be asked again.
    fn still(&self) -> Option<BmcError> {
        let left = self.until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        let advice = format!("so that the account is not locked, it is tried again in {} s", left.as_secs() + 1);
        Some(BmcError::Denied(format!("{}; {advice}", self.why)))
    }
}

impl Open {
    fn now(&self) -> Mono {
        Mono(self.began.elapsed())
    }
}

impl Repository {
    fn add(&mut self, id: u16, sensors: Vec<Sensor>) {
        for sensor in sensors {
            if self.sensors.len() >= MAX_ITEMS {
                return self.skipped.push(skipped(format!("SDR {id:#06x}"), "too many sensors"));
            }
            if sensor.is_bmcs() {
                self.sensors.push(sensor);
            } else {
                self.skipped.push(skipped_sensor(&sensor, "another controller than the BMC has it"));
            }
        }
    }
}

impl From<Malformed> for BmcError {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed.to_string())
    }
}

impl From<Malformed> for Failure {
    fn from(malformed: Malformed) -> Self {
        Self::Ended(malformed.into())
    }
}

fn skipped(place: String, why: impl fmt::Display) -> Skipped {
    Skipped { place, why: why.to_string() }
}

fn skipped_sensor(sensor: &Sensor, why: impl fmt::Display) -> Skipped {
    skipped(format!("{} ({:#04x})", sensor.name, sensor.number), why)
}

fn power_draw(watts: Option<u16>) -> Reading {
    Reading {
        name: "Power draw (DCMI)".to_owned(),
        kind: SensorKind::Power,
        value: watts.map(f64::from),
        states: Vec::new(),
        severity: None,
        thresholds: crate::told::Thresholds::default(),
    }
}

const SYSTEM_BOARD: u8 = 0x07;

/// What a part is, by its entity (table 43-13).
fn part_kind(entity: u8) -> PartKind {
    match entity {
        0x03 | 0x09 => PartKind::Processor,
        0x04 | 0x1a => PartKind::Drive,
        0x07 => PartKind::Mainboard,
        0x08 | 0x20 => PartKind::Memory,
        0x0a | 0x13 => PartKind::PowerSupply,
        0x0b | 0x10 | 0x2c => PartKind::Card,
        0x17 => PartKind::Chassis,
        0x1d | 0x1e => PartKind::Fan,
        _ => PartKind::Other,
    }
}

/// The parts an inventory tells of: the machine's own tells of its chassis and mainboard.
fn as_parts(fru: fru::Fru, locator: &FruLocator, is_machine: bool, place: &str) -> Vec<Part> {
    let part = |kind, slot: &str| Part {
        kind,
        slot: slot.to_owned(),
        vendor: None,
        model: None,
        part_number: None,
        serial: None,
        firmware: None,
        size: None,
        macs: Vec::new(),
        severity: None,
    };
    let mut parts = Vec::new();
    if is_machine && let Some(chassis) = fru.chassis {
        parts.push(Part {
            part_number: chassis.part_number,
            serial: chassis.serial,
            ..part(PartKind::Chassis, "Chassis")
        });
    }
    let (kind, slot) = if is_machine { (PartKind::Mainboard, "Mainboard") } else { (part_kind(locator.entity), place) };
    match (fru.board, fru.product) {
        (Some(board), product) => {
            let product = if is_machine { None } else { product }.unwrap_or_default();
            parts.push(Part {
                vendor: board.vendor.or(product.vendor),
                model: board.name.or(product.name),
                part_number: board.part_number.or(product.part_number),
                serial: board.serial.or(product.serial),
                ..part(kind, slot)
            });
        }
        (None, Some(product)) if !is_machine => parts.push(Part {
            vendor: product.vendor,
            model: product.name,
            part_number: product.part_number,
            serial: product.serial,
            ..part(kind, slot)
        }),
        _ => {}
    }
    parts
}

/// IPMI has no word for them.
fn no_bios() -> BmcError {
    BmcError::Unsupported("the settings of the machine's firmware are in Redfish only".to_owned())
}

/// Its traps (PET) have no certificate and no context: its log is polled.
fn no_events() -> BmcError {
    BmcError::Unsupported("events are sent by Redfish only".to_owned())
}

impl Bmc for Ipmi {
    fn close(&self) -> Answer<'_, ()> {
        Box::pin(async move {
            Self::close(self).await;
            Ok(())
        })
    }

    fn identity(&self) -> Answer<'_, Identity> {
        Box::pin(self.within(SHORT_CALL, async { self.read_identity(&mut *self.link.lock().await).await }))
    }

    fn power(&self) -> Answer<'_, Power> {
        Box::pin(self.within(SHORT_CALL, async { self.read_power(&mut *self.link.lock().await).await }))
    }

    fn set_power(&self, wanted: Power) -> Answer<'_, ()> {
        Box::pin(self.within(SHORT_CALL, async move { self.write_power(&mut *self.link.lock().await, wanted).await }))
    }

    fn boot(&self) -> Answer<'_, Boot> {
        Box::pin(self.within(SHORT_CALL, async { Ok(self.read_flags(&mut *self.link.lock().await).await?.boot()) }))
    }

    fn set_boot(&self, wanted: BootOverride) -> Answer<'_, ()> {
        Box::pin(self.within(SHORT_CALL, async move { self.write_boot(&mut *self.link.lock().await, wanted).await }))
    }

    fn identify(&self, lit: Duration) -> Answer<'_, ()> {
        Box::pin(self.within(SHORT_CALL, async move { self.light(&mut *self.link.lock().await, lit).await }))
    }

    fn sensors(&self) -> Answer<'_, Sensors> {
        Box::pin(self.within(LONG_CALL, async { self.read_sensors(&mut *self.link.lock().await).await }))
    }

    fn log(&self) -> Answer<'_, Log> {
        Box::pin(self.within(LONG_CALL, async { self.read_log(&mut *self.link.lock().await).await }))
    }

    fn clear_log(&self, last: Option<&str>) -> Answer<'_, ()> {
        let last = last.map(str::to_owned);
        Box::pin(
            self.within(SHORT_CALL, async move { self.erase_log(&mut *self.link.lock().await, last.as_deref()).await }),
        )
    }

    fn parts(&self) -> Answer<'_, Parts> {
        Box::pin(self.within(LONG_CALL, async { self.read_parts_list(&mut *self.link.lock().await).await }))
    }

    fn accounts(&self) -> Answer<'_, Accounts> {
        Box::pin(self.within(SHORT_CALL, async { self.read_accounts(&mut *self.link.lock().await).await }))
    }

    fn set_password<'a>(&'a self, user: &'a str, password: &'a str) -> Answer<'a, ()> {
        Box::pin(
            self.within(
                SHORT_CALL,
                async move { self.write_password(&mut *self.link.lock().await, user, password).await },
            ),
        )
    }

    fn remove_account<'a>(&'a self, account: &'a Account) -> Answer<'a, ()> {
        Box::pin(self.within(SHORT_CALL, async move { self.take_account(&mut *self.link.lock().await, account).await }))
    }

    fn change_account<'a>(&'a self, account: &'a Account, wanted: &'a Account) -> Answer<'a, ()> {
        Box::pin(
            self.within(
                SHORT_CALL,
                async move { self.write_account(&mut *self.link.lock().await, account, wanted).await },
            ),
        )
    }

    fn lan(&self) -> Answer<'_, Lan> {
        Box::pin(self.within(SHORT_CALL, async { self.read_lan(&mut *self.link.lock().await).await }))
    }

    fn set_lan<'a>(&'a self, wanted: &'a Lan) -> Answer<'a, ()> {
        Box::pin(self.within(SHORT_CALL, async move { self.write_lan(&mut *self.link.lock().await, wanted).await }))
    }

    fn bios(&self) -> Answer<'_, Bios> {
        Box::pin(async { Err(no_bios()) })
    }

    fn set_bios<'a>(&'a self, _wanted: &'a BTreeMap<String, Attribute>) -> Answer<'a, ()> {
        Box::pin(async { Err(no_bios()) })
    }

    fn subscribe<'a>(&'a self, _base: &'a str, _name: &'a str) -> Answer<'a, ()> {
        Box::pin(async { Err(no_events()) })
    }

    fn unsubscribe<'a>(&'a self, _base: &'a str) -> Answer<'a, ()> {
        Box::pin(async { Err(no_events()) })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        sync::{Arc, atomic::AtomicBool},
        task::Poll,
    };

    use super::{super::session::tests::Fake, *};

    /// Serves a BMC until the test ends; it forgets its session whenever the flag is raised.
    async fn serve(mut fake: Fake) -> (Ipmi, Arc<AtomicBool>) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let forgets = Arc::new(AtomicBool::new(false));
        let flag = forgets.clone();
        tokio::spawn(async move {
            let mut buffer = [0; MAX_DATAGRAM];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                if flag.swap(false, Ordering::Relaxed) {
                    fake.keys = None;
                }
                if let Some(reply) = fake.handle(&buffer[..length]) {
                    socket.send_to(&reply, from).await.unwrap();
                }
            }
        });
        let credentials = Credentials { user: "admin".to_owned(), password: "secret".to_owned().into() };
        (Ipmi::new(address, credentials), forgets)
    }

    fn compact(number: u8) -> Vec<u8> {
        let mut bytes = vec![number, 0, 0x51, 0x02, 0, 0x20, 0, number, 0x0a, 1, 0x67, 0x40, 0x08, 0x6f];
        bytes.resize(31, 0);
        bytes.extend(*b"\xc5Power");
        bytes[4] = u8::try_from(bytes.len() - 5).unwrap();
        bytes
    }

    const INFO: [u8; 14] = [0x51, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0];

    #[tokio::test]
    async fn records_are_read_in_parts_and_under_another_reservation_when_one_is_lost() {
        let (mut reservation, mut losses) = (6, 2);
        let respond = move |_, command, data: &[u8]| match command {
            0x20 => (0, INFO.to_vec()),
            0x22 => {
                reservation += 1;
                (0, vec![reservation, 0])
            }
            0x23 if data[5] == 0xff => (0xca, vec![]),
            0x23 if data[0] != reservation => (0xc5, vec![]),
            0x23 if data[4] > 16 && losses > 0 => {
                losses -= 1;
                reservation += 1;
                (0xc5, vec![])
            }
            0x23 => {
                let number = data[2].max(1);
                let record = compact(number);
                let next = if number == 1 { [2, 0] } else { [0xff, 0xff] };
                let (from, count) = (usize::from(data[4]), usize::from(data[5]));
                (0, [&next[..], &record[from..from + count]].concat())
            }
            0x2d => (0, vec![0, 0xc0, 1]),
            _ => (0xc1, vec![]),
        };
        let (bmc, _) = serve(Fake::responding(respond)).await;
        let told = bmc.sensors().await.unwrap();
        let seen: Vec<_> = told.readings.iter().map(|reading| (&*reading.name, &*reading.states)).collect();
        assert_eq!(seen, [("Power", &["Presence detected".to_owned()][..]); 2]);
    }

    #[tokio::test]
    async fn a_walk_that_was_cancelled_is_gone_on_with() {
        let counts: [Arc<AtomicU64>; 2] = Default::default();
        let [records, readings] = counts.clone();
        let respond = move |_, command, data: &[u8]| match command {
            0x20 => (0, INFO.to_vec()),
            0x23 => {
                records.fetch_add(1, Ordering::Relaxed);
                let next = if data[2] == 40 { [0xff, 0xff] } else { [data[2] + 1, 0] };
                (0, [&next[..], &compact(data[2])].concat())
            }
            0x2d => {
                readings.fetch_add(1, Ordering::Relaxed);
                (0, vec![0, 0xc0, 1])
            }
            _ => (0xc1, vec![]),
        };
        let (bmc, _) = serve(Fake::responding(respond)).await;
        // Long enough for a few records, and not for all of them.
        let mut cancelled = 0;
        while counts[1].load(Ordering::Relaxed) == 0 {
            assert!(cancelled < 1000, "it never comes to the readings");
            cut(20, bmc.sensors()).await;
            cancelled += 1;
        }
        assert!(cancelled > 2, "{cancelled}");
        assert_eq!(bmc.sensors().await.unwrap().readings.len(), 41);
        // A record is asked for twice when its answer was not waited for.
        let asked = counts[0].load(Ordering::Relaxed);
        assert!(asked <= 41 + cancelled, "{asked} for {cancelled}");
    }

    #[tokio::test]
    async fn a_repository_without_an_end_is_left() {
        let respond = |_, command, data: &[u8]| match command {
            0x20 => (0, INFO.to_vec()),
            0x23 => (0, [&[data[2] % 2 + 1, 0][..], &compact(1)].concat()),
            0x2d => (0xcb, vec![]),
            _ => (0xc1, vec![]),
        };
        let (bmc, _) = serve(Fake::responding(respond)).await;
        let told = bmc.sensors().await.unwrap();
        assert_eq!(told.skipped.len(), 1);
        assert_eq!(told.readings.len(), 3);
    }

    #[tokio::test]
    async fn a_session_that_the_bmc_lost_is_opened_again() {
        let respond = |_, _, _: &[u8]| (0, vec![1, 0, 0]);
        let (bmc, forgets) = serve(Fake::responding(respond)).await;
        assert_eq!(bmc.power().await, Ok(Power::On));
        forgets.store(true, Ordering::Relaxed);
        assert_eq!(bmc.power().await, Ok(Power::On));
    }

    /// Polls a call so many times at most, and then cancels it.
    async fn cut<T>(mut polls: usize, call: impl Future<Output = T>) -> Option<T> {
        let mut call = std::pin::pin!(call);
        poll_fn(|context| match call.as_mut().poll(context) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if polls == 0 => Poll::Ready(None),
            Poll::Pending => {
                polls -= 1;
                Poll::Pending
            }
        })
        .await
    }

    #[tokio::test]
    async fn a_call_that_is_cancelled_loses_no_session() {
        let fake = Fake::responding(|_, _, _| (0, vec![1, 0, 0]));
        let opened = fake.opened.clone();
        let (bmc, _) = serve(fake).await;
        let mut cancelled = 0;
        for polls in (0..4).cycle().take(100) {
            cancelled += u32::from(cut(polls, bmc.power()).await.is_none());
            tokio::task::yield_now().await;
        }
        assert!(cancelled > 20, "{cancelled}");
        assert_eq!(bmc.power().await, Ok(Power::On));
        assert_eq!(opened.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn erasing_the_log_is_waited_for() {
        let mut polls = 0;
        let respond = move |_, command, data: &[u8]| match command {
            0x40 => (0, vec![0x51, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x02]),
            0x42 => (0, vec![9, 0]),
            0x47 if data[..5] != *b"\x09\0CLR" => (0xc5, vec![]),
            0x47 => {
                polls += 1;
                (0, vec![u8::from(polls > 2)])
            }
            _ => (0xc1, vec![]),
        };
        let (bmc, _) = serve(Fake::responding(respond)).await;
        assert_eq!(bmc.clear_log(None).await, Ok(()));
        assert_eq!(bmc.sent().0, 5);
    }

    #[tokio::test]
    async fn a_password_that_was_denied_is_not_tried_again_for_a_while() {
        let (mut bmc, _) = serve(Fake::responding(|_, _, _| (0, vec![1, 0, 0]))).await;
        bmc.credentials.password = "wrong".to_owned().into();
        assert_eq!(bmc.power().await, Err(BmcError::Denied("wrong password".to_owned())));
        let (_, before) = bmc.sent();
        let Err(BmcError::Denied(why)) = bmc.power().await else { panic!("it was not denied") };
        assert!(why.starts_with("wrong password; ") && why.contains("it is tried again in "), "{why}");
        assert_eq!(bmc.sent().1, before);
        tokio::time::pause();
        tokio::time::advance(DENIED_TIME).await;
        tokio::time::resume();
        assert_eq!(bmc.power().await, Err(BmcError::Denied("wrong password".to_owned())));
        assert!(bmc.sent().1 > before);
    }

    #[tokio::test]
    async fn what_a_user_may_not_do_is_denied() {
        let (bmc, _) = serve(Fake::responding(|_, _, _| (0xd4, vec![]))).await;
        assert!(matches!(bmc.set_power(Power::Off).await, Err(BmcError::Denied(_))));
    }
}
