//! The catalogue of operating systems, `firmware-scripts/os`: what operators can know of a system
//! before they import an image of it.
//!
//! An entry describes; it is no promise. [`Tried`] says which were booted.

use rackhand_common::{image::Settings, machine::Firmware};
use serde::{Deserialize, Serialize};

/// One system of the catalogue.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct System {
    /// What it is called here: lower case, digits, `-`, `.`.
    pub name: String,
    /// What people call it.
    pub title: String,
    /// Whose it is, or is like: `debian`, `ubuntu`, `rhel`, `flatcar`.
    pub family: String,
    /// Its release.
    pub version: String,
    /// Firmware modes its images start in.
    pub firmware: Vec<Firmware>,
    /// The user besides root whom the deploy's keys let in.
    pub default_user: String,
    /// The smallest disk it is of use on, in GiB.
    pub minimum_disk_gib: u32,
    /// How it is told its settings.
    pub settings: Settings,
    /// What tells that it runs.
    pub active: Active,
    /// How far this was tried.
    pub tried: Tried,
    /// Where images of it come from.
    pub source: String,
    /// What its kickstart installs it from; `None` for one that has no kickstart.
    pub kickstart: Option<Kickstart>,
    /// What our own image of it is made of; `cargo xtask os-image` reads it.
    #[serde(default, rename = "image")]
    _image: serde::de::IgnoredAny,
}

/// Where a kickstart has a system installed from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kickstart {
    /// The repository of its base.
    pub baseos: String,
    /// The repository of the rest.
    pub appstream: String,
}

/// What tells that a system runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Active {
    /// It calls home, with the token in its settings.
    PhonedHome,
    /// Nothing but that its disk was started.
    Started,
}

/// How far an entry was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tried {
    /// It is installed, booted and logged in to before every release.
    Booted,
    /// Nobody here has; it is written down from its makers' documentation.
    No,
}

/// The files, by name.
const FILES: [&str; 7] = [
    include_str!("../../../firmware-scripts/os/centos-stream-9.toml"),
    include_str!("../../../firmware-scripts/os/debian-12.toml"),
    include_str!("../../../firmware-scripts/os/debian-13.toml"),
    include_str!("../../../firmware-scripts/os/flatcar.toml"),
    include_str!("../../../firmware-scripts/os/rocky-9.toml"),
    include_str!("../../../firmware-scripts/os/ubuntu-22.04.toml"),
    include_str!("../../../firmware-scripts/os/ubuntu-24.04.toml"),
];

const KICKSTART: &str = include_str!("../../../firmware-scripts/install/kickstart/rhel-9.ks");

impl System {
    /// The kickstart by which an operator makes an image of it for servers.
    pub fn kickstart(&self) -> Option<String> {
        let Kickstart { baseos, appstream } = self.kickstart.as_ref()?;
        let values = [("@title@", &self.title), ("@baseos@", baseos), ("@appstream@", appstream)];
        Some(values.into_iter().fold(KICKSTART.to_owned(), |text, (name, value)| text.replace(name, value)))
    }
}

/// All systems of the catalogue, by name.
pub fn catalogue() -> Vec<System> {
    FILES.iter().map(|text| toml::from_str(text).expect("the catalogue is read by a test")).collect()
}

/// The system of this name.
pub fn find(name: &str) -> Option<System> {
    catalogue().into_iter().find(|system| system.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_read_and_says_what_is_true_of_it() {
        let systems = catalogue();
        assert!(systems.is_sorted_by_key(|system| system.name.clone()));
        for system in &systems {
            assert!(!system.firmware.is_empty() && system.minimum_disk_gib > 0, "{}", system.name);
            assert!(system.source.contains("https://"), "{}", system.name);
            // It is a kickstart of one release of one family.
            let has_kickstart = system.family == "rhel" && system.version == "9";
            assert_eq!(system.kickstart.is_some(), has_kickstart, "{}", system.name);
            if let Some(kickstart) = system.kickstart() {
                assert!(
                    kickstart.contains(&system.title) && !kickstart.replace("@core", "").contains('@'),
                    "{}",
                    system.name
                );
            }
            // Who is told nothing cannot call home.
            assert_eq!(system.active == Active::PhonedHome, system.settings != Settings::None, "{}", system.name);
            assert_eq!(find(&system.name).as_ref(), Some(system));
        }
        // What the gate boots, and nothing else.
        let booted: Vec<_> = systems.iter().filter(|system| system.tried == Tried::Booted).collect();
        assert_eq!(booted.iter().map(|system| system.name.as_str()).collect::<Vec<_>>(), ["debian-12"]);
    }

    #[test]
    fn every_file_of_the_catalogue_is_in_it() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../../firmware-scripts/os");
        let mut names: Vec<_> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        names.sort();
        assert_eq!(names, catalogue().iter().map(|system| system.name.clone()).collect::<Vec<_>>());
    }
}
