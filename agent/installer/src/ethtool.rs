//! What network drivers tell through `SIOCETHTOOL` (linux/ethtool.h): firmware version, permanent
//! address, and the identity page of the transceiver that is plugged in (SFF-8472, SFF-8636,
//! CMIS). Every question may be refused; a driver that does not answer leaves the field empty.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};
use rackhand_common::{hardware::Optics, machine::Mac};

/// A way to ask drivers.
pub struct Ethtool(OwnedFd);

/// `struct ifreq` with a pointer as its data.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    data: *mut u8,
    /// The union behind the name has room for a `struct ifmap`.
    rest: [u8; 16],
}

mod ioctl {
    nix::ioctl_readwrite_bad!(ethtool, 0x8946, super::Request); // SIOCETHTOOL
}

const GET_DRIVER_INFO: u32 = 0x03;
const GET_PERMANENT_ADDRESS: u32 = 0x20;
const GET_MODULE_INFO: u32 = 0x42;
const GET_MODULE_EEPROM: u32 = 0x43;

/// Both identity pages end before this.
const EEPROM: usize = 256;

impl Ethtool {
    /// Any socket will do.
    pub fn open() -> io::Result<Self> {
        Ok(Self(socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?))
    }

    /// The driver's `struct ethtool_drvinfo`: the firmware version in it.
    pub fn firmware(&self, card: &str) -> Option<String> {
        // Command, driver, version, then the firmware's, each of 32 bytes; 196 in all.
        let mut answer = [0; 196];
        self.ask(card, GET_DRIVER_INFO, &mut answer).ok()?;
        let text = answer[68..100].split(|byte| *byte == 0).next().unwrap_or_default();
        let text = String::from_utf8_lossy(text).trim().to_owned();
        (!text.is_empty() && text != "N/A").then_some(text)
    }

    /// The address the card was made with.
    pub fn permanent(&self, card: &str) -> Option<Mac> {
        // Command, size, address.
        let mut answer = [0; 40];
        answer[4..8].copy_from_slice(&32u32.to_ne_bytes());
        self.ask(card, GET_PERMANENT_ADDRESS, &mut answer).ok()?;
        let size = u32::from_ne_bytes(answer[4..8].try_into().ok()?);
        let mac: [u8; 6] = answer[8..14].try_into().ok()?;
        (size == 6 && mac != [0; 6] && mac != [0xff; 6]).then_some(Mac(mac))
    }

    /// The transceiver in the port.
    pub fn optics(&self, card: &str) -> Option<Optics> {
        // Command, type, length of its memory, eight reserved words.
        let mut info = [0; 44];
        self.ask(card, GET_MODULE_INFO, &mut info).ok()?;
        let told = u32::from_ne_bytes(info[8..12].try_into().ok()?) as usize;
        // Command, magic, offset, length, data.
        let len = told.min(EEPROM);
        let mut answer = [0; 16 + EEPROM];
        answer[12..16].copy_from_slice(&(len as u32).to_ne_bytes());
        self.ask(card, GET_MODULE_EEPROM, &mut answer).ok()?;
        optics(&answer[16..16 + len])
    }

    fn ask(&self, card: &str, command: u32, answer: &mut [u8]) -> io::Result<()> {
        let mut name = [0; libc::IFNAMSIZ];
        if card.len() >= name.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        name[..card.len()].copy_from_slice(card.as_bytes());
        answer[..4].copy_from_slice(&command.to_ne_bytes());
        let mut request = Request { name, data: answer.as_mut_ptr(), rest: [0; 16] };
        // SAFETY: the request has the layout of `ifreq`; its data is `answer`, which is as long as the
        // command's structure with the lengths in it, and lives until the call returns.
        unsafe { ioctl::ethtool(self.0.as_raw_fd(), &mut request) }?;
        Ok(())
    }
}

/// A transceiver by its identity page: SFP (SFF-8472 §4), QSFP (SFF-8636 §6.3) and their successors
/// (CMIS 5 §8.3) each have name, part and serial number at places of their own.
pub fn optics(page: &[u8]) -> Option<Optics> {
    let (vendor, part, serial) = match page.first()? {
        // SFP.
        0x03 => (20, 40, 68),
        // QSFP, QSFP+, QSFP28.
        0x0c | 0x0d | 0x11 => (148, 168, 196),
        // QSFP-DD, OSFP, SFP-DD, DSFP, QSFP+ with CMIS.
        0x18 | 0x19 | 0x1a | 0x1b | 0x1e => (129, 148, 166),
        _ => return None,
    };
    let text = |at: usize| {
        let field = page.get(at..at + 16).unwrap_or_default();
        String::from_utf8_lossy(field).trim_matches(['\0', ' ']).to_owned()
    };
    let optics = Optics { vendor: text(vendor), part: text(part), serial: text(serial) };
    (optics != Optics::default()).then_some(optics)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_transceiver_is_named_by_its_page() {
        let page = |kind: u8, [vendor, part, serial]: [usize; 3]| {
            let mut page = vec![0; 256];
            page[0] = kind;
            for (at, text) in [(vendor, "FINISAR CORP.   "), (part, "FTLX8571D3BCL   "), (serial, "AQ30FG7         ")] {
                page[at..at + 16].copy_from_slice(text.as_bytes());
            }
            page
        };
        for page in [page(0x03, [20, 40, 68]), page(0x11, [148, 168, 196]), page(0x18, [129, 148, 166])] {
            let found = optics(&page).unwrap();
            assert_eq!((&*found.vendor, &*found.part, &*found.serial), ("FINISAR CORP.", "FTLX8571D3BCL", "AQ30FG7"));
        }
        assert_eq!(optics(&[0x03; 10]), None);
        assert_eq!(optics(&[]), None);
    }

    #[test]
    fn the_kernels_request_has_the_kernels_size() {
        assert_eq!((size_of::<Request>(), std::mem::offset_of!(Request, data)), (size_of::<libc::ifreq>(), 16));
    }

    #[test]
    fn a_card_that_is_not_there_tells_nothing() {
        let ethtool = Ethtool::open().unwrap();
        assert_eq!(ethtool.firmware("no-such-card"), None);
        assert_eq!(ethtool.permanent("a name too long for a card"), None);
        assert_eq!(ethtool.optics("lo"), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_page_is_read(page in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Some(found) = optics(&page) {
                // A byte that is no letter takes three.
                prop_assert!(found.vendor.len() <= 48);
            }
        }
    }
}
