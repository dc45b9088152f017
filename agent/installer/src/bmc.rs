//! The machine's own BMC, asked in-band: through the kernel's `/dev/ipmi0` (linux/ipmi.h), which needs no
//! password and is wired to no other machine. What it says there is the best proof of whose BMC it is that
//! is found on the management network.
//!
//! Invariants:
//! - Nothing is changed but by an order to [`regain`] it: it is only asked.
//! - All questions together take at most [`PATIENCE`], an order [`REGAIN`]. After one that is not answered nothing more is asked:
//!   a system interface that hangs answers none.
//! - A BMC that answers only some of them is told with what it answered.

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::AsRawFd as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::libc;
use rackhand_common::{
    bmc::InBandUser,
    hardware::{Bmc, BmcLan},
};
use rackhand_ipmi::{
    device, fru,
    lan::{self, Parameter},
    packet::{Malformed, Request},
    regain::{self, No, NotRegained, Regained},
};

/// How long all of it may take.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How long it may take to give a BMC its user back: some write an account for half a minute.
pub const REGAIN: Duration = Duration::from_secs(120);

/// How long one answer may take to a request that changes something.
const WRITTEN: Duration = Duration::from_secs(40);

/// How long one answer may take. Those of a system interface come within milliseconds; a BMC that is
/// busy takes longer.
const ANSWER: Duration = Duration::from_secs(2);

/// How often it is looked for an answer.
const LOOK: Duration = Duration::from_millis(2);

/// Numbers that channels have which may be a LAN (IPMI 2.0 §6.3).
const CHANNELS: std::ops::RangeInclusive<u8> = 1..=11;

/// The most of a FRU that is read, in bytes. What is asked for stands in its first areas.
const MAX_FRU: usize = 1024;

/// So many bytes of a FRU are asked for at once: every BMC gives these.
const CHUNK: u8 = 16;

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// The BMC says that it does not do it (IPMI 2.0 table 5-2).
    #[error("refused by the BMC (completion code {0:#04x})")]
    Refused(u8),
    /// It says what means nothing.
    #[error("the BMC's answer cannot be read")]
    Malformed(#[from] Malformed),
    /// It does not answer, or there is no way to it.
    #[error("the BMC does not answer")]
    Silent(#[source] io::Error),
}

/// A way to send a BMC requests.
pub trait Interface {
    /// What it answers behind the completion code 0x00, within this time.
    fn ask(&mut self, request: &Request, limit: Duration) -> Result<Vec<u8>, NoAnswer>;
}

/// The kernel's way to the machine's own BMC, when it has one.
pub fn system_interface() -> io::Result<Option<Box<dyn Interface>>> {
    match SystemInterface::open(Path::new(DEVICE)) {
        Ok(interface) => Ok(Some(Box::new(interface))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What the machine's own BMC says, when it has one that answers.
pub fn look() -> Option<Bmc> {
    let opened = system_interface().inspect_err(|error| tracing::warn!(%error, "cannot open {DEVICE}"));
    let mut interface = opened.ok()??;
    let began = Instant::now();
    let told = read(&mut *interface, &|| PATIENCE.saturating_sub(began.elapsed()));
    told.inspect_err(|error| tracing::warn!(cause = std::error::Error::source(error), "{error}")).ok()
}

/// Asks for all of it; `left` says how long there is time. Fails only when it does not say what it is.
pub fn read(interface: &mut dyn Interface, left: &dyn Fn() -> Duration) -> Result<Bmc, NoAnswer> {
    let mut questions = Questions { interface, left, is_silent: false };
    let device = questions.ask(&device::device_id(), device::read_device_id)?;
    let mut bmc = Bmc {
        maker: device::manufacturer(device.manufacturer).unwrap_or_default().to_owned(),
        firmware: device.firmware,
        guid: questions.ask(&device::system_guid(), device::read_system_guid).ok().flatten(),
        ..Bmc::default()
    };
    for channel in CHANNELS {
        // Most numbers are no channel's.
        if !questions.ask(&lan::channel(channel), lan::read_is_lan).unwrap_or(false) {
            continue;
        }
        let parameter = |parameter| lan::parameter(channel, parameter);
        let told = BmcLan {
            channel,
            mac: questions.ask(&parameter(Parameter::Mac), lan::read_mac).ok().flatten(),
            address: questions.ask(&parameter(Parameter::Address), lan::read_address).ok().flatten(),
            is_dhcp: questions.ask(&parameter(Parameter::Source), lan::read_is_dhcp).ok().flatten(),
        };
        if told.mac.is_some() || told.address.is_some() {
            bmc.lan.push(told);
        }
    }
    if device.has_fru
        && let Ok(fru) = questions.fru()
        && let Some(serial) = fru.product.and_then(|product| product.serial)
    {
        bmc.serial = serial;
    }
    Ok(bmc)
}

/// Has the BMC behind `interface` let this user in over its LANs; `left` says how long there is time.
pub fn regain(
    interface: &mut dyn Interface,
    left: &dyn Fn() -> Duration,
    user: &InBandUser,
) -> Result<Regained, NotRegained<NoAnswer>> {
    let mut ask = |request: &Request| {
        let limit = left().min(WRITTEN);
        if limit.is_zero() {
            return Err(No::Ended(NoAnswer::Silent(io::ErrorKind::TimedOut.into())));
        }
        interface.ask(request, limit).map_err(|error| match error {
            NoAnswer::Refused(code) => No::Code(code),
            error => No::Ended(error),
        })
    };
    regain::regain(&mut ask, &user.user, &user.password)
}

struct Questions<'a> {
    interface: &'a mut dyn Interface,
    left: &'a dyn Fn() -> Duration,
    is_silent: bool,
}

impl Questions<'_> {
    fn ask<T>(&mut self, request: &Request, read: impl Fn(&[u8]) -> Result<T, Malformed>) -> Result<T, NoAnswer> {
        let limit = (self.left)().min(ANSWER);
        if self.is_silent || limit.is_zero() {
            return Err(NoAnswer::Silent(io::ErrorKind::TimedOut.into()));
        }
        let answer = self.interface.ask(request, limit);
        self.is_silent = matches!(answer, Err(NoAnswer::Silent(_)));
        Ok(read(&answer?)?)
    }

    fn fru(&mut self) -> Result<fru::Fru, NoAnswer> {
        let info = self.ask(&fru::info(0), fru::read_info)?;
        let unit = if info.is_by_words { 2 } else { 1 };
        let size = usize::from(info.size).min(MAX_FRU);
        let mut bytes = Vec::with_capacity(size);
        while bytes.len() < size {
            let at = u16::try_from(bytes.len() / usize::from(unit)).expect("below the most that is read");
            let part = self.ask(&fru::read(0, at, CHUNK / unit), |data| fru::read_data(data).map(<[u8]>::to_vec))?;
            let part = &part[..part.len().min(CHUNK.into())];
            // Nothing more, or half a word.
            if part.is_empty() || part.len() % usize::from(unit) != 0 {
                break;
            }
            bytes.extend(part);
        }
        Ok(fru::parse(&bytes)?)
    }
}

/// Where the kernel has the first BMC.
const DEVICE: &str = "/dev/ipmi0";

/// The kernel's way to the BMC.
struct SystemInterface {
    device: File,
    /// Number of the latest request.
    number: libc::c_long,
}

/// `struct ipmi_system_interface_addr`.
#[repr(C)]
struct Address {
    kind: libc::c_int,
    channel: libc::c_short,
    lun: u8,
}

/// `struct ipmi_msg`.
#[repr(C)]
struct Message {
    netfn: u8,
    command: u8,
    len: u16,
    data: *mut u8,
}

/// `struct ipmi_req`.
#[repr(C)]
pub struct Sent {
    address: *mut Address,
    address_len: libc::c_uint,
    number: libc::c_long,
    message: Message,
}

/// `struct ipmi_recv`.
#[repr(C)]
pub struct Received {
    kind: libc::c_int,
    address: *mut u8,
    address_len: libc::c_uint,
    number: libc::c_long,
    message: Message,
}

mod ioctl {
    use super::{Received, Sent};
    nix::ioctl_readwrite!(receive_truncated, b'i', 11, Received); // IPMICTL_RECEIVE_MSG_TRUNC
    // The kernel calls it a read, and reads.
    nix::ioctl_read!(send, b'i', 13, Sent); // IPMICTL_SEND_COMMAND
}

/// `IPMI_SYSTEM_INTERFACE_ADDR_TYPE` and `IPMI_BMC_CHANNEL`.
const SYSTEM_INTERFACE: libc::c_int = 0x0c;
const BMC_CHANNEL: libc::c_short = 0x0f;

/// `IPMI_RESPONSE_RECV_TYPE`.
const RESPONSE: libc::c_int = 1;

/// `IPMI_MAX_ADDR_SIZE` and `IPMI_MAX_MSG_LENGTH`: no answer has more.
const MAX_ADDRESS: usize = 40;
const MAX_MESSAGE: usize = 272;

impl SystemInterface {
    fn open(device: &Path) -> io::Result<Self> {
        Ok(Self { device: OpenOptions::new().read(true).write(true).open(device)?, number: 0 })
    }

    fn send(&mut self, request: &Request) -> io::Result<()> {
        self.number += 1;
        let mut data = request.data.clone();
        let mut address = Address { kind: SYSTEM_INTERFACE, channel: BMC_CHANNEL, lun: request.lun };
        let message = Message {
            netfn: request.netfn,
            command: request.command,
            len: u16::try_from(data.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
            data: data.as_mut_ptr(),
        };
        let address_len = size_of::<Address>() as libc::c_uint;
        let mut sent = Sent { address: &raw mut address, address_len, number: self.number, message };
        // SAFETY: the structures have the kernel's layout, and lengths are those of what is pointed at, which
        // the kernel copies before the call returns.
        unsafe { ioctl::send(self.device.as_raw_fd(), &raw mut sent) }?;
        Ok(())
    }

    /// The next message: its number, and the completion code with what is behind it.
    fn receive(&self) -> io::Result<Option<(libc::c_long, Vec<u8>)>> {
        let mut data = [0; MAX_MESSAGE];
        let mut address = [0u64; MAX_ADDRESS / 8];
        let message = Message { netfn: 0, command: 0, len: MAX_MESSAGE as u16, data: data.as_mut_ptr() };
        let mut received = Received {
            kind: 0,
            address: address.as_mut_ptr().cast(),
            address_len: MAX_ADDRESS as libc::c_uint,
            number: 0,
            message,
        };
        // SAFETY: as above; the kernel writes at most as much as the lengths say, and `address` is aligned
        // for any of its addresses.
        unsafe { ioctl::receive_truncated(self.device.as_raw_fd(), &raw mut received) }?;
        let len = usize::from(received.message.len).min(MAX_MESSAGE);
        Ok((received.kind == RESPONSE).then(|| (received.number, data[..len].to_vec())))
    }
}

impl Interface for SystemInterface {
    fn ask(&mut self, request: &Request, limit: Duration) -> Result<Vec<u8>, NoAnswer> {
        let end = Instant::now() + limit;
        self.send(request).map_err(NoAnswer::Silent)?;
        while Instant::now() <= end {
            let data = match self.receive() {
                // Nothing is there yet.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    thread::sleep(LOOK);
                    continue;
                }
                Err(error) => return Err(NoAnswer::Silent(error)),
                // An event, or what answers an earlier request and came too late for it.
                Ok(None) => continue,
                Ok(Some((number, _))) if number != self.number => continue,
                Ok(Some((_, data))) => data,
            };
            return match data.split_first() {
                Some((0, data)) => Ok(data.to_vec()),
                Some((completion, _)) => Err(NoAnswer::Refused(*completion)),
                None => Err(Malformed("an answer without a completion code").into()),
            };
        }
        Err(NoAnswer::Silent(io::ErrorKind::TimedOut.into()))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use expect_test::expect;
    use proptest::prelude::*;
    use rackhand_ipmi::packet;

    use super::*;

    /// A BMC that answers by function, with how often it was asked.
    struct Simulated<F>(F, u32);

    impl<F: FnMut(u8, u8, &[u8]) -> Result<Vec<u8>, NoAnswer>> Interface for Simulated<F> {
        fn ask(&mut self, request: &Request, _: Duration) -> Result<Vec<u8>, NoAnswer> {
            self.1 += 1;
            (self.0)(request.netfn, request.command, &request.data)
        }
    }

    /// A FRU with a product area whose serial number is `SN7`.
    fn product() -> Vec<u8> {
        let mut area = vec![1, 0, 25];
        for field in ["Acme", "R1", "PN", "v1", "SN7"] {
            area.push(0xc0 | u8::try_from(field.len()).unwrap());
            area.extend(field.bytes());
        }
        area.extend([0xc0, 0xc1]);
        area.resize(area.len().next_multiple_of(8) + 7, 0);
        area[1] = u8::try_from(area.len().div_ceil(8)).unwrap();
        area.push(packet::checksum(&area));
        let mut fru = vec![1, 0, 0, 0, 1, 0, 0];
        fru.push(packet::checksum(&fru));
        fru.extend(area);
        fru
    }

    fn answer(netfn: u8, command: u8, data: &[u8]) -> Result<Vec<u8>, NoAnswer> {
        let refused = Err(NoAnswer::Refused(0xcc));
        match (netfn, command, data) {
            (0x06, 0x01, []) => Ok(vec![0x20, 1, 2, 0x14, 2, 0x8f, 0xa2, 0x02, 0, 0, 1]),
            (0x06, 0x37, []) => Ok((1..=16).collect()),
            (0x06, 0x42, [1 | 8]) => Ok(vec![data[0], 4, 1, 0x80, 0xf2, 0x1b, 0, 0, 0]),
            (0x06, 0x42, [2]) => Ok(vec![2, 1, 1, 0, 0xf2, 0x1b, 0, 0, 0]),
            (0x0c, 0x02, [1, 3, 0, 0]) => Ok(vec![0x11, 10, 20, 0, 9]),
            (0x0c, 0x02, [1, 4, 0, 0]) => Ok(vec![0x11, 2]),
            (0x0c, 0x02, [1, 5, 0, 0]) => Ok(vec![0x11, 2, 0, 0, 0, 0, 9]),
            (0x0c, 0x02, [8, 5, 0, 0]) => Ok(vec![0x11, 2, 0, 0, 0, 0, 10]),
            (0x0a, 0x10, [0]) => Ok([&u16::try_from(product().len()).unwrap().to_le_bytes()[..], &[0]].concat()),
            (0x0a, 0x11, [0, low, high, count]) => {
                let from = usize::from(u16::from_le_bytes([*low, *high]));
                let part: Vec<_> = product().into_iter().skip(from).take(usize::from(*count)).collect();
                Ok([&[u8::try_from(part.len()).unwrap()][..], &part].concat())
            }
            _ => refused,
        }
    }

    fn ample() -> Duration {
        PATIENCE
    }

    #[test]
    fn a_bmc_says_what_it_is_and_where() {
        expect![[r#"
            Bmc {
                maker: "Dell",
                firmware: "2.14",
                guid: Some(
                    04030201-0605-0807-090a-0b0c0d0e0f10,
                ),
                serial: "SN7",
                lan: [
                    BmcLan {
                        channel: 1,
                        mac: Some(
                            02:00:00:00:00:09,
                        ),
                        address: Some(
                            10.20.0.9,
                        ),
                        is_dhcp: Some(
                            true,
                        ),
                    },
                    BmcLan {
                        channel: 8,
                        mac: Some(
                            02:00:00:00:00:0a,
                        ),
                        address: None,
                        is_dhcp: None,
                    },
                ],
            }
        "#]]
        .assert_debug_eq(&read(&mut Simulated(answer, 0), &ample).unwrap());
    }

    #[test]
    fn one_that_hangs_is_asked_once_more_and_not_again() {
        for answers in 0..12 {
            let mut count = 0;
            let hanging = |netfn, command, data: &[u8]| {
                count += 1;
                if count > answers {
                    return Err(NoAnswer::Silent(io::ErrorKind::TimedOut.into()));
                }
                answer(netfn, command, data)
            };
            let mut simulated = Simulated(hanging, 0);
            let told = read(&mut simulated, &ample);
            assert_eq!(simulated.1, answers + 1);
            // Without its first answer it is no BMC; with that it is told with what it said.
            assert_eq!(told.is_ok(), answers > 0);
            assert_eq!(told.is_ok_and(|bmc| bmc.guid.is_some()), answers > 1);
        }
    }

    #[test]
    fn a_slow_one_is_left_when_its_time_is_over() {
        let left = Cell::new(Duration::from_secs(3));
        let slow = |netfn, command, data: &[u8]| {
            left.set(left.get().saturating_sub(Duration::from_secs(1)));
            answer(netfn, command, data)
        };
        let mut simulated = Simulated(slow, 0);
        let told = read(&mut simulated, &|| left.get()).unwrap();
        assert_eq!((simulated.1, told.guid.is_some(), told.lan.len()), (3, true, 0));
    }

    proptest! {
        #[test]
        fn whatever_it_answers_is_read_with_a_bound_on_the_questions(
            answers in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..40),
        ) {
            let mut next = answers.iter().cycle();
            let mut simulated = Simulated(|_, _, _: &[u8]| Ok(next.next().unwrap().clone()), 0);
            let _ = read(&mut simulated, &ample);
            prop_assert!(simulated.1 < 1100);
        }
    }

    #[test]
    fn where_there_is_no_device_nothing_is_told() {
        let error = SystemInterface::open(Path::new("/nowhere/ipmi0")).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        // Layouts of linux/ipmi.h on 64 bits.
        assert_eq!((size_of::<Address>(), size_of::<Sent>(), size_of::<Received>()), (8, 40, 48));
    }
}
