//! The one state behind both protocols, without sockets, tasks or a clock of its own. The machine
//! is given to the calls that concern it.

use std::{cell::Cell, collections::BTreeMap};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    chassis::{Boot, Chassis, Source},
    faults::{Faults, Flashing, Rotation, Settings, ToldUuid},
    keys::Keys,
    log::Log,
    personality::{Lan, Personality, Role, Thresholds},
    sensor::{Event, Sensor},
};

/// How many places for users there are. The first, in IPMI's count, has no name.
pub const USERS: usize = 10;

/// The most bytes of a user's name (IPMI 2.0 §22.28).
pub const MAX_NAME: usize = 16;

/// The most bytes of a password (§22.30).
pub const MAX_PASSWORD: usize = 20;

/// When boot flags lapse that no chassis control command followed (§28.12).
const BOOT_FLAGS_LAPSE: SignedDuration = SignedDuration::from_secs(60);

/// How long it takes to flash firmware.
const FLASHING: SignedDuration = SignedDuration::from_secs(1);

/// A BMC as it is just now.
#[derive(Clone, Debug)]
pub struct State {
    /// What it came as.
    pub personality: Personality,
    /// What is wrong with it.
    pub faults: Faults,
    /// Its sensors; the place is the number less one.
    pub sensors: Vec<Sensor>,
    /// Its event log.
    pub log: Log,
    /// Its users; the place is the id less one.
    pub users: Vec<User>,
    /// Its network.
    pub lan: Lan,
    /// What it is called in the network.
    pub host_name: String,
    /// The override of the boot order that is set.
    pub boot: Boot,
    /// When the override lapses.
    boot_lapses: Option<Timestamp>,
    /// Until when the identification light is on; the end of time when it is on for good.
    identify: Option<Timestamp>,
    /// What happens when power comes back: IPMI's code, 0 off, 1 as before, 2 on.
    pub restore_policy: u8,
    /// Version of its firmware, as it is called now.
    pub firmware: String,
    /// Firmware being flashed, oldest first.
    pub flashes: Vec<Flash>,
    /// So many of these have no task any more.
    pub forgotten: usize,
    /// The version that the machine's next start puts in force.
    staged: Option<String>,
    /// The firmware's settings that are in force.
    pub bios: BTreeMap<String, String>,
    /// Those that the next start puts in force.
    pub bios_pending: BTreeMap<String, String>,
    /// Whether Secure Boot is in force, and whether the next start puts it there.
    pub secure_boot: (bool, bool),
    /// The key databases of Secure Boot.
    pub keys: Keys,
    /// What is in the virtual CD drive.
    pub media: Option<String>,
    /// Who wants to be told of events: where, and their word for it.
    pub subscriptions: Vec<(u32, String, String)>,
    /// Counts logins that were denied since one was taken, and in all.
    pub denied: (Cell<u32>, Cell<u32>),
    /// Whether its LAN is no way to it for IPMI.
    pub is_lan_closed: bool,
    /// Counts restarts: sessions of an earlier one are lost.
    pub restarts: u64,
    /// Counts requests of Redfish.
    pub requests: u64,
    silent_until: Option<Timestamp>,
    /// Counts changes, for ETags.
    pub changes: u64,
    /// Counts what was to be set, for faults.
    settings: u64,
}

/// A place for a user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Name; empty when there is no user.
    pub name: String,
    /// Password, without padding.
    pub password: Vec<u8>,
    /// Whether the password was stored as one of up to 20 bytes rather than 16.
    pub is_long: bool,
    /// Whether it may log in.
    pub is_enabled: bool,
    /// What it may do.
    pub role: Option<Role>,
}

/// Firmware being flashed, or that was.
#[derive(Clone, Debug)]
pub struct Flash {
    /// Where it came from.
    pub image: String,
    /// The version it brings.
    pub version: String,
    /// How it fares.
    pub fares: Flashing,
    /// When it began.
    pub began: Timestamp,
    /// When it was in place.
    pub ended: Option<Timestamp>,
}

/// What is asked of a machine's power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerAct {
    /// Be on.
    On,
    /// Be off at once.
    Off,
    /// Have the system shut down.
    ShutDown,
    /// Off, and on again.
    Cycle,
    /// Start again without power going away.
    Reset,
    /// Interrupt the system for a diagnosis.
    Interrupt,
}

/// Why the power is as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PowerError {
    /// A machine that is off cannot do that.
    IsOff,
    /// The machine did not.
    Failed(String),
}

/// How a change of a password went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotated {
    /// To be answered with success.
    Said,
    /// Not to be answered.
    Unsaid,
}

impl State {
    /// A BMC as it comes from the factory.
    pub fn new(personality: Personality) -> Self {
        let sensors = personality.sensors.iter().cloned().zip(1..);
        let sensors =
            sensors.map(|(spec, number)| Sensor { spec, number, is_unavailable: false, is_scanned: true }).collect();
        let mut users = vec![User::default(); USERS];
        for (user, spec) in users.iter_mut().skip(1).zip(&personality.users) {
            *user = User {
                name: spec.name.clone(),
                password: spec.password.clone().into_bytes(),
                is_long: spec.password.len() > 16,
                is_enabled: true,
                role: Some(spec.role),
            };
        }
        let attributes = personality.quirks.bios_attributes.iter();
        Self {
            faults: Faults::default(),
            sensors,
            log: Log::default(),
            users,
            lan: personality.lan.clone(),
            host_name: format!("bmc-{}", personality.serial.to_lowercase()),
            boot: Boot::default(),
            boot_lapses: None,
            identify: None,
            restore_policy: 1,
            firmware: format!("{}.{:02}", personality.firmware.0, personality.firmware.1),
            flashes: Vec::new(),
            forgotten: 0,
            staged: None,
            bios: attributes.map(|(name, value, _)| (name.clone(), value.clone())).collect(),
            bios_pending: BTreeMap::new(),
            secure_boot: (false, false),
            keys: Keys::factory(),
            media: None,
            subscriptions: Vec::new(),
            requests: 0,
            denied: Default::default(),
            is_lan_closed: false,
            restarts: 0,
            silent_until: None,
            changes: 0,
            settings: 0,
            personality,
        }
    }

    /// Lets what has its time happen.
    pub fn pass(&mut self, now: Timestamp, chassis: &dyn Chassis) {
        if self.boot_lapses.is_some_and(|at| at <= now) {
            self.boot_lapses = None;
            self.set_boot(chassis, Boot::default()).unwrap_or_else(|error| tracing::warn!(%error, "boot override"));
        }
        let mut restarts = false;
        for flash in self.flashes.iter_mut().filter(|flash| flash.ended.is_none() && flash.began + FLASHING <= now) {
            match flash.fares {
                Flashing::Hangs => continue,
                Flashing::Works => self.firmware.clone_from(&flash.version),
                Flashing::Restarts => {
                    self.firmware.clone_from(&flash.version);
                    restarts = true;
                }
                Flashing::Staged => self.staged = Some(flash.version.clone()),
                Flashing::Refused | Flashing::Fails | Flashing::Lies => {}
            }
            flash.ended = Some(now);
            self.changes += 1;
        }
        if restarts {
            self.forgotten = self.flashes.len();
            self.restart(now, FLASHING);
        }
    }

    /// The system UUID it tells.
    pub fn uuid(&self) -> Uuid {
        match self.faults.uuid {
            ToldUuid::Right => self.personality.uuid,
            ToldUuid::Wrong => Uuid::from_u128(self.personality.uuid.as_u128() ^ 0xbad),
            ToldUuid::Zero => Uuid::nil(),
            ToldUuid::Ones => Uuid::max(),
        }
    }

    /// Changes the machine's power. A start spends an override that does not last, and puts
    /// settings in force.
    pub fn set_power(&mut self, now: Timestamp, chassis: &dyn Chassis, act: PowerAct) -> Result<(), PowerError> {
        if self.faults.lying {
            return Ok(());
        }
        if let Some(lapses) = &mut self.boot_lapses {
            *lapses = now + BOOT_FLAGS_LAPSE;
        }
        self.changes += 1;
        let is_on = chassis.power();
        let failed = PowerError::Failed;
        match act {
            PowerAct::On if is_on => Ok(()),
            PowerAct::On => {
                chassis.set_power(true).map_err(failed)?;
                self.started();
                Ok(())
            }
            PowerAct::Off => chassis.set_power(false).map_err(failed),
            _ if !is_on => Err(PowerError::IsOff),
            PowerAct::ShutDown => chassis.shut_down().map_err(failed),
            PowerAct::Cycle => {
                chassis.set_power(false).map_err(failed)?;
                chassis.set_power(true).map_err(failed)?;
                self.started();
                Ok(())
            }
            PowerAct::Reset => {
                chassis.reset().map_err(failed)?;
                self.started();
                Ok(())
            }
            PowerAct::Interrupt => Ok(()),
        }
    }

    /// The machine started, also by itself.
    pub fn started(&mut self) {
        self.boot_lapses = None;
        if !self.boot.is_lasting {
            self.boot = Boot::default();
        }
        self.bios.append(&mut self.bios_pending);
        if let Some(version) = self.staged.take() {
            self.firmware = version;
        }
        self.secure_boot.0 = self.secure_boot.1;
        self.changes += 1;
    }

    /// Overrides what the machine boots from.
    pub fn set_boot(&mut self, chassis: &dyn Chassis, boot: Boot) -> Result<(), String> {
        self.changes += 1;
        self.boot_lapses = None;
        if self.faults.lying {
            return Ok(());
        }
        let mut followed = if self.faults.follows.does(&boot) { boot.clone() } else { Boot::default() };
        if followed.source == Some(Source::Cd) {
            followed.address.clone_from(&self.media);
        }
        chassis.set_boot(&followed)?;
        self.boot = boot;
        Ok(())
    }

    /// Has the override lapse if nothing follows, as IPMI's boot flags do.
    pub fn let_boot_lapse(&mut self, now: Timestamp) {
        self.boot_lapses = (self.boot.source.is_some()).then_some(now + BOOT_FLAGS_LAPSE);
    }

    /// The override as it is told.
    pub fn told_boot(&self) -> Boot {
        if self.faults.override_hidden { Boot::default() } else { self.boot.clone() }
    }

    /// Has the identification light on until then.
    pub fn set_identify(&mut self, until: Option<Timestamp>) {
        if !self.faults.lying {
            self.identify = until;
            self.changes += 1;
        }
    }

    /// Until when the identification light is on, if it is.
    pub fn identify(&self, now: Timestamp) -> Option<Timestamp> {
        self.identify.filter(|until| *until > now)
    }

    /// Has a sensor read this: its value, or the states it asserts as bits.
    pub fn inject(&mut self, now: Timestamp, name: &str, value: f64) -> bool {
        let Some(sensor) = self.sensors.iter_mut().find(|sensor| sensor.spec.name == name) else { return false };
        let events = match sensor.spec.reading {
            crate::personality::Reading::Analog { .. } => sensor.set_value(value),
            crate::personality::Reading::Discrete(_) => sensor.set_states(value as u16),
        };
        self.note(now, events);
        true
    }

    /// Has a sensor read nothing, or read again.
    pub fn set_available(&mut self, name: &str, is_available: bool) -> bool {
        let sensor = self.sensors.iter_mut().find(|sensor| sensor.spec.name == name);
        sensor.map(|sensor| sensor.is_unavailable = !is_available).is_some()
    }

    /// Draws a sensor's lines elsewhere.
    pub fn set_thresholds(&mut self, now: Timestamp, number: u8, to: Thresholds) {
        if let Some(sensor) = self.sensor_mut(number) {
            let events = sensor.set_thresholds(to);
            self.note(now, events);
        }
    }

    fn note(&mut self, now: Timestamp, events: Vec<Event>) {
        self.changes += 1;
        for event in events {
            self.log.note(now, event);
        }
    }

    /// The sensor of this number.
    pub fn sensor(&self, number: u8) -> Option<&Sensor> {
        self.sensors.get(usize::from(number).checked_sub(1)?)
    }

    /// The sensor of this number, to change.
    pub fn sensor_mut(&mut self, number: u8) -> Option<&mut Sensor> {
        self.sensors.get_mut(usize::from(number).checked_sub(1)?)
    }

    /// The id and place of the user of this name.
    pub fn user(&self, name: &str) -> Option<(u8, &User)> {
        let users = (1..).zip(&self.users);
        users.into_iter().find(|(_, user)| !user.name.is_empty() && user.name == name)
    }

    /// The place of this id.
    pub fn user_mut(&mut self, id: u8) -> Option<&mut User> {
        self.changes += 1;
        self.users.get_mut(usize::from(id).checked_sub(1)?)
    }

    /// Who logs in with this name and password, and what they may do.
    pub fn log_in(&self, name: &str, password: &[u8]) -> Option<Role> {
        let known = self.user(name).and_then(|(_, user)| {
            let is_let_in = user.is_enabled && user.password == password && !self.is_locked();
            user.role.filter(|role| is_let_in && *role > Role::None)
        });
        self.note_login(known.is_some());
        known
    }

    /// Whether its accounts are locked, as too many logins were denied.
    pub fn is_locked(&self) -> bool {
        self.faults.locks_after != 0 && self.denied.0.get() >= self.faults.locks_after
    }

    /// Counts a login that was taken, or denied.
    pub fn note_login(&self, is_taken: bool) {
        let (in_a_row, in_all) = &self.denied;
        if is_taken {
            in_a_row.set(0);
        } else {
            in_a_row.set(in_a_row.get() + 1);
            in_all.set(in_all.get() + 1);
        }
    }

    /// Whether a change of what is set is made, as far as the faults let it.
    pub fn is_set(&mut self) -> bool {
        self.settings += 1;
        match self.faults.settings {
            Settings::Works => true,
            Settings::Ignored => false,
            Settings::Half => self.settings % 2 == 1,
        }
    }

    /// Changes a password, as far as the faults let it. The caller has checked its length.
    pub fn set_password(&mut self, id: u8, password: &[u8], is_long: bool) -> Rotated {
        let how = self.faults.password;
        let kept = match how {
            Rotation::Cut => &password[..password.len().min(MAX_NAME)],
            _ => password,
        };
        let is_done = matches!(how, Rotation::Works | Rotation::DoneNotSaid | Rotation::Cut);
        if let Some(user) = self.user_mut(id).filter(|_| is_done) {
            user.password = kept.to_vec();
            user.is_long = is_long;
        }
        match how {
            Rotation::DoneNotSaid | Rotation::Silent => Rotated::Unsaid,
            _ => Rotated::Said,
        }
    }

    /// Restarts the BMC itself: it is silent for so long, and forgets its sessions.
    pub fn restart(&mut self, now: Timestamp, silent: SignedDuration) {
        self.restarts += 1;
        self.silent_until = Some(now + silent);
        self.log.reserve();
    }

    /// Whether it is restarting.
    pub fn is_silent(&self, now: Timestamp) -> bool {
        self.silent_until.is_some_and(|until| now < until)
    }

    /// Begins to flash firmware. Its version is what the image's name ends in: `bmc-2.18.bin`.
    pub fn flash(&mut self, now: Timestamp, image: &str) -> usize {
        let name = image.rsplit('/').next().unwrap_or_default();
        let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
        let version = stem.rsplit(['-', '_']).next().unwrap_or(stem).to_owned();
        let fares = self.faults.flashing;
        self.flashes.push(Flash { image: image.to_owned(), version, fares, began: now, ended: None });
        self.flashes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chassis::Bench;

    const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);

    fn state() -> State {
        State::new(Personality::generic(7))
    }

    #[test]
    fn a_start_spends_the_override_and_puts_settings_in_force() {
        let (mut state, bench) = (state(), Bench::default());
        state.set_boot(&bench, Boot { source: Some(Source::Network), ..Boot::default() }).unwrap();
        state.bios_pending.insert("BootMode".into(), "Bios".into());
        state.set_power(NOW, &bench, PowerAct::Off).unwrap();
        assert_eq!(state.boot.source, Some(Source::Network));
        state.set_power(NOW, &bench, PowerAct::On).unwrap();
        assert_eq!(state.boot, Boot::default());
        assert_eq!(state.bios["BootMode"], "Bios");
    }

    #[test]
    fn boot_flags_lapse_unless_the_power_is_controlled() {
        let (mut state, bench) = (state(), Bench::default());
        let after = |seconds| NOW + SignedDuration::from_secs(seconds);
        state.set_boot(&bench, Boot { source: Some(Source::Network), ..Boot::default() }).unwrap();
        state.let_boot_lapse(NOW);
        state.set_power(after(59), &bench, PowerAct::Off).unwrap();
        state.pass(after(118), &bench);
        assert_eq!(state.boot.source, Some(Source::Network));
        state.pass(after(119), &bench);
        assert_eq!(state.boot.source, None);
    }

    #[test]
    fn a_lying_bmc_says_yes_and_changes_nothing() {
        let (mut state, bench) = (state(), Bench::default());
        state.faults.lying = true;
        state.set_power(NOW, &bench, PowerAct::On).unwrap();
        state.set_boot(&bench, Boot { source: Some(Source::Cd), ..Boot::default() }).unwrap();
        assert_eq!(bench.acts(), []);
        assert_eq!(state.boot, Boot::default());
    }

    #[test]
    fn passwords_go_as_the_fault_says() {
        let long = b"twenty-bytes-long-pw";
        for (how, said, lets_in) in [
            (Rotation::Works, Rotated::Said, &long[..]),
            (Rotation::SaidNotDone, Rotated::Said, b"calvin-0"),
            (Rotation::DoneNotSaid, Rotated::Unsaid, long),
            (Rotation::Silent, Rotated::Unsaid, b"calvin-0"),
            (Rotation::Cut, Rotated::Said, &long[..16]),
        ] {
            let mut state = state();
            state.faults.password = how;
            assert_eq!(state.set_password(2, long, true), said, "{how:?}");
            assert_eq!(state.log_in("admin", lets_in), Some(Role::Administrator), "{how:?}");
        }
    }

    #[test]
    fn flashed_firmware_is_in_place_after_a_while() {
        let (mut state, bench) = (state(), Bench::default());
        state.flash(NOW, "https://depot/bmc-2.18.bin");
        state.pass(NOW, &bench);
        assert_eq!(state.firmware, "2.17");
        state.pass(NOW + FLASHING, &bench);
        assert_eq!(state.firmware, "2.18");
    }

    #[test]
    fn firmware_fares_as_it_is_told_to() {
        let ends = |flashing| {
            let (mut state, bench) = (state(), Bench::default());
            state.faults.flashing = flashing;
            state.flash(NOW, "bmc-2.18.bin");
            state.pass(NOW + FLASHING, &bench);
            let silent = state.is_silent(NOW + FLASHING);
            let before = state.firmware.clone();
            state.started();
            (before, state.firmware.clone(), state.flashes[0].ended.is_some(), silent)
        };
        let told = |before: &str, after: &str, ended, silent| (before.to_owned(), after.to_owned(), ended, silent);
        assert_eq!(ends(Flashing::Restarts), told("2.18", "2.18", true, true));
        assert_eq!(ends(Flashing::Fails), told("2.17", "2.17", true, false));
        assert_eq!(ends(Flashing::Lies), told("2.17", "2.17", true, false));
        assert_eq!(ends(Flashing::Hangs), told("2.17", "2.17", false, false));
        assert_eq!(ends(Flashing::Staged), told("2.17", "2.18", true, false));
    }
}
