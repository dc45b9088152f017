//! What an image of the catalogue's (`firmware-scripts/os`) is made of. The catalogue as operators
//! see it is read by `controller/core/src/os.rs`.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// One system of the catalogue.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    /// What the image is called: lower case, digits, `-`.
    pub(crate) name: String,
    /// What people call it.
    pub(crate) title: String,
    /// Who makes it.
    pub(crate) family: Family,
    /// Its release.
    pub(crate) version: String,
    /// Firmware modes the image starts in.
    pub(crate) firmware: Vec<Firmware>,
    /// The user besides root whom the deploy's keys let in.
    pub(crate) default_user: String,
    /// How it is told its settings.
    pub(crate) settings: Settings,
    /// What tells that it runs.
    pub(crate) active: Active,
    /// The smallest disk it is of use on, in GiB.
    #[serde(rename = "minimum_disk_gib")]
    _minimum_disk: u32,
    /// Whether it is booted on its way through the gate.
    #[serde(rename = "tried")]
    _tried: String,
    /// Where its makers publish it.
    #[serde(rename = "source")]
    _source: String,
    /// What our own image of it is made of.
    pub(crate) image: Recipe,
}

/// What an image is made of.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recipe {
    /// The release's name in the package archive.
    pub(crate) suite: String,
    /// What its kernel is told, besides its root file system.
    pub(crate) kernel_command_line: String,
    /// Debian packages.
    pub(crate) packages: Vec<String>,
    /// Kernel modules in its initial RAM disk.
    pub(crate) initramfs_modules: Vec<String>,
    /// systemd units that are switched on.
    pub(crate) enabled_units: Vec<String>,
    /// systemd units that never start.
    pub(crate) masked_units: Vec<String>,
    /// cloud-init's configuration in the image.
    pub(crate) cloud_init: String,
}

/// Makers of systems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Family {
    /// Debian: made by mmdebstrap.
    Debian,
}

/// Firmware modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Firmware {
    /// A boot sector and GRUB in a partition of its own.
    Bios,
    /// An EFI system partition.
    Uefi,
}

/// How a system is told its settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Settings {
    /// A drive labelled `cidata`, for cloud-init.
    Cidata,
}

/// What tells that a system runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Active {
    /// It calls home.
    PhonedHome,
}

/// Debian 12, as it is in the repository.
pub(crate) const DEBIAN_12: &str = include_str!("../../firmware-scripts/os/debian-12.toml");

impl Entry {
    /// Reads an entry; what contradicts itself is refused.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let entry: Self = toml::from_str(text).context("the catalogue's entry cannot be read")?;
        let label = |name: &str| {
            let bytes = name.bytes();
            !name.is_empty() && bytes.into_iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        ensure!(label(&entry.name), "`name` has lower case, digits and `-`");
        ensure!(label(&entry.image.suite), "`suite` has lower case, digits and `-`");
        ensure!(label(&entry.default_user), "`default_user` has lower case, digits and `-`");
        ensure!(!entry.firmware.is_empty(), "`firmware` names no mode to start in");
        ensure!(
            !entry.image.kernel_command_line.contains(['\n', '$', ';']),
            "`kernel_command_line` is one line of words"
        );
        // These become words of commands.
        for word in [
            &entry.image.packages,
            &entry.image.initramfs_modules,
            &entry.image.enabled_units,
            &entry.image.masked_units,
        ]
        .into_iter()
        .flatten()
        {
            let plain = word.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._@".contains(&b));
            ensure!(plain && word.starts_with(|c: char| c.is_ascii_alphanumeric()), "{word:?} is no name");
        }
        let installs = |package: &str| entry.image.packages.iter().any(|known| known == package);
        match entry.settings {
            Settings::Cidata => ensure!(installs("cloud-init"), "`settings` wants the package cloud-init"),
        }
        match entry.active {
            Active::PhonedHome => {
                let at = |module| entry.image.cloud_init.find(&format!("\n  - {module}\n"));
                let synced = at("scripts-per-boot").zip(at("phone-home")).is_some_and(|(sync, home)| sync < home);
                ensure!(synced, "`active` wants cloud-init's modules scripts-per-boot and, after it, phone-home");
            }
        }
        Ok(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_can_be_read() {
        let entry = Entry::parse(DEBIAN_12).unwrap();
        assert_eq!((entry.name.as_str(), entry.version.as_str()), ("debian-12", "12"));
        assert_eq!(entry.firmware, [Firmware::Bios, Firmware::Uefi]);
    }

    #[test]
    fn what_the_entry_does_not_know_or_contradicts_is_refused() {
        let refused = |from: &str, to: &str| {
            assert!(DEBIAN_12.contains(from));
            format!("{:#}", Entry::parse(&DEBIAN_12.replacen(from, to, 1)).unwrap_err())
        };
        assert!(refused("family", "vendor").contains("unknown field `vendor`"));
        assert!(refused("\"phoned-home\"", "\"guessed\"").contains("unknown variant `guessed`"));
        assert!(refused("[\"bios\", \"uefi\"]", "[]").contains("no mode"));
        assert!(refused("    \"cloud-init\",\n", "").contains("wants the package cloud-init"));
        assert!(refused("  - phone-home\n", "").contains("phone-home"));
        assert!(refused("\"zstd\"", "\"zstd; reboot\"").contains("is no name"));
    }
}
