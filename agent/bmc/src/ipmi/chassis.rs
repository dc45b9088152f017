//! Chassis: power, identification light and boot options (IPMI 2.0 §28).
//!
//! Invariants:
//! - Power is set to a state, never toggled.
//! - A boot override is written between "set in progress" and "set complete", and read back.

use std::time::Duration;

use rackhand_common::machine::Power;

use super::packet::{Malformed, Reader, Request};
use crate::told::{Boot, BootOverride, BootSource};

/// Asks for chassis status.
pub fn status() -> Request {
    Request::new(0x00, 0x01, &[])
}

/// Reads power from chassis status.
pub fn read_status(data: &[u8]) -> Result<Power, Malformed> {
    let [state, _, _]: [u8; 3] = Reader::new(data).array()?;
    Ok(if state & 0x01 != 0 { Power::On } else { Power::Off })
}

/// Has power be in this state, off without asking the system.
pub fn control(wanted: Power) -> Request {
    let control = match wanted {
        Power::Off => 0x00,
        Power::On => 0x01,
    };
    Request::new(0x00, 0x02, &[control])
}

/// Has the identification light on for so long: at most 255 s, or until it is put out when that
/// does not suffice and the BMC can.
pub fn identify(lit: Duration) -> Request {
    let seconds = lit.as_secs() + u64::from(lit.subsec_nanos() > 0);
    match u8::try_from(seconds) {
        Ok(seconds) => Request::new(0x00, 0x04, &[seconds]),
        Err(_) => Request::new(0x00, 0x04, &[0xff, 0x01]),
    }
}

/// The longest the light is on without being put out, for BMCs that cannot do more.
pub fn identify_long() -> Request {
    Request::new(0x00, 0x04, &[0xff])
}

/// Set-in-progress (parameter 0): whether options are being written.
pub fn set_in_progress(is_in_progress: bool) -> Request {
    Request::new(0x00, 0x08, &[0x00, is_in_progress.into()])
}

/// Has the BMC keep a one-time override for longer than 60 s and over what may happen before the
/// firmware reads it (parameter 3: it would otherwise clear the valid flag).
pub fn keep_valid() -> Request {
    Request::new(0x00, 0x08, &[0x03, 0x1f])
}

/// Tells the firmware that the options are new (parameter 4).
pub fn unacknowledged() -> Request {
    Request::new(0x00, 0x08, &[0x04, 0x01, 0x01])
}

/// Writes boot flags (parameter 5).
pub fn set_flags(flags: Flags) -> Request {
    let [a, b, c, d, e] = flags.0;
    Request::new(0x00, 0x08, &[0x05, a, b, c, d, e])
}

/// Asks for boot flags.
pub fn flags() -> Request {
    Request::new(0x00, 0x09, &[0x05, 0x00, 0x00])
}

/// Boot flags as they are written (table 28-14, parameter 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(pub [u8; 5]);

const VALID: u8 = 0x80;
const LASTING: u8 = 0x40;
const UEFI: u8 = 0x20;

impl Flags {
    /// The flags for an override, given those that are set; absent when IPMI cannot say it.
    pub fn of(wanted: &BootOverride, found: Self) -> Option<Self> {
        let device = match wanted.source {
            None => return Some(Self([0; 5])),
            // A BMC cannot be told an address, and a firmware that is to boot from the network in
            // UEFI mode tries PXE before HTTP.
            Some(BootSource::Http(_)) => return None,
            Some(BootSource::Network) => 0x1,
            Some(BootSource::Disk) => 0x2,
            Some(BootSource::Cd) => 0x5,
            Some(BootSource::Setup) => 0x6,
        };
        let uefi = wanted.uefi.map_or(found.0[0] & UEFI, |uefi| if uefi { UEFI } else { 0 });
        let lasting = if wanted.is_lasting { LASTING } else { 0 };
        Some(Self([VALID | lasting | uefi, device << 2, 0, 0, 0]))
    }

    /// Whether these, read back, are what was written. Some BMCs and simulators keep the device and
    /// forget that it is valid; those forget how, too, and cannot be held to it.
    pub fn is_kept(self, found: Self) -> bool {
        let source = |flags: Self| if flags.0[1] >> 2 & 0x0f == 0x3 { 0x2 } else { flags.0[1] >> 2 & 0x0f };
        let is_told = found.0[0] & VALID != 0;
        source(self) == source(found) && (source(self) == 0 || !is_told || self.0[0] == found.0[0] & 0xe0)
    }

    /// What they mean.
    pub fn boot(self) -> Boot {
        let [how, device, ..] = self.0;
        let (source, doubt) = match (how & VALID, device >> 2 & 0x0f) {
            (_, 0x0) => (None, None),
            (0, device) => (None, Some(format!("boot device {device:#x} is kept and not marked as valid"))),
            (_, 0x1) => (Some(BootSource::Network), None),
            (_, 0x2 | 0x3) => (Some(BootSource::Disk), None),
            (_, 0x5 | 0x8) => (Some(BootSource::Cd), None),
            (_, 0x6) => (Some(BootSource::Setup), None),
            (_, 0x4) => (None, Some("a diagnostic partition".to_owned())),
            (_, 0x7 | 0x9 | 0xb) => (None, Some("remote or removable media".to_owned())),
            (_, 0xf) => (None, Some("a floppy disk or other removable media".to_owned())),
            (_, device) => (None, Some(format!("boot device {device:#x}"))),
        };
        let is_set = how & VALID != 0;
        Boot {
            set: BootOverride {
                source,
                is_lasting: is_set && how & LASTING != 0,
                uefi: is_set.then_some(how & UEFI != 0),
            },
            doubt,
        }
    }
}

/// Reads boot flags. Some BMCs leave bytes out at the end.
pub fn read_flags(data: &[u8]) -> Result<Flags, Malformed> {
    let mut reader = Reader::new(data);
    let [_version, parameter] = reader.array()?;
    if parameter & 0x7f != 0x05 {
        return Err(Malformed("another boot option than was asked for"));
    }
    let [how, device] = reader.array()?;
    // The highest bit says that the parameter is locked or invalid.
    let how = if parameter & 0x80 != 0 { how & !VALID } else { how };
    Ok(Flags([how, device, reader.u8().unwrap_or(0), reader.u8().unwrap_or(0), reader.u8().unwrap_or(0)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(source: Option<BootSource>, is_lasting: bool, uefi: Option<bool>) -> BootOverride {
        BootOverride { source, is_lasting, uefi }
    }

    #[test]
    fn network_once_in_uefi_mode_is_what_ipmitool_writes() {
        // ipmitool chassis bootdev pxe options=efiboot
        let flags = Flags::of(&wanted(Some(BootSource::Network), false, Some(true)), Flags([0; 5])).unwrap();
        assert_eq!(set_flags(flags).data, [0x05, 0xa0, 0x04, 0x00, 0x00, 0x00]);
    }

    #[test]
    fn what_is_written_is_read_back() {
        for source in [BootSource::Network, BootSource::Disk, BootSource::Cd, BootSource::Setup] {
            for (is_lasting, uefi) in [(false, false), (false, true), (true, false), (true, true)] {
                let wanted = wanted(Some(source.clone()), is_lasting, Some(uefi));
                let flags = Flags::of(&wanted, Flags([0; 5])).unwrap();
                assert_eq!(flags.boot(), Boot { set: wanted, doubt: None });
            }
        }
        assert_eq!(Flags::of(&wanted(None, false, None), Flags([0xe0, 4, 0, 0, 0])).unwrap(), Flags([0; 5]));
    }

    #[test]
    fn the_mode_is_left_as_it_is_unless_said() {
        let found = Flags([0xa0, 0x08, 0, 0, 0]);
        let flags = Flags::of(&wanted(Some(BootSource::Disk), true, None), found).unwrap();
        assert_eq!(flags.0[0], 0xe0);
    }

    #[test]
    fn an_address_to_boot_from_cannot_be_told() {
        assert_eq!(Flags::of(&wanted(Some(BootSource::Http(None)), false, None), Flags([0; 5])), None);
    }

    #[test]
    fn what_is_read_back_is_compared_as_far_as_it_is_told() {
        let written = Flags([0xa0, 0x04, 0, 0, 0]);
        assert!(written.is_kept(written));
        assert!(written.is_kept(Flags([0x00, 0x04, 0, 0, 0])));
        assert!(!written.is_kept(Flags([0x80, 0x04, 0, 0, 0])));
        assert!(!written.is_kept(Flags([0xa0, 0x08, 0, 0, 0])));
        assert!(Flags([0; 5]).is_kept(Flags([0x80, 0x00, 0, 0, 0])));
    }

    #[test]
    fn a_source_without_a_name_here_is_a_doubt() {
        assert!(Flags([0x80, 0x3c, 0, 0, 0]).boot().doubt.is_some());
        assert_eq!(Flags([0x00, 0x00, 0, 0, 0]).boot().doubt, None);
    }

    #[test]
    fn a_light_is_on_for_a_time_or_until_it_is_put_out() {
        assert_eq!(identify(Duration::ZERO).data, [0]);
        assert_eq!(identify(Duration::from_millis(1)).data, [1]);
        assert_eq!(identify(Duration::from_secs(3600)).data, [0xff, 1]);
    }

    #[test]
    fn flags_that_are_cut_short_or_of_another_parameter_are_malformed() {
        assert_eq!(read_flags(&[1, 5, 0x80, 4]), Ok(Flags([0x80, 4, 0, 0, 0])));
        assert!(read_flags(&[1, 5, 0x80]).is_err());
        assert!(read_flags(&[1, 4, 0x80, 4]).is_err());
        assert_eq!(read_flags(&[1, 0x85, 0x80, 4]).unwrap().boot().set.source, None);
    }
}
