//! A look into an image, without mounting it: would a machine with it start, be told its
//! settings, be reached, and be nobody else?
//!
//! Invariants:
//! - What cannot be looked into is said to be so, never guessed.
//! - Nothing a file system says makes the look longer, larger or worse than bounded: reads are
//!   counted ([`disk`]), the reader is confined to the image's bytes, and a panic of it is a
//!   finding.

mod disk;
mod files;
mod partitions;

use std::{
    collections::HashSet,
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
};

use rackhand_common::{
    image::{Manifest, Settings},
    machine::Firmware,
};
use serde::{Deserialize, Serialize};

use self::{
    disk::{Bytes, Part},
    files::{Content, Files},
    partitions::Table,
};
use super::sandbox::{Reach, confined};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// As it should be.
    Good,
    /// Nobody looked, and why.
    NotExamined,
    /// It works, and on some machines or some day will not.
    Warning,
    /// A machine with it will not start, not be reached, or be taken for another.
    Error,
}

/// One thing that was looked at in an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was looked at: a word or two, always the same.
    pub subject: String,
    /// What was found.
    pub found: String,
    /// What to do; empty when there is nothing to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub advice: String,
}

/// Where an image's bytes are.
pub(super) enum Place {
    /// In a raw file.
    File(PathBuf),
    /// In chunks below this directory.
    Chunks(Box<Manifest>, PathBuf),
}

/// What is said of an image, to be held against what is in it.
#[derive(Clone, Debug)]
pub(super) struct Said {
    pub(super) settings: Settings,
    pub(super) firmware: Vec<Firmware>,
}

/// Drivers of disks and network cards that servers have, as their modules are called.
const DRIVERS: [&str; 13] = [
    "nvme",
    "ahci",
    "sd_mod",
    "mpt3sas",
    "megaraid_sas",
    "mlx5_core",
    "ixgbe",
    "i40e",
    "igb",
    "e1000e",
    "bnxt_en",
    "virtio_net",
    "virtio_blk",
];

const SETTINGS: &str = "settings";

/// Looks into an image, on a thread that is confined to its bytes.
pub(super) async fn check(place: Place, said: Said) -> Vec<Finding> {
    let read = match &place {
        Place::File(path) => path.clone(),
        Place::Chunks(_, directory) => directory.clone(),
    };
    let reach = Reach { read: vec![read], ..Reach::default() };
    let broken = |why: String| {
        let found = format!("the look into it broke off: {why}");
        vec![finding(Severity::NotExamined, "image", found, "look at it with other tools")]
    };
    let looked = confined(reach, move || {
        let bytes = match place {
            Place::File(path) => File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file))),
            Place::Chunks(manifest, directory) => {
                return Ok(guarded(Bytes::Chunks { manifest, directory, kept: Vec::new() }, &said));
            }
        };
        bytes.map(|(len, file)| guarded(Bytes::File(file, len), &said))
    });
    match looked.await.and_then(|looked| looked) {
        Ok(Ok(findings)) => findings,
        Ok(Err(why)) => broken(why),
        Err(error) => broken(error.to_string()),
    }
}

/// The readers of file systems are not ours: what they panic at is this image's fault.
fn guarded(bytes: Bytes, said: &Said) -> Result<Vec<Finding>, String> {
    let looked = catch_unwind(AssertUnwindSafe(|| look(&Part::whole(bytes), said)));
    looked.map_err(|_| "its file system is damaged in a way that its reader did not expect".to_owned())
}

fn finding(severity: Severity, subject: &str, found: impl Into<String>, advice: &str) -> Finding {
    Finding { severity, subject: subject.into(), found: found.into(), advice: advice.into() }
}

fn look(disk: &Part, said: &Said) -> Vec<Finding> {
    let mut all = Findings(Vec::new());
    let (table, partitions) = match partitions::read(disk) {
        Ok(found) => found,
        Err(error) => {
            all.error("partition table", format!("cannot be read: {error}"), "import the image again");
            return all.0;
        }
    };
    match table {
        Table::Gpt(512) => all.good("partition table", format!("GPT, {} partitions", partitions.len())),
        Table::Gpt(sector) => all.warning(
            "sector size",
            format!("its GPT is one of {sector}-byte sectors"),
            "it is deployed to disks with such sectors alone; make another for the rest",
        ),
        Table::Mbr => all.warning(
            "partition table",
            format!("MBR, {} partitions", partitions.len()),
            "a disk beyond 2 TiB is not used to its end; use a GPT",
        ),
        Table::None => all.warning("partition table", "none", "firmware looks for one; use a GPT"),
    }
    if matches!(table, Table::Gpt(512) | Table::Mbr) {
        all.good("sector size", "512 bytes");
    }
    let esp = partitions.iter().find(|partition| partition.esp);
    all.loader(esp.map(|esp| &esp.part), said);

    let mut systems = Vec::new();
    let mut other = Vec::new();
    let whole = disk.clone();
    let candidates: Vec<&Part> = match table {
        Table::None => vec![&whole],
        _ => partitions.iter().filter(|partition| !partition.esp).map(|partition| &partition.part).collect(),
    };
    for part in candidates {
        match files::look(part) {
            Content::Ext(files) => systems.push(files),
            Content::Other(name) => other.push(format!("{name} at byte {}", part.start)),
            Content::Broken(why) => other.push(format!("a damaged ext file system at byte {}: {why}", part.start)),
            Content::Unknown => {}
        }
    }
    let Some(root) = systems.iter().find(|files| files.exists("/etc") && files.exists("/usr")) else {
        let found = match other.as_slice() {
            [] => "no file system that can be read here was found".to_owned(),
            other => format!("not ext2, ext3 or ext4: {}", other.join(", ")),
        };
        let advice = "kernel, drivers, settings, machine-id, host keys and console were not looked at; boot it once";
        all.push(Severity::NotExamined, "root file system", found, advice);
        return all.0;
    };
    all.good("root file system", "ext4, or an older one of its kind");
    let boot = systems.iter().find(|files| files.names("/").iter().any(|name| is_kernel(name)));
    all.kernel(root, boot.map(|boot| &**boot));
    all.settings(root, said.settings);
    all.identity(root);
    all.console(root, boot.map(|boot| &**boot));
    all.0
}

/// Whether a file of this name is a kernel.
fn is_kernel(name: &str) -> bool {
    name.starts_with("vmlinuz") || name.starts_with("bzImage")
}

/// Everything that was looked at, in order.
struct Findings(Vec<Finding>);

impl Findings {
    fn push(&mut self, severity: Severity, subject: &str, found: impl Into<String>, advice: &str) {
        self.0.push(finding(severity, subject, found, advice));
    }

    fn good(&mut self, subject: &str, found: impl Into<String>) {
        self.push(Severity::Good, subject, found, "");
    }

    fn warning(&mut self, subject: &str, found: impl Into<String>, advice: &str) {
        self.push(Severity::Warning, subject, found, advice);
    }

    fn error(&mut self, subject: &str, found: impl Into<String>, advice: &str) {
        self.push(Severity::Error, subject, found, advice);
    }

    /// What a UEFI firmware that was told of no boot entry starts.
    fn loader(&mut self, esp: Option<&Part>, said: &Said) {
        const SUBJECT: &str = "EFI loader";
        let Some(esp) = esp else {
            if said.firmware.contains(&Firmware::Uefi) {
                self.error(SUBJECT, "no EFI system partition", "it cannot start by UEFI: say so with `firmware`");
            } else {
                self.good(SUBJECT, "none: it starts by BIOS alone");
            }
            return;
        };
        // Dropped in the end, it would write its state back; it cannot.
        let fat = fatfs::FileSystem::new(esp.clone(), fatfs::FsOptions::new());
        match fat.map(|fat| fat.root_dir().open_file("EFI/BOOT/BOOTX64.EFI").map(drop)) {
            Ok(Ok(())) => self.good(SUBJECT, "EFI/BOOT/BOOTX64.EFI is there"),
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => self.error(
                SUBJECT,
                "EFI/BOOT/BOOTX64.EFI is missing",
                "a machine's firmware knows no other name: grub-install --removable, or bootctl install",
            ),
            Ok(Err(error)) | Err(error) => {
                self.error(SUBJECT, format!("the EFI system partition cannot be read: {error}"), "make it anew (FAT)");
            }
        }
    }

    fn kernel(&mut self, root: &Files, boot: Option<&Files>) {
        let in_boot = root.names("/boot");
        let names = boot.map(|boot| boot.names("/")).unwrap_or_default();
        let kernels: Vec<&str> =
            in_boot.iter().chain(&names).filter(|name| is_kernel(name)).map(String::as_str).collect();
        if kernels.is_empty() {
            self.error("kernel", "none in /boot", "install one; an image of a container has none");
            return;
        }
        let mut versions = root.names("/lib/modules");
        versions.retain(|version| root.exists(&format!("/lib/modules/{version}/modules.dep")));
        versions.sort_by_key(|version| numbers(version));
        // The one that starts: the newest that has both its kernel and its modules.
        let Some(version) =
            versions.iter().rev().find(|version| kernels.iter().any(|name| name.ends_with(&***version)))
        else {
            self.warning(
                "kernel",
                format!("{}, without modules in /lib/modules", kernels.join(", ")),
                "whatever is not built in cannot be used; install the kernel's modules",
            );
            return;
        };
        self.good("kernel", version.clone());
        self.drivers(root, version);
        let initramfs = |name: &&str| {
            let known = name.starts_with("initrd") || name.starts_with("initramfs");
            known && name.contains(version.as_str())
        };
        match in_boot.iter().chain(&names).map(String::as_str).find(initramfs) {
            Some(name) => self.good("initramfs", name),
            None => self.error(
                "initramfs",
                format!("none for kernel {version}"),
                "without it the drivers of its disk are not loaded: update-initramfs -c -k all, or dracut",
            ),
        }
    }

    fn drivers(&mut self, root: &Files, version: &str) {
        let listed = |file: &str| {
            let text = root.text(&format!("/lib/modules/{version}/{file}")).unwrap_or_default();
            let names = text.lines().filter_map(|line| {
                let path = line.split(':').next()?;
                let (name, _) = path.rsplit('/').next()?.split_once(".ko")?;
                Some(name.replace('-', "_"))
            });
            names.collect::<HashSet<_>>()
        };
        let (modules, built_in) = (listed("modules.dep"), listed("modules.builtin"));
        let missing: Vec<_> =
            DRIVERS.into_iter().filter(|name| !modules.contains(*name) && !built_in.contains(*name)).collect();
        match missing.as_slice() {
            [] => self.good("drivers", "those of servers' disks and network cards are there"),
            missing => self.warning(
                "drivers",
                format!("not in kernel {version}: {}", missing.join(", ")),
                "on a machine that wants them it does not start or has no network; a kernel for virtual machines lacks \
                 them (Debian: linux-image-amd64 instead of linux-image-cloud-amd64)",
            ),
        }
    }

    /// Whether something in it reads what it is told.
    fn settings(&mut self, root: &Files, settings: Settings) {
        let any = |paths: &[&str]| paths.iter().any(|path| root.exists(path));
        let cloud_init = any(&["/usr/bin/cloud-init", "/usr/local/bin/cloud-init"]);
        let ignition = any(&["/usr/lib/dracut/modules.d/30ignition", "/usr/bin/ignition", "/usr/libexec/ignition"]);
        match settings {
            Settings::None => self.good(SETTINGS, "it is told none"),
            Settings::Ignition if ignition => self.good(SETTINGS, "Ignition is in it"),
            Settings::Ignition => self.error(
                SETTINGS,
                if cloud_init { "cloud-init is in it, and no Ignition" } else { "no Ignition is in it" },
                "nobody reads the settings: import it with those that its system reads, or with `none`",
            ),
            Settings::Cidata | Settings::Config2 if !cloud_init => self.error(
                SETTINGS,
                if ignition { "Ignition is in it, and no cloud-init" } else { "no cloud-init is in it" },
                "nobody reads the settings: install cloud-init, or import it with settings `none`",
            ),
            Settings::Cidata => self.data_source(root, "NoCloud"),
            Settings::Config2 => self.data_source(root, "ConfigDrive"),
        }
    }

    /// Whether its cloud-init looks for this source.
    fn data_source(&mut self, root: &Files, wanted: &str) {
        if root.exists("/etc/cloud/cloud-init.disabled") {
            self.error(SETTINGS, "cloud-init is switched off", "remove /etc/cloud/cloud-init.disabled");
            return;
        }
        let mut files = vec!["/etc/cloud/cloud.cfg".to_owned()];
        let more = root.names("/etc/cloud/cloud.cfg.d").into_iter().filter(|name| name.ends_with(".cfg"));
        files.extend(more.map(|name| format!("/etc/cloud/cloud.cfg.d/{name}")));
        // As cloud-init merges them: what comes later replaces the list.
        let list = files.iter().filter_map(|file| sources(&root.text(file)?)).next_back();
        match list {
            None => self.good(SETTINGS, "cloud-init finds its data source by itself"),
            Some(list) if list.iter().any(|source| source == wanted) => {
                self.good(SETTINGS, format!("cloud-init reads {}", list.join(", ")));
            }
            Some(list) => self.error(
                SETTINGS,
                format!("cloud-init's datasource_list is {}", list.join(", ")),
                &format!("it does not look for our drive: add {wanted} in /etc/cloud/cloud.cfg.d"),
            ),
        }
    }

    /// What must be each machine's own.
    fn identity(&mut self, root: &Files) {
        match root.text("/etc/machine-id").map(|text| text.trim().to_owned()) {
            None => self.good("machine-id", "/etc/machine-id is not there"),
            Some(id) if id.is_empty() || id == "uninitialized" => self.good("machine-id", "empty"),
            Some(_) => self.error(
                "machine-id",
                "/etc/machine-id is filled in: all machines would have the same",
                "truncate it: `truncate -s 0 /etc/machine-id`",
            ),
        }
        let keys: Vec<_> = root
            .names("/etc/ssh")
            .into_iter()
            .filter(|name| name.starts_with("ssh_host_") && name.ends_with("_key"))
            .collect();
        match keys.as_slice() {
            [] => self.good("host keys", "none in /etc/ssh"),
            keys => self.error(
                "host keys",
                format!("in /etc/ssh: {}", keys.join(", ")),
                "whoever has the image can pass for every machine: remove them, cloud-init makes new ones",
            ),
        }
    }

    fn console(&mut self, root: &Files, boot: Option<&Files>) {
        const SUBJECT: &str = "serial console";
        const PLACES: [&str; 6] = [
            "/boot/grub/grub.cfg",
            "/boot/grub2/grub.cfg",
            "/boot/extlinux/extlinux.conf",
            "/boot/syslinux/syslinux.cfg",
            "/etc/kernel/cmdline",
            "/etc/default/grub",
        ];
        let mut texts: Vec<String> = PLACES.iter().filter_map(|path| root.text(path)).collect();
        let of_boot = |files: &Files, directory: &str| {
            let entries = files.names(&format!("{directory}/loader/entries"));
            let paths = entries.into_iter().map(|name| format!("{directory}/loader/entries/{name}"));
            paths.filter_map(|path| files.text(&path)).collect::<Vec<_>>()
        };
        texts.extend(of_boot(root, "/boot"));
        if let Some(boot) = boot {
            texts.extend(["/grub/grub.cfg", "/grub2/grub.cfg"].iter().filter_map(|path| boot.text(path)));
            texts.extend(of_boot(boot, ""));
        }
        if texts.is_empty() {
            let found = "no loader's configuration that is known here was found";
            self.push(Severity::NotExamined, SUBJECT, found, "boot it once and look at its serial port");
        } else if texts.iter().any(|text| text.contains("console=ttyS")) {
            self.good(SUBJECT, "the kernel's command line names one");
        } else {
            self.warning(
                SUBJECT,
                "none on the kernel's command line",
                "add console=tty0 console=ttyS0,115200n8, to see it start from afar",
            );
        }
    }
}

/// `datasource_list` in a file of cloud-init's, written in one line or in several.
fn sources(text: &str) -> Option<Vec<String>> {
    let mut lines = text.lines();
    let rest = lines.find_map(|line| line.strip_prefix("datasource_list:"))?.trim();
    let word = |word: &str| word.trim().trim_matches(['"', '\'']).to_owned();
    if let Some(flow) = rest.strip_prefix('[') {
        let mut flow = flow.to_owned();
        while !flow.contains(']') {
            flow += lines.next()?;
        }
        let inner = flow.split(']').next().unwrap_or_default();
        return Some(inner.split(',').map(word).filter(|source| !source.is_empty()).collect());
    }
    let items = lines.map(str::trim).map_while(|line| line.strip_prefix("- ")).map(word);
    Some(items.collect())
}

/// A version as numbers, so that 6.10 comes after 6.9.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

#[cfg(test)]
mod tests;
