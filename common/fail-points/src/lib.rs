//! Named points at which a test makes a program of this product fail: around every durable
//! write and every step of a workflow. In release builds every function here is empty.
//!
//! In other builds the environment variable [`DIRECTORY`] names a directory. A file `armed` in
//! it says what shall fail: a point, a [`Mode`] and a count, as in `lease.commit crash-after 1`.
//! The process that reaches the point the count's time removes the file and fails; a test sees
//! by that that it did. The file `reached` lists the points that were reached so far.

use std::{fmt, io, str::FromStr};

/// The environment variable that names the directory.
pub const DIRECTORY: &str = "RACKHAND_FAIL_POINTS";

/// Which program a point is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    /// `rackhand-controller serve`, and `backup` and `seal rotate`.
    Controller,
    /// `rackhand-agent serve`, and `enrol`.
    Agent,
    /// `rackhand-agent boot`.
    Boot,
    /// The installer.
    Installer,
}

/// How a point fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// What was to be done is not done; an input/output error is given instead.
    Error,
    /// The program ends at once, before it is done.
    CrashBefore,
    /// The program ends at once, when it is done.
    CrashAfter,
    /// It is done twice.
    Repeat,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Error, Self::CrashBefore, Self::CrashAfter, Self::Repeat];
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::CrashBefore => "crash-before",
            Self::CrashAfter => "crash-after",
            Self::Repeat => "repeat",
        })
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|mode| mode.to_string() == text).ok_or_else(|| format!("no mode {text:?}"))
    }
}

/// A point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Its name.
    pub name: &'static str,
    /// The programs it is in.
    pub programs: &'static [Program],
    /// How it can fail: a transaction cannot be committed twice, and a check has no error of
    /// its own.
    pub modes: &'static [Mode],
}

const fn point(name: &'static str, programs: &'static [Program]) -> Point {
    Point { name, programs, modes: &Mode::ALL }
}

const fn once(name: &'static str, programs: &'static [Program]) -> Point {
    Point { name, programs, modes: &[Mode::Error, Mode::CrashBefore, Mode::CrashAfter] }
}

const fn crash(name: &'static str, programs: &'static [Program]) -> Point {
    Point { name, programs, modes: &[Mode::CrashBefore, Mode::CrashAfter] }
}

const CONTROLLER: &[Program] = &[Program::Controller];
const AGENT: &[Program] = &[Program::Agent];
const BOOT: &[Program] = &[Program::Boot];
const NODE: &[Program] = &[Program::Agent, Program::Boot];
const INSTALLER: &[Program] = &[Program::Installer];

/// Every point there is.
pub const POINTS: &[Point] = &[
    once("store.commit", CONTROLLER),
    point("step.boot installer", CONTROLLER),
    point("step.restart into installer", CONTROLLER),
    point("step.write image", CONTROLLER),
    point("step.start system", CONTROLLER),
    point("step.erase disks", CONTROLLER),
    point("step.switch power", CONTROLLER),
    point("step.leave system", CONTROLLER),
    point("step.run tests", CONTROLLER),
    point("step.restore BMC", CONTROLLER),
    point("step.set BMC password", CONTROLLER),
    point("command.send", CONTROLLER),
    point("image.put", CONTROLLER),
    once("backup.write", CONTROLLER),
    once("backup.name", CONTROLLER),
    once("seal.begin", CONTROLLER),
    point("seal.end", CONTROLLER),
    point("identity.keep", AGENT),
    once("spool.commit", NODE),
    point("intent.replace", NODE),
    once("ledger.accept", AGENT),
    point("ledger.begin", AGENT),
    point("power.act", AGENT),
    once("ledger.end", AGENT),
    once("ledger.welcomed", AGENT),
    point("lease.commit", BOOT),
    once("ticket.write", BOOT),
    once("installer.record", BOOT),
    point("chunk.keep", BOOT),
    crash("order.check", INSTALLER),
    point("image.clear", INSTALLER),
    point("image.write", INSTALLER),
    point("image.flush", INSTALLER),
    point("image.finish", INSTALLER),
    point("boot-order.set", INSTALLER),
    point("boot-entries.forget", INSTALLER),
    point("erase.pattern", INSTALLER),
    point("erase.overwrite", INSTALLER),
    point("erase.verify", INSTALLER),
    point("channel.ask", INSTALLER),
];

/// Does something at a point: `fail_point!("lease.commit", self.write(&made))?`. The function
/// around it gives a `Result` whose error can be made of an [`io::Error`]. What comes after the
/// comma stands there twice, and what is moved by it cannot: then it is `fail_point!(once …)`.
/// `fail_point!(crash …)` is for what has no error to give.
#[macro_export]
macro_rules! fail_point {
    (crash $point:expr, $act:expr) => {{
        $crate::crashes($point);
        let done = $act;
        $crate::after($point);
        done
    }};
    (once $point:expr, $act:expr) => {{
        $crate::before($point)?;
        let done = $act;
        $crate::after($point);
        done
    }};
    ($point:expr, $act:expr) => {{
        $crate::before($point)?;
        let mut done = $act;
        if $crate::repeats($point) {
            done = $act;
        }
        $crate::after($point);
        done
    }};
}

/// Before the point: its error, or the program's end, when that is armed.
#[cfg(debug_assertions)]
pub fn before(point: &'static str) -> io::Result<()> {
    crashes(point);
    if armed::strikes(point, Mode::Error) {
        return Err(io::Error::other(format!("fail point {point}")));
    }
    Ok(())
}

/// Before a point that has no error: the program's end, when that is armed.
#[cfg(debug_assertions)]
pub fn crashes(point: &'static str) {
    armed::reached(point);
    if armed::strikes(point, Mode::CrashBefore) {
        std::process::abort();
    }
}

/// After the point: the program's end when that is armed.
#[cfg(debug_assertions)]
pub fn after(point: &'static str) {
    if armed::strikes(point, Mode::CrashAfter) {
        std::process::abort();
    }
}

/// Whether the point is to be done once more.
#[cfg(debug_assertions)]
pub fn repeats(point: &'static str) -> bool {
    armed::strikes(point, Mode::Repeat)
}

/// Nothing in a release.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub const fn before(_: &'static str) -> io::Result<()> {
    Ok(())
}

/// Nothing in a release.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub const fn crashes(_: &'static str) {}

/// Nothing in a release.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub const fn after(_: &'static str) {}

/// Nothing in a release.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub const fn repeats(_: &'static str) -> bool {
    false
}

#[cfg(debug_assertions)]
mod armed {
    use std::{
        collections::HashSet,
        env, fs,
        io::Write as _,
        path::{Path, PathBuf},
        sync::{LazyLock, Mutex, PoisonError},
    };

    use super::{DIRECTORY, Mode, POINTS};

    static PLACE: LazyLock<Option<PathBuf>> = LazyLock::new(|| env::var_os(DIRECTORY).map(PathBuf::from));

    /// The points this process has reached; held while the count goes down.
    static REACHED: LazyLock<Mutex<HashSet<&'static str>>> = LazyLock::new(Mutex::default);

    pub(super) fn reached(point: &'static str) {
        debug_assert!(POINTS.iter().any(|known| known.name == point), "{point} is not in the list of points");
        let Some(place) = &*PLACE else { return };
        if REACHED.lock().unwrap_or_else(PoisonError::into_inner).insert(point) {
            let list = fs::OpenOptions::new().create(true).append(true).open(place.join("reached"));
            // A directory that is not there arms nothing.
            let _ = list.and_then(|mut list| list.write_all(format!("{point}\n").as_bytes()));
        }
    }

    pub(super) fn strikes(point: &str, mode: Mode) -> bool {
        let Some(place) = &*PLACE else { return false };
        let _alone = REACHED.lock().unwrap_or_else(PoisonError::into_inner);
        strikes_in(place, point, mode)
    }

    pub(super) fn strikes_in(place: &Path, point: &str, mode: Mode) -> bool {
        let file = place.join("armed");
        let Ok(text) = fs::read_to_string(&file) else { return false };
        let Some((left, armed_for)) = text.trim().rsplit_once(' ').and_then(|(rest, count)| {
            let (name, armed_mode) = rest.rsplit_once(' ')?;
            let is_ours = name == point && armed_mode.parse() == Ok(mode);
            Some((count.parse::<u32>().ok()?, is_ours))
        }) else {
            return false;
        };
        match (armed_for, left) {
            (false, _) => false,
            (true, 2..) => {
                // The test's own file in the test's own directory: nothing more than this is lost.
                let _ = fs::write(&file, format!("{point} {mode} {}\n", left - 1));
                false
            }
            (true, _) => fs::remove_file(&file).is_ok(),
        }
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_point_strikes_in_its_mode_at_its_count_and_once() {
        let directory = tempfile::tempdir().unwrap();
        let strikes = |point, mode| armed::strikes_in(directory.path(), point, mode);
        assert!(!strikes("lease.commit", Mode::Error));
        fs::write(directory.path().join("armed"), "lease.commit crash-after 2\n").unwrap();
        assert!(!strikes("lease.commit", Mode::CrashBefore));
        assert!(!strikes("spool.commit", Mode::CrashAfter));
        assert!(!strikes("lease.commit", Mode::CrashAfter), "the first of two");
        assert!(strikes("lease.commit", Mode::CrashAfter));
        assert!(!strikes("lease.commit", Mode::CrashAfter));
    }

    #[test]
    fn a_point_whose_name_has_spaces_strikes_too() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("armed"), "step.write image repeat 1\n").unwrap();
        assert!(armed::strikes_in(directory.path(), "step.write image", Mode::Repeat));
    }

    #[test]
    fn names_are_unique_and_modes_have_words() {
        for (at, point) in POINTS.iter().enumerate() {
            assert!(POINTS[..at].iter().all(|other| other.name != point.name), "{}", point.name);
        }
        for mode in Mode::ALL {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
    }
}
