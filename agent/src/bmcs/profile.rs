//! Profiles of machines' firmware settings, as data: what comes with the product
//! (`firmware-scripts/bios`) and what an operator puts beside it. Which settings are part of a record,
//! and which a machine is to have whatever it was found with.
//!
//! Every profile that fits a machine counts, in the order of files and in them; where two say something
//! about the same setting, the later one does. A mistake is told with its file, and then none is taken.

use std::{collections::BTreeMap, path::Path};

use rackhand_common::bmc::{
    Identity,
    baseline::{Attribute, Baseline, MAX_ATTRIBUTES},
};
use serde::Deserialize;

use crate::{
    data_files::{NoFiles, toml_files},
    health::rules::Pattern,
};

/// The profiles that come with the product.
const OURS: [(&str, &str); 1] = [("generic.toml", include_str!("../../../firmware-scripts/bios/generic.toml"))];

/// The most profiles.
const MAX_PROFILES: usize = 256;

/// Why profiles cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadProfile {
    /// The files cannot be had.
    #[error(transparent)]
    Files(#[from] NoFiles),
    /// Something in one is wrong.
    #[error("{file}: {why}")]
    Wrong {
        /// Which.
        file: String,
        /// What.
        why: String,
    },
}

/// All profiles that are gone by.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profiles(Vec<Profile>);

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Profile {
    /// What it is called, for people.
    name: String,
    /// Machines of such a vendor; of every one when empty.
    #[serde(default)]
    vendor: Vec<Pattern>,
    /// Machines of such a model; of every one when empty.
    #[serde(default)]
    model: Vec<Pattern>,
    /// Settings that are not recorded.
    #[serde(default)]
    ignore: Vec<Pattern>,
    /// What these settings are to be.
    #[serde(default)]
    attributes: BTreeMap<String, Attribute>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    profile: Vec<Profile>,
}

impl Profile {
    fn fits(&self, identity: &Identity) -> bool {
        let is = |patterns: &[Pattern], told: Option<&String>| {
            patterns.is_empty() || told.is_some_and(|told| patterns.iter().any(|pattern| pattern.matches(told)))
        };
        is(&self.vendor, identity.vendor.as_ref()) && is(&self.model, identity.model.as_ref())
    }
}

impl Profiles {
    /// Those that come with the product, and those in the files of this directory, in the order of
    /// their names; it need not be there.
    pub fn load(directory: &Path) -> Result<Self, BadProfile> {
        let files = toml_files(directory)?;
        let theirs = files.iter().map(|(name, text)| (name.as_str(), text.as_str()));
        Self::read(OURS.into_iter().chain(theirs))
    }

    /// Those in these files: names and texts.
    pub fn read<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, BadProfile> {
        let mut profiles = Self::default();
        for (name, text) in files {
            profiles.add(name, text)?;
        }
        Ok(profiles)
    }

    fn add(&mut self, file: &str, text: &str) -> Result<(), BadProfile> {
        let wrong = |why: String| BadProfile::Wrong { file: file.to_owned(), why };
        let read: File = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
        self.0.extend(read.profile);
        if self.0.len() > MAX_PROFILES {
            return Err(wrong(format!("there are more than {MAX_PROFILES} profiles")));
        }
        if let Some(long) = self.0.iter().find(|profile| profile.attributes.len() > MAX_ATTRIBUTES) {
            return Err(wrong(format!("{} has more than {MAX_ATTRIBUTES} attributes", long.name)));
        }
        Ok(())
    }

    /// Leaves out of what was found whatever is not to be recorded, and says what of the rest is to
    /// be otherwise.
    pub fn apply(&self, found: &mut Baseline) {
        let Some(bios) = &mut found.bios else { return };
        let fitting = || self.0.iter().filter(|profile| profile.fits(&found.identity));
        let is_ignored =
            |name: &String| fitting().flat_map(|profile| &profile.ignore).any(|ignore| ignore.matches(name));
        bios.retain(|name, _| !is_ignored(name));
        found.pending.retain(|name, _| bios.contains_key(name));
        let wanted = fitting().flat_map(|profile| profile.attributes.clone());
        // What this firmware does not know cannot be asked of it.
        found.wanted = wanted.filter(|(name, _)| bios.contains_key(name)).collect();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rackhand_common::bmc::baseline::{compare, plan};

    use super::*;

    fn text(value: &str) -> Attribute {
        Attribute::Text(value.to_owned())
    }

    fn found(model: &str) -> Baseline {
        let bios = [("BootMode", "Uefi"), ("SriovGlobalEnable", "Disabled"), ("SetupPassword", "***")];
        Baseline {
            identity: Identity { model: Some(model.to_owned()), ..Identity::default() },
            bios: Some(bios.map(|(name, value)| (name.to_owned(), text(value))).into()),
            ..Baseline::example()
        }
    }

    #[test]
    fn passwords_are_never_recorded() {
        let directory = tempfile::tempdir().unwrap();
        let mut found = found("R1");
        found.pending = [("SetupPassword".to_owned(), text("****"))].into();
        Profiles::load(directory.path()).unwrap().apply(&mut found);
        let names: Vec<_> = found.bios.unwrap().into_keys().collect();
        assert_eq!((names, found.pending.len()), (vec!["BootMode".to_owned(), "SriovGlobalEnable".to_owned()], 0));
    }

    #[test]
    fn a_profile_is_for_its_model_and_its_settings_are_what_the_record_says() {
        let directory = tempfile::tempdir().unwrap();
        let profile = "[[profile]]\nname = \"virtual machines\"\nmodel = [\"r6*\"]\nignore = [\"BootMode\"]\n\
                       attributes = { SriovGlobalEnable = \"Enabled\", Unknown = true }\n";
        fs::write(directory.path().join("10-r6.toml"), profile).unwrap();
        let profiles = Profiles::load(directory.path()).unwrap();
        let (mut ours, mut other) = (found("R640"), found("R740"));
        profiles.apply(&mut ours);
        profiles.apply(&mut other);
        assert_eq!((other.wanted.len(), other.bios.unwrap().len()), (0, 2));

        let record = ours.clone().recorded();
        assert_eq!(record.bios, Some([("SriovGlobalEnable".to_owned(), text("Enabled"))].into()));
        // What it is not yet is a difference, and the next release puts it there.
        let [difference] = compare(&record, &ours).try_into().unwrap();
        assert_eq!(difference.to_string(), "bios SriovGlobalEnable: Disabled, recorded Enabled");
        plan(&record, &ours).into_iter().for_each(|change| ours.obey(change));
        ours.start();
        assert_eq!(compare(&record, &ours), []);
    }

    #[test]
    fn a_mistake_is_told_with_its_file_and_a_directory_need_not_be_there() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Profiles::load(&directory.path().join("none")).is_ok());
        fs::write(directory.path().join("bad.toml"), "[[profile]]\nname = \"a\"\nvendors = []\n").unwrap();
        let refused = Profiles::load(directory.path()).unwrap_err().to_string();
        assert!(refused.contains("bad.toml") && refused.contains("vendors"), "{refused}");
    }
}
