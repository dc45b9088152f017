//! How a disk says it fares, asked through [`Admin`]: the SMART / Health log page of NVMe (Base
//! Specification 2.0 §5.16.1.3), SMART of ATA (ACS-3 §7.48) and the informational exceptions of
//! SCSI (SPC-5 §7.3.7, §7.3.21).
//!
//! Only a disk's own word makes it failing: its status, or a count of its own that reached its own
//! threshold. Counts without a threshold are told and not judged.

use std::time::Duration;

use rackhand_common::hardware::DriveHealth;

use crate::admin::{Admin, AtaCommand, CommandError, Data, NvmeCommand, Speaks};

/// A disk that does not answer this soon is left alone: the machine has others.
const LIMIT: Duration = Duration::from_secs(5);

/// What the disk says; none when it says nothing of the kind.
pub fn ask(drive: &dyn Admin) -> Option<DriveHealth> {
    match drive.speaks() {
        Speaks::Nvme(_) => {
            let mut page = [0; 512];
            // Get Log Page: identifier 02h, 128 dwords less one, of the whole controller.
            let command = NvmeCommand { opcode: 0x02, namespace: u32::MAX, cdw10: 0x007f_0002, cdw11: 0, limit: LIMIT };
            drive.nvme(command, Data::In(&mut page)).ok()?;
            Some(nvme(&page))
        }
        Speaks::Ata => {
            let mut data = [0; 512];
            let smart = |feature, count| AtaCommand {
                command: 0xb0,
                feature,
                count,
                // The key in LBA mid and high that SMART commands want.
                lba: 0xc2_4f00,
                limit: LIMIT,
                ..AtaCommand::default()
            };
            let read = drive.ata(smart(0xd0, 1), Data::In(&mut data)).is_ok();
            // SMART RETURN STATUS: the key comes back, or its opposite when a threshold is exceeded.
            let status = drive.ata(smart(0xda, 0), Data::None);
            let exceeded = matches!(status, Ok(Some(answer)) if answer.lba & 0xff_ff00 == 0x2c_f400);
            if !read && status.is_err() {
                return None;
            }
            Some(ata(read.then_some(&data), exceeded))
        }
        Speaks::Scsi => {
            let exceptions = sense(drive, 0x2f)?;
            Some(scsi(&exceptions))
        }
    }
}

/// LOG SENSE of a page's current cumulative values (SPC-5 §6.8).
fn sense(drive: &dyn Admin, page: u8) -> Option<[u8; 64]> {
    let mut answer = [0; 64];
    let block = [0x4d, 0, 0x40 | page, 0, 0, 0, 0, 0, answer.len() as u8, 0];
    let sent: Result<(), CommandError> = drive.scsi(&block, Data::In(&mut answer), LIMIT);
    // What is simulated by a machine monitor may answer anything, or another page.
    (sent.is_ok() && answer[0] & 0x3f == page).then_some(answer)
}

/// The SMART / Health Information log page.
pub fn nvme(page: &[u8; 512]) -> DriveHealth {
    let warnings = [
        "spare blocks are below its threshold",
        "temperature is beyond a threshold",
        "reliability is degraded by media or internal errors",
        "media is read-only",
        "backup of its volatile memory failed",
        "persistent memory region is read-only or unreliable",
    ];
    let failing = warnings.iter().enumerate().filter(|(bit, _)| page[0] >> bit & 1 == 1);
    let kelvin = u16::from_le_bytes([page[1], page[2]]);
    // Counters have 16 bytes; what does not fit into 8 is no honest count.
    let counter = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().expect("eight bytes"));
    DriveHealth {
        failing: failing.map(|(_, words)| (*words).to_owned()).collect(),
        used: Some(page[5]),
        spare: Some(page[3]),
        temperature: (kelvin != 0).then(|| (i32::from(kelvin) - 273) as i16),
        hours: Some(counter(128)),
        bad_blocks: Some(counter(160)),
    }
}

/// SMART READ DATA: thirty attributes of twelve bytes from byte 2. The numbers are vendors' own, of
/// which these few mean the same with nearly all.
pub fn ata(data: Option<&[u8; 512]>, exceeded: bool) -> DriveHealth {
    let attribute = |wanted: u8| {
        let all = data?[2..362].as_chunks::<12>().0;
        let found = all.iter().find(|attribute| attribute[0] == wanted)?;
        let raw = [found[5], found[6], found[7], found[8], found[9], found[10], 0, 0];
        Some((found[3], u64::from_le_bytes(raw)))
    };
    let raw = |wanted| attribute(wanted).map(|(_, raw)| raw);
    let failing = exceeded.then(|| "an attribute of its SMART reached its threshold".to_owned());
    // Reallocated sectors, those that wait for it, and those that could not be read.
    let bad = [raw(5), raw(197), raw(198)];
    let temperature = raw(194).or_else(|| raw(190)).map(|raw| raw as u8);
    // Wear levelling and media wear-out count down from 100.
    let worn = [231, 233, 177].into_iter().find_map(attribute).map(|(left, _)| 100u8.saturating_sub(left));
    DriveHealth {
        failing: failing.into_iter().collect(),
        used: worn,
        spare: None,
        temperature: temperature.filter(|celsius| (1..=120).contains(celsius)).map(i16::from),
        // Some count minutes or halves in the upper bytes.
        hours: raw(9).map(|hours| hours & 0xffff_ffff),
        bad_blocks: bad
            .iter()
            .any(Option::is_some)
            .then(|| bad.into_iter().flatten().map(|count| count & 0xffff_ffff).fold(0, u64::saturating_add)),
    }
}

/// The informational exceptions log page: its first parameter has additional sense code,
/// qualifier and temperature.
pub fn scsi(page: &[u8; 64]) -> DriveHealth {
    let (code, qualifier, temperature) = (page[8], page[9], page[10]);
    let has_parameter = page[4..6] == [0, 0] && page[7] >= 4;
    let failing = match (has_parameter, code) {
        (true, 0x5d) => Some(format!("it expects to fail (5d/{qualifier:02x})")),
        (true, 0x0b) => Some(format!("it warns (0b/{qualifier:02x})")),
        _ => None,
    };
    let told = has_parameter && temperature != 0 && temperature != 0xff;
    DriveHealth {
        failing: failing.into_iter().collect(),
        temperature: told.then_some(temperature.into()),
        ..DriveHealth::default()
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Mutex};

    use proptest::prelude::*;

    use super::*;
    use crate::admin::AtaAnswer;

    fn log() -> [u8; 512] {
        let mut page = [0; 512];
        page[1..3].copy_from_slice(&311u16.to_le_bytes());
        (page[3], page[4], page[5]) = (100, 10, 3);
        page[128] = 200;
        page
    }

    fn smart(attributes: &[(u8, u8, u64)]) -> [u8; 512] {
        let mut data = [0; 512];
        for (at, (id, value, raw)) in attributes.iter().enumerate() {
            let place = &mut data[2 + at * 12..14 + at * 12];
            (place[0], place[3]) = (*id, *value);
            place[5..11].copy_from_slice(&raw.to_le_bytes()[..6]);
        }
        data
    }

    #[test]
    fn an_nvme_disk_tells_by_its_critical_warnings() {
        let well = nvme(&log());
        assert_eq!((well.failing.len(), well.used, well.spare), (0, Some(3), Some(100)));
        assert_eq!((well.temperature, well.hours, well.bad_blocks), (Some(38), Some(200), Some(0)));
        let mut page = log();
        page[0] = 0b1001;
        assert_eq!(nvme(&page).failing, ["spare blocks are below its threshold", "media is read-only"]);
    }

    #[test]
    fn an_ata_disk_fails_by_its_own_status_and_not_by_a_count() {
        let data = smart(&[(5, 100, 8), (9, 90, 0x0001_0000_0000_1000), (194, 60, 0x0030_0014_0028), (197, 100, 2)]);
        let told = ata(Some(&data), false);
        assert_eq!((told.failing.len(), told.bad_blocks, told.hours), (0, Some(10), Some(0x1000)));
        assert_eq!((told.temperature, told.used), (Some(40), None));
        assert_eq!(ata(Some(&smart(&[(233, 91, 0)])), false).used, Some(9));
        assert_eq!(ata(None, true).failing.len(), 1);
    }

    #[test]
    fn a_scsi_disk_tells_its_exceptions() {
        let mut page = [0; 64];
        page[..12].copy_from_slice(&[0x2f, 0, 0, 8, 0, 0, 3, 4, 0x5d, 0x10, 31, 0]);
        assert_eq!((scsi(&page).failing.len(), scsi(&page).temperature), (1, Some(31)));
        page[8] = 0;
        assert_eq!(scsi(&page).failing.len(), 0);
    }

    /// A disk that answers as told, and notes what it was asked.
    struct Answers {
        speaks: Speaks,
        page: Vec<u8>,
        lba: u64,
        asked: Mutex<Vec<String>>,
    }

    impl Answers {
        fn fill(&self, data: Data<'_>) -> Result<(), CommandError> {
            if self.page.is_empty() {
                return Err(CommandError::Unanswered(io::ErrorKind::TimedOut.into()));
            }
            if let Data::In(bytes) = data {
                let len = bytes.len().min(self.page.len());
                bytes[..len].copy_from_slice(&self.page[..len]);
            }
            Ok(())
        }

        fn note(&self, asked: String) {
            self.asked.lock().unwrap().push(asked);
        }
    }

    impl Admin for Answers {
        fn speaks(&self) -> Speaks {
            self.speaks
        }

        fn nvme(&self, command: NvmeCommand, data: Data<'_>) -> Result<u32, CommandError> {
            self.note(format!("{:02x} {:x} {:08x}", command.opcode, command.namespace, command.cdw10));
            self.fill(data).map(|()| 0)
        }

        fn ata(&self, command: AtaCommand, data: Data<'_>) -> Result<Option<AtaAnswer>, CommandError> {
            self.note(format!("{:02x} {:02x} {:06x}", command.command, command.feature, command.lba));
            self.fill(data).map(|()| Some(AtaAnswer { lba: self.lba, ..AtaAnswer::default() }))
        }

        fn scsi(&self, block: &[u8], data: Data<'_>, _: Duration) -> Result<(), CommandError> {
            self.note(block.iter().map(|byte| format!("{byte:02x}")).collect());
            self.fill(data)
        }
    }

    #[test]
    fn each_kind_of_disk_is_asked_in_its_own_way() {
        let asked = |speaks, page: &[u8], lba| {
            let drive = Answers { speaks, page: page.to_vec(), lba, asked: Mutex::default() };
            let told = ask(&drive).map(|health| health.failing.len());
            (told, drive.asked.into_inner().unwrap().join(", "))
        };
        assert_eq!(asked(Speaks::Nvme(1), &log(), 0), (Some(0), "02 ffffffff 007f0002".to_owned()));
        let ata = "b0 d0 c24f00, b0 da c24f00".to_owned();
        assert_eq!(asked(Speaks::Ata, &smart(&[]), 0xc2_4f00), (Some(0), ata.clone()));
        assert_eq!(asked(Speaks::Ata, &smart(&[]), 0x2c_f400), (Some(1), ata.clone()));
        let page = [0x2f, 0, 0, 8, 0, 0, 3, 4, 0x5d, 0, 31, 0];
        assert_eq!(asked(Speaks::Scsi, &page, 0), (Some(1), "4d006f00000000004000".to_owned()));
        // Silence, or an answer to something else, tells nothing.
        assert_eq!(asked(Speaks::Ata, &[], 0), (None, ata));
        assert_eq!(asked(Speaks::Scsi, &[0x0d; 12], 0).0, None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_answer_is_read(bytes in proptest::collection::vec(any::<u8>(), 512), exceeded in any::<bool>()) {
            let page: [u8; 512] = bytes.try_into().unwrap();
            prop_assert_eq!(nvme(&page).failing.len(), (page[0] & 0x3f).count_ones() as usize);
            prop_assert_eq!(ata(Some(&page), exceeded).failing.len(), usize::from(exceeded));
            prop_assert!(scsi(page[..64].try_into().unwrap()).failing.len() <= 1);
        }
    }
}
