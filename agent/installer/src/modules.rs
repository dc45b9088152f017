//! Kernel modules by the kernel's own hints: every device names itself by a `modalias`, and
//! depmod's tables say which module wants it and what that one needs first.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{errno::Errno, kmod::ModuleInitFlags};

/// What a module is needed for: those that nobody waits for are loaded when the machine is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Cards, disks, and all that is not known to be for something else.
    Connecting,
    /// It tells of the machine: memory errors, the TPM.
    Telling,
    /// The way to the machine's BMC. One that hangs holds up whoever loads its driver.
    Bmc,
}

impl Need {
    fn of(module: &str) -> Self {
        match module {
            _ if module.starts_with("ipmi_") => Self::Bmc,
            _ if module.starts_with("tpm") || module.ends_with("_edac") => Self::Telling,
            _ => Self::Connecting,
        }
    }
}

/// depmod's tables, and which modules have been loaded.
#[derive(Debug, Default)]
pub struct Modules {
    directory: PathBuf,
    /// Patterns with their modules, by the bus that a pattern begins with: most are of few.
    aliases: BTreeMap<String, Vec<(String, String)>>,
    /// Module: its file and those of what it needs, nearest first.
    files: BTreeMap<String, Vec<String>>,
    loaded: BTreeSet<String>,
}

impl Modules {
    /// The tables of the running kernel.
    pub fn of_running_kernel() -> io::Result<Self> {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let directory = Path::new("/lib/modules").join(release.trim());
        let read = |table| fs::read_to_string(directory.join(table));
        Ok(Self { directory: directory.clone(), ..Self::parse(&read("modules.alias")?, &read("modules.dep")?) })
    }

    /// The tables of these texts: depmod's `modules.alias` and `modules.dep`.
    pub fn parse(alias: &str, dep: &str) -> Self {
        let mut aliases: BTreeMap<String, Vec<_>> = BTreeMap::new();
        for line in alias.lines() {
            let mut words = line.strip_prefix("alias ").unwrap_or_default().split_whitespace();
            if let (Some(pattern), Some(module)) = (words.next(), words.next()) {
                aliases.entry(bus(pattern).to_owned()).or_default().push((pattern.to_owned(), module.to_owned()));
            }
        }
        let files = dep.lines().filter_map(|line| {
            let (file, needs) = line.split_once(':')?;
            let name = file.rsplit('/').next()?.split('.').next()?.replace('-', "_");
            Some((name, std::iter::once(file).chain(needs.split_whitespace()).map(str::to_owned).collect()))
        });
        Self { aliases, files: files.collect(), ..Self::default() }
    }

    /// The modules that want the device with this modalias.
    pub fn wanting(&self, modalias: &str) -> impl Iterator<Item = String> {
        let modalias = modalias.trim();
        let of_bus = self.aliases.get(bus(modalias)).into_iter().flatten();
        of_bus
            .filter(move |(pattern, _)| matches(pattern.as_bytes(), modalias.as_bytes()))
            .map(|(_, name)| name.clone())
    }

    /// Loads what the devices found want for connecting, again until no new device appears: a bus driver
    /// brings devices. Disks and cards may settle a little later; `ready` says when enough is
    /// there, and is asked until `patience` is over.
    pub fn load_for_devices(&mut self, patience: Duration, ready: impl Fn() -> bool) {
        let end = Instant::now() + patience;
        let mut seen = BTreeSet::new();
        loop {
            if self.load_fresh(Need::Connecting, &mut seen) == 0 {
                if ready() || Instant::now() > end {
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// Loads what devices want for this, until no new device appears.
    pub fn load_for(&mut self, need: Need) {
        let mut seen = BTreeSet::new();
        while self.load_fresh(need, &mut seen) > 0 {}
    }

    /// Loads what devices want that are not among those seen. How many were new.
    fn load_fresh(&mut self, need: Need, seen: &mut BTreeSet<String>) -> usize {
        let found = modaliases(Path::new("/sys/bus"));
        let fresh: Vec<_> = found.into_iter().filter(|modalias| seen.insert(modalias.clone())).collect();
        let wanted: Vec<_> = fresh.iter().flat_map(|modalias| self.wanting(modalias)).collect();
        for name in wanted.iter().filter(|name| Need::of(name) == need) {
            self.load(name);
            for (_, follower) in FOLLOWERS.iter().filter(|(first, _)| first == name) {
                self.load(follower);
            }
        }
        fresh.len()
    }

    /// Loads a module and what it needs. One that is not in the image or is built into the
    /// kernel is passed over; a failure is logged.
    pub fn load(&mut self, name: &str) {
        let Some(files) = self.files.get(name) else { return };
        for file in files.iter().rev() {
            if !self.loaded.insert(file.clone()) {
                continue;
            }
            let path = self.directory.join(file);
            let result = File::open(&path).map_err(|error| error.to_string()).and_then(|module| {
                nix::kmod::finit_module(&module, c"", ModuleInitFlags::empty()).map_err(|errno| errno.to_string())
            });
            match result {
                Ok(()) => tracing::debug!(file, "loaded"),
                Err(error) if error == Errno::EEXIST.to_string() => {}
                // Modules for instructions this processor does not have say so.
                Err(error) if error == Errno::ENODEV.to_string() => {}
                Err(error) => tracing::warn!(file, error, "module not loaded"),
            }
        }
    }
}

/// Modules that the first of each asks modprobe for, which is not here: no device names them.
const FOLLOWERS: [(&str, &str); 3] =
    [("mlx4_core", "mlx4_en"), ("ipmi_si", "ipmi_devintf"), ("ipmi_ssif", "ipmi_devintf")];

/// What the devices of all buses (`/sys/bus`) call themselves. All that is in `/sys/devices` besides has no
/// module of its own, and is ten times as much to look through.
fn modaliases(buses: &Path) -> BTreeSet<String> {
    let entries = |directory: PathBuf| fs::read_dir(directory).into_iter().flatten().flatten();
    let devices = entries(buses.to_owned()).flat_map(|bus| entries(bus.path().join("devices")));
    let told = devices.filter_map(|device| fs::read_to_string(device.path().join("modalias")).ok());
    told.filter(|text| !text.trim().is_empty()).collect()
}

/// The bus that a modalias, or a pattern for it, begins with.
fn bus(modalias: &str) -> &str {
    modalias.split_once(':').map_or("", |(bus, _)| bus)
}

/// Whether the shell pattern (`*`, `?` and `[a-z]`, as depmod writes them) matches.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on after the last star took one character more.
    let mut retry = None;
    loop {
        let step = match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, t));
                p += 1;
                continue;
            }
            None if t == text.len() => return true,
            Some(b'?') if t < text.len() => Some(1),
            Some(b'[') if t < text.len() => class(&pattern[p..], text[t]),
            Some(literal) if text.get(t) == Some(literal) => Some(1),
            _ => None,
        };
        match (step, retry) {
            (Some(width), _) => (p, t) = (p + width, t + 1),
            (None, Some((after, from))) if from < text.len() => {
                (p, t) = (after, from + 1);
                retry = Some((after, from + 1));
            }
            (None, _) => return false,
        }
    }
}

/// How long the class at the pattern's start is, when the byte is in it.
fn class(pattern: &[u8], byte: u8) -> Option<usize> {
    let end = pattern.iter().position(|byte| *byte == b']')?;
    let mut inside = &pattern[1..end];
    while let Some(first) = inside.first() {
        let (low, high, width) = match inside {
            [low, b'-', high, ..] => (*low, *high, 3),
            _ => (*first, *first, 1),
        };
        if (low..=high).contains(&byte) {
            return Some(end + 1);
        }
        inside = &inside[width..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_the_kernels_tools_do() {
        for (pattern, text, expected) in [
            ("virtio:d00000001v*", "virtio:d00000001v00001AF4", true),
            ("virtio:d00000001v*", "virtio:d00000002v00001AF4", false),
            ("pci:v00001AF4d*sv*sd*bc*sc*i*", "pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00", true),
            ("pci:v*d*sv*sd*bc01sc08i02*", "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02", true),
            ("cpu:type:x86,*feature:*0094*", "cpu:type:x86,ven0000fam0006mod0006:feature:,0000,0094,00AA", true),
            ("a[0-9b]c", "abc", true),
            ("a[0-9b]c", "adc", false),
            ("a?c", "ac", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn devices_are_found_by_their_buses() {
        let directory = tempfile::tempdir().unwrap();
        let buses = directory.path().join("bus");
        let device = directory.path().join("devices/pci0000:00/0000:00:03.0");
        fs::create_dir_all(&device).unwrap();
        fs::write(device.join("modalias"), "pci:v00001AF4d00001041\n").unwrap();
        fs::create_dir_all(buses.join("pci/devices")).unwrap();
        std::os::unix::fs::symlink(&device, buses.join("pci/devices/0000:00:03.0")).unwrap();
        fs::create_dir_all(buses.join("acpi/devices/silent")).unwrap();
        fs::create_dir_all(buses.join("empty")).unwrap();
        assert_eq!(modaliases(&buses), ["pci:v00001AF4d00001041\n".to_owned()].into());
        assert_eq!(modaliases(&directory.path().join("nowhere")), BTreeSet::new());
    }

    #[test]
    fn what_may_hang_or_only_tells_is_not_waited_for() {
        for (module, need) in [
            ("ipmi_si", Need::Bmc),
            ("ipmi_ssif", Need::Bmc),
            ("skx_edac", Need::Telling),
            ("tpm_tis", Need::Telling),
            ("virtio_net", Need::Connecting),
            ("iTCO_wdt", Need::Connecting),
        ] {
            assert_eq!(Need::of(module), need, "{module}");
        }
    }

    #[test]
    fn a_module_is_found_with_what_it_needs() {
        let modules = Modules::parse(
            "# comment\nalias virtio:d00000001v* virtio_net\n",
            "kernel/drivers/net/virtio_net.ko: kernel/drivers/net/net_failover.ko kernel/net/core/failover.ko\n\
             kernel/drivers/char/hw_random/virtio-rng.ko:\n",
        );
        assert_eq!(modules.wanting("virtio:d00000001v00001AF4\n").collect::<Vec<_>>(), ["virtio_net"]);
        assert_eq!(modules.files["virtio_net"].last().unwrap(), "kernel/net/core/failover.ko");
        assert!(modules.files.contains_key("virtio_rng"));
    }
}
