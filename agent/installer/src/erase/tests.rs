use std::{
    fmt::Write as _,
    sync::{Arc, Mutex},
};

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::{
    simulated::{Simulated, SimulatedPace, Ways},
    *,
};
use crate::disk::FileDisk;

const NVME: Option<Speaks> = Some(Speaks::Nvme(1));
const ATA: Option<Speaks> = Some(Speaks::Ata);
const SCSI: Option<Speaks> = Some(Speaks::Scsi);

/// Erases by as many installers as it takes: each is withdrawn when its machine is reset, and the
/// next is told what was begun.
fn erased(drive: &mut Simulated) -> DriveErasure {
    let begun = Mutex::new(None);
    for _ in 0..4 {
        let (all, found) = (Arc::new(AtomicU64::new(0)), drive.found());
        let meter = Meter::new(all.clone(), drive.size());
        let note = |method| *begun.lock().unwrap() = Some(method);
        let job = Job {
            disk: &*drive,
            found: &found,
            seed: 7,
            begun: *begun.lock().unwrap(),
            pace: &SimulatedPace::default(),
            meter: &meter,
            withdrawn: &drive.reset,
            note: &note,
        };
        let ended = erase(&job);
        match ended {
            Ok(record) => {
                assert_eq!(all.load(Ordering::Relaxed), meter.size);
                return record;
            }
            Err(Withdrawn) => drive.restart(),
        }
    }
    panic!("reset for ever");
}

fn told(record: &DriveErasure) -> String {
    let mut text = String::new();
    for tried in &record.tried {
        let joined = if tried.joined { " (joined)" } else { "" };
        let line = format!("{}{joined}: {} {}", tried.method.word(), tried.outcome, tried.detail);
        writeln!(text, "{}", line.trim_end()).unwrap();
    }
    let evidence: Vec<_> = record.evidence.iter().map(ToString::to_string).collect();
    match &record.reason {
        None => writeln!(text, "{}: {}", record.class, evidence.join("; ")).unwrap(),
        Some(reason) => writeln!(text, "NOT: {reason}").unwrap(),
    }
    for condition in &record.conditions {
        writeln!(text, "- {}", condition.detail).unwrap();
    }
    text
}

fn check(ways: Ways, reset_at: Option<u32>, expected: Expect) {
    let mut drive = Simulated::new(ways, reset_at);
    let record = erased(&mut drive);
    assert!(record.is_sound(), "{record:?}");
    expected.assert_eq(&told(&record));
}

#[test]
fn each_kind_of_drive_is_erased_by_the_best_it_has() {
    check(
        Ways::sound(NVME),
        None,
        expect![[r#"
        nvme_sanitize_crypto: proven
        purge: a pattern written before is gone from every sample; the drive's status log says done
    "#]],
    );
    check(
        Ways { sanitizes: 0b110, ..Ways::sound(NVME) },
        None,
        expect![[r#"
        nvme_sanitize_block: proven
        purge: a pattern written before is gone from every sample; every sample reads zeros; the drive's status log says done
    "#]],
    );
    check(
        Ways { sanitizes: 0, ..Ways::sound(NVME) },
        None,
        expect![[r#"
        nvme_format_crypto: proven
        purge: a pattern written before is gone from every sample
    "#]],
    );
    check(
        Ways { sanitizes: 0, formats_crypto: false, ..Ways::sound(NVME) },
        None,
        expect![[r#"
        nvme_format: proven
        purge: a pattern written before is gone from every sample; every sample reads zeros
    "#]],
    );
    check(
        Ways { sanitizes: 0, formats: false, ..Ways::sound(NVME) },
        None,
        expect![[r#"
        overwrite: proven
        clear: a pattern written before is gone from every sample; every sample reads zeros
    "#]],
    );
    check(
        Ways::sound(ATA),
        None,
        expect![[r#"
        ata_sanitize_crypto: proven
        purge: a pattern written before is gone from every sample; the drive's status log says done
    "#]],
    );
    check(
        Ways { sanitizes: 0, ..Ways::sound(ATA) },
        None,
        expect![[r#"
        ata_security_erase_enhanced: proven
        purge: a pattern written before is gone from every sample; every sample reads zeros
    "#]],
    );
    check(
        Ways { sanitizes: 0, formats_crypto: false, ..Ways::sound(ATA) },
        None,
        expect![[r#"
        ata_security_erase: proven
        clear: a pattern written before is gone from every sample; every sample reads zeros
    "#]],
    );
    check(
        Ways { sanitizes: 0b100, formats: false, ..Ways::sound(ATA) },
        None,
        expect![[r#"
        ata_sanitize_overwrite: proven
        purge: a pattern written before is gone from every sample; every sample reads zeros; the drive's status log says done
    "#]],
    );
    check(
        Ways::sound(SCSI),
        None,
        expect![[r#"
        scsi_sanitize_crypto: proven
        purge: a pattern written before is gone from every sample
    "#]],
    );
    check(
        Ways { sanitizes: 0, ..Ways::sound(SCSI) },
        None,
        expect![[r#"
        overwrite: proven
        clear: a pattern written before is gone from every sample; every sample reads zeros
    "#]],
    );
    check(
        Ways::sound(None),
        None,
        expect![[r#"
        overwrite: proven
        clear: a pattern written before is gone from every sample; every sample reads zeros
    "#]],
    );
}

#[test]
fn a_drive_that_lies_is_found_out_and_erased_by_what_it_does_not_lie_about() {
    check(
        Ways { lies_sanitizing: true, ..Ways::sound(NVME) },
        None,
        expect![[r#"
        nvme_sanitize_crypto: said done, and was not what was written before is still there, in the MiB at 0
        nvme_sanitize_block: said done, and was not what was written before is still there, in the MiB at 0
        nvme_format_crypto: proven
        purge: a pattern written before is gone from every sample
        - NVMe sanitize (crypto erase): it said that it was done, and was not
        - NVMe sanitize (block erase): it said that it was done, and was not
    "#]],
    );
    check(
        Ways { lies_sanitizing: true, lies_formatting: true, ..Ways::sound(ATA) },
        None,
        expect![[r#"
        ata_sanitize_crypto: said done, and was not what was written before is still there, in the MiB at 0
        ata_sanitize_block: said done, and was not what was written before is still there, in the MiB at 0
        ata_security_erase_enhanced: said done, and was not what was written before is still there, in the MiB at 0
        ata_security_erase: said done, and was not what was written before is still there, in the MiB at 0
        ata_sanitize_overwrite: said done, and was not what was written before is still there, in the MiB at 0
        overwrite: proven
        clear: a pattern written before is gone from every sample; every sample reads zeros
        - ATA sanitize (crypto scramble): it said that it was done, and was not
        - ATA sanitize (block erase): it said that it was done, and was not
        - ATA enhanced security erase: it said that it was done, and was not
        - ATA security erase: it said that it was done, and was not
        - ATA sanitize (overwrite): it said that it was done, and was not
    "#]],
    );
    let liar = Ways { lies_sanitizing: true, lies_zeroing: true, ..Ways::sound(SCSI) };
    check(
        liar,
        None,
        expect![[r#"
        scsi_sanitize_crypto: said done, and was not what was written before is still there, in the MiB at 0
        scsi_sanitize_block: said done, and was not what was written before is still there, in the MiB at 0
        scsi_sanitize_overwrite: said done, and was not what was written before is still there, in the MiB at 0
        overwrite: said done, and was not what was written before is still there, in the MiB at 0
        NOT: no method erased it; the last was overwriting with zeros: what was written before is still there, in the MiB at 0
        - SCSI sanitize (crypto erase): it said that it was done, and was not
        - SCSI sanitize (block erase): it said that it was done, and was not
        - SCSI sanitize (overwrite): it said that it was done, and was not
        - overwriting with zeros: it said that it was done, and was not
    "#]],
    );
    check(
        Ways { lies_writing: true, ..Ways::sound(NVME) },
        None,
        expect![[r#"
        nvme_sanitize_crypto: failed what was written at 0 does not read back
        nvme_sanitize_block: failed what was written at 0 does not read back
        nvme_format_crypto: failed what was written at 0 does not read back
        nvme_format: failed what was written at 0 does not read back
        nvme_sanitize_overwrite: failed what was written at 0 does not read back
        overwrite: failed what was written at 0 does not read back
        NOT: no method erased it; the last was overwriting with zeros: what was written at 0 does not read back
    "#]],
    );
}

#[test]
fn a_drive_that_hangs_or_fails_has_a_reason_or_the_next_method() {
    check(
        Ways { hangs_at: Some(3), ..Ways::sound(NVME) },
        None,
        expect![[r#"
        nvme_sanitize_crypto: hung hangs at 37 %
        NOT: NVMe sanitize (crypto erase) hangs at 37 % and cannot be ended
    "#]],
    );
    check(
        Ways { fails: true, ..Ways::sound(NVME) },
        None,
        expect![[r#"
        nvme_sanitize_crypto: failed its status log says that it failed
        nvme_sanitize_block: failed its status log says that it failed
        nvme_format_crypto: proven
        purge: a pattern written before is gone from every sample
    "#]],
    );
    check(
        Ways { fails: true, ..Ways::sound(ATA) },
        None,
        expect![[r#"
        ata_sanitize_crypto: failed its status log says that it failed
        ata_sanitize_block: failed its status log says that it failed
        ata_security_erase_enhanced: refused refused by the drive (ATA error 0x04)
        ata_security_erase: refused refused by the drive (ATA error 0x04)
        ata_sanitize_overwrite: failed its status log says that it failed
        overwrite: proven
        clear: a pattern written before is gone from every sample; every sample reads zeros
    "#]],
    );
    check(
        Ways { refuses: true, ..Ways::sound(SCSI) },
        None,
        expect![[r#"
        scsi_sanitize_crypto: refused refused by the drive (SCSI sense 5/20/00)
        scsi_sanitize_block: refused refused by the drive (SCSI sense 5/20/00)
        scsi_sanitize_overwrite: refused refused by the drive (SCSI sense 5/20/00)
        overwrite: proven
        clear: a pattern written before is gone from every sample; every sample reads zeros
    "#]],
    );
    check(
        Ways { write_fails: true, sanitizes: 1, formats: false, ..Ways::sound(NVME) },
        None,
        expect![[r#"
        nvme_sanitize_crypto: failed writing the pattern at 0 failed: medium error
        overwrite: failed writing the pattern at 0 failed: medium error
        NOT: no method erased it; the last was overwriting with zeros: writing the pattern at 0 failed: medium error
    "#]],
    );
    check(
        Ways { silent: true, ..Ways::sound(ATA) },
        None,
        expect![[r#"
        NOT: it does not tell what it can do: refused by the drive (ATA error 0x04)
        - it does not tell what it can do: refused by the drive (ATA error 0x04)
    "#]],
    );
}

#[test]
fn a_frozen_drive_is_erased_by_what_is_left_and_says_so() {
    check(
        Ways { frozen: true, sanitizes: 0, ..Ways::sound(ATA) },
        None,
        expect![[r#"
        overwrite: proven
        clear: a pattern written before is gone from every sample; every sample reads zeros
        - its security commands are frozen by the machine's firmware until a power cycle
    "#]],
    );
    check(
        Ways { frozen: true, ..Ways::sound(ATA) },
        None,
        expect![[r#"
        ata_sanitize_crypto: proven
        purge: a pattern written before is gone from every sample; the drive's status log says done
        - its security commands are frozen by the machine's firmware until a power cycle
    "#]],
    );
}

#[test]
fn a_drive_with_anothers_password_or_lock_is_not_clean() {
    check(
        Ways { password: 2, ..Ways::sound(ATA) },
        None,
        expect![[r#"
        NOT: it is locked with an ATA password that is not known
        - it is locked with an ATA password that is not known
    "#]],
    );
    check(
        Ways { password: 1, ..Ways::sound(ATA) },
        None,
        expect![[r#"
        NOT: an ATA password that is not known is set: it will be locked after a power cycle
        - an ATA password that is not known is set: it will be locked after a power cycle
    "#]],
    );
    check(
        Ways { opal: 2, ..Ways::sound(NVME) },
        None,
        expect![[r#"
        NOT: it is locked by TCG Opal with a password that is not known; revert it with the PSID that is printed on the drive's label
        - it is locked by TCG Opal with a password that is not known; revert it with the PSID that is printed on the drive's label
    "#]],
    );
    check(
        Ways { opal: 1, ..Ways::sound(SCSI) },
        None,
        expect![[r#"
        NOT: TCG Opal locking was switched on by somebody who can lock it again; revert it with the PSID that is printed on the drive's label
        - TCG Opal locking was switched on by somebody who can lock it again; revert it with the PSID that is printed on the drive's label
    "#]],
    );
    check(
        Ways { opal: 1, ..Ways::sound(ATA) },
        None,
        expect![[r#"
        NOT: TCG Opal locking was switched on by somebody who can lock it again; revert it with the PSID that is printed on the drive's label
        - TCG Opal locking was switched on by somebody who can lock it again; revert it with the PSID that is printed on the drive's label
    "#]],
    );
}

#[test]
fn what_is_hidden_is_opened_and_erased_or_named() {
    check(
        Ways { hidden: true, sanitizes: 0, formats: false, ..Ways::sound(ATA) },
        None,
        expect![[r#"
        overwrite: proven
        clear: a pattern written before is gone from every sample; every sample reads zeros
        - 16 of its 80 sectors were hidden; they were opened
    "#]],
    );
    check(
        Ways { hidden: true, sealed: true, ..Ways::sound(ATA) },
        None,
        expect![[r#"
        NOT: 16 of its 80 sectors are hidden and could not be opened
        - 16 of its 80 sectors are hidden and could not be opened
    "#]],
    );
    check(
        Ways { hidden: true, mute: true, ..Ways::sound(ATA) },
        None,
        expect![[r#"
        NOT: it can hide sectors, and how many it has is not told
        - how far a sanitize is does not get through from it, so none is begun
        - it can hide sectors, and how many it has is not told
    "#]],
    );
    check(
        Ways { hidden: true, ..Ways::sound(NVME) },
        None,
        expect![[r#"
        nvme_sanitize_crypto: proven
        purge: a pattern written before is gone from every sample; the drive's status log says done
        - there are namespaces that are not attached (2)
    "#]],
    );
    check(
        Ways { hidden: true, sealed: true, ..Ways::sound(NVME) },
        None,
        expect![[r#"
        nvme_sanitize_crypto: proven
        purge: a pattern written before is gone from every sample; the drive's status log says done
        - there are namespaces that are not attached (2)
        - namespace 2 is erased and could not be deleted: refused by the drive (NVMe status 0x001)
    "#]],
    );
    check(
        Ways { hidden: true, sanitizes: 0, ..Ways::sound(NVME) },
        None,
        expect![[r#"
        nvme_format_crypto: proven
        NOT: NVMe format (crypto erase) does not reach namespaces that are not attached (2)
        - there are namespaces that are not attached (2)
    "#]],
    );
    check(
        Ways { unallocated: true, ..Ways::sound(NVME) },
        None,
        expect![[r#"
        nvme_sanitize_crypto: proven
        purge: a pattern written before is gone from every sample; the drive's status log says done
        - there are 1 bytes that belong to no namespace
    "#]],
    );
    check(
        Ways { unallocated: true, sanitizes: 0, ..Ways::sound(NVME) },
        None,
        expect![[r#"
        nvme_format_crypto: proven
        NOT: NVMe format (crypto erase) does not reach 1 bytes that belong to no namespace
        - there are 1 bytes that belong to no namespace
    "#]],
    );
}

#[test]
fn a_sanitize_that_a_reset_interrupted_is_joined_and_not_begun_again() {
    for speaks in [NVME, ATA, SCSI] {
        let mut drive = Simulated::new(Ways::sound(speaks), Some(5));
        let record = erased(&mut drive);
        assert!(record.is_proven() && record.tried[0].joined && !drive.holds_tenants_data(), "{}", told(&record));
        assert_eq!(drive.begun(), 1);
    }
    check(
        Ways { lies_sanitizing: true, ..Ways::sound(NVME) },
        Some(5),
        expect![[r#"
        nvme_sanitize_crypto (joined): said done, and was not what was written before is still there, in the MiB at 0
        nvme_sanitize_crypto: said done, and was not what was written before is still there, in the MiB at 0
        nvme_sanitize_block: said done, and was not what was written before is still there, in the MiB at 0
        nvme_format_crypto: proven
        purge: a pattern written before is gone from every sample
        - NVMe sanitize (crypto erase): it said that it was done, and was not
        - NVMe sanitize (crypto erase): it said that it was done, and was not
        - NVMe sanitize (block erase): it said that it was done, and was not
    "#]],
    );
}

#[test]
fn a_security_erase_that_a_reset_interrupted_is_unlocked_and_begun_again() {
    check(
        Ways { sanitizes: 0, ..Ways::sound(ATA) },
        Some(1),
        expect![[r#"
        ata_security_erase_enhanced: proven
        purge: a pattern written before is gone from every sample; every sample reads zeros
        - an erase of ours was interrupted and had left it with our password, which was removed
    "#]],
    );
}

#[test]
fn a_sanitize_of_somebody_else_is_waited_for_and_proves_nothing() {
    let mut drive = Simulated::new(Ways::sound(NVME), None);
    let admin = drive.admin().unwrap();
    nvme::Nvme::new(admin, 1).begin(Method::NvmeSanitizeBlock).unwrap();
    let record = erased(&mut drive);
    assert!(record.is_proven() && !record.tried[0].joined, "{}", told(&record));
    assert_eq!((drive.begun(), record.method), (2, Some(Method::NvmeSanitizeCrypto)));
}

fn ways() -> impl Strategy<Value = Ways> {
    let speaks = prop_oneof![Just(NVME), Just(ATA), Just(SCSI), Just(None)];
    let rare = || prop::bool::weighted(0.15);
    let can = (0u8..8, any::<bool>(), any::<bool>());
    let lies = (rare(), rare(), rare(), prop::bool::weighted(0.05));
    let breaks = (prop::option::weighted(0.15, 0u8..8), rare(), rare(), rare(), prop::bool::weighted(0.05));
    let sabotage = (
        prop_oneof![8 => Just(0u8), 1 => Just(1), 1 => Just(2)],
        prop_oneof![8 => Just(0u8), 1 => Just(1), 1 => Just(2)],
    );
    let hides = (rare(), rare(), rare(), prop::bool::weighted(0.03), prop::bool::weighted(0.05));
    (speaks, can, lies, breaks, sabotage, hides).prop_map(|(speaks, can, lies, breaks, sabotage, hides)| {
        let is_nvme = speaks == NVME;
        Ways {
            speaks,
            sanitizes: can.0,
            formats: can.1 || sabotage.0 > 0,
            formats_crypto: can.2,
            lies_sanitizing: lies.0,
            lies_formatting: lies.1,
            lies_zeroing: lies.2,
            lies_writing: lies.3,
            hangs_at: breaks.0,
            fails: breaks.1,
            refuses: breaks.2,
            frozen: breaks.3,
            write_fails: breaks.4,
            password: if speaks == ATA { sabotage.0 } else { 0 },
            opal: sabotage.1,
            hidden: hides.0 && (is_nvme || speaks == ATA),
            sealed: hides.1,
            unallocated: hides.2 && is_nvme,
            silent: hides.3,
            mute: hides.4,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// The point of it all: what is told proven is clean, in every place there is, and everything
    /// else has a reason.
    #[test]
    fn a_drive_is_proven_clean_or_has_a_reason(ways in ways(), reset_at in prop::option::of(1u32..20)) {
        let mut drive = Simulated::new(ways, reset_at);
        let record = erased(&mut drive);
        prop_assert!(record.is_sound(), "{:?}", record);
        prop_assert!(record.is_proven() != record.reason.is_some());
        if record.is_proven() {
            prop_assert!(!drive.holds_tenants_data(), "{}", told(&record));
            prop_assert!(!drive.is_anothers(), "{}", told(&record));
        }
    }

    /// A drive with nothing wrong is never held back, whatever it can do.
    #[test]
    fn a_sound_drive_is_always_proven(ways in ways(), reset_at in prop::option::of(1u32..20)) {
        let sound = Ways { sanitizes: ways.sanitizes, formats: ways.formats, formats_crypto: ways.formats_crypto,
            frozen: ways.frozen, ..Ways::sound(ways.speaks) };
        let record = erased(&mut Simulated::new(sound, reset_at));
        prop_assert!(record.is_proven(), "{}", told(&record));
    }

    /// What drives answer is foreign: no bytes of it make the reading of them panic.
    #[test]
    fn discovery_is_read_from_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        drive::locking(&bytes);
    }
}

#[test]
fn a_disk_without_commands_is_all_zeros_afterwards() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![0xaa; (3 << 20) + 512]).unwrap();
    let disk = FileDisk::open(file.path()).unwrap();
    let found = Simulated::new(Ways::sound(None), None).found();
    let (all, withdrawn) = (Arc::new(AtomicU64::new(0)), CancellationToken::new());
    let meter = Meter::new(all.clone(), disk.size());
    let pace = RealPace(Instant::now());
    let job = Job {
        disk: &disk,
        found: &found,
        seed: 1,
        begun: None,
        pace: &pace,
        meter: &meter,
        withdrawn: &withdrawn,
        note: &|_| (),
    };
    let record = erase(&job).unwrap();
    assert_eq!((record.samples.bytes, all.load(Ordering::Relaxed)), (disk.size(), disk.size()));
    assert!(record.is_proven() && record.evidence.contains(&Evidence::Zeros));
    assert!(std::fs::read(file.path()).unwrap().iter().all(|byte| *byte == 0));
    // As it was left, until one bit of it is another.
    let kept = Kept { disk: record.disk, method: Method::Overwrite, digest: record.samples.digest };
    assert!(is_as_left(&disk, 1, &kept));
    let mut bytes = Buffer::zeroed(512);
    bytes[7] = 1;
    disk.write_at(3 << 20, &bytes).unwrap();
    assert!(!is_as_left(&disk, 1, &kept));
}

#[test]
fn samples_lie_on_the_disk_and_include_both_ends() {
    for size in [1 << 20, 3 << 30, (500 << 30) + 4096 * 3] {
        let places = samples(size, 4096, 42);
        assert_eq!(places[0], 0);
        assert!(places.iter().all(|at| at % 4096 == 0 && *at < size));
        assert!(places.last().unwrap() + SAMPLE >= size);
    }
}

#[test]
fn the_pattern_is_another_at_each_place_and_for_each_erasure() {
    let mut bytes = vec![0; 1 << 16];
    fill(7, 4096, &mut bytes);
    assert!(is_pattern(7, 4096, &bytes) && !has_pattern(8, 4096, &bytes) && !has_pattern(7, 8192, &bytes));
    bytes[40..].fill(0);
    assert!(has_pattern(7, 4096, &bytes) && !is_pattern(7, 4096, &bytes));
}
