use std::{fs, path::Path, process::Command, sync::OnceLock};

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::{super::layout, *};

/// What the tests' systems are made of: a small one in which everything is as it should be.
fn sound(root: &Path) {
    let put = |path: &str, text: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    put("boot/vmlinuz-6.1.0-9-amd64", "kernel");
    put("boot/vmlinuz-6.1.0-28-amd64", "kernel");
    put("boot/initrd.img-6.1.0-28-amd64", "initramfs");
    put("boot/grub/grub.cfg", "linux /boot/vmlinuz root=UUID=1 ro console=tty0 console=ttyS0,115200n8\n");
    let modules: Vec<_> = DRIVERS[2..]
        .iter()
        .map(|name| format!("kernel/drivers/{}.ko.xz: kernel/a.ko\n", name.replace('_', "-")))
        .collect();
    for version in ["6.1.0-9-amd64", "6.1.0-28-amd64"] {
        put(&format!("usr/lib/modules/{version}/modules.dep"), &modules.concat());
        put(&format!("usr/lib/modules/{version}/modules.builtin"), "kernel/drivers/nvme.ko\nkernel/drivers/ahci.ko\n");
    }
    std::os::unix::fs::symlink("usr/lib", root.join("lib")).unwrap();
    put("usr/bin/cloud-init", "#!/bin/sh\n");
    put("etc/cloud/cloud.cfg", "datasource_list: [Ec2]\n");
    put("etc/cloud/cloud.cfg.d/90_ours.cfg", "# ours\ndatasource_list: [NoCloud, None]\n");
    put("etc/machine-id", "");
    put("etc/ssh/sshd_config", "");
}

/// A disk of 512-byte sectors: an ESP with its loader unless `loader` says otherwise, and what
/// `make` put below its root directory as ext4.
fn disk(loader: &str, make: impl FnOnce(&Path)) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    make(&root);
    let file = dir.path().join("ext4");
    let made = Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .arg(&root)
        .arg(&file)
        .arg("8M")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .status()
        .expect("these tests need mke2fs (Debian package e2fsprogs)");
    assert!(made.success());
    let ext4 = fs::read(file).unwrap();

    let mut esp = std::io::Cursor::new(vec![0; 2 << 20]);
    fatfs::format_volume(&mut esp, fatfs::FormatVolumeOptions::new()).unwrap();
    {
        let fat = fatfs::FileSystem::new(&mut esp, fatfs::FsOptions::new()).unwrap();
        fat.root_dir().create_dir("EFI").unwrap().create_dir("BOOT").unwrap().create_file(loader).unwrap();
    }
    let (first, second) = (MIB, 4 * MIB);
    let mut disk = vec![0; second + ext4.len() + MIB];
    disk[first..first + esp.get_ref().len()].copy_from_slice(esp.get_ref());
    disk[second..second + ext4.len()].copy_from_slice(&ext4);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk[450] = 0xee;
    disk[512..520].copy_from_slice(b"EFI PART");
    for (at, value) in [(24, 1u64), (48, 1 << 20), (72, 2)] {
        disk[512 + at..512 + at + 8].copy_from_slice(&value.to_le_bytes());
    }
    disk[512 + 80..512 + 88].copy_from_slice(&[128, 0, 0, 0, 128, 0, 0, 0]);
    let kinds = [layout::ESP, [7; 16]];
    for (index, (kind, start, len)) in
        [(kinds[0], first, 2 * MIB), (kinds[1], second, ext4.len())].into_iter().enumerate()
    {
        let entry = &mut disk[1024 + index * 128..][..128];
        entry[..16].copy_from_slice(&kind);
        entry[32..40].copy_from_slice(&(start as u64 / 512).to_le_bytes());
        entry[40..48].copy_from_slice(&((start + len) as u64 / 512 - 1).to_le_bytes());
    }
    disk
}

const MIB: usize = 1 << 20;

async fn examine(disk: &[u8], settings: Settings) -> Vec<Finding> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    fs::write(&path, disk).unwrap();
    check(Place::File(path), Said { settings, firmware: vec![Firmware::Uefi] }).await
}

fn lines(findings: &[Finding]) -> String {
    findings.iter().map(|f| format!("{:?} {}: {}\n", f.severity, f.subject, f.found)).collect()
}

/// What is not good of a sound system in which one thing was broken.
async fn broken(breaks: impl FnOnce(&Path), expected: Expect) {
    let disk = disk("BOOTX64.EFI", |root| {
        sound(root);
        breaks(root);
    });
    let mut found = examine(&disk, Settings::Cidata).await;
    assert!(found.iter().all(|finding| (finding.severity == Severity::Good) == finding.advice.is_empty()));
    found.retain(|finding| finding.severity != Severity::Good);
    expected.assert_eq(&lines(&found));
}

#[tokio::test]
async fn a_sound_image_is_good_in_every_respect() {
    let found = examine(&disk("BOOTX64.EFI", sound), Settings::Cidata).await;
    expect![[r#"
        Good partition table: GPT, 2 partitions
        Good sector size: 512 bytes
        Good EFI loader: EFI/BOOT/BOOTX64.EFI is there
        Good root file system: ext4, or an older one of its kind
        Good kernel: 6.1.0-28-amd64
        Good drivers: those of servers' disks and network cards are there
        Good initramfs: initrd.img-6.1.0-28-amd64
        Good settings: cloud-init reads NoCloud, None
        Good machine-id: empty
        Good host keys: none in /etc/ssh
        Good serial console: the kernel's command line names one
    "#]]
    .assert_eq(&lines(&found));
}

#[tokio::test]
async fn each_thing_that_is_broken_is_found() {
    let remove = |path: &'static str| move |root: &Path| fs::remove_file(root.join(path)).unwrap();
    let put = |path: &'static str, text: &'static str| move |root: &Path| fs::write(root.join(path), text).unwrap();
    broken(
        remove("boot/initrd.img-6.1.0-28-amd64"),
        expect![[r#"
        Error initramfs: none for kernel 6.1.0-28-amd64
    "#]],
    )
    .await;
    broken(
        |root| fs::remove_dir_all(root.join("boot")).unwrap(),
        expect![[r#"
            Error kernel: none in /boot
            NotExamined serial console: no loader's configuration that is known here was found
        "#]],
    )
    .await;
    broken(
        put("usr/lib/modules/6.1.0-28-amd64/modules.builtin", ""),
        expect![[r#"
        Warning drivers: not in kernel 6.1.0-28-amd64: nvme, ahci
    "#]],
    )
    .await;
    broken(
        |root| fs::remove_dir_all(root.join("usr/lib/modules")).unwrap(),
        expect![[r#"
        Warning kernel: vmlinuz-6.1.0-28-amd64, vmlinuz-6.1.0-9-amd64, without modules in /lib/modules
    "#]],
    )
    .await;
    broken(
        remove("usr/bin/cloud-init"),
        expect![[r#"
        Error settings: no cloud-init is in it
    "#]],
    )
    .await;
    broken(
        put("etc/cloud/cloud-init.disabled", ""),
        expect![[r#"
        Error settings: cloud-init is switched off
    "#]],
    )
    .await;
    broken(
        put("etc/cloud/cloud.cfg.d/99_last.cfg", "datasource_list:\n  - Ec2\n  - 'GCE'\nx: y\n"),
        expect![[r#"
        Error settings: cloud-init's datasource_list is Ec2, GCE
    "#]],
    )
    .await;
    broken(
        put("etc/machine-id", "6d6e7f3a6d6e7f3a6d6e7f3a6d6e7f3a\n"),
        expect![[r#"
        Error machine-id: /etc/machine-id is filled in: all machines would have the same
    "#]],
    )
    .await;
    broken(
        put("etc/ssh/ssh_host_ed25519_key", "key"),
        expect![[r#"
        Error host keys: in /etc/ssh: ssh_host_ed25519_key
    "#]],
    )
    .await;
    broken(
        put("boot/grub/grub.cfg", "linux /boot/vmlinuz quiet\n"),
        expect![[r#"
        Warning serial console: none on the kernel's command line
    "#]],
    )
    .await;
}

#[tokio::test]
async fn the_reader_of_the_settings_is_the_one_of_their_format() {
    let nothing = |_: &Path| {};
    let source = |list: &'static str| {
        move |root: &Path| fs::write(root.join("etc/cloud/cloud.cfg.d/99_last.cfg"), list).unwrap()
    };
    let ignition = |root: &Path| {
        fs::remove_file(root.join("usr/bin/cloud-init")).unwrap();
        fs::write(root.join("usr/bin/ignition"), "").unwrap();
    };
    let said = async |settings, breaks: &dyn Fn(&Path)| {
        let disk = disk("BOOTX64.EFI", |root| {
            sound(root);
            breaks(root);
        });
        let found = examine(&disk, settings).await;
        let finding = found.iter().find(|finding| finding.subject == "settings").unwrap().clone();
        let advice = if finding.advice.is_empty() { String::new() } else { format!("; {}", finding.advice) };
        format!("{:?}: {}{advice}", finding.severity, finding.found)
    };
    let drive = "datasource_list: [ConfigDrive, None]\n";
    expect!["Good: cloud-init reads ConfigDrive, None"].assert_eq(&said(Settings::Config2, &source(drive)).await);
    expect!["Error: cloud-init's datasource_list is NoCloud, None; it does not look for our drive: add ConfigDrive in /etc/cloud/cloud.cfg.d"].assert_eq(&said(Settings::Config2, &nothing).await);
    expect!["Error: cloud-init's datasource_list is ConfigDrive, None; it does not look for our drive: add NoCloud in /etc/cloud/cloud.cfg.d"].assert_eq(&said(Settings::Cidata, &source(drive)).await);
    expect!["Good: Ignition is in it"].assert_eq(&said(Settings::Ignition, &ignition).await);
    expect!["Error: cloud-init is in it, and no Ignition; nobody reads the settings: import it with those that its system reads, or with `none`"].assert_eq(&said(Settings::Ignition, &nothing).await);
    expect!["Error: Ignition is in it, and no cloud-init; nobody reads the settings: install cloud-init, or import it with settings `none`"].assert_eq(&said(Settings::Cidata, &ignition).await);
    expect!["Good: it is told none"].assert_eq(&said(Settings::None, &ignition).await);
}

#[tokio::test]
async fn a_loader_by_another_name_is_no_fallback() {
    let found = examine(&disk("GRUBX64.EFI", sound), Settings::None).await;
    let loader = found.iter().find(|finding| finding.subject == "EFI loader").unwrap();
    assert_eq!((loader.severity, loader.found.as_str()), (Severity::Error, "EFI/BOOT/BOOTX64.EFI is missing"));
}

#[tokio::test]
async fn what_cannot_be_read_is_not_guessed() {
    let mut xfs = disk("BOOTX64.EFI", sound);
    xfs[4 * MIB..].fill(0);
    xfs[4 * MIB..4 * MIB + 4].copy_from_slice(b"XFSB");
    let found = examine(&xfs, Settings::Cidata).await;
    let last = found.last().unwrap();
    assert_eq!(last.severity, Severity::NotExamined);
    assert_eq!(last.found, "not ext2, ext3 or ext4: xfs at byte 4194304");
    assert!(!found.iter().any(|finding| finding.subject == "kernel"));
}

/// A sound disk, made once.
fn made() -> &'static [u8] {
    static MADE: OnceLock<Vec<u8>> = OnceLock::new();
    MADE.get_or_init(|| disk("BOOTX64.EFI", sound))
}

fn looked(bytes: &[u8]) -> Result<Vec<Finding>, String> {
    let file = tempfile::tempfile().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, bytes, 0).unwrap();
    guarded(Bytes::File(file, bytes.len() as u64), &Said { settings: Settings::Cidata, firmware: vec![Firmware::Uefi] })
}

#[test]
fn a_superblock_that_would_use_up_memory_is_refused() {
    for (at, value) in [(4, u32::MAX), (0x20, 1), (0x18, 20), (0x20, 0)] {
        let mut bytes = made().to_vec();
        bytes[4 * MIB + 1024 + at..][..4].copy_from_slice(&value.to_le_bytes());
        let found = looked(&bytes).unwrap();
        let last = found.last().unwrap();
        assert!(last.severity == Severity::NotExamined && last.found.contains("damaged"), "{at}: {found:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Bytes of its tables are others than they were: the look ends, and says something.
    #[test]
    fn a_damaged_image_ends_the_look_and_nothing_else(
        flips in proptest::collection::vec((0usize..3, 0usize..65_536, any::<u8>()), 1..40),
    ) {
        let mut bytes = made().to_vec();
        for (place, at, value) in flips {
            bytes[[512, MIB, 4 * MIB + 1024][place] + at] = value;
        }
        if let Ok(found) = looked(&bytes) {
            prop_assert!(!found.is_empty());
        }
    }

    #[test]
    fn an_image_that_was_cut_short_ends_the_look(len in 0usize..6 << 20) {
        let _ = looked(&made()[..len]);
    }
}
